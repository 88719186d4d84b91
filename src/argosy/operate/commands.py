"""What an operator can ask for. Each command checks, and writes one entry of desired state; it starts nothing.

Check and entry are one transaction: what was checked still holds at the entry's place in the log, whoever else writes.
Every command may be repeated: asked again for what is already so, it says so and writes nothing.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from argosy.core.clock import Clock, SystemClock
from argosy.core.errors import Conflict, InvalidInput, NotFound
from argosy.core.tensors import Signature
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig, RolloutConfig, to_plain
from argosy.operate.desired import Desired, Endpoint, Rollout, Target
from argosy.operate.gates import refuse_failed_gates
from argosy.operate.gateway_settings import GatewaySettings
from argosy.operate.metric_files import refuse_unfiled
from argosy.operate.transactions import Accepted, AsWanted, RegistryLike, VersionsLike, transact
from argosy.registry.versions import Version, check_name
from argosy.security.certificates import check_files


def deploy(
    registry: RegistryLike,
    ref: str,
    *,
    name: str = "",
    endpoint: EndpointConfig | None = None,
    rollout: RolloutConfig | None = None,
) -> Accepted:
    """Ask that endpoint `name` (default: the version's name) serves version `ref`.

    With `rollout`, an endpoint that serves already changes by canary steps; without, it switches when the new version
    is ready. Raises NotFound (no such version), Denied (it missed a gate), Conflict (a rollout is under way),
    InvalidInput (impossible values, or callers of the endpoint would break).
    """
    version = registry.versions.get(ref)
    name = name or version.name
    check_name(name)
    refuse_failed_gates(version)
    if rollout is not None:
        rollout.check()
        refuse_unfiled(rollout)
    to = Target(version.digest, str(version))
    settled: list[EndpointConfig] = []

    def check(state: Desired) -> None:
        known = state.endpoints.get(name)
        config = endpoint or (known.config if known else EndpointConfig())
        config.check()
        settled[:] = [config]
        if known is None:
            return
        _refuse_during_rollout(known, f"version '{to.ref}' cannot be deployed to it now")
        if known.stable is None:
            return
        if known.stable.digest != to.digest:
            former = registry.versions.get(known.stable.digest)
            _refuse_other_signature(known, version, former.manifest.signature)
        elif known.is_active and known.config == config:
            raise AsWanted(
                Accepted(endpoint=name, is_changed=False, summary=f"endpoint '{name}' serves '{to.ref}' already")
            )

    def data(state: Desired) -> dict[str, Any]:
        del state
        sibling = sibling_of(registry.versions, version) if settled[0].backup == "sibling" else None
        return {
            "action": "deploy",
            "version": {"digest": to.digest, "ref": to.ref},
            "endpoint": to_plain(settled[0]),
            "rollout": to_plain(rollout) if rollout is not None else None,
        } | ({"sibling": {"digest": sibling.digest, "ref": str(sibling)}} if sibling is not None else {})

    def answer(state: Desired, seq: int) -> Accepted:
        found = state.endpoints[name]
        new = found.rollout
        return Accepted(
            endpoint=name,
            is_changed=True,
            summary=_deploy_summary(found, to),
            rollout=new.id if new else "",
            undo=f"argosy rollback {name}" if new and new.base else f"argosy endpoints remove {name}",
            entry=seq,
        )

    return transact(registry.log, (d.ENDPOINT, name), check, data, answer)


def sibling_of(versions: VersionsLike, version: Version) -> Version | None:
    """Return the smallest other version of the same training that passed its gates and answers the same callers."""

    def family(member: Version) -> str:
        return member.manifest.lineage.parent or member.digest

    mine = version.manifest.signature
    found = [
        other
        for other in versions.list(version.name)
        if other.digest != version.digest
        and family(other) == family(version)
        and other.manifest.evaluation.passed
        and (other.manifest.signature.inputs, other.manifest.signature.outputs) == (mine.inputs, mine.outputs)
    ]
    return min(found, key=lambda other: other.manifest.size_bytes, default=None)


def rollback(registry: RegistryLike, name: str, *, reason: str = "") -> Accepted:
    """Ask that the endpoint returns: a rollout under way is ended; else the former version takes over, at once.

    Asked again it does nothing. Raises NotFound (no such endpoint) and Conflict (there is no former version).
    """

    def check(state: Desired) -> None:
        endpoint = _known(state, name)
        rollout = endpoint.rollout
        if rollout is not None:
            if rollout.kind == d.UNDO or rollout.phase == d.ROLLING_BACK or rollout.rollback_asked:
                raise AsWanted(_unchanged(endpoint, "is being rolled back already", rollout.id))
            return
        last = endpoint.last
        if last is not None and (last.outcome != d.PROMOTED or last.kind == d.UNDO):
            what = "was left as it was" if last.outcome == d.LEFT else "was rolled back already"
            raise AsWanted(_unchanged(endpoint, f"{what}{_serves(endpoint)}", last.rollout))
        if endpoint.backup is None:
            raise Conflict(
                f"endpoint '{name}' has no former version to return to{_serves(endpoint)}",
                hint=f"choose a version yourself: argosy deploy <name:number> --name {name}",
                code="no_former_version",
            )
        if not endpoint.is_active:
            raise Conflict(
                f"endpoint '{name}' is stopped", hint=f"deploy it first: argosy deploy {endpoint.backup} --name {name}"
            )

    def data(state: Desired) -> dict[str, Any]:
        rollout = state.endpoints[name].rollout
        return {"action": "rollback", "rollout": rollout.id if rollout else "", "reason": reason}

    def answer(state: Desired, seq: int) -> Accepted:
        endpoint = state.endpoints[name]
        rollout = endpoint.rollout
        summary = f"endpoint '{name}' returns"
        if rollout:
            stays = rollout.to if rollout.kind == d.UNDO else rollout.base
            summary = f"endpoint '{name}' {'returns to' if rollout.kind == d.UNDO else 'stays with'} '{stays}'"
        return Accepted(
            endpoint=name, is_changed=True, summary=summary, rollout=rollout.id if rollout else "", entry=seq
        )

    return transact(registry.log, (d.ENDPOINT, name), check, data, answer)


def promote(registry: RegistryLike, name: str) -> Accepted:
    """Ask that the rollout under way is promoted now, whatever the evidence; a paused one goes on with that.

    In a rollout whose replicas still start it skips the canary: the switch comes as soon as they are ready. Raises
    NotFound and Conflict.
    """

    def check(state: Desired) -> None:
        endpoint = _known(state, name)
        rollout = endpoint.rollout
        if rollout is None or rollout.rollback_asked or rollout.phase in (d.ROLLING_BACK, d.LEAVING):
            is_ending = f" any more: it is {_in_words(rollout)}" if rollout else ""
            raise Conflict(
                f"endpoint '{name}' has no rollout to promote{is_ending}{_serves(endpoint)}",
                hint=f"start one with: argosy deploy <name:number> --name {name}",
                code="no_rollout",
            )
        is_on_its_way = rollout.kind in (d.FIRST, d.UNDO) or rollout.phase == d.PROMOTING
        if not rollout.paused and (rollout.promote_asked or is_on_its_way):
            raise AsWanted(_unchanged(endpoint, f"is being promoted to '{rollout.to}' already", rollout.id))

    def summary(endpoint: Endpoint, rollout: Rollout) -> str:
        when = " as soon as it is ready" if rollout.phase in (d.PENDING, d.WARMING) else ""
        return f"endpoint '{endpoint.name}' goes over to '{rollout.to}'{when}"

    return _of_rollout(registry, name, "promote", check, summary)


def abort(registry: RegistryLike, name: str) -> Accepted:
    """Ask that the rollout under way ends and the endpoint stays with what it serves; a return by hand ends too.

    Unlike `rollback` it never touches a rollout that has ended. Raises NotFound and Conflict.
    """

    def check(state: Desired) -> None:
        endpoint = _known(state, name)
        rollout = endpoint.rollout
        if rollout is None:
            raise Conflict(
                f"endpoint '{name}' has no rollout to abort{_serves(endpoint)}",
                hint=f"to put the former version back: argosy rollback {name}",
                code="no_rollout",
            )
        if rollout.rollback_asked or rollout.phase == d.ROLLING_BACK:
            raise AsWanted(_unchanged(endpoint, "is being rolled back already", rollout.id))

    def summary(endpoint: Endpoint, rollout: Rollout) -> str:
        stays = f"stays with '{rollout.base}'" if rollout.base else f"will not serve '{rollout.to}'"
        return f"endpoint '{endpoint.name}' {stays}"

    return _of_rollout(registry, name, "abort", check, summary)


def pause(registry: RegistryLike, name: str) -> Accepted:
    """Ask that the rollout under way stays where it is: same share, no step, no promotion, and its time limits stand.

    Evidence goes on being counted, and the judge may still roll back. Raises NotFound and Conflict.
    """

    def check(state: Desired) -> None:
        endpoint = _known(state, name)
        rollout = endpoint.rollout
        if rollout is None or rollout.kind in (d.FIRST, d.UNDO) or rollout.rollback_asked or _is_going(rollout):
            why = f" that can be paused: it is {_in_words(rollout)}" if rollout else " to pause"
            raise Conflict(f"endpoint '{name}' has no rollout{why}{_serves(endpoint)}", code="no_rollout")
        if rollout.paused:
            raise AsWanted(_unchanged(endpoint, f"was paused by {rollout.paused_by} already", rollout.id))

    def summary(endpoint: Endpoint, rollout: Rollout) -> str:
        share = f", with {100 * rollout.share:g} % of the requests for '{rollout.to}'" if rollout.share else ""
        return f"the rollout of endpoint '{endpoint.name}' is paused ({_in_words(rollout)}{share})"

    return _of_rollout(registry, name, "pause", check, summary, undo=f"argosy resume {name}")


def resume(registry: RegistryLike, name: str) -> Accepted:
    """Ask that a paused rollout goes on; the time it was paused does not count. Raises NotFound and Conflict."""

    def check(state: Desired) -> None:
        endpoint = _known(state, name)
        rollout = endpoint.rollout
        if rollout is None:
            raise Conflict(f"endpoint '{name}' has no rollout to resume{_serves(endpoint)}", code="no_rollout")
        if not rollout.paused:
            raise AsWanted(_unchanged(endpoint, f"is not paused; its rollout is {_in_words(rollout)}", rollout.id))

    def summary(endpoint: Endpoint, rollout: Rollout) -> str:
        return f"the rollout of endpoint '{endpoint.name}' to '{rollout.to}' goes on ({_in_words(rollout)})"

    return _of_rollout(registry, name, "resume", check, summary, undo=f"argosy pause {name}")


def _of_rollout(
    registry: RegistryLike,
    name: str,
    action: str,
    check: Callable[[Desired], None],
    summary: Callable[[Endpoint, Rollout], str],
    *,
    undo: str = "",
) -> Accepted:
    """Write a wish about the rollout that is under way."""

    def data(state: Desired) -> dict[str, Any]:
        rollout = state.endpoints[name].rollout
        return {"action": action, "rollout": rollout.id if rollout else ""}

    def answer(state: Desired, seq: int) -> Accepted:
        endpoint = state.endpoints[name]
        rollout = endpoint.rollout
        assert rollout is not None, "the check saw one, and the entry is the next"
        takes_back = undo or (f"argosy rollback {name}" if action == "promote" else "")
        return Accepted(
            endpoint=name,
            is_changed=True,
            summary=summary(endpoint, rollout),
            rollout=rollout.id,
            undo=takes_back,
            entry=seq,
        )

    return transact(registry.log, (d.ENDPOINT, name), check, data, answer)


def _is_going(rollout: Rollout) -> bool:
    return rollout.phase in (d.ROLLING_BACK, d.LEAVING)


def _in_words(rollout: Rollout) -> str:
    return "rolling back" if rollout.rollback_asked else rollout.phase.replace("_", " ")


def remove(registry: RegistryLike, name: str) -> Accepted:
    """Ask that the endpoint is gone: unrouted, its replicas stopped. Its versions stay. Raises NotFound."""

    def check(state: Desired) -> None:
        _known(state, name)

    def answer(state: Desired, seq: int) -> Accepted:
        del state
        return Accepted(endpoint=name, is_changed=True, summary=f"endpoint '{name}' is being removed", entry=seq)

    return transact(registry.log, (d.ENDPOINT, name), check, lambda _: {"action": "remove"}, answer)


def stop_all(registry: RegistryLike) -> Accepted:
    """Ask that nothing runs: rollouts end where they are, endpoints stay known and come back when deployed again."""

    def check(state: Desired) -> None:
        if not state.is_running:
            raise AsWanted(Accepted(endpoint="", is_changed=False, summary="nothing is running"))

    def answer(state: Desired, seq: int) -> Accepted:
        return Accepted(endpoint="", is_changed=True, summary=f"stopping {_listed(state) or 'the gateway'}", entry=seq)

    return transact(registry.log, (d.GATEWAY, "gateway"), check, lambda _: {"running": False}, answer)


def bring_back(registry: RegistryLike) -> Accepted:
    """Ask that every endpoint that `stop_all` stopped serves again what it served. Asked again it does nothing."""

    def check(state: Desired) -> None:
        if state.is_running and all(endpoint.is_active for endpoint in state.endpoints.values()):
            known = _listed(state)
            raise AsWanted(
                Accepted(endpoint="", is_changed=False, summary=f"wanted: {known}" if known else "nothing is deployed")
            )
        if not state.endpoints:
            raise AsWanted(Accepted(endpoint="", is_changed=False, summary="nothing is deployed"))

    def data(state: Desired) -> dict[str, Any]:
        return {"running": True, "resume": True, **state.gateway.plain()}

    def answer(state: Desired, seq: int) -> Accepted:
        return Accepted(
            endpoint="", is_changed=True, summary=f"bringing back {_listed(state)}", undo="argosy down", entry=seq
        )

    return transact(registry.log, (d.GATEWAY, "gateway"), check, data, answer)


def set_gateway(
    registry: RegistryLike,
    *,
    host: str | None = None,
    port: int | None = None,
    grpc_port: int | None = None,
    tls: tuple[str, str] | None = None,
    hosts: Sequence[str] | None = None,
    fronts: int | None = None,
    is_wanted: bool = True,
    clock: Clock | None = None,
) -> Accepted:
    """Change how the gateway is reached; what is not given stays as it is. Port 0 takes a free one and keeps it.

    `grpc_port` -1: no gRPC. `tls`: absolute paths of certificate and private key; two empty ones turn TLS off.
    `is_wanted` False leaves a stopped gateway stopped. Raises InvalidInput: impossible values, files that don't fit,
    or an address that others can reach without TLS and access control.
    """
    # Late, because it takes megabytes along, and the controller, which reads this module too, never needs it.
    from argosy.serve.tls import make_context

    given = {"host": host, "port": port, "grpc_port": grpc_port, "hosts": None if hosts is None else tuple(hosts)}
    given["fronts"] = fronts
    given |= {"tls_cert": tls[0], "tls_key": tls[1]} if tls is not None else {}
    changes = {name: value for name, value in given.items() if value is not None}
    settled: list[GatewaySettings] = []

    def check(state: Desired) -> None:
        kept = {"port": state.bound_port} if "host" in changes and "port" not in changes and state.bound_port else {}
        wanted = msgspec.structs.replace(state.gateway, **(kept | changes))
        if wanted == state.gateway and (state.is_running or not is_wanted):
            raise AsWanted(
                Accepted(endpoint="", is_changed=False, summary=f"the gateway listens on {wanted.address} already")
            )
        wanted.check(is_guarded=state.access.is_on)
        if wanted.has_tls:
            check_files(Path(wanted.tls_cert), Path(wanted.tls_key), wanted.names, (clock or SystemClock()).now())
            make_context(Path(wanted.tls_cert), Path(wanted.tls_key))
        settled[:] = [wanted]

    def data(state: Desired) -> dict[str, Any]:
        del state
        return {"running": True if is_wanted else None, **settled[0].plain()}

    def answer(state: Desired, seq: int) -> Accepted:
        summary = f"the gateway will listen on {state.gateway.address}"
        return Accepted(endpoint="", is_changed=True, summary=summary, entry=seq)

    return transact(registry.log, (d.GATEWAY, "gateway"), check, data, answer)


def _known(state: Desired, name: str) -> Endpoint:
    endpoint = state.endpoints.get(name)
    if endpoint is None:
        raise NotFound(
            f"no endpoint is called '{name}'; known are: {_listed(state) or 'none'}",
            hint=f"make it with: argosy deploy <name:number> --name {name}",
            known=sorted(state.endpoints),
        )
    return endpoint


def _listed(state: Desired) -> str:
    return ", ".join(f"'{name}'" for name in sorted(state.endpoints))


def _refuse_during_rollout(endpoint: Endpoint, asked: str) -> None:
    rollout = endpoint.rollout
    if rollout is not None:
        raise Conflict(
            f"endpoint '{endpoint.name}' is in a rollout {_from_to(rollout)} ({rollout.phase}); {asked}",
            hint=f"follow it: argosy watch {endpoint.name}; or end it first: argosy rollback {endpoint.name}",
            code="rollout_running",
            rollout=rollout.id,
        )


def _refuse_other_signature(endpoint: Endpoint, version: Version, former: Signature) -> None:
    new = version.manifest.signature
    for what, asked, found in (("inputs", new.inputs, former.inputs), ("outputs", new.outputs, former.outputs)):
        if asked != found:
            raise InvalidInput(
                f"version '{version}' has other {what} than '{endpoint.stable}', which endpoint '{endpoint.name}' "
                f"serves: {_shapes(asked)} instead of {_shapes(found)}; its callers would break",
                hint=f"deploy it under another name: argosy deploy {version} --name <other>",
                code="other_signature",
            )


def _shapes(specs: tuple[Any, ...]) -> str:
    return ", ".join(f"{spec.name} {spec.datatype} {list(spec.shape)}" for spec in specs)


def _deploy_summary(endpoint: Endpoint, to: Target) -> str:
    rollout = endpoint.rollout
    if rollout is None:
        return f"endpoint '{endpoint.name}' goes on with '{to.ref}'"
    if rollout.kind == d.FIRST:
        return f"endpoint '{endpoint.name}' will serve '{to.ref}' as soon as it is ready"
    if rollout.kind == d.SWITCH:
        return f"endpoint '{endpoint.name}' switches {_from_to(rollout)} as soon as it is ready"
    config = rollout.config
    if rollout.kind == d.SHADOW_ONLY:
        then = "is promoted if they are good" if config.after_shadow == "promote" else "gets no request itself"
        return f"endpoint '{endpoint.name}' copies {config.mirror:g} % of its requests to '{to.ref}', which {then}"
    if rollout.kind == d.BLUE_GREEN:
        return (
            f"endpoint '{endpoint.name}' switches {_from_to(rollout)} when all replicas are ready, but for "
            f"{config.held_back:g} % of the requests for {config.keep}"
        )
    steps = ", ".join(f"{step:g}" for step in config.steps)
    return f"endpoint '{endpoint.name}' goes {_from_to(rollout)} by steps of {steps} % of the requests"


def _from_to(rollout: Rollout) -> str:
    return f"from '{rollout.base}' to '{rollout.to}'" if rollout.base else f"to '{rollout.to}'"


def _serves(endpoint: Endpoint) -> str:
    return f"; it serves '{endpoint.stable}'" if endpoint.stable else ""


def _unchanged(endpoint: Endpoint, what: str, rollout: str) -> Accepted:
    return Accepted(
        endpoint=endpoint.name, is_changed=False, summary=f"endpoint '{endpoint.name}' {what}", rollout=rollout
    )
