"""Betting against a hypothesis, window by window: the arithmetic of the rollout judge, and nothing else.

A bet starts with 1 and is multiplied by each window's gain. If the hypothesis is true its expectation never grows, so
it reaches 1/alpha with probability at most alpha, however often one looks (Ville 1939). Gains are averaged inside a
window, which is valid under any dependence there and bounds what one window can prove, and multiplied across windows.

Nothing here knows time, requests or versions. `q0` is the probability that a bad request is the canary's if the canary
is just as bad as is tolerated.
"""

from math import exp, log, log1p
from typing import Self

import msgspec

RATIOS = (2.0, 5.0, 20.0)
"""How much worse the canary may be in truth: equal money on each."""
EXCLUDABLE = (1.25, 1.5, 2.0, 3.0, 5.0, 10.0)
"""Ratios that are reported as excluded, or not yet."""
PROMOTION_RATIO = 2.0
"""A version is promoted when being this many times as bad, or more, is excluded."""
EPOCH_S = 600.0
MAX_EPOCHS = 144
"""No new bets after a day: epoch 144 would get a hundred-thousandth of the money, and state must stay bounded."""

_BETTER = (1.0, 0.5)
_RARE = 0.005
_MAX_LOG = 600.0  # exp stays finite; far beyond any threshold


def odds(share: float, ratio: float) -> float:
    """Return the probability `share` after its odds are multiplied by `ratio`.

    >>> round(odds(0.1, 2), 4)
    0.1818
    """
    return share * ratio / (share * ratio + 1 - share)


def log_gain(bet: float, against: float, bad_canary: float, bad_all: float) -> float:
    """Return the logarithm of one window's gain of a bet that bad requests are the canary's with probability `bet`.

    `against` is that probability under the hypothesis. 0 when nothing was bad; a total below one bad request (sums of
    badness may be that small) stakes only that part of the money.
    """
    if bad_all <= 0:
        return 0.0
    s, stake = bad_canary / bad_all, min(1.0, bad_all)
    return log1p(stake * (s * bet / against + (1 - s) * (1 - bet) / (1 - against) - 1))


class Worse(msgspec.Struct):
    """Evidence that the canary is worse than tolerated.

    Money is kept for a fault that appears late: 80 % is bet from the start, the rest begins in later epochs.
    """

    bets: list[list[float]] = []
    """For each epoch, the logarithm of each ratio's product since that epoch began."""

    def window(self, q0: float, bad_canary: float, bad_all: float, epoch: int) -> None:
        """Take in one window; `epoch` is minutes since the start // 10."""
        while len(self.bets) <= min(epoch, MAX_EPOCHS - 1):
            self.bets.append([0.0] * len(RATIOS))
        gains = [log_gain(odds(q0, ratio), q0, bad_canary, bad_all) for ratio in RATIOS]
        for logs in self.bets:
            for i, gain in enumerate(gains):
                logs[i] += gain

    def value(self) -> float:
        """Return the evidence: 1 at the start, and if nothing is wrong ever 1/alpha with probability at most alpha."""
        priors = [0.8 if j == 0 else 0.2 / (j * (j + 1)) for j in range(len(self.bets))]
        won = sum(
            p * exp(min(x, _MAX_LOG)) / len(RATIOS) for p, logs in zip(priors, self.bets, strict=True) for x in logs
        )
        return 1 - sum(priors) + won


class NotWorse(msgspec.Struct):
    """Evidence that the canary is not R times as bad as stable, for each R that can be excluded."""

    windows: list[list[float]]
    """For each R of EXCLUDABLE, the logarithm of each bet's product."""
    singles: list[float]
    """Logarithms of the bets made request by request, with half of the money; empty if all is bet by windows."""

    @classmethod
    def new(cls, singles: int = 0) -> Self:
        """Return evidence of nothing yet: 1 for `rare` to come, 2 for `pairs`, 0 for neither."""
        return cls([[0.0] * len(_BETTER) for _ in EXCLUDABLE], [0.0] * singles)

    def window(self, share: float, bad_canary: float, bad_all: float) -> None:
        """Take in one window in which a bad request of equal versions is the canary's with probability `share`."""
        for ratio, logs in zip(EXCLUDABLE, self.windows, strict=True):
            for i, better in enumerate(_BETTER):
                logs[i] += log_gain(odds(share, better), odds(share, ratio), bad_canary, bad_all)

    def rare(self, bad: float, requests: float) -> None:
        """Take in the canary's requests of a window as evidence that less than 0.5 % of them are bad.

        For services that hardly ever fail, where no bad request may come for hours: about 800 clean ones suffice.
        """
        self._single([_RARE / 10], _RARE, bad, requests)

    def pairs(self, tolerated: float, bad: float, pairs: float) -> None:
        """Take in a window's pairs of answers as evidence that they differ less than at twice the tolerated odds.

        The rate is absolute, so every pair is a trial of its own; see decision 0003 for what that assumes.
        """
        self._single([odds(tolerated, better) for better in _BETTER], odds(tolerated, PROMOTION_RATIO), bad, pairs)

    def value(self, ratio: float = PROMOTION_RATIO) -> float:
        """Return the evidence against "at least `ratio` times as bad"."""
        by_window = _mean_exp(self.windows[EXCLUDABLE.index(ratio)])
        # What was bet request by request was bet against one hypothesis only, the one for promotion.
        if ratio != PROMOTION_RATIO or not self.singles:
            return by_window
        return (by_window + _mean_exp(self.singles)) / 2

    def _single(self, bets: list[float], against: float, bad: float, trials: float) -> None:
        for i, bet in enumerate(bets):
            self.singles[i] += (trials - bad) * log((1 - bet) / (1 - against)) + bad * log(bet / against)


def _mean_exp(logs: list[float]) -> float:
    return sum(exp(min(x, _MAX_LOG)) for x in logs) / len(logs)
