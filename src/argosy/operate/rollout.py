"""How a rollout moves: a pure function over one table. `docs/decisions/0004-controller.md` shows the same table.

Rows are tried from top to bottom, the first whose condition holds is taken; none: wait. From every phase some row
leads to an end within bounded time, whatever happens, unless the user asked to be asked.
"""

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from argosy.core.units import format_time
from argosy.operate import desired as d
from argosy.operate.config import RolloutConfig

READY_LIMIT_S = 300.0
"""How long the replicas of a new version may take until they are ready: a large model on a slow disk needs minutes."""
UNROUTE_LIMIT_S = 60.0
"""How long a rollback waits for the gateway to confirm that nothing is routed to the new version."""


class State(msgspec.Struct, frozen=True, kw_only=True):
    """Where a rollout stands, as the log says."""

    kind: str
    phase: str
    step: int
    config: RolloutConfig

    @property
    def is_last_step(self) -> bool:
        """Whether no step of canary follows."""
        return self.step >= len(self.config.shares) - 1


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What is observed of a rollout now."""

    gate_missed: str = ""
    """What the new version's evaluation failed; empty when it passed."""
    new_is_ready: bool = False
    """Whether the new version has as many ready replicas as its next move needs."""
    new_is_named: bool = False
    """Whether the gateway's route names the new version, at least to stand in, or there is no route yet."""
    base_is_ready: bool = False
    """Whether the current version has a ready replica to compare with."""
    base_failed: str = ""
    """Why replicas of the current version can't start."""
    new_failed: str = ""
    """Why replicas of the new version can't start; empty while they may."""
    verdict: str = ""
    """promote | wait | rollback, empty while there is no evidence."""
    verdict_reason: str = ""
    held: str = ""
    """Which metric of its own can't be read, and why: nothing is promoted then."""
    pairs: int = 0
    """Requests that both versions have answered."""
    is_paused: bool = False
    rollback_asked: str = ""
    promote_asked: str = ""
    is_unrouted: bool = False
    """Whether the gateway has confirmed routes without the new version."""
    phase_s: float = 0.0
    """Seconds in this phase and step, without those that it was paused."""
    canary_s: float = 0.0
    """Seconds since the first step, without those that it was paused."""


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """What to do: `phase` and `step` are where the rollout stands from now on. `moved` is False for waiting."""

    phase: str
    step: int
    moved: bool
    reason: str
    requeue_s: float


Condition = Callable[[State, Facts], bool]


class Row(NamedTuple):
    """One line of the table."""

    phase: str
    when: str
    holds: Condition
    to: str
    reason: Callable[[State, Facts], str]
    next_step: bool = False


def _rollback_asked(_: State, facts: Facts) -> bool:
    return bool(facts.rollback_asked)


def _cannot_start(_: State, facts: Facts) -> bool:
    return bool(facts.new_failed)


def _is_late(_: State, facts: Facts) -> bool:
    return facts.phase_s > READY_LIMIT_S


def _dwelt(state: State, facts: Facts) -> bool:
    return facts.phase_s >= state.config.dwell_s


def _time_is_over(state: State, facts: Facts) -> bool:
    return facts.canary_s >= state.config.time_limit_s


def _by_hand(_: State, facts: Facts) -> str:
    return facts.rollback_asked


def _start_failure(_: State, facts: Facts) -> str:
    return f"its replicas cannot start: {facts.new_failed}"


def _not_ready(_: State, facts: Facts) -> str:
    if facts.new_is_ready:
        return f"the current version had no ready replica to compare it with for {format_time(READY_LIMIT_S)}"
    return f"its replicas were not ready within {format_time(READY_LIMIT_S)}"


def _undecided(state: State, _: Facts) -> str:
    return f"undecided after the time limit of {format_time(state.config.time_limit_s)}"


def _verdict(_: State, facts: Facts) -> str:
    return facts.verdict_reason


def _share(state: State, _: Facts) -> str:
    step = state.step + 1 if state.phase == d.CANARY else 0
    return f"{100 * state.config.shares[step]:g} % of the requests"


