"""Whether one replica process explains what looks like a bad version: siblings as witnesses.

Every process of a canary runs the same version. If the version is bad they all fail; if one process is sick, it alone
does. So the judge keeps its evidence a second time, without what a process did while it failed more than its siblings,
and rolls back only when both suffice. A condition more can only make a rollback rarer, so the promise about good
versions is not touched, whatever is left out and however that is chosen: see docs/decisions/0021-siblings.md.
"""

import math
from collections.abc import Callable, Mapping

import msgspec

from argosy.evaluate.evidence import Worse

SPELL_S = 60.0
"""A process is compared with its siblings over so long. Longer finds trouble of a few requests in a hundred, shorter
forgets sooner."""
SPELL_AT, SPELL_BAD = 3.0, 3
"""It is left out from this logarithm of the likelihood ratio on, and from so many bad ones: three of one of three while
the others have none. Lower ones would spare more of a sick process, and would miss more bad versions."""
SPARED_PART = 0.2
"""Part of the threshold that must be reached without spells: false rollbacks from sick processes may be more than the
others, which finds bad versions sooner."""
WITNESSED = 1.5
"""Evidence that must remain without any one process, also before its spell can be told: a sick one's first failures
alone must not decide."""
LEAST_SIBLINGS = 0.1
"""Siblings that have handled a smaller part of the canary's requests can't be witnesses."""
_MAX_WINDOWS = 256
_MAX_PROCESSES = 64


class Part(msgspec.Struct, frozen=True):
    """One process's part of a window."""

    handled: int = 0
    """The canary's requests, and halves of mirrored pairs, that it was the first to be handed."""
    bad: dict[str, tuple[float, float]] = {}
    """For each metric (bad_canary, bad_all) of what it handled: what leaves the window's counts without it."""


class _Seen(msgspec.Struct):
    """One metric of one window, as long as it may still turn out that a process was in a spell."""

    end_s: float
    epoch: int
    bad: tuple[float, float]
    own: dict[str, tuple[float, float, float]]
    """For each process: bad_canary, bad_all, and of how many trials."""
    q0: dict[str, float]
    """For whom is left out (empty: nobody), the probability that something bad is the canary's."""
    marked: list[str] = []

    @property
    def worst(self) -> str:
        """The worst of those that were in a spell; empty for none."""
        return max(sorted(self.marked), key=lambda name: self.own[name][0], default="")

    def count(self, worse: Worse, out: str) -> None:
        """Give it to the evidence, without one process."""
        own = self.own.get(out, (0.0, 0.0, 0.0))
        bad_canary, bad_all = max(0.0, self.bad[0] - own[0]), max(0.0, self.bad[1] - own[1])
        worse.window(self.q0[out], min(bad_canary, bad_all), bad_all, self.epoch)


