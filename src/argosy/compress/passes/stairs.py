"""How much to cut next, by what came of the cuts so far and what the next ones would cost, measured untrained."""

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from argosy.compress.candidate import Candidate
from argosy.compress.passes import Settings, Sketch, SoFar
from argosy.compress.select import is_sure

_RATIOS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.8125, 0.875, 0.9375)
_BLOCKS = (0.17, 0.34, 0.5, 0.67, 0.84)
_QUICK_S = 8.0
# With a budget that says how small or fast, so many trainings find the largest network within it that learns enough.
_MOST_TRIES = 3
# Half of the blocks cost about half of the loss; what lost more than so many times the bound has no half within it.
_HOPELESS = 6.0
_NOISE = 0.005


class _Stairs(NamedTuple):
    """Shares to take where no size or time is asked for: more and more while that goes well."""

    up: tuple[float, ...]
    less: float
    """The second try where the first of `up` does not go well."""
    between: dict[float, float]
    """For a share whose success differs from the one's before it, a share between the two."""


# Half of the channels are a quarter of the weights and operations.
_CHANNEL_STAIRS = _Stairs((0.5, 0.75, 0.875, 0.9375), 0.25, {0.25: 0.375, 0.75: 0.625, 0.875: 0.8125})
_BLOCK_STAIRS = _Stairs((0.34, 0.5, 0.67, 0.84), 0.17, {0.17: 0.25, 0.5: 0.42})
# On top of the other one: what is thin already can lose depth, and the other way round.
_TOP_STAIRS = {"blocks": (0.67, 0.84), "ratio": (0.5, 0.75)}
_TOP_LESS = {"blocks": 0.34, "ratio": 0.25}
# Embeddings cost no time, only size: they go last, on top of the best, where they are a good part of it.
_EMBEDDING_STAIRS = (0.9, 0.96, 0.98)
_EMBEDDING_LESS = 0.75
_GAINS = 1.1
# Of both kinds, least first: a share of the widths leaves as much of rows as of columns.
_TOGETHER = sorted(
    ({"ratio": ratio, "blocks": blocks} for ratio in (0.25, 0.5, 0.75, 0.875) for blocks in (0.34, 0.67, 0.84)),
    key=lambda cut: -((1 - cut["ratio"]) ** 2) * (1 - cut["blocks"]),
)
# Of everything, for networks for texts, least first: shares of embeddings, blocks, and of both widths and heads.
_TINY = [
    {"embeddings": embeddings, "blocks": blocks, "ratio": width, "heads": width}
    for embeddings, blocks, width in (
        (0.5, 0.17, 0.25),
        (0.75, 0.34, 0.25),
        (0.85, 0.34, 0.5),
        (0.9, 0.5, 0.5),
        (0.94, 0.67, 0.5),
        (0.95, 0.67, 0.75),
        (0.96, 0.84, 0.75),
        (0.97, 0.84, 0.75),
        (0.98, 0.84, 0.875),
    )
]

# Where no size or time is asked for, these are tried in turn while that goes well, then what lies between.
_TINY_STEPS = (3, 6, 8)


def first_cut(*, is_text: bool) -> Settings:
    """Return what is cut where nothing is asked."""
    return {"blocks": _BLOCK_STAIRS.up[0]} if is_text else {"ratio": _CHANNEL_STAIRS.up[0]}


def next_cut(so_far: SoFar, *, is_text: bool) -> Settings | None:
    """Return the cut most worth trying next; None when nothing more is.

    With a bound for size or time that is the least that comes within it. Without one, more while that goes well:
    channels, then blocks; for texts blocks, then everything at once; where that doesn't go, what does alone.
    """
    tried = _Tried.of(so_far, "blocks" if is_text else "ratio")
    return (_bounded if so_far.budget.is_bounded else _unbounded)(so_far, tried, is_text=is_text)


class _Tried(NamedTuple):
    """What was cut so far, by kind."""

    name: str
    """What is cut first: ratio or blocks."""
    other: str
    alone: list[Candidate]
    both: list[Candidate]
    smaller: list[Candidate]
    """With embeddings,"""
    tiny: list[Candidate]
    """and with everything."""

    @classmethod
    def of(cls, so_far: SoFar, name: str) -> "_Tried":
        other = "ratio" if name == "blocks" else "blocks"
        found = cls(name, other, [], [], [], [])
        for candidate in so_far.tried:
            cuts = _cuts(candidate)
            kind = found.both if cuts.get(other) else found.alone
            if cuts.get("embeddings"):
                kind = found.tiny if cuts.get("heads") else found.smaller
            kind.append(candidate)
        return found