def _promotion_asked(_: State, facts: Facts) -> bool:
    return bool(facts.promote_asked)


def _asked_to_promote(_: State, facts: Facts) -> str:
    return facts.promote_asked


def _says_rollback(_: State, facts: Facts) -> bool:
    return facts.verdict == "rollback"


def _is_shadowed(state: State, facts: Facts) -> bool:
    return facts.phase_s >= state.config.shadow_s and facts.pairs >= state.config.shadow_pairs


def _is_judged_in_shadow(state: State, facts: Facts) -> bool:
    return state.kind == d.SHADOW_ONLY and _is_shadowed(state, facts) and facts.verdict == "promote"


def _shadow_is_over(state: State, facts: Facts) -> bool:
    return facts.phase_s >= state.config.time_limit_s


def _both_ready(_: State, facts: Facts) -> bool:
    return facts.new_is_ready and facts.base_is_ready


def _copies(state: State, _: Facts) -> str:
    return f"copies of {state.config.mirror:g} % of the requests"


def _good_in_shadow(_: State, facts: Facts) -> str:
    return f"judged by {facts.pairs} mirrored requests: {facts.verdict_reason}"


def _undecided_in_shadow(state: State, facts: Facts) -> str:
    after = f"undecided after {format_time(state.config.time_limit_s)} of shadow and {facts.pairs} mirrored requests"
    if facts.pairs < state.config.shadow_pairs:
        after += f", of {state.config.shadow_pairs} that were asked for"
    return f"{after}; the endpoint stays with the version it had"


def _undecided_or_held(state: State, facts: Facts) -> str:
    why = f", because {facts.held}" if facts.held else ""
    return f"{_undecided(state, facts)}{why}; the endpoint stays with the version it had"


def _ends_undecided(state: State, facts: Facts) -> bool:
    undecided = state.config.undecided
    return _time_is_over(state, facts) and (undecided == "rollback" or (undecided == "promote" and bool(facts.held)))


def _kept(state: State, facts: Facts) -> bool:
    return facts.phase_s >= state.config.keep_s and not facts.held


def _stood(state: State, facts: Facts) -> str:
    watched = f"watched for {format_time(state.config.keep_s)} after the switch"
    if facts.verdict == "promote":
        return f"{watched}: {facts.verdict_reason}"
    return f"{watched}, and the judge found nothing against it ({facts.verdict_reason or 'nothing was counted'})"


