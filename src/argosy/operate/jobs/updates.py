"""How an update moves: a pure function from what the log says to the next thing to do.

An update is a job that runs the project, and then a deployment like any by hand, which its gates and the judge may
refuse. Whatever is killed, the next look computes the same move again; each move is safe to make twice.
"""

import msgspec

from argosy.core.units import format_time
from argosy.operate import desired as d
from argosy.operate.desired import Ended, Endpoint
from argosy.operate.jobs import fold as f
from argosy.operate.jobs.fold import Job, Watch

PROMOTED, ROLLED_BACK = d.PROMOTED, d.ROLLED_BACK
GATE_FAILED, FAILED, CANCELLED = "gate_failed", "failed", "cancelled"
UNCHANGED, KEPT, SUPERSEDED = "unchanged", "kept", "superseded"

WAIT, SUBMIT, DEPLOY, NOTE, END = "wait", "submit", "deploy", "note", "end"


class Move(msgspec.Struct, frozen=True, kw_only=True):
    """What to do about an endpoint's update now."""

    action: str
    """wait, submit (its job), deploy, note (that its rollout is under way), end."""
    outcome: str = ""
    reason: str = ""
    version: str = ""
    digest: str = ""
    rollout: str = ""


def next_move(watch: Watch, job: Job | None, endpoint: Endpoint | None, *, releases: bool) -> Move:
    """Return the next move. `job`: that of the update under way; `releases`: whether a passed version is released."""
    if not watch.job:
        if watch.pending is None:
            return Move(action=WAIT)
        if endpoint is not None and endpoint.rollout is not None:
            return Move(action=WAIT, reason=f"waits for rollout {endpoint.rollout.id} to end")
        return Move(action=SUBMIT)
    if job is None:
        return Move(action=END, outcome=FAILED, reason=f"nothing is known of its job '{watch.job}' any more")
    if job.is_open:
        return Move(action=WAIT, reason=f"job '{job.id}' {job.state}")
    made = (job.result.get("versions") or [{}])[-1]
    ref, digest = str(made.get("version", "")), str(made.get("digest", ""))
    if job.outcome != f.DONE:
        return _failed(job, ref)
    if not digest:
        return Move(action=END, outcome=FAILED, reason=f"job '{job.id}' made no version")
    if watch.rollout:
        return _rolling(watch, endpoint, ref)
    if not releases:
        return Move(action=END, outcome=KEPT, version=ref, reason="the file says deploy = false")
    return _release(job, endpoint, ref, digest)


def _failed(job: Job, ref: str) -> Move:
    if job.outcome == f.CANCELLED:
        return Move(action=END, outcome=CANCELLED, reason=job.reason)
    outcome = GATE_FAILED if job.error.get("code") == "gate_failed" else FAILED
    return Move(action=END, outcome=outcome, version=ref, reason=job.reason)


def _release(job: Job, endpoint: Endpoint | None, ref: str, digest: str) -> Move:
    if endpoint is None:
        return Move(action=END, outcome=FAILED, version=ref, reason="the endpoint is gone")
    rollout, last = endpoint.rollout, endpoint.last
    if rollout is not None:
        if rollout.to.digest == digest:
            return Move(action=NOTE, version=ref, digest=digest, rollout=rollout.id)
        return Move(action=WAIT, version=ref, reason=f"'{ref}' waits for rollout {rollout.id} to end")
    if last is not None and last.to.digest == digest and last.seq > job.ended_seq:
        return _as(last, ref)  # ours, and over before it was noted
    if endpoint.stable is not None and endpoint.stable.digest == digest:
        return Move(action=END, outcome=UNCHANGED, version=ref, reason="it is what is served already")
    if not endpoint.is_active:
        return Move(action=WAIT, version=ref, reason=f"'{ref}' waits until the endpoint is up again")
    return Move(action=DEPLOY, version=ref, digest=digest)


def _rolling(watch: Watch, endpoint: Endpoint | None, ref: str) -> Move:
    if endpoint is None:
        return Move(action=END, outcome=FAILED, version=ref, reason="the endpoint is gone")
    if endpoint.rollout is not None and endpoint.rollout.id == watch.rollout:
        return Move(action=WAIT, version=ref, reason=f"rollout {watch.rollout} ({endpoint.rollout.phase})")
    if endpoint.last is not None and endpoint.last.rollout == watch.rollout:
        return _as(endpoint.last, ref)
    return Move(action=END, outcome=SUPERSEDED, version=ref, reason="another rollout came after its own")


def _as(last: Ended, ref: str) -> Move:
    return Move(action=END, outcome=last.outcome, version=ref, reason=last.reason)


def in_words(watch: Watch) -> str:
    """Return how the last update ended, in one line."""
    last = watch.last
    if last is None:
        return "none yet"
    said = {
        PROMOTED: f"{last.version} took over",
        ROLLED_BACK: f"{last.version} was rolled back",
        GATE_FAILED: f"{last.version or 'its version'} failed a gate and was not released",
        UNCHANGED: f"nothing new: {last.version} is served already",
        KEPT: f"{last.version} was made, and not released",
        SUPERSEDED: f"{last.version} was overtaken by another rollout",
        CANCELLED: "cancelled",
    }.get(last.outcome, "failed")
    return f"{said}: {last.reason}" if last.reason and last.outcome not in (UNCHANGED, PROMOTED) else said


def due_in_words(due: float, now: float) -> str:
    """Return when the next one by schedule comes."""
    return "" if not due else "now" if due <= now else f"in {format_time(due - now)}"