def _bounded(so_far: SoFar, tried: _Tried, *, is_text: bool) -> Settings | None:
    if tried.both or tried.tiny:
        return None
    name, alone = tried.name, tried.alone
    found = _within(so_far, name, _BLOCKS if is_text else _RATIOS)
    is_too_large = found is not None and not so_far.keeps(so_far.sketch({name: found}))
    if is_too_large or (alone and not any(went_well(c, so_far.budget.max_drop) for c in alone)):
        # What lost too much by itself loses no less with more taken out.
        below = min((_cuts(c)[name] for c in alone), default=1.0)
        cuts = _together(so_far, name, below) or (_tiny(so_far, below) if is_text else None)
        if cuts is not None:
            return cuts
    return None if found is None else {name: found}


def _unbounded(so_far: SoFar, tried: _Tried, *, is_text: bool) -> Settings | None:
    max_drop = so_far.budget.max_drop
    if is_text and any(went_well(c, max_drop) for c in tried.alone):
        cuts = _tiny_next(so_far, tried.tiny) if len(tried.alone) == 1 else None
        if cuts is not None or any(went_well(c, max_drop) for c in tried.tiny):
            return cuts
    if not tried.both and not tried.smaller:
        stairs = _BLOCK_STAIRS if is_text else _CHANNEL_STAIRS
        share = _climbed(msgspec.structs.replace(so_far, tried=tried.alone), tried.name, stairs)
        if share is not None:
            return {tried.name: share}
    cuts = _both(so_far, tried) if not tried.smaller else None
    return cuts or (_with_embeddings(so_far, tried) if is_text else None)


def _within(so_far: SoFar, name: str, ladder: Sequence[float]) -> float | None:
    """Return the least share whose sketch keeps size and latency; then, while the drop is kept, larger ones."""
    tried = [candidate.recipe[-1][1].get(name, 0.0) for candidate in so_far.tried]
    if not tried:
        least = _least(so_far, [{name: share} for share in ladder])
        if least is not None:
            return float(least[name])
        # None is small or fast enough: then the smallest there can be, as the nearest point.
        found = [(sketch.size_bytes, share) for share in ladder if (sketch := so_far.sketch({name: share})) is not None]
        return min(found)[1] if found else None
    if len(tried) >= _MOST_TRIES:
        return None
    if went_well(so_far.tried[-1], so_far.budget.max_drop):
        last = so_far.sketch({name: max(tried)})
        for share in ladder:
            sketch = so_far.sketch({name: share}) if share > max(tried) else None
            # Widths are rounded, so that the next share may come to the same network.
            if sketch is not None and (last is None or sketch.size_bytes < last.size_bytes):
                return share
    return None


def _climbed(so_far: SoFar, name: str, stairs: _Stairs) -> float | None:
    """Return the next share: up the stairs while all went well, then one between success and failure if quick."""
    tried = so_far.tried
    shares = [_cuts(candidate)[name] for candidate in tried]
    well = [went_well(candidate, so_far.budget.max_drop) for candidate in tried]
    if all(well):
        rest = stairs.up[len(tried) :]
        if len(tried) < 2:
            return rest[0]
        # What is small already may come to the same network at the next share, or gain nothing by it.
        last = so_far.sketch({name: shares[-1]})
        further = (share for share in rest if _is_smaller(so_far.sketch({name: share}), last))
        return next(further, None)
    if len(tried) == 1:
        return None if name == "blocks" and _is_hopeless(tried[0], so_far) else stairs.less
    # Between two shares lies something better only if exactly one of them went well; what it brings is worth a short
    # training.
    is_quick = all(candidate.seconds < _QUICK_S for candidate in tried)
    return stairs.between.get(shares[-1]) if well[-1] != well[-2] and is_quick else None


def _is_hopeless(candidate: Candidate, so_far: SoFar) -> bool:
    """Whether it lost so much that half as much taken away would lose too much as well."""
    lost = candidate.quality.drop if candidate.quality is not None else candidate.given_up
    return lost > _HOPELESS * max(so_far.budget.max_drop, _NOISE)


