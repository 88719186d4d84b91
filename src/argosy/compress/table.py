"""The table of passes, apart from their Protocol so that reading the config needs neither."""

from typing import Any

from argosy.core.plugins import Plugins

PASSES: Plugins[Any] = Plugins(
    "argosy.passes",
    {
        "slim": "argosy.compress.passes.slim:Slim",
        "factorize": "argosy.compress.passes.factorize:Factorize",
        "distill": "argosy.compress.passes.distill:Distill",
        "prune": "argosy.compress.passes.prune:Prune",
        "quantize": "argosy.compress.passes.quantize:Quantize",
        "optimize": "argosy.compress.passes.optimize:Optimize",
    },
    extras=dict.fromkeys(("slim", "factorize", "distill", "prune", "quantize", "optimize"), "train"),
)
"""Each entry is called without arguments and gives a `Pass`."""
