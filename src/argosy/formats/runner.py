"""What every format offers once it is loaded: named arrays in, named arrays out."""

from pathlib import Path
from typing import Protocol, Self

import numpy as np

from argosy.core.plugins import Plugins
from argosy.core.tensors import Signature


class Runner(Protocol):
    """A loaded model that answers. Every runner passes tests/conformance/test_runners.py."""

    @property
    def signature(self) -> Signature:
        """The inputs and outputs of the bare model, before preparation and after finishing steps."""
        ...

    @classmethod
    def load(cls, data: bytes | Path, *, threads: int = 1) -> Self:
        """Load a model from its bytes or file; raise InvalidInput if they are not one.

        `threads` is the number of cores one run may use; 0 leaves the choice to the runtime.
        """
        ...

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer for `inputs`, which are left unchanged.

        Raises InvalidInput for a name, datatype or shape that the signature doesn't have.
        """
        ...


RUNNERS: Plugins[type[Runner]] = Plugins(
    "argosy.runners",
    {
        "onnx": "argosy.formats.onnx_runtime:OnnxRunner",
        "python": "argosy.formats.python_runner:PythonRunner",
    },
)


def load_runner(model_format: str, data: bytes | Path, *, threads: int = 1) -> Runner:
    """Load a model with the runner of its format; raise NotFound for a format that has none.

    A model of the format "python" is code, which this runs.
    """
    return RUNNERS.load(model_format).load(data, threads=threads)
