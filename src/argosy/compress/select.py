"""Which candidate is taken, and what is said when none can be.

The rule: of the measured candidates that keep size, p95 and drop on the validation part and are not slower than the
original (on the whole, nor by a tenth at any measured batch size), the smallest product of latency and size, relative
to the original, wins; of those within 10 % of it, the one that loses least. But first come those whose drop is within
the bound with 80 % confidence, and also on samples seen in training. The best of many is likely to have been lucky, so
first among them come those whose drop is within the bound with 97.5 % confidence, or that give the original's answer
on all but so many items as the drop allows, since then no accuracy can move by more (a cosine is a distance itself,
and varies little). What is within it with 90 % confidence counts as one of these that is four times as large, so it is
taken where it is that much better. Who says how small or fast has said enough of that, and most of all wants the
promise kept: then it is 99.9 % confidence, and nothing below. When the validation part is too small to make any sure,
the lowest upper bound of the drop wins.
"""

import math
from collections.abc import Sequence

import msgspec

from argosy.compress.candidate import Candidate
from argosy.compress.config import Budget
from argosy.core.units import format_size, format_time

# A millionth of an item: sums of shares are not exact.
_EPSILON = 1e-6
# Measured four times, the product of one and the same int8 encoder differed by as much.
_AS_GOOD = 1.1
# From the width of an interval of 97.5 % confidence to one of 99.9 %, by the normal distribution.
_FIRMER = 3.09 / 1.96
# And to one of 90 %, which has its price: as if the product of size and time were so many times as great.
_LIKELY, _PRICE_OF_DOUBT = 1.2816 / 1.96, 4.0
# What is so many times as small and fast as the chosen one, but in doubt, is told of.
_WORTH_TELLING = 2.0


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """The outcome: `chosen`, or `nearest` with what would have to give."""

    chosen: Candidate | None
    nearest: Candidate | None
    is_sure: bool
    """Whether the chosen one keeps the drop with 80 % confidence, not only on the items that were looked at."""
    says: str
    hint: str
    """What would have to give, or what else could be had."""


def select(original: Candidate, candidates: Sequence[Candidate], budget: Budget) -> Selection:
    """Apply the rule at the top of this module."""
    measured = [c for c in candidates if c.status == "measured" and c.quality is not None]
    fitting = [c for c in measured if not c.misses(budget) and (c.latency_ratio < 1 or c.size_ratio < 1)]
    if fitting:
        chosen = _best(fitting, budget)
        sure = is_sure(chosen, budget)
        doubt = "" if sure else "; the validation part is too small to be sure of the drop"
        hint = _bolder(chosen, fitting, budget)
        return Selection(chosen=chosen, nearest=None, is_sure=sure, says=f"{chosen.says()}{doubt}", hint=hint)
    nearest = min(measured, key=lambda c: _distance(c, budget), default=None)
    says, hint = _out_of_reach(original, nearest, candidates, budget)
    return Selection(chosen=None, nearest=nearest, is_sure=False, says=says, hint=hint)


def _best(fitting: Sequence[Candidate], budget: Budget) -> Candidate:
    first = min(fitting, key=lambda c: preference(c, budget))
    if not is_sure(first, budget):
        return first
    *kind, least = preference(first, budget)
    alike = [c for c in fitting if (rank := preference(c, budget))[:-1] == tuple(kind) and rank[-1] <= _AS_GOOD * least]
    return min(alike, key=lambda c: (not is_settled(c, budget), drop_high(c), c.cost))


def _bolder(chosen: Candidate, fitting: Sequence[Candidate], budget: Budget) -> str:
    """Tell of what was left for its doubt alone, and how to have it; empty where nothing was."""
    found = min((c for c in fitting if is_sure(c, budget)), key=lambda c: c.cost, default=chosen)
    if found.quality is None or found.cost * _WORTH_TELLING > chosen.cost:
        return ""
    if found.size_bytes < chosen.size_bytes:
        asked = f'ask for size = "{math.ceil(found.size_bytes / 1000)}KB" to have it, or '
    elif found.p95_s < chosen.p95_s:
        asked = f'ask for latency_p95 = "{math.ceil(found.p95_s * 1e6)}us" to have it, or '
    else:
        asked = ""
    return (
        f"{found.name} ({format_size(found.size_bytes)}, {1 / found.latency_ratio:.1f}x faster) is within the bound, "
        f"too, but {found.quality.items} samples can't show it beyond doubt: {asked}judge by more data"
    )


