"""A thinner network: channels of convolutions, inner widths of feed-forward parts, heads of attention, whole blocks.

Whatever goes, goes as whole rows and columns, so that any runtime is faster; then the rest is fine-tuned. The blocks
that go are those without which the answers change least, measured one after the other; the heads those without each of
which they change least (Michel, Levy, Neubig 2019, "Are Sixteen Heads Really Better than One?", section 3.2).
"""

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import msgspec
import numpy as np

from argosy.compress.candidate import Candidate
from argosy.compress.passes import Bench, Made, Model, Settings, Sketch, SoFar, float_module, named_settings
from argosy.compress.passes.channels import cut
from argosy.compress.passes.export import exported, rows_of
from argosy.compress.passes.graph import Block, blocks_of, pairs_of, remove_block, shrink_pair, traced, without_block
from argosy.compress.passes.heads import attentions_of, silenced, without_heads
from argosy.compress.passes.kinds import is_quantized, takes_tokens
from argosy.compress.passes.learning import taught
from argosy.compress.passes.normalizing import with_batch_norms
from argosy.compress.select import is_sure
from argosy.core.errors import InvalidInput

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

_RATIOS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.8125, 0.875, 0.9375)
_BLOCKS = (0.17, 0.34, 0.5, 0.67, 0.84)
_QUICK_S = 8.0
# With a budget that says how small or fast, so many trainings find the largest network within it that learns enough.
_MOST_TRIES = 3
# Half of the blocks cost about half of the loss; what lost more than so many times the bound has no half within it.
_HOPELESS = 6.0
_NOISE = 0.005
# Rows that tell which blocks matter.
_SEEN = 64


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
# Of both kinds, least first: a share of the widths leaves as much of rows as of columns.
_TOGETHER = sorted(
    ({"ratio": ratio, "blocks": blocks} for ratio in (0.25, 0.5, 0.75, 0.875) for blocks in (0.34, 0.67, 0.84)),
    key=lambda cut: -((1 - cut["ratio"]) ** 2) * (1 - cut["blocks"]),
)


class Slim:
    """The pass `slim`. Settings: the share that goes of channels or inner widths (`ratio`), `heads` and `blocks`."""

    usual: ClassVar[Settings] = {"ratio": 0.0, "blocks": 0.0, "heads": 0.0}
    cost, rank = 1, 0

    def label(self, settings: Settings) -> str:
        """Return the shares that go."""
        words = [f"{settings['ratio']:.3g}"] if settings.get("ratio") else []
        words += [f"{settings[name]:.2g} of {name}" for name in ("blocks", "heads") if settings.get(name)]
        return " ".join(["slim", *words])

    def accepts(self, model: Model) -> bool:
        """Take anything that still is in float: nothing can be cut from an int8 graph."""
        return not model.recipe and not is_quantized(model)

    def default(self, model: Model) -> Settings:
        """Take half of the channels, or a third of the blocks of a network for texts."""
        return {"blocks": _BLOCK_STAIRS.up[0]} if takes_tokens(model) else {"ratio": _CHANNEL_STAIRS.up[0]}

    def propose(self, model: Model, so_far: SoFar) -> Settings | None:
        """Without a bound for size and time: more while that goes well, then blocks and widths together. With one: the
        least that comes within it.
        """
        name, ladder = ("blocks", _BLOCKS) if takes_tokens(model) else ("ratio", _RATIOS)
        other = "ratio" if name == "blocks" else "blocks"
        alone = [c for c in so_far.tried if not _cuts(c).get(other)]
        both = [c for c in so_far.tried if _cuts(c).get(other)]
        if np.isfinite(so_far.budget.size_bytes) or np.isfinite(so_far.budget.latency_p95_s):
            if both:
                return None
            found = within(so_far, name, ladder)
            is_in_vain = (found is not None and not so_far.keeps(so_far.sketch({name: found}))) or (
                bool(alone) and not any(went_well(c, so_far.budget.max_drop) for c in alone)
            )
            # What lost too much by itself loses no less with more taken out.
            below = min((_cuts(c)[name] for c in alone), default=1.0)
            together = _together(so_far, name, below) if is_in_vain else None
            return together or (None if found is None else {name: found})
        if not both:
            stairs = _BLOCK_STAIRS if name == "blocks" else _CHANNEL_STAIRS
            found = _climbed(msgspec.structs.replace(so_far, tried=alone), name, stairs)
            if found is not None:
                return {name: found}
        return _both(so_far, alone, both, name, other)

    def draft(self, model: Model, settings: Settings, bench: Bench) -> bytes | None:
        """Cut without training."""
        student, _, _ = slimmer(float_module(model), settings, bench)
        return exported(student, bench, is_draft=True)

    def apply(self, model: Model, settings: Settings, bench: Bench) -> Made:
        """Cut, ask whether the draft has a chance, and train the rest to answer as the original does."""
        teacher = float_module(model)
        student, skipped, removed = slimmer(teacher, settings, bench)
        before, after = parameters(teacher), parameters(student)
        if after >= before:
            raise InvalidInput("nothing could be taken out: " + ("; ".join(skipped) or "all layers are thin already"))
        bench.check_draft(exported(student, bench, is_draft=True))
        with_batch_norms(student, rows_of(bench, _SEEN))
        done = taught(student, bench, self.label(settings), is_tried=True)
        return Made(
            onnx=exported(student, bench),
            module=student,
            changed={"parameters_before": before, "parameters_after": after, **removed, **done},
            skipped=skipped,
        )