class Spared(msgspec.Struct):
    """One metric's evidence without the spells of single processes."""

    past: Worse
    """Of the windows for which everything is known."""
    recent: list[_Seen] = []
    left_out: dict[str, float] = {}
    """For each process that was ever in a spell, what was bad in it."""
    without: dict[str, Worse] = {}
    """For each process the evidence, had it never been there."""
    handled: dict[str, float] = {}

    def window(
        self,
        worse: Worse,
        parts: Mapping[str, Part],
        metric: str,
        bad: tuple[float, float],
        *,
        end_s: float,
        epoch: int,
        q0: Callable[[float], float],
        is_paired: bool,
    ) -> None:
        """Take in one window: `worse` is the judge's evidence before it, `bad` is (bad_canary, bad_all).

        `q0` tells the probability that something bad is the canary's when only a part of the canary's replicas, 0 to 1,
        is looked at. `is_paired`: `bad_all` counts pairs, good ones too, so that each process's trials are its pairs.
        """
        own = {}
        for name, part in sorted(parts.items())[:_MAX_PROCESSES]:
            mine, both = part.bad.get(metric, (0.0, 0.0))
            own[name] = (float(mine), float(both), float(both if is_paired else part.handled))
        trials, before = sum(mine[2] for mine in own.values()), sum(self.handled.values())
        shares = {"": q0(1.0)}
        for name, (_, _, tried) in own.items():
            # What it handled before is no matter of this window's chance, so it bounds the share that is taken out;
            # with this window's alone, windows of two or three requests would gain by expectation.
            taken = tried / trials if trials else 0.0
            former = self.handled.get(name, 0.0) / before if before else 0.0
            shares[name] = q0(1 - min(taken, former if former < 1 else 0.0))
        seen = _Seen(end_s, epoch, (float(bad[0]), float(bad[1])), own, shares)
        self._witness(worse, parts, seen)
        self.recent.append(seen)
        self._mark()
        while self.recent[0].end_s <= end_s - SPELL_S or len(self.recent) > _MAX_WINDOWS:
            seen = self.recent.pop(0)
            seen.count(self.past, seen.worst)
            for name in seen.marked:
                self.left_out[name] = self.left_out.get(name, 0.0) + seen.own[name][0]
        while len(self.left_out) > _MAX_PROCESSES:
            del self.left_out[min(self.left_out, key=lambda name: self.left_out[name])]

    def _witness(self, worse: Worse, parts: Mapping[str, Part], seen: _Seen) -> None:
        for name in seen.own:
            if name not in self.without and len(self.without) < _MAX_PROCESSES:
                self.without[name] = Worse([list(logs) for logs in worse.bets])
            self.handled[name] = self.handled.get(name, 0.0) + parts[name].handled
        for name, evidence in self.without.items():
            seen.count(evidence, name if name in seen.own else "")

    def witnessed(self) -> set[str]:
        """Return the processes whose siblings have handled enough to be witnesses."""
        handled = sum(self.handled.values())
        return {name for name, own in self.handled.items() if handled - own >= LEAST_SIBLINGS * handled}

    def value(self) -> float:
        """Return the evidence as of now."""
        worse = Worse([list(logs) for logs in self.past.bets])
        for seen in self.recent:
            seen.count(worse, seen.worst)
        return worse.value()

    def spells(self) -> dict[str, float]:
        """Return which processes were left out, and with how much that was bad."""
        found = dict(self.left_out)
        for seen in self.recent:
            for name in seen.marked:
                found[name] = found.get(name, 0.0) + seen.own[name][0]
        return found

    def _mark(self) -> None:
        totals: dict[str, list[float]] = {}
        for seen in self.recent:
            for name, (mine, _, trials) in seen.own.items():
                total = totals.setdefault(name, [0.0, 0.0])
                total[0] += mine
                total[1] += trials
        bad = sum(total[0] for total in totals.values())
        trials = sum(total[1] for total in totals.values())
        for name, (mine, tried) in totals.items():
            if mine >= SPELL_BAD and stands_out(mine, tried, bad - mine, trials - tried):
                for seen in self.recent:
                    if name in seen.own and name not in seen.marked:
                        seen.marked.append(name)


def stands_out(bad: float, trials: float, others_bad: float, others_trials: float) -> bool:
    """Return whether a process fails more often than its siblings: the binomial likelihood ratio says so.

    >>> stands_out(3, 20, 0, 40), stands_out(3, 20, 5, 40), stands_out(3, 20, 0, 0)
    (True, False, False)
    """
    trials, others_trials = max(trials, bad), max(others_trials, others_bad)
    if others_trials <= 0 or bad * others_trials <= others_bad * trials:
        return False
    together = _log_likelihood(bad + others_bad, trials + others_trials)
    return _log_likelihood(bad, trials) + _log_likelihood(others_bad, others_trials) - together >= SPELL_AT


def _log_likelihood(bad: float, trials: float) -> float:
    """Return the greatest logarithm of likelihood that any rate gives to so many bad ones."""
    good = trials - bad
    return sum(x * math.log(x / trials) for x in (bad, good) if x > 0)
