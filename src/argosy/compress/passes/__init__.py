"""What every pass offers.

A pass makes one model from another and says what it changed. It knows nothing of budgets: the search asks it what to
try next, shows it what came of the earlier tries, and judges.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import msgspec

from argosy.core.errors import InvalidInput
from argosy.core.progress import Reporter

if TYPE_CHECKING:
    from torch import nn

    from argosy.compress.candidate import Candidate
    from argosy.compress.config import Budget
    from argosy.compress.lessons import Lesson
    from argosy.compress.quality import Samples
    from argosy.formats.runner import Answering, Runner

Settings: TypeAlias = dict[str, Any]

LONGER = 4
"""A long training (`Pass.cost` 2) takes so many times what others do."""


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """A model on its way through the passes."""

    path: Path
    """The ONNX file."""
    module: "Callable[[], nn.Module] | None" = None
    """Makes the PyTorch module the file was exported from; None when there is none, as for an int8 graph."""
    recipe: tuple[tuple[str, Settings], ...] = ()
    """The passes so far, each with its settings; empty for the original."""
    engine: str = "onnxruntime"
    """What the file runs on."""

    @property
    def passes(self) -> set[str]:
        """The names of the passes so far."""
        return {name for name, _ in self.recipe}


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass has made."""

    onnx: bytes
    module: "nn.Module | None" = None
    engine: str = "onnxruntime"
    """What it is to run on."""
    changed: dict[str, Any] = {}
    """What is different now, in numbers: channels, parameters, datatypes."""
    skipped: list[str] = []
    """Layers the pass could not handle, each with the reason."""


class Hopeless(Exception):
    """Raised by the checks of the bench: this try can't end within the budget, whatever (further) training does."""

    def __init__(self, reason: str, drop: float = 0.0) -> None:
        super().__init__(reason)
        self.drop = drop
        """What it lost when its training was given up; 0: none was begun."""


class Sketch(msgspec.Struct, frozen=True, kw_only=True):
    """What a structure will cost, measured without training it: neither size nor time depends on the weights."""

    size_bytes: int
    p95_s: float
    ratio: float
    """Time divided by the original's; below 1 is faster."""
    gain: float = 1.0
    """Size times time of the best so far that keeps the drop, divided by this one's; above 1 is better."""


class SoFar(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass may go by when it says what to try next."""

    tried: "Sequence[Candidate]"
    """The results of this pass on this model,"""
    elsewhere: "Sequence[Candidate]"
    """and all others so far."""
    budget: "Budget"
    sketch: Callable[[Settings], Sketch | None]
    """Measures what settings of this pass would come to, quantized if that pays here; None where it can't be made."""

    def keeps(self, sketch: Sketch | None) -> bool:
        """Return whether a sketch is within size and latency of the budget."""
        return (
            sketch is not None
            and sketch.size_bytes <= self.budget.size_bytes
            and sketch.p95_s <= self.budget.latency_p95_s
            and sketch.ratio <= 1.0
        )


class Bench(msgspec.Struct, frozen=True, kw_only=True):
    """What a pass may use: the teacher, samples, and the search's opinion on a draft."""

    original: Model
    runner: "Runner"
    """The original on ONNX Runtime with one thread."""
    samples: "Samples"
    lesson: "Lesson"
    """How a fine-tuning is done."""
    seed: int
    check_draft: Callable[[bytes], None]
    """Call it with an ONNX file of the final structure before spending time on its weights; raises Hopeless."""
    check_student: "Callable[[Answering, float], None]"
    """Shown a student after a share of its training; raises Hopeless."""
    report: Reporter
    notes: dict[str, Any] = {}
    """What passes found out about the original and may need again, by a name that says whose it is."""


class Pass(Protocol):
    """One way to make a model smaller or faster."""

    usual: Settings
    """Every setting it has, with the value where none is given."""
    cost: int
    """Passes are tried in this order: 0 for seconds, 1 for a training, 2 for a long one."""
    rank: int
    """What may follow what: structure (0), sparsity (1), datatypes (2), engine (3). A recipe's ranks only rise."""

    def label(self, settings: Settings) -> str:
        """Return the pass with these settings in a few words, such as `slim 0.5`."""
        ...

    def accepts(self, model: Model) -> bool:
        """Return whether the pass can work on this model at all."""
        ...

    def propose(self, model: Model, so_far: SoFar) -> Settings | None:
        """Return the settings most worth trying next, or None when nothing more is.

        Depends on nothing but its arguments, so that an interrupted search goes the same way again.
        """
        ...

    def default(self, model: Model) -> Settings:
        """Return the settings that are used when the pass is asked for alone, without a search."""
        ...

    def draft(self, model: Model, settings: Settings, bench: Bench) -> bytes | None:
        """Return an ONNX file of the structure `apply` would give, untrained; None where there is no such thing."""
        ...

    def apply(self, model: Model, settings: Settings, bench: Bench) -> Made:
        """Make the new model; `model` is left unchanged. Raises InvalidInput for a model it can't handle."""
        ...


def float_module(model: Model) -> "nn.Module":
    """Return the model's PyTorch module, in float32 and inference mode; without one, what its ONNX file is turned into.

    Raises InvalidInput, with the code "unsupported_operator", for graphs that can't be turned into one.
    """
    from argosy.formats.onnx_module import to_module

    module = model.module() if model.module is not None else to_module(model.path)
    return module.float().eval()


def named_settings(settings: Settings, defaults: Settings) -> Settings:
    """Return settings with defaults filled in.

    Raises InvalidInput for a name the pass doesn't have, and for a value of another kind than the default's.
    """
    unknown = sorted(set(settings) - set(defaults))
    if unknown:
        raise InvalidInput(
            f"there is no setting {unknown[0]!r}; there are: {', '.join(sorted(defaults))}", known=sorted(defaults)
        )
    for name, value in settings.items():
        usual = defaults[name]
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not (is_number if isinstance(usual, float) else isinstance(value, type(usual))):
            wanted = "a number" if isinstance(usual, float) else "yes or no" if isinstance(usual, bool) else "a word"
            raise InvalidInput(f"the setting {name!r} takes {wanted}, not {value!r}")
    return {**defaults, **settings}
