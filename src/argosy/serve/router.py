"""Which version gets a request: a random draw with a known share, before anything but the key is looked at.

Pure: what is ready comes in as a set, chance as numbers. The judge's promise rests on this module (JUDGE section 1).
"""

import hashlib
from collections.abc import Container

import msgspec

from argosy.serve.control import EndpointRoute

STABLE, CANARY, UNCOUNTED = "stable", "canary", ""
"""Who a request was drawn for; UNCOUNTED when there was no draw whose outcome the judge may use."""


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """A route as it can be followed now. It changes only when the route does, or when a version gets or loses its
    last ready replica; never because of a request.
    """

    serving: str
    """Digest that gets what is not drawn for the canary."""
    serving_ref: str
    is_held: bool
    """Nothing is ready: requests wait for a replica until their deadline."""
    canary: str
    """Digest of the canary, if there is one that callers of stable can be answered by."""
    canary_ref: str
    is_canary_ready: bool
    share: float
    """Probability that a request is drawn for the canary, ready or not."""
    mirror: float
    is_counted: bool
    """Whether the judge may use what happens: a rollout, with its own stable version serving."""
    sticky: str
    """The rollout, when callers are drawn instead of requests."""
    note: str


class Choice(msgspec.Struct, frozen=True):
    """Where one request goes."""

    digest: str
    ref: str
    arm: str
    mirror: str
    """Digest that gets a copy; empty for none."""


def resolve(
    route: EndpointRoute,
    ready: Container[str],
    previous: tuple[str, str],
    fits: Container[str] | None = None,
    *,
    is_settling: bool = False,
    failing: str = "",
) -> Plan:
    """Return how to follow `route` while the versions in `ready` have a replica.

    `previous` is digest and name of the stable version before, which serves until the new one is ready. `fits` holds
    the versions that take the same inputs as the serving one; a canary outside of it gets nothing. `is_settling`: the
    gateway has just been restarted and replicas are still finding it, so that stable is not ready yet says nothing
    about it: its requests wait, rather than be answered by whichever version was back first. `failing`: why the stable
    version is to answer only if nothing else can, though it is ready.
    """
    if is_settling and route.stable not in ready:
        return Plan(
            serving=route.stable,
            serving_ref=route.stable_ref,
            is_held=True,
            canary="",
            canary_ref="",
            is_canary_ready=False,
            share=0.0,
            mirror=0.0,
            is_counted=False,
            sticky="",
            note=f"the gateway has just started; requests wait for {route.stable_ref}",
        )
    candidates = [
        (route.stable, route.stable_ref),
        previous,
        (route.backup, route.backup_ref or "the backup"),
        (route.canary, route.canary_ref),
    ]
    if failing:
        candidates = [*(c for c in candidates if c[0] != route.stable), candidates[0]]
    serving, ref = next(((d, name) for d, name in candidates if d and d in ready), (route.stable, route.stable_ref))
    held = serving not in ready
    notes = []
    if failing:
        notes.append(f"{route.stable_ref} fails: {failing}")
    if held and route.is_on_demand:
        notes.append(f"no replica of {route.stable_ref} runs; the next request starts one")
    elif held:
        notes.append(f"{route.stable_ref} has no ready replica, and nothing else has; requests wait for one")
    elif serving != route.stable:
        missing = [] if failing else [f"{route.stable_ref} has no ready replica"]
        notes.append("; ".join([*missing, f"{ref} answers"]))
    usable = bool(route.canary)
    canary_ready = route.canary in ready
    if usable and canary_ready and fits is not None and route.canary not in fits:
        usable = False
        notes.append(f"{route.canary_ref} takes other inputs than {route.stable_ref}, so it gets no requests")
    elif usable and not canary_ready and (route.share or route.mirror):
        notes.append(f"{route.canary_ref} has no ready replica; its share goes to {ref}")
    return Plan(
        serving=serving,
        serving_ref=ref,
        is_held=held,
        canary=route.canary if usable else "",
        canary_ref=route.canary_ref if usable else "",
        is_canary_ready=usable and canary_ready,
        share=route.share if usable else 0.0,
        mirror=route.mirror if usable else 0.0,
        is_counted=bool(route.rollout) and serving == route.stable,
        sticky=route.rollout if route.sticky else "",
        note="; ".join(notes),
    )


def choose(plan: Plan, number: float, mirror_number: float, caller: str) -> Choice:
    """Return where a request goes; `number` and `mirror_number` are uniform in [0, 1).

    With sticky routing a named caller always falls on the same side while the share grows; requests without a name are
    drawn one by one.

    The draw does not depend on whether the canary is ready: if it stopped while a canary that has just failed is away,
    windows would tend to end with the canary's failure, and the judge's average inside a window would be biased against
    it. What is drawn for an absent canary goes to the serving version and is not counted, which errs in its favour.
    """
    if not plan.canary:
        return Choice(plan.serving, plan.serving_ref, STABLE if plan.is_counted else UNCOUNTED, "")
    if plan.sticky and caller:
        number = position(plan.sticky, caller)
    is_canary = number < plan.share
    copy = mirror_number < plan.mirror
    arm = (CANARY if is_canary else STABLE) if plan.is_counted else UNCOUNTED
    if is_canary and not plan.is_canary_ready:
        return Choice(plan.serving, plan.serving_ref, UNCOUNTED, "")
    copy = copy and plan.is_canary_ready
    if is_canary:
        return Choice(plan.canary, plan.canary_ref, arm, plan.serving if copy else "")
    return Choice(plan.serving, plan.serving_ref, arm, plan.canary if copy else "")


def position(rollout: str, caller: str) -> float:
    """Return where a caller stands in [0, 1) for one rollout: below the share means canary.

    Uniform over callers, independent between rollouts, and fixed, so that a growing share only adds callers.
    """
    digest = hashlib.blake2b(caller.encode(), key=hashlib.blake2b(rollout.encode()).digest(), digest_size=8).digest()
    # 53 bits are what a float holds; with more, the quotient could be rounded up to 1.
    return (int.from_bytes(digest, "big") >> 11) / 2**53