def slimmer(teacher: "nn.Module", settings: Settings, bench: Bench) -> tuple["nn.Module", list[str], dict[str, Any]]:
    """Return a thinner copy of `teacher`, the layers that had to stay whole with the reason, and what went."""
    asked = named_settings(settings, Slim.usual)
    if any(not 0 <= share < 1 for share in asked.values()) or not any(asked.values()):
        raise InvalidInput("slim takes a share of the channels (ratio), heads or blocks, above 0 and below 1")
    example = rows_of(bench, 2)
    student = teacher
    skipped: list[str] = []
    removed: dict[str, Any] = {}
    if asked["blocks"]:
        student, gone = _without_blocks(teacher, asked["blocks"], bench)
        removed["blocks_removed"] = gone
    if asked["heads"]:
        student, removed["heads_removed"], skipped = _without_heads(_graph_of(student, bench), asked["heads"], bench)
    if asked["ratio"] and (len(example) > 1 or not example[0].dtype.is_floating_point):
        student, removed["widths"] = _narrower(_graph_of(student, bench), asked["ratio"])
        if not removed["widths"] and not asked["blocks"]:
            raise InvalidInput("no width could be reduced: no two linear layers follow one another")
    elif asked["ratio"]:
        student, whole = cut(student, example[0], asked["ratio"])
        skipped += whole
    return student.eval(), skipped, removed


def _graph_of(module: "nn.Module", bench: Bench) -> "fx.GraphModule":
    """Return the network as a graph; where its code asks for values, what the original's file is turned into."""
    from argosy.formats.onnx_module import to_module

    try:
        return traced(module)
    except Exception:  # noqa: BLE001 - whatever the user's code raises while it is traced
        return traced(to_module(bench.original.path).float().eval())


def _without_blocks(teacher: "nn.Module", share: float, bench: Bench) -> tuple["nn.Module", list[str]]:
    """Take out the blocks that matter least, one at a time, each time measured anew.

    Who goes first doesn't depend on how many go, so that it is measured once for all shares.
    """
    import torch

    graph = _graph_of(teacher, bench)
    example = rows_of(bench, _SEEN)
    found = blocks_of(graph, rows_of(bench, 2))
    if not found:
        raise InvalidInput("the network has no block that could be taken out: nothing of one shape is repeated")
    count = max(1, min(len(found) - 1, round(share * len(found))))
    student = copy.deepcopy(graph)
    gone: list[str] = []
    order: list[int] = bench.notes.setdefault("slim: places of the blocks that matter least", [])
    with torch.no_grad():
        wanted = _flat(graph(*example))
        while len(gone) < count:
            if len(gone) == len(order):
                order.append(int(np.argmin([_importance(student, block, example, wanted) for block in found])))
            least = found[order[len(gone)]]
            remove_block(student, least)
            gone.append(least.modules[0] if least.modules else least.end)
            # Another block may have begun or ended with the one that went; what is left is found anew.
            found = blocks_of(student, rows_of(bench, 2))
            if len(found) < 2:
                break
    return student, gone