TABLE: tuple[Row, ...] = (
    Row(d.PENDING, "rollback asked by hand", _rollback_asked, d.ROLLING_BACK, _by_hand),
    Row(
        d.PENDING,
        "the version missed a gate",
        lambda _, f: bool(f.gate_missed),
        d.ROLLING_BACK,
        lambda _, f: f.gate_missed,
    ),
    Row(d.PENDING, "otherwise", lambda _, __: True, d.WARMING, lambda _, __: "starting its replicas"),
    Row(d.WARMING, "rollback asked by hand", _rollback_asked, d.ROLLING_BACK, _by_hand),
    Row(d.WARMING, "its replicas cannot start", _cannot_start, d.ROLLING_BACK, _start_failure),
    Row(
        d.WARMING,
        "ready, and promotion asked by hand",
        lambda _, f: f.new_is_ready and bool(f.promote_asked),
        d.PROMOTING,
        _asked_to_promote,
    ),
    Row(
        d.WARMING,
        "ready, in shadow at first or only, and the current version is ready too",
        lambda s, f: s.config.has_shadow and s.kind in (d.STEPWISE, d.SHADOW_ONLY) and _both_ready(s, f),
        d.SHADOW,
        _copies,
    ),
    Row(
        d.WARMING,
        "ready, by steps, and the current version is ready too",
        lambda s, f: s.kind == d.STEPWISE and not s.config.has_shadow and _both_ready(s, f),
        d.CANARY,
        _share,
    ),
    Row(
        d.WARMING,
        "ready, blue/green, and the current version is ready too",
        lambda s, f: s.kind == d.BLUE_GREEN and _both_ready(s, f),
        d.SWITCHED,
        _share,
    ),
    Row(
        d.WARMING,
        "ready, and judged by nothing",
        lambda s, f: s.kind in (d.FIRST, d.SWITCH, d.UNDO) and f.new_is_ready,
        d.PROMOTING,
        lambda _, __: "its replicas are ready",
    ),
    Row(
        d.WARMING,
        "ready, to be promoted, and the current version cannot start",
        lambda s, f: s.kind != d.SHADOW_ONLY and f.new_is_ready and bool(f.base_failed),
        d.PROMOTING,
        lambda _, f: f"the current version cannot start, so there is nothing to compare with: {f.base_failed}",
    ),
    Row(d.WARMING, "not ready in time", _is_late, d.ROLLING_BACK, _not_ready),
    Row(d.SHADOW, "rollback asked by hand", _rollback_asked, d.ROLLING_BACK, _by_hand),
    Row(d.SHADOW, "its replicas cannot start", _cannot_start, d.ROLLING_BACK, _start_failure),
    Row(d.SHADOW, "the judge says rollback", _says_rollback, d.ROLLING_BACK, _verdict),
    Row(d.SHADOW, "promotion asked by hand", _promotion_asked, d.PROMOTING, _asked_to_promote),
    Row(
        d.SHADOW,
        "only in shadow, long enough, the judge says promote, and after_shadow = promote",
        lambda s, f: _is_judged_in_shadow(s, f) and s.config.after_shadow == "promote",
        d.PROMOTING,
        _good_in_shadow,
    ),
    Row(
        d.SHADOW,
        "only in shadow, long enough, the judge says promote, and after_shadow = leave",
        lambda s, f: _is_judged_in_shadow(s, f) and s.config.after_shadow == "leave",
        d.LEAVING,
        _good_in_shadow,
    ),
    Row(
        d.SHADOW,
        "before a canary, long enough, and ready for the first step",
        lambda s, f: s.kind == d.STEPWISE and _is_shadowed(s, f) and _both_ready(s, f),
        d.CANARY,
        _share,
    ),
    Row(
        d.SHADOW,
        "only in shadow, time limit, and undecided is not ask",
        lambda s, f: s.kind == d.SHADOW_ONLY and s.config.undecided != "ask" and _shadow_is_over(s, f),
        d.LEAVING,
        _undecided_in_shadow,
    ),
    Row(
        d.SHADOW,
        "before a canary, time limit, and undecided is not ask",
        lambda s, f: s.kind != d.SHADOW_ONLY and s.config.undecided != "ask" and _shadow_is_over(s, f),
        d.ROLLING_BACK,
        _undecided_in_shadow,
    ),
    Row(d.CANARY, "rollback asked by hand", _rollback_asked, d.ROLLING_BACK, _by_hand),
    Row(d.CANARY, "its replicas cannot start", _cannot_start, d.ROLLING_BACK, _start_failure),
    Row(d.CANARY, "the judge says rollback", _says_rollback, d.ROLLING_BACK, _verdict),
    Row(d.CANARY, "promotion asked by hand", _promotion_asked, d.PROMOTING, _asked_to_promote),
    Row(
        d.CANARY,
        "last step, dwell over, the judge says promote, and every metric can be read",
        lambda s, f: s.is_last_step and _dwelt(s, f) and f.verdict == "promote" and not f.held,
        d.PROMOTING,
        _verdict,
    ),
    Row(
        d.CANARY,
        "time limit, and undecided = rollback, or a metric cannot be read",
        _ends_undecided,
        d.ROLLING_BACK,
        _undecided_or_held,
    ),
    Row(
        d.CANARY,
        "time limit, undecided = promote, and every metric can be read",
        lambda s, f: s.config.undecided == "promote" and _time_is_over(s, f) and not f.held,
        d.PROMOTING,
        lambda s, f: f"{_undecided(s, f)}; promoted because undecided = 'promote'",
    ),
    Row(
        d.CANARY,
        "dwell over, ready for the next step, and every metric can be read",
        lambda s, f: not s.is_last_step and _dwelt(s, f) and f.new_is_ready and not f.held,
        d.CANARY,
        _share,
        next_step=True,
    ),
    Row(d.SWITCHED, "rollback asked by hand", _rollback_asked, d.ROLLING_BACK, _by_hand),
    Row(d.SWITCHED, "its replicas cannot start", _cannot_start, d.ROLLING_BACK, _start_failure),
    Row(d.SWITCHED, "the judge says rollback", _says_rollback, d.ROLLING_BACK, _verdict),
    Row(d.SWITCHED, "promotion asked by hand", _promotion_asked, d.PROMOTING, _asked_to_promote),
    Row(d.SWITCHED, "kept long enough, and every metric can be read", _kept, d.PROMOTING, _stood),
    Row(
        d.SWITCHED,
        "time limit, and undecided is not ask",
        lambda s, f: s.config.undecided != "ask" and _time_is_over(s, f),
        d.ROLLING_BACK,
        _undecided_or_held,
    ),
    Row(d.PROMOTING, "rollback asked by hand", _rollback_asked, d.ROLLING_BACK, _by_hand),
    Row(d.PROMOTING, "its replicas cannot start", _cannot_start, d.ROLLING_BACK, _start_failure),
    Row(d.PROMOTING, "the judge says rollback", _says_rollback, d.ROLLING_BACK, _verdict),
    Row(
        d.PROMOTING,
        "enough replicas for all requests are ready, and the route names it already",
        lambda _, f: f.new_is_ready and f.new_is_named,
        d.PROMOTED,
        lambda _, __: "",
    ),
    Row(d.PROMOTING, "not ready in time", _is_late, d.ROLLING_BACK, _not_ready),
    Row(d.LEAVING, "rollback asked by hand", _rollback_asked, d.ROLLING_BACK, _by_hand),
    Row(
        d.LEAVING,
        "the gateway copies nothing to it, or cannot be asked for a minute",
        lambda _, f: f.is_unrouted or f.phase_s > UNROUTE_LIMIT_S,
        d.LEFT,
        lambda _, __: "",
    ),
    Row(
        d.ROLLING_BACK,
        "the gateway routes nothing to it, or cannot be asked for a minute",
        lambda _, f: f.is_unrouted or f.phase_s > UNROUTE_LIMIT_S,
        d.ROLLED_BACK,
        lambda _, __: "",
    ),
)


