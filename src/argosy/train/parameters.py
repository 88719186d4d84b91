"""All trainable parameters of a model in one flat tensor.

An exchange then carries everything at once, an optimizer is a few operations on whole ranges, and the tensor may lie in
memory that the ranks of a machine share.
"""

from types import TracebackType
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from argosy.core.errors import InvalidInput
from argosy.train.gradients import Gradients
from argosy.train.marks import Marks

_ALIGN = 16
"""Parameters begin at multiples of this, so that each keeps the 64-byte alignment that vector units like."""


class Place(NamedTuple):
    """Where one parameter lies in the flat tensor."""

    name: str
    shape: torch.Size
    start: int
    stop: int


class Layout:
    """Which parameter lies where. Gaps between parameters hold 0."""

    def __init__(self, model: nn.Module) -> None:
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise InvalidInput(
                "the model has no parameters to train",
                hint="assign layers to attributes of the module, and set requires_grad where it was taken away",
                code="no_parameters",
            )
        kinds = {parameter.dtype for parameter in self.parameters.values()}
        if len(kinds) > 1:
            raise InvalidInput(
                f"the model's parameters have several types: {', '.join(sorted(str(kind) for kind in kinds))}",
                hint="make them one, such as model.float(); [train] precision chooses what is computed with",
                code="mixed_types",
            )
        self.dtype = kinds.pop()
        tables = [module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag))]
        sparse = {id(table.weight) for table in tables if table.sparse}
        self.sparse = [name for name, parameter in self.parameters.items() if id(parameter) in sparse]
        """Parameters whose gradients have few rows."""
        self.places: list[Place] = []
        self.size = 0
        for name, parameter in self.parameters.items():
            self.places.append(Place(name, parameter.shape, self.size, self.size + parameter.numel()))
            self.size += -(-parameter.numel() // _ALIGN) * _ALIGN

    def stretches(self) -> list[tuple[int, int]]:
        """Return where parameters with sparse gradients begin and end."""
        return [(place.start, place.stop) for place in self.places if place.name in self.sparse]

    def shapes(self) -> list[tuple[int, ...]]:
        """Return the shapes of all that lies in the flat tensor, in order: parameters, and gaps as vectors."""
        found: list[tuple[int, ...]] = []
        ends = [place.start for place in self.places[1:]] + [self.size]
        for place, end in zip(self.places, ends, strict=True):
            found.append(tuple(place.shape))
            if end > place.stop:
                found.append((end - place.stop,))
        return found

    def view(self, flat: Tensor, place: Place) -> Tensor:
        """Return the part of `flat` at `place`, in the parameter's shape."""
        return flat[place.start : place.stop].view(place.shape)

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Return the parts of `flat` by parameter."""
        return {place.name: self.view(flat, place) for place in self.places}

    def first_not_finite(self, flat: Tensor) -> str:
        """Return the name of the first parameter whose part holds NaN or infinity, or an empty text."""
        for place in self.places:
            if not bool(torch.isfinite(flat[place.start : place.stop]).all()):
                return place.name
        return ""


class FlatParameters:
    """While it is open, the trainable parameters are views of `values`, and backward passes write to `gradients`.

    Closing gives every parameter memory of its own again, with the values it had.
    """

    def __init__(
        self, model: nn.Module, layout: Layout, values: Tensor, gradients: Tensor, marks: Marks | None = None
    ) -> None:
        self.layout = layout
        self._parameters = list(layout.parameters.values())
        for parameter, place in zip(self._parameters, layout.places, strict=True):
            parameter.data = layout.view(values, place)
            parameter.grad = None
        places = dict(zip(self._parameters, layout.places, strict=True))
        views = {parameter: layout.view(gradients, place) for parameter, place in places.items()}
        sparse = {} if marks is None else {p: place.start for p, place in places.items() if place.name in layout.sparse}
        self.gradients = Gradients(model, views, marks, sparse)

    def close(self) -> None:
        """Give every parameter memory of its own again."""
        self.gradients.close()
        for parameter in self._parameters:
            parameter.data = parameter.detach().clone()
            parameter.grad = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
