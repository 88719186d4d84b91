"""What every pass offers.

A pass makes one model from another and says what it changed. It knows nothing of budgets: the search asks it what to
try next, shows it what came of the earlier tries, and judges.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from argosy.core.progress import Reporter

if TYPE_CHECKING:
    from torch import nn

    from argosy.compress.candidate import Candidate
    from argosy.compress.quality import Samples
    from argosy.train.config import TrainConfig

Settings: TypeAlias = dict[str, Any]


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model on its way through the passes."""

    path: Path
    """The ONNX file."""
    module: "Callable[[], nn.Module] | None" = None
    """Makes the PyTorch module the file was exported from; None when there is none, as for an int8 graph."""
    recipe: tuple[tuple[str, Settings], ...] = ()
    """The passes so far, each with its settings; empty for the original."""

    @property
    def passes(self) -> set[str]:
        """The names of the passes so far."""
        return {name for name, _ in self.recipe}


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass has made."""

    onnx: bytes
    module: "nn.Module | None" = None
    changed: dict[str, Any] = {}
    """What is different now, in numbers: channels, parameters, datatypes."""
    skipped: list[str] = []
    """Layers the pass could not handle, each with the reason."""


class Hopeless(Exception):
    """Raised by `Bench.check_draft`: this try can't end within the budget, whatever training does."""


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass may use: the teacher, samples, and the search's opinion on a draft."""

    original: Model
    samples: "Samples"
    dataset: Any
    """The data set, for training; passes must not look at its test part."""
    train: "TrainConfig"
    """How the original was trained; fine-tuning starts from it."""
    epochs: int
    """Passes over the training part in a fine-tuning."""
    seed: int
    check_draft: Callable[[bytes], None]
    """Call it with an ONNX file of the final structure before spending time on its weights; raises Hopeless."""
    report: Reporter


class Pass(Protocol):
    """One way to make a model smaller or faster."""

    cost: int
    """Passes are tried in this order: 0 for seconds, 1 for a training."""

    def label(self, settings: Settings) -> str:
        """Return the pass with these settings in a few words, such as `slim 0.5`."""
        ...

    def accepts(self, model: Model) -> bool:
        """Return whether the pass can work on this model at all."""
        ...

    def propose(
        self, model: Model, tried: "Sequence[Candidate]", elsewhere: "Sequence[Candidate]", max_drop: float
    ) -> Settings | None:
        """Return the settings most worth trying next, or None when nothing more is.

        `tried` are the results of this pass on this model, `elsewhere` all others so far. Depends on nothing else, so
        that an interrupted search goes the same way again.
        """
        ...

    def apply(self, model: Model, settings: Settings, bench: Bench) -> Made:
        """Make the new model; `model` is left unchanged. Raises InvalidInput for a model it can't handle."""
        ...