def _both(so_far: SoFar, tried: _Tried) -> Settings | None:
    """Return the next cut of both kinds: on top of the smallest network that surely keeps the drop, more and more."""
    name, other, alone, both = tried[:4]
    kept = [c for c in alone if went_well(c, so_far.budget.max_drop)]
    base = min([c for c in kept if is_sure(c, so_far.budget)] or kept, key=lambda c: c.size_bytes, default=None)
    if base is None:
        return None
    cuts = {name: _cuts(base)[name]}
    up = _TOP_STAIRS[other]
    if all(went_well(c, so_far.budget.max_drop) for c in both):
        done = [_cuts(c)[other] for c in both]
        rest = [share for share in up if not done or share > max(done)]
        last = so_far.sketch({**cuts, other: done[-1]} if done else cuts)
    elif len(both) == 1 and _cuts(both[0])[other] == up[0]:
        rest, last = [_TOP_LESS[other]], so_far.sketch(cuts)
    else:
        return None
    found = ({**cuts, other: share} for share in rest)
    return next((settings for settings in found if _is_smaller(so_far.sketch(settings), last)), None)


def _together(so_far: SoFar, name: str, below: float) -> Settings | None:
    """Return the least cut of both kinds that comes within size and latency, with a share `name` below one: what one
    kind alone can't reach, or not without losing too much.
    """
    cuts = [dict(cut) for cut in _TOGETHER if cut[name] < below]
    if not cuts or not so_far.keeps(so_far.sketch(cuts[-1])):
        return None
    return next(cut for cut in cuts if so_far.keeps(so_far.sketch(cut)))


def _tiny(so_far: SoFar, below: float) -> Settings | None:
    """Return the least of the cuts of everything that comes within size and latency, with a share of blocks below."""
    return _least(so_far, [dict(cut) for cut in _TINY if cut["blocks"] < below])


def _least(so_far: SoFar, cuts: Sequence[Settings]) -> Settings | None:
    """Return the first of the cuts that comes within size and latency, in few sketches: each is smaller and faster than
    the one before.
    """
    low, high = 0, len(cuts)
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if so_far.keeps(so_far.sketch(cuts[middle])) else (middle + 1, high)
    return cuts[low] if low < len(cuts) else None


def _tiny_next(so_far: SoFar, tried: Sequence[Candidate]) -> Settings | None:
    """Return the next of the cuts of everything: further while that goes well, then between success and failure."""
    steps = {_TINY.index(_cuts(c)): went_well(c, so_far.budget.max_drop) for c in tried}
    good = max((step for step, well in steps.items() if well), default=-1)
    bad = min((step for step, well in steps.items() if not well), default=None)
    if good < 0 and tried and _is_hopeless(tried[0], so_far):
        return None
    step = next((step for step in _TINY_STEPS if step > good), -1) if bad is None else (good + bad) // 2
    if step < 0 or step in steps:
        return None
    sketch = so_far.sketch(_TINY[step])
    return dict(_TINY[step]) if sketch is not None and sketch.gain > _GAINS else None


def _with_embeddings(so_far: SoFar, tried: _Tried) -> Settings | None:
    """Return the next share of embeddings to take from the best network that surely keeps the drop, more and more."""
    others, smaller = tried.alone + tried.both, tried.smaller
    kept = [c for c in others if went_well(c, so_far.budget.max_drop)]
    base = min([c for c in kept if is_sure(c, so_far.budget)] or kept, key=lambda c: c.cost, default=None)
    cuts = {} if base is None else _cuts(base)
    done = [_cuts(c)["embeddings"] for c in smaller]
    if all(went_well(c, so_far.budget.max_drop) for c in smaller):
        rest = [share for share in _EMBEDDING_STAIRS if share > max(done, default=0.0)]
    else:
        rest = [_EMBEDDING_LESS] if len(done) == 1 and not _is_hopeless(smaller[0], so_far) else []
    for share in rest:
        sketch = so_far.sketch({**cuts, "embeddings": share})
        if sketch is not None and sketch.gain > _GAINS:
            return {**cuts, "embeddings": share}
    return None


def _cuts(candidate: Candidate) -> Settings:
    return candidate.recipe[-1][1]


def _is_smaller(sketch: Sketch | None, last: Sketch | None) -> bool:
    """Whether a structure is worth a training beside the one before: smaller, and not slower."""
    if sketch is None or last is None:
        return sketch is not None
    return sketch.size_bytes < last.size_bytes and sketch.ratio < last.ratio


def went_well(candidate: Candidate, max_drop: float) -> bool:
    """Return whether a candidate keeps the drop."""
    return candidate.status == "measured" and candidate.quality is not None and candidate.quality.drop <= max_drop