WHILE_PAUSED = (d.ROLLING_BACK, d.ROLLED_BACK)
"""Where a rollout may move while it is paused: back, by hand or by the judge's evidence."""


def step(state: State, facts: Facts) -> Decision:
    """Return what a rollout in `state` does next, given `facts`."""
    for row in TABLE:
        if facts.is_paused and row.to not in WHILE_PAUSED:
            continue
        if row.phase == state.phase and row.holds(state, facts):
            is_early = state.phase in (d.PENDING, d.WARMING, d.SHADOW) and row.to not in (d.ROLLING_BACK, d.LEAVING)
            following = state.step + 1 if row.next_step else (0 if is_early else state.step)
            return Decision(phase=row.to, step=following, moved=True, reason=row.reason(state, facts), requeue_s=0.0)
    return Decision(phase=state.phase, step=state.step, moved=False, reason="", requeue_s=_requeue(state, facts))


def _requeue(state: State, facts: Facts) -> float:
    """Look again soon enough for what comes next: evidence and dwell in canary, replicas becoming ready elsewhere."""
    if state.phase not in (d.CANARY, d.SHADOW, d.SWITCHED):
        return 0.1
    least = {d.CANARY: state.config.dwell_s, d.SHADOW: state.config.shadow_s, d.SWITCHED: state.config.keep_s}
    left = [state.config.window_s / 4, least[state.phase] - facts.phase_s]
    return min(max(0.05, min(t for t in left if t > 0)), 0.25)


def table_as_markdown() -> str:
    """Return the table as documents show it."""
    lines = ["| phase | when | then |", "|---|---|---|"]
    lines += [f"| {row.phase} | {row.when} | {row.to}{', next step' * row.next_step} |" for row in TABLE]
    return "\n".join(lines)
