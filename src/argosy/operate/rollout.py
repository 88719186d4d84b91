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
        return self.step >= len(self.config.steps) - 1


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
    rollback_asked: str = ""
    promote_asked: str = ""
    is_unrouted: bool = False
    """Whether the gateway has confirmed routes without the new version."""
    phase_s: float = 0.0
    """Seconds in this phase and step."""
    canary_s: float = 0.0
    """Seconds since the first step."""


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
    return f"{state.config.steps[step]:g} % of the requests"


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
        "ready, by steps, and the current version is ready too",
        lambda s, f: s.kind == d.STEPWISE and f.new_is_ready and f.base_is_ready,
        d.CANARY,
        _share,
    ),
    Row(
        d.WARMING,
        "ready, and not by steps",
        lambda s, f: s.kind != d.STEPWISE and f.new_is_ready,
        d.PROMOTING,
        lambda _, __: "its replicas are ready",
    ),
    Row(
        d.WARMING,
        "ready, and the current version cannot start",
        lambda _, f: f.new_is_ready and bool(f.base_failed),
        d.PROMOTING,
        lambda _, f: f"the current version cannot start, so there is nothing to compare with: {f.base_failed}",
    ),
    Row(d.WARMING, "not ready in time", _is_late, d.ROLLING_BACK, _not_ready),
    Row(d.CANARY, "rollback asked by hand", _rollback_asked, d.ROLLING_BACK, _by_hand),
    Row(d.CANARY, "its replicas cannot start", _cannot_start, d.ROLLING_BACK, _start_failure),
    Row(d.CANARY, "the judge says rollback", lambda _, f: f.verdict == "rollback", d.ROLLING_BACK, _verdict),
    Row(
        d.CANARY,
        "promotion asked by hand",
        lambda _, f: bool(f.promote_asked),
        d.PROMOTING,
        lambda _, f: f.promote_asked,
    ),
    Row(
        d.CANARY,
        "last step, dwell over, and the judge says promote",
        lambda s, f: s.is_last_step and _dwelt(s, f) and f.verdict == "promote",
        d.PROMOTING,
        _verdict,
    ),
    Row(
        d.CANARY,
        "time limit, undecided = rollback",
        lambda s, f: s.config.undecided == "rollback" and _time_is_over(s, f),
        d.ROLLING_BACK,
        lambda s, f: f"{_undecided(s, f)}; the endpoint stays with the version it had",
    ),
    Row(
        d.CANARY,
        "time limit, undecided = promote",
        lambda s, f: s.config.undecided == "promote" and _time_is_over(s, f),
        d.PROMOTING,
        lambda s, f: f"{_undecided(s, f)}; promoted because undecided = 'promote'",
    ),
    Row(
        d.CANARY,
        "dwell over, ready for the next step",
        lambda s, f: not s.is_last_step and _dwelt(s, f) and f.new_is_ready,
        d.CANARY,
        _share,
        next_step=True,
    ),
    Row(d.PROMOTING, "rollback asked by hand", _rollback_asked, d.ROLLING_BACK, _by_hand),
    Row(d.PROMOTING, "its replicas cannot start", _cannot_start, d.ROLLING_BACK, _start_failure),
    Row(d.PROMOTING, "the judge says rollback", lambda _, f: f.verdict == "rollback", d.ROLLING_BACK, _verdict),
    Row(
        d.PROMOTING,
        "enough replicas for all requests are ready, and the route names it already",
        lambda _, f: f.new_is_ready and f.new_is_named,
        d.PROMOTED,
        lambda _, __: "",
    ),
    Row(d.PROMOTING, "not ready in time", _is_late, d.ROLLING_BACK, _not_ready),
    Row(
        d.ROLLING_BACK,
        "the gateway routes nothing to it, or cannot be asked for a minute",
        lambda _, f: f.is_unrouted or f.phase_s > UNROUTE_LIMIT_S,
        d.ROLLED_BACK,
        lambda _, __: "",
    ),
)


def step(state: State, facts: Facts) -> Decision:
    """Return what a rollout in `state` does next, given `facts`."""
    for row in TABLE:
        if row.phase == state.phase and row.holds(state, facts):
            following = state.step + 1 if row.next_step else (0 if row.to == d.WARMING else state.step)
            return Decision(phase=row.to, step=following, moved=True, reason=row.reason(state, facts), requeue_s=0.0)
    return Decision(phase=state.phase, step=state.step, moved=False, reason="", requeue_s=_requeue(state, facts))


def _requeue(state: State, facts: Facts) -> float:
    """Look again soon enough for what comes next: evidence and dwell in canary, replicas becoming ready elsewhere."""
    if state.phase != d.CANARY:
        return 0.1
    left = [state.config.window_s / 4, state.config.dwell_s - facts.phase_s]
    return min(max(0.05, min(t for t in left if t > 0)), 0.25)


def table_as_markdown() -> str:
    """Return the table as documents show it."""
    lines = ["| phase | when | then |", "|---|---|---|"]
    lines += [f"| {row.phase} | {row.when} | {row.to}{', next step' * row.next_step} |" for row in TABLE]
    return "\n".join(lines)
