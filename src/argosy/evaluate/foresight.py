"""How long the judge will need, told before a rollout starts."""

import math

from argosy.core.config import Config
from argosy.evaluate.evidence import PROMOTION_RATIO, RATIOS, odds
from argosy.evaluate.judge import ERRORS, PROMOTE_AT, JudgeConfig

_FEW = 10.0
_OVERSHOOT = 1.32  # bets start with 0.8/3 of the money: ln(3/0.8)


class Foresight(Config, frozen=True):
    """What to expect of a rollout step. Times are minutes; None: it would never come."""

    rollback_min: float | None
    """Until a version `ratio` times as bad is rolled back, about: half of such rollouts take longer."""
    promote_min: float | None
    """Until a version as good as stable can be promoted, about, at this share."""
    bad_expected: float
    """Bad requests that stable and an equally good canary will show in the time given."""
    is_blind: bool
    """Too few bad requests are expected to judge by."""
    advice: str


def foresee(
    config: JudgeConfig,
    *,
    requests_per_min: float,
    base_rate: float,
    share: float,
    ratio: float = 5.0,
    window_s: float = 10.0,
    minutes: float = 30.0,
    metric: str = ERRORS,
) -> Foresight:
    """Estimate when a version `ratio` times as bad as stable is rolled back, and when a good one is promoted.

    `base_rate` is stable's share of bad requests, `minutes` the time the rollout has. Formulas of decision 0003,
    compared there with simulation.
    """
    bad_per_min = requests_per_min * base_rate
    clean_min = math.log(2 * PROMOTE_AT) / math.log((1 - 0.0005) / (1 - 0.005)) / max(requests_per_min * share, 1e-9)
    growth = _growth(share, ratio, bad_per_min * (1 - share + share * ratio), 60 / window_s)
    weight = config.weights().get(metric, 1.0)
    rollback = (math.log(1 / (config.false_alarm * weight)) + _OVERSHOOT) / growth if growth > 0 else None
    counted = min(bad_per_min, 60 / window_s) * divergence(share, odds(share, PROMOTION_RATIO))
    promote = math.log(2 * PROMOTE_AT) / counted if counted > 0 else math.inf
    if metric == ERRORS and base_rate < 0.0005:
        promote = min(promote, clean_min)
    expected = bad_per_min * minutes
    return Foresight(
        rollback_min=rollback,
        promote_min=promote if math.isfinite(promote) else None,
        bad_expected=expected,
        is_blind=expected < _FEW,
        advice=(
            f"only about {expected:.2g} bad requests are expected in {minutes:g} min, too few to compare by; mirror "
            "requests ([rollout] mirror) so that each of them is answered by both versions"
            if expected < _FEW
            else ""
        ),
    )


def divergence(p: float, q: float) -> float:
    """Return the Kullback-Leibler divergence of two coins in nats.

    >>> round(divergence(0.5, 0.25), 4)
    0.1438
    """
    return sum(a * math.log(a / b) for a, b in ((p, q), (1 - p, 1 - q)) if a > 0)


def _growth(share: float, ratio: float, bad_per_min: float, windows_per_min: float) -> float:
    """Return how fast the evidence's logarithm grows per minute, bounded by what a window can prove."""
    truth = odds(share, ratio)
    most = max(truth * odds(share, r) / share + (1 - truth) * (1 - odds(share, r)) / (1 - share) for r in RATIOS)
    return min(bad_per_min * divergence(truth, share), windows_per_min * math.log(most))
