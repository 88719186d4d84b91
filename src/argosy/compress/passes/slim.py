"""A thinner network: channels of convolutions, inner widths of feed-forward parts, heads, whole blocks, embeddings.

Whatever goes, goes as whole rows and columns, so that any runtime is faster or the file smaller; then the rest is
fine-tuned. The blocks that go are those without which the answers change least, measured one after the other; the heads
those without each of which they change least (Michel, Levy, Neubig 2019, "Are Sixteen Heads Really Better than One?",
section 3.2). How much goes, where nobody says so: `passes.stairs`.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from argosy.compress.passes import Bench, Made, Model, Settings, SoFar, float_module, named_settings
from argosy.compress.passes.channels import cut
from argosy.compress.passes.export import exported, rows_of
from argosy.compress.passes.graph import (
    Block,
    blocks_of,
    drop_idle_norms,
    flat,
    pairs_of,
    remove_block,
    shrink_pair,
    traced,
    without_block,
)
from argosy.compress.passes.heads import attentions_of, silenced, without_heads
from argosy.compress.passes.kinds import is_quantized, takes_tokens
from argosy.compress.passes.learning import taught
from argosy.compress.passes.normalizing import with_batch_norms
from argosy.compress.passes.stairs import first_cut, next_cut
from argosy.core.errors import InvalidInput
from argosy.core.progress import Progress, seldom

if TYPE_CHECKING:
    import torch
    from torch import fx, nn

# Rows that tell which blocks and heads matter; of long texts fewer, by their tokens.
_SEEN, _FEWEST_SEEN, _SEEN_TOKENS = 64, 16, 8192

CUTS = ("ratio", "blocks", "heads", "embeddings")
"""Settings that say how much goes."""


class Slim:
    """The pass `slim`. Settings: the share that goes of channels or inner widths (`ratio`), `heads`, `blocks` and the
    weights of `embeddings`.
    """

    usual: ClassVar[Settings] = {"ratio": 0.0, "blocks": 0.0, "heads": 0.0, "embeddings": 0.0}
    cost, rank = 1, 0

    def label(self, settings: Settings) -> str:
        """Return the shares that go."""
        return " ".join(["slim", *shares(settings)])

    def accepts(self, model: Model) -> bool:
        """Take anything that still is in float: nothing can be cut from an int8 graph."""
        return not model.recipe and not is_quantized(model)

    def default(self, model: Model) -> Settings:
        """Take half of the channels, or a third of the blocks of a network for texts."""
        return first_cut(is_text=takes_tokens(model))

    def propose(self, model: Model, so_far: SoFar) -> Settings | None:
        """Take more while that goes well; with a bound for size or time, the least that comes within it."""
        return next_cut(so_far, is_text=takes_tokens(model))

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
        done = taught(student, bench, self.label(settings), shrunk=before / after, is_tried=True)
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
        raise InvalidInput(
            "slim takes a share of the channels (ratio), heads, blocks or embeddings, above 0 and below 1"
        )
    example = rows_of(bench, 2)
    student = teacher
    skipped: list[str] = []
    removed: dict[str, Any] = {}
    if asked["blocks"]:
        student, gone = _without_blocks(teacher, asked["blocks"], bench)
        removed["blocks_removed"] = gone
    if asked["heads"]:
        student, removed["heads_removed"], skipped = _without_heads(_graph_of(student, bench), asked["heads"], bench)
        # Blocks that went may have had all of the attention.
        if not (removed["heads_removed"] or asked["blocks"]):
            raise InvalidInput("no head could be taken out: " + "; ".join(skipped))
    if asked["ratio"] and (len(example) > 1 or not example[0].dtype.is_floating_point):
        student, removed["widths"] = _narrower(_graph_of(student, bench), asked["ratio"])
        if not removed["widths"] and not asked["blocks"]:
            raise InvalidInput("no width could be reduced: no two linear layers follow one another")
    elif asked["ratio"]:
        student, whole = cut(student, example[0], asked["ratio"])
        skipped += whole
    if asked["embeddings"]:
        from argosy.compress.passes.embeddings import with_small_embeddings

        student = copy.deepcopy(student)
        removed["embeddings"], whole = with_small_embeddings(student, asked["embeddings"], bench)
        skipped += whole
    return student.eval(), skipped, removed


def shares(settings: Settings) -> list[str]:
    """Return what goes, in words."""
    words = [f"{settings['ratio']:.3g}"] if settings.get("ratio") else []
    return words + [f"{settings[name]:.2g} of {name}" for name in CUTS[1:] if settings.get(name)]


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
    example = _telling(bench)
    found = blocks_of(graph, rows_of(bench, 2))
    if not found:
        raise InvalidInput("the network has no block that could be taken out: nothing of one shape is repeated")
    count = max(1, min(len(found) - 1, round(share * len(found))))
    student = copy.deepcopy(graph)
    gone: list[str] = []
    order: list[int] = bench.notes.setdefault("slim: places of the blocks that matter least", [])
    with torch.no_grad():
        wanted = flat(graph(*example))
        while len(gone) < count:
            if len(gone) == len(order):
                tell = _counting(bench, f"which block of {len(found)} matters least", len(found))
                order.append(int(np.argmin(tell(_importance(student, block, example, wanted) for block in found))))
            least = found[order[len(gone)]]
            remove_block(student, least)
            gone.append(least.modules[0] if least.modules else least.end)
            # Another block may have begun or ended with the one that went; what is left is found anew.
            found = blocks_of(student, rows_of(bench, 2))
            if len(found) < 2:
                break
    drop_idle_norms(student)
    return student, gone


def _telling(bench: Bench) -> "list[torch.Tensor]":
    """Return the rows by which it is judged what matters."""
    rows = rows_of(bench, _SEEN)
    if rows[0].dtype.is_floating_point or rows[0].ndim < 2:
        return rows
    return rows_of(bench, max(_FEWEST_SEEN, min(_SEEN, _SEEN_TOKENS // rows[0].shape[1])))


def _counting(bench: Bench, message: str, total: int) -> "Callable[[Iterable[float]], list[float]]":
    """Return what makes a list of numbers and tells of each."""
    report = seldom(bench.report)

    def counted(values: Iterable[float]) -> list[float]:
        found: list[float] = []
        for value in values:
            found.append(value)
            report(Progress(stage="compress", message=message, done=len(found), total=total, unit="tries"))
        return found

    return counted


def _importance(
    student: "fx.GraphModule", block: Block, example: "Sequence[torch.Tensor]", wanted: "torch.Tensor"
) -> float:
    """How far the answers move without the block, for each of its weights."""
    moved = flat(without_block(student, block)(*example)) - wanted
    return float(moved.square().mean()) / block.parameters


def _without_heads(
    teacher: "fx.GraphModule", share: float, bench: Bench
) -> tuple["nn.Module", dict[str, list[int]], list[str]]:
    """Take out the heads that matter least, and say which; each attention keeps one."""
    import torch

    found = attentions_of(teacher, rows_of(bench, 2))
    if not found:
        return teacher, {}, ["heads: there is no attention whose heads could be told apart"]
    example = _telling(bench)
    pairs = [(place, head) for place, attention in enumerate(found) for head in range(attention.heads)]
    with torch.no_grad():
        wanted = flat(teacher(*example))
        tell = _counting(bench, "which heads matter least", len(pairs))
        moved = tell(
            float((flat(silenced(teacher, found[place], [head])(*example)) - wanted).square().mean())
            for place, head in pairs
        )
        distances = dict(zip(pairs, moved, strict=True))
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


def parameters(module: "nn.Module") -> int:
    """Return the number of weights."""
    return sum(parameter.numel() for parameter in module.parameters())
