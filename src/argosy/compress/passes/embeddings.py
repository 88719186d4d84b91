"""Smaller embeddings: rare words share the rows of frequent ones, and rows become combinations of a few.

The table of a network for texts is often half of its weights, and most of its rows are for words that hardly ever come.
A row that goes is the nearest of those that stay from then on; what stays is written in fewer dimensions, those in
which the table differs most where each row counts as often as its word comes (Eckart and Young 1936, with weights; as
GroupReduce, Chen et al. 2018, section 3.2, has it for one group). Of all ways to spend the same number of weights on
more rows or on more dimensions, the one that is nearest to the table is taken.

Shape suffixes: v words, k words with rows of their own, d width, r dimensions.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from argosy.compress.passes.export import rows_of, training_rows
from argosy.compress.passes.graph import flat
from argosy.core.errors import InvalidInput

if TYPE_CHECKING:
    from argosy.compress.passes import Bench

# Kernels work on vectors of 8 floats.
_ROUNDING = 8
# Below this share of a network's weights a table isn't worth two operations more in every run.
_LEAST_SHARE = 0.005
# Rows that are looked at to tell how near those that go come to those that stay.
_LOOKED_AT = 512
# Training brings dimensions back, but tells no two words apart that share a row: what sharing moves counts so often.
# (Of 0.04 of the table, on Reuters R52: 1907 rows of 184 lost 1.4 points of the test part, 3815 of 104 and 7630 of 48
# lost 0.3.)
_SHARING = 2.0
# As many texts tell how often words come.
_TEXTS, _BATCH = 8192, 64
_CHUNK = 2048
_SAME = 1e-5
_SMALL = torch.iinfo(torch.int16).max


class SharedRows(nn.Module):
    """An embedding in which several words may share a row, of fewer dimensions than it gives."""

    places: Tensor | None

    def __init__(self, places: Tensor | None, rows: Tensor, basis: Tensor | None) -> None:
        """`places` [v] has the row of each word, `rows` is [k, r], `basis` [r, d]; None where nothing is shared, and
        where rows are whole.
        """
        super().__init__()
        self.register_buffer("places", places)
        self.rows = nn.Embedding(rows.shape[0], rows.shape[1], _weight=rows.clone())
        self.out: nn.Linear | None = None
        if basis is not None:
            self.out = nn.Linear(basis.shape[0], basis.shape[1], bias=False)
            with torch.no_grad():
                self.out.weight.copy_(basis.t())
        self.num_embeddings = len(rows) if places is None else len(places)
        self.embedding_dim = rows.shape[1] if basis is None else basis.shape[1]

    def forward(self, words: Tensor) -> Tensor:
        """Return the vectors [..., d] of `words` [...]."""
        if self.places is not None:
            words = functional.embedding(words, self.places[:, None]).squeeze(-1).to(torch.int64)
        found: Tensor = self.rows(words)
        return found if self.out is None else self.out(found)

    @property
    def weight(self) -> Tensor:
        """The table it stands for [v, d], as near as it comes."""
        found: Tensor = self(torch.arange(self.num_embeddings))
        return found


class Cut(NamedTuple):
    """One way to spend weights: how many rows and dimensions stay, and how far that is from the table."""

    rows: int
    dimensions: int
    error: float


def with_small_embeddings(student: nn.Module, share: float, bench: "Bench") -> tuple[dict[str, str], list[str]]:
    """Replace the embeddings of `student`, in place, by ones without `share` of their weights.

    Returns what stays of each (such as "8000 rows of 64, of 30522 of 384"), and those that had to stay whole with the
    reason. Raises InvalidInput where there is none that could be made smaller.
    """
    tables, skipped = _tables(student, bench)
    counts = _counted(student, tables, bench)
    done: dict[str, str] = {}
    for name, table in tables.items():
        made = smaller(table.weight.detach(), counts[name], share)
        if made is None:
            skipped.append(f"{name}: so small a table can't lose {share:.0%} of its weights")
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(student.get_submodule(parent), leaf, made.train(table.training))
        whole = "{} of {}".format(*table.weight.shape)
        done[name] = "{} rows of {}, of ".format(*made.rows.weight.shape) + whole
    if not done:
        raise InvalidInput("no embedding can be made smaller: " + ("; ".join(skipped) or "the network has none"))
    return done, skipped


def _tables(student: nn.Module, bench: "Bench") -> tuple[dict[str, nn.Embedding], list[str]]:
    """Return the tables that are large enough and are nothing else, by name, and the others with the reason."""
    least = _LEAST_SHARE * sum(parameter.numel() for parameter in student.parameters())
    found = {
        name: layer
        for name, layer in student.named_modules()
        if name and type(layer) is nn.Embedding and layer.weight.numel() >= least
    }
    example = rows_of(bench, 2)
    tied = [name for name, layer in found.items() if _is_used_elsewhere(student, layer, example)]
    skipped = [f"{name}: its weights are those of another layer as well" for name in tied]
    return {name: layer for name, layer in found.items() if name not in tied}, skipped


def _is_used_elsewhere(student: nn.Module, table: nn.Embedding, example: Sequence[Tensor]) -> bool:
    """Whether anything but the table itself uses its weights, such as a last layer: then answers change without them.

    Code may do that without a layer of its own, so it is tried: the table gives what it gave, its weights are nothing.
    """
    was = table.weight.detach().clone()

    def answer(_: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> Tensor:
        del output
        return functional.embedding(given[0], was)

    with torch.no_grad():
        wanted = flat(student(*example))
        hook = table.register_forward_hook(answer)
        try:
            table.weight.zero_()
            return not torch.allclose(flat(student(*example)), wanted, atol=_SAME)
        finally:
            table.weight.copy_(was)
            hook.remove()


class _HeardAll(Exception):
    """Every table has been asked; the rest of the network need not run."""


def _counted(student: nn.Module, tables: Mapping[str, nn.Embedding], bench: "Bench") -> dict[str, Tensor]:
    """Return how often each row [v] of each table is asked for in the training part; noted for the next time."""
    key = ("embeddings: how often each row is asked for", *((name, *t.weight.shape) for name, t in tables.items()))
    noted = str(key)
    if noted not in bench.notes:
        counts = {name: torch.zeros(len(table.weight)) for name, table in tables.items()}
        if counts:
            _listen(student, tables, counts, bench)
        bench.notes[noted] = counts
    found: dict[str, Tensor] = bench.notes[noted]
    return found


def _listen(student: nn.Module, tables: Mapping[str, nn.Embedding], counts: dict[str, Tensor], bench: "Bench") -> None:
    waiting: set[str] = set()

    def hear(name: str) -> Any:
        def note(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            counts[name] += torch.bincount(given[0].flatten(), minlength=len(counts[name]))
            waiting.discard(name)
            if not waiting:
                raise _HeardAll

        return note

    hooks = [table.register_forward_pre_hook(hear(name)) for name, table in tables.items()]
    try:
        with torch.no_grad():
            for rows in training_rows(bench, most=_TEXTS, batch=_BATCH):
                waiting.update(tables)
                with contextlib.suppress(_HeardAll):
                    student(*rows)
    finally:
        for hook in hooks:
            hook.remove()


def smaller(table: Tensor, counts: Tensor, share: float) -> SharedRows | None:
    """Return an embedding that is near to `table` [v, d] with about 1 - `share` of its weights; None if none is left.

    `counts` [v] is how often each word comes; each counts once more than that, for texts that were not seen.
    """
    weights = counts.double() + 1.0
    order = torch.argsort(weights, descending=True, stable=True)
    budget = (1.0 - share) * table.numel()
    cuts = [cut for cut in (_cut(table, weights, order, budget, rows) for rows in _halves(len(table))) if cut]
    if not cuts:
        return None
    best = min(cuts, key=lambda cut: cut.error)
    kept = order[: best.rows].sort().values
    rows, basis = table[kept], None
    if best.dimensions < table.shape[1]:
        vectors = _basis(table, weights, kept)[1][:, : best.dimensions].to(table.dtype)
        rows, basis = rows @ vectors, vectors.t()
    places = None
    if best.rows < len(table):
        places = torch.empty(len(table), dtype=torch.int64)
        places[kept] = torch.arange(len(kept))
        gone = order[best.rows :]
        places[gone] = _nearest(table, gone, kept)[1]
        places = places.to(torch.int16 if best.rows <= _SMALL else torch.int32)
    return SharedRows(places, rows, basis)


def _halves(count: int) -> Iterator[int]:
    while count >= _ROUNDING:
        yield count
        count //= 2


def _cut(table: Tensor, weights: Tensor, order: Tensor, budget: float, rows: int) -> Cut | None:
    """Return what so many rows come to within the budget of weights; None where too few dimensions would be left."""
    words, width = table.shape
    # A place is counted like a weight: it takes less than one of four bytes and more than one of a byte.
    left = budget - (words if rows < words else 0)
    dimensions = width if rows * width <= left else int(left / (rows + width)) // _ROUNDING * _ROUNDING
    if dimensions < _ROUNDING or (rows == words and dimensions >= width):
        return None
    kept, gone = order[:rows], order[rows:]
    error = float(_basis(table, weights, kept)[0][dimensions:].sum())
    if len(gone):
        seen = gone[:: -(-len(gone) // _LOOKED_AT)]
        distances = _nearest(table, seen, kept)[0].double() * weights[seen]
        error += _SHARING * float(distances.mean()) * len(gone)
    return Cut(rows, dimensions, error)


def _basis(table: Tensor, weights: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return what each dimension carries of the rows `kept` [d], largest first, and the dimensions [d, d]."""
    chosen = table[kept].double()
    carried, vectors = torch.linalg.eigh(chosen.t() @ (chosen * weights[kept, None]))
    return carried.flip(0).clamp(min=0), vectors.flip(1)


def _nearest(table: Tensor, gone: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Return how far each row that goes is from the nearest that stays, squared, and which of those that is."""
    rows = table[kept]
    lengths = rows.square().sum(dim=1)
    parts = []
    for chunk in torch.split(gone, _CHUNK):
        asked = table[chunk]
        found = torch.min(lengths - 2 * asked @ rows.t(), dim=1)
        parts.append((found.values + asked.square().sum(dim=1), found.indices))
    return torch.cat([part[0] for part in parts]).clamp(min=0), torch.cat([part[1] for part in parts])
