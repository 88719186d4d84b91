"""The `[evaluate]` section: gates a version has to pass before it can be released. Nothing heavy here."""

import msgspec

from argosy.core.config import Config
from argosy.core.errors import InvalidInput
from argosy.core.units import Bound


class GateKind(msgspec.Struct, frozen=True):
    """What a gate can be about: the tasks it fits, and the values the metric can take."""

    tasks: tuple[str, ...]
    lowest: float
    highest: float


_CLASSES = ("classification",)
_VALUES = ("regression",)
_TEXTS = ("language-model",)
_ANY = ("classification", "regression", "language-model", "tensor")
_NO_LIMIT = float("inf")

GATES: dict[str, GateKind] = {
    "accuracy": GateKind(_CLASSES, 0.0, 1.0),
    "f1": GateKind(_CLASSES, 0.0, 1.0),
    "balanced_accuracy": GateKind(_CLASSES, 0.0, 1.0),
    "roc_auc": GateKind(_CLASSES, 0.0, 1.0),
    "average_precision": GateKind(_CLASSES, 0.0, 1.0),
    "log_loss": GateKind(_CLASSES, 0.0, _NO_LIMIT),
    "calibration_error": GateKind(_CLASSES, 0.0, 1.0),
    "mae": GateKind(_VALUES, 0.0, _NO_LIMIT),
    "rmse": GateKind(_VALUES, 0.0, _NO_LIMIT),
    "r2": GateKind(_VALUES, -_NO_LIMIT, 1.0),
    "perplexity": GateKind(_TEXTS, 1.0, _NO_LIMIT),
    "parity": GateKind(_ANY, 0.0, 1.0),
}


class EvaluateConfig(Config, frozen=True, kw_only=True):
    """Each field is a bound such as `>= 0.97`; empty: the metric is reported, but nothing depends on it."""

    accuracy: str = ""
    """Share of right answers."""
    f1: str = ""
    """Harmonic mean of precision and recall, averaged over classes."""
    balanced_accuracy: str = ""
    """Recall averaged over classes: rare classes count as much as common ones."""
    roc_auc: str = ""
    """Probability that a sample of a class is ranked above one of another class, averaged over classes."""
    average_precision: str = ""
    """Precision averaged over recall, averaged over classes; for rare classes more telling than `roc_auc`."""
    log_loss: str = ""
    """Mean surprise in nats; punishes being sure and wrong."""
    calibration_error: str = ""
    """By how much stated probabilities differ from what came true (expected calibration error, 15 bins)."""
    mae: str = ""
    """Mean absolute error, in the label's unit."""
    rmse: str = ""
    """Root of the mean squared error, in the label's unit."""
    r2: str = ""
    """Share of the label's variance that is explained."""
    perplexity: str = ""
    """Of a language model: among how many equally likely tokens it wavers."""
    parity: str = ""
    """Share of answers equal to the original's; asked of converted and compressed versions."""

    def bounds(self) -> dict[str, Bound]:
        """Return the gates that are set. Raises InvalidInput that names the field."""
        found = {}
        for name in GATES:
            text = getattr(self, name)
            if text:
                try:
                    found[name] = Bound.parse(text)
                except InvalidInput as error:
                    raise InvalidInput(f"[evaluate] {name}: {error.message}") from error
        return found

    def check(self) -> None:
        """Raise InvalidInput for a bound that isn't one, or that no model can keep."""
        for name, bound in self.bounds().items():
            kind = GATES[name]
            reachable = {
                ">=": bound.value <= kind.highest,
                ">": bound.value < kind.highest,
                "<=": bound.value >= kind.lowest,
                "<": bound.value > kind.lowest,
            }[bound.sign]
            if not reachable:
                raise InvalidInput(
                    f"[evaluate] {name} {bound} can never be kept: {name} lies between {kind.lowest:g} and "
                    f"{kind.highest:g}",
                    hint=f"a share of 97 % is written {name} = '>= 0.97'" if kind.highest == 1.0 else "",
                )

    def check_task(self, task: str) -> None:
        """Raise InvalidInput for a gate on a metric that this task doesn't have."""
        for name in self.bounds():
            if task not in GATES[name].tasks:
                fitting = [other for other, kind in GATES.items() if task in kind.tasks]
                raise InvalidInput(
                    f"[evaluate] has a gate on '{name}', which a {task} doesn't have",
                    hint=f"metrics of a {task}: {', '.join(fitting)}",
                )