def preference(candidate: Candidate, budget: Budget) -> tuple[bool, bool, float, float]:
    """Return a key that sorts candidates within the budget, best first."""
    assert candidate.quality is not None
    sure, settled = is_sure(candidate, budget), is_settled(candidate, budget)
    price = 1.0 if settled else _PRICE_OF_DOUBT
    is_likely = settled or (sure and not budget.is_bounded and _holds(candidate, budget, _LIKELY))
    return not sure, not is_likely, 0.0 if sure else drop_high(candidate), price * candidate.cost


def is_settled(candidate: Candidate, budget: Budget) -> bool:
    """Return whether it is sure, and being the best of many tries can't be why it looks as good as it does."""
    quality = candidate.quality
    if quality is None or not is_sure(candidate, budget):
        return False
    # The distance of two vectors is no accuracy that could hide errors which cancel out.
    if quality.measure == "cosine":
        return True
    firmer = _FIRMER if budget.is_bounded else 1.0
    is_faithful = firmer * (1.0 - quality.agreement) <= budget.max_drop + _EPSILON
    return is_faithful or _holds(candidate, budget, firmer)


def _holds(candidate: Candidate, budget: Budget, width: float) -> bool:
    """Whether the drop is kept by so many times the width of the interval of 97.5 % confidence."""
    quality = candidate.quality
    if quality is None:
        return False
    return quality.drop + width * (quality.drop_surely - quality.drop) <= budget.max_drop + _EPSILON


def is_sure(candidate: Candidate, budget: Budget) -> bool:
    """Return whether the drop is within the budget with 80 % confidence, and on the training samples too."""
    quality = candidate.quality
    assert quality is not None
    return max(quality.drop_high, quality.seen_drop) <= budget.max_drop + _EPSILON


def drop_high(candidate: Candidate) -> float:
    """Return the drop that is kept with 80 % confidence, and on the training samples too."""
    return max(candidate.quality.drop_high, candidate.quality.seen_drop) if candidate.quality else math.inf


def _distance(candidate: Candidate, budget: Budget) -> tuple[float, float]:
    """How far outside: the product of the factors by which parts of the budget are missed."""
    return math.prod(candidate.misses(budget).values()), candidate.cost


def _out_of_reach(
    original: Candidate, nearest: Candidate | None, candidates: Sequence[Candidate], budget: Budget
) -> tuple[str, str]:
    if nearest is None or nearest.quality is None:
        reasons = "; ".join(f"{c.name}: {c.reason}" for c in candidates[:4]) or "no pass can work on this model"
        return f"the budget ({budget}) is out of reach: {reasons}", "raise the budget or allow more passes"
    missed = nearest.misses(budget)
    gives = []
    if "max_drop" in missed:
        needed = math.ceil(nearest.quality.drop * 1000 - _EPSILON) / 10
        gives.append(f'max_drop = "{needed:g}pt"')
    if "size" in missed:
        gives.append(f'size = "{math.ceil(nearest.size_bytes / 1000)}KB"')
    if "latency_p95" in missed:
        gives.append(f'latency_p95 = "{math.ceil(nearest.p95_s * 1.05e6)}us"')
    says = f"the budget ({budget}) is out of reach; nearest is {nearest.says()}"
    if gives:
        return says, f"it would be met with: {', '.join(gives)}"
    if "not slower" in missed:
        return (
            f"nothing faster or smaller than the original was found that isn't slower; nearest is {nearest.says()}",
            f"the original has {format_size(original.size_bytes)} and p95 {format_time(original.p95_s)}; keep it",
        )
    return says, "keep the original: nothing that was tried is smaller or faster"
