"""Whether one replica fails more than the others of its version: a running likelihood ratio, and back-off.

Page's cumulative sum: each failure and each answer moves a score by the logarithm of how much likelier a sick replica
would have made it than one that fails as its siblings do; below 0 it starts anew. If the replica is like its siblings,
the score reaches `EJECT_AT` on average once in exp(EJECT_AT) requests or more (Lorden 1971). Ejecting where
there is a sibling costs no request, so it may be prompt; the judge of rollouts does not rely on it.

Pure: no clock; simulation (benchmarks/rollout_simulation.py) uses the same `usual_rate` and `weights`.
"""

import math
from collections.abc import Sequence

import msgspec

SICK = 0.5
"""Share of requests that a sick replica fails, at which the score is most sensitive."""
EJECT_AT = 14.0
USUAL = (0.02, 0.4)
"""Least and greatest rate of failure that is taken for the siblings': no fewer than a few failures may eject, and who
fails where all fail is not sick."""
PRIOR = 10.0
"""Requests' worth of belief in the least rate, before the siblings have done anything."""
KEPT = 100.0
"""Failures and answers of about so many requests back are remembered."""
PROBATION = 0.5
"""Part of `EJECT_AT` with which an ejected replica comes back: two failures or three eject it again."""
BACKOFF_S = 30.0
"""Time for which a replica is ejected that nobody has replaced, doubled each time."""
MAX_BACKOFF_S = 300.0


def usual_rate(failed: float, answered: float) -> float:
    """Return the rate at which siblings fail, from what they did lately.

    >>> round(usual_rate(0, 90), 3), round(usual_rate(30, 60), 3)
    (0.02, 0.302)
    """
    rate = (USUAL[0] * PRIOR + failed) / (PRIOR + failed + answered)
    return min(USUAL[1], max(USUAL[0], rate))


def weights(usual: float) -> tuple[float, float]:
    """Return what a failure and what an answer adds to the score."""
    return math.log(SICK / usual), math.log((1 - SICK) / (1 - usual))


class Conduct(msgspec.Struct):
    """How one replica does, compared with its siblings."""

    score: float = 0.0
    failed: float = 0.0
    answered: float = 0.0
    """Of about the last `KEPT` requests."""
    ejections: int = 0
    back_at: float = math.inf
    """Monotonic seconds at which it may be tried again."""

    @property
    def is_sick(self) -> bool:
        """Whether it should be ejected, if a sibling is there."""
        return self.score >= EJECT_AT

    def note(self, failed: int, answered: int, others: Sequence["Conduct"]) -> None:
        """Take in what came of a run; with no others there is nothing to compare it with."""
        keep = 1 - min(1.0, (failed + answered) / KEPT)
        self.failed = self.failed * keep + failed
        self.answered = self.answered * keep + answered
        if not others:
            self.score = 0.0
        elif failed or self.score:
            usual = usual_rate(sum([h.failed for h in others]), sum([h.answered for h in others]))
            bad, good = weights(usual)
            self.score = min(2 * EJECT_AT, max(0.0, self.score + failed * bad + answered * good))

    def eject(self, now: float) -> None:
        """Note that it is set aside, and until when."""
        self.back_at = now + min(MAX_BACKOFF_S, BACKOFF_S * 2.0 ** min(self.ejections, 8))
        self.ejections += 1

    def may_return(self, now: float) -> bool:
        """Return whether it has been away for long enough."""
        return now >= self.back_at

    def give_chance(self) -> None:
        """Take it back on probation."""
        self.score = PROBATION * EJECT_AT
        self.back_at = math.inf
