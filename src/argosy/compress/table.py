"""The table of passes, apart from their Protocol so that reading the config needs neither."""

from typing import Any

from argosy.core.plugins import Plugins

PASSES: Plugins[Any] = Plugins(
    "argosy.passes",
    {
        "slim": "argosy.compress.passes.slim:Slim",
        "quantize": "argosy.compress.passes.quantize:Quantize",
    },
    extras={"slim": "train", "quantize": "train"},
)
"""Each entry is called without arguments and gives a `Pass`."""
