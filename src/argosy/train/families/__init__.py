"""The built-in model families, one module each, imported when it is asked for.

A family's module has a class of options and a function `build(options, given, outputs)`; `given` says what the model
gets for one sample. A family that reads tokens takes a mask behind them: 1 for tokens, 0 for the padding behind them.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from argosy.core.config import Config

if TYPE_CHECKING:
    from torch import nn

    from argosy.train.inputs import ModelInput

FAMILIES: dict[str, tuple[str, str]] = {
    "gpt": ("argosy.train.families.gpt", "GptOptions"),
    "graph": ("argosy.train.families.graph", "GraphOptions"),
    "lstm": ("argosy.train.families.lstm", "LstmOptions"),
    "mlp": ("argosy.train.families.mlp", "MlpOptions"),
    "resnet": ("argosy.train.families.resnet", "ResnetOptions"),
    "transformer": ("argosy.train.families.transformer", "TransformerOptions"),
}
"""Name to the module and its class of options; a test holds these names against `FAMILY_NAMES`."""


class Family(NamedTuple):
    """One family: its options, and what builds it of them."""

    options: type[Config]
    build: "Callable[[Any, ModelInput, int], nn.Module]"


def load_family(name: str) -> Family:
    """Import one family, and none of the others."""
    module, options = FAMILIES[name]
    found = importlib.import_module(module)
    return Family(getattr(found, options), found.build)
