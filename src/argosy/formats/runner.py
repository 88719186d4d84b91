"""What every format offers once it is loaded: named arrays in, named arrays out."""

from pathlib import Path
from typing import Protocol, Self

import numpy as np

from argosy.core.plugins import Plugins
from argosy.core.tensors import Signature


class Answering(Protocol):
    """What answers, wherever it comes from."""

    @property
    def signature(self) -> Signature:
        """The inputs and outputs of the bare model, before preparation and after finishing steps."""
        ...

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer for `inputs`, which are left unchanged.

        Raises InvalidInput for a name, datatype or shape that the signature doesn't have.
        """
        ...


class Runner(Answering, Protocol):
    """A loaded model that answers. Every runner passes tests/conformance/test_runners.py."""

    @classmethod
    def load(cls, data: bytes | Path, *, threads: int = 1, spinning: bool = False) -> Self:
        """Load a model from its bytes or file; raise InvalidInput if they are not one.

        `threads` is the number of cores one run may use; 0 leaves the choice to the runtime. `spinning`: threads of a
        run wait awake for each other, which is faster where their cores have nothing else to do. A runner that has
        no such choice takes no notice of it.
        """
        ...


RUNNERS: Plugins[type[Runner]] = Plugins(
    "argosy.runners",
    {
        "onnx": "argosy.formats.onnx_runtime:OnnxRunner",
        "python": "argosy.formats.python_runner:PythonRunner",
    },
)


ENGINES: Plugins[type[Runner]] = Plugins(
    "argosy.engines",
    {
        "onnxruntime": "argosy.formats.onnx_runtime:OnnxRunner",
        "openvino": "argosy.formats.openvino_runtime:OpenVinoRunner",
        "openvino-bf16": "argosy.formats.openvino_runtime:OpenVinoBf16Runner",
    },
    extras={"openvino": "openvino", "openvino-bf16": "openvino"},
)
"""What an ONNX file can run on. Every engine passes tests/conformance/test_engines.py."""


def load_runner(
    model_format: str, data: bytes | Path, *, threads: int = 1, spinning: bool = False, engine: str = "onnxruntime"
) -> Runner:
    """Load a model with the runner of its format, an ONNX file on `engine`.

    Raises NotFound for a format or engine that there is none of, PluginError for an engine that isn't installed. A
    model of the format "python" is code, which this runs.
    """
    if model_format == "onnx":
        return ENGINES.load(engine).load(data, threads=threads, spinning=spinning)
    return RUNNERS.load(model_format).load(data, threads=threads, spinning=spinning)