def _importance(
    student: "fx.GraphModule", block: Block, example: "Sequence[torch.Tensor]", wanted: "torch.Tensor"
) -> float:
    """How far the answers move without the block, for each of its weights."""
    moved = _flat(without_block(student, block)(*example)) - wanted
    return float(moved.square().mean()) / block.parameters


def _without_heads(
    teacher: "fx.GraphModule", share: float, bench: Bench
) -> tuple["nn.Module", dict[str, list[int]], list[str]]:
    """Take out the heads that matter least, and say which; each attention keeps one."""
    import torch

    found = attentions_of(teacher, rows_of(bench, 2))
    if not found:
        raise InvalidInput("the network has no attention whose heads could be told apart")
    example = rows_of(bench, _SEEN)
    with torch.no_grad():
        wanted = _flat(teacher(*example))
        distances = {
            (place, head): float((_flat(silenced(teacher, attention, [head])(*example)) - wanted).square().mean())
            for place, attention in enumerate(found)
            for head in range(attention.heads)
        }
    count = max(1, round(share * len(distances)))
    chosen: dict[int, list[int]] = {}
    for place, head in sorted(distances, key=lambda key: distances[key]):
        if sum(map(len, chosen.values())) < count and len(chosen.get(place, [])) < found[place].heads - 1:
            chosen.setdefault(place, []).append(head)
    student, gone, skipped = teacher, {}, []
    for place, heads in sorted(chosen.items()):
        attention = found[place]
        made = without_heads(student, attention, sorted(heads), rows_of(bench, 2))
        if made is None:
            skipped.append(f"{attention.output}: without some of its heads it would answer otherwise than it should")
        else:
            student, gone[attention.output] = made, sorted(heads)
    return student, gone, skipped


def _narrower(teacher: "fx.GraphModule", ratio: float) -> tuple["nn.Module", dict[str, str]]:
    """Take inner values of feed-forward parts that carry least: the product of the norms of their row and column."""
    import torch

    student = copy.deepcopy(teacher)
    layers = dict(student.named_modules())
    done = {}
    for pair in pairs_of(student):
        first, second = layers[pair.first].weight, layers[pair.second].weight
        width = first.shape[0]
        left = max(8, round(width * (1 - ratio) / 8) * 8)
        if left >= width:
            continue
        weight = first.detach().norm(dim=1) * second.detach().norm(dim=0)
        keep = torch.topk(weight, left).indices.sort().values
        shrink_pair(student, pair, keep)
        done[pair.first] = f"{width} to {left}"
    return student, done


def _flat(answer: Any) -> "torch.Tensor":
    import torch

    parts = answer if isinstance(answer, tuple) else (answer,)
    return torch.cat([part.float().reshape(len(part), -1) for part in parts if part.is_floating_point()], dim=1)


def within(so_far: SoFar, name: str, ladder: Sequence[float]) -> float | None:
    """Return the least share whose sketch keeps size and latency; then, while the drop is kept, larger ones."""
    tried = [candidate.recipe[-1][1].get(name, 0.0) for candidate in so_far.tried]
    if not tried:
        low, high = 0, len(ladder)
        while low < high:  # the larger the share, the smaller and faster the network
            middle = (low + high) // 2
            low, high = (low, middle) if so_far.keeps(so_far.sketch({name: ladder[middle]})) else (middle + 1, high)
        if low < len(ladder):
            return ladder[low]
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
        lost = tried[0].quality.drop if tried[0].quality is not None else tried[0].given_up
        is_hopeless = lost > _HOPELESS * max(so_far.budget.max_drop, _NOISE)
        return None if is_hopeless and name == "blocks" else stairs.less
    # Between two shares lies something better only if exactly one of them went well; what it brings is worth a short
    # training.
    is_quick = all(candidate.seconds < _QUICK_S for candidate in tried)
    return stairs.between.get(shares[-1]) if well[-1] != well[-2] and is_quick else None


def _both(
    so_far: SoFar, alone: "Sequence[Candidate]", both: "Sequence[Candidate]", name: str, other: str
) -> Settings | None:
    """Return the next cut of both kinds: on top of the smallest network that surely keeps the drop, more and more."""
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


def parameters(module: "nn.Module") -> int:
    """Return the number of weights."""
    return sum(parameter.numel() for parameter in module.parameters())
