"""ONNX files on OpenVINO: the second engine, for models and machines on which it is the faster one.

In float32 it does what ONNX Runtime does. In bfloat16 it uses the matrix units some processors have for it, at a loss
that is small but not nothing, so a version is only run so when it was measured and published so. Needs
`argosy[openvino]`.
"""

import re
import threading
from pathlib import Path
from typing import Any, Self

import numpy as np

from argosy.core.errors import InvalidInput
from argosy.core.plugins import missing
from argosy.core.tensors import DATATYPES, Signature, TensorSpec
from argosy.formats.values import checked_content, checked_input

# OpenVINO's names of element types; what is missing here (texts, 4-bit types, bfloat16) is refused.
_DATATYPES = {
    "boolean": "BOOL",
    "u8": "UINT8",
    "u16": "UINT16",
    "u32": "UINT32",
    "u64": "UINT64",
    "i8": "INT8",
    "i16": "INT16",
    "i32": "INT32",
    "i64": "INT64",
    "f16": "FP16",
    "f32": "FP32",
    "f64": "FP64",
}


# Where in OpenVINO's own source something failed, which stands before what has.
_WHERE = re.compile(r"^(Exception from|Check '.*' failed at) \S+:\d+:$")


class OpenVinoRunner:
    """A model on OpenVINO's CPU device, computing in float32, and int8 where the model does."""

    precision = "f32"

    def __init__(self, request: Any, signature: Signature) -> None:
        self._request = request
        # A request answers one caller at a time: a second one would get the first one's answer, or an error.
        self._turn = threading.Lock()
        self._signature = signature
        self._inputs = {spec.name: (np.dtype(DATATYPES[spec.datatype][0]), spec) for spec in signature.inputs}
        self._outputs = [spec.name for spec in signature.outputs]

    @property
    def signature(self) -> Signature:
        """The inputs and outputs of the bare model."""
        return self._signature

    @classmethod
    def load(cls, data: bytes | Path, *, threads: int = 1, spinning: bool = False) -> Self:
        """Load an ONNX model from its bytes or file.

        `threads` is the number of cores one run may use; 0 leaves the choice to the runtime. Raises InvalidInput for
        what is not one self-contained ONNX model or holds what this runtime can't run; NotFound for a missing file;
        PluginError where OpenVINO is not installed. How its threads wait is OpenVINO's own business.
        """
        del spinning
        content = checked_content(data, threads)
        try:
            import openvino
        except ModuleNotFoundError as error:
            raise missing(error, "openvino") from error
        core = openvino.Core()
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": cls.precision,
            "NUM_STREAMS": 1,
            # Replicas share the machine: none of them may take a core for itself.
            "ENABLE_CPU_PINNING": False,
        }
        if threads:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            compiled = core.compile_model(core.read_model(content, b""), "CPU", settings)
            signature = Signature(
                inputs=tuple(_spec(port, "input") for port in compiled.inputs),
                outputs=tuple(_spec(port, "output") for port in compiled.outputs),
            )
        except RuntimeError as error:
            raise InvalidInput(
                f"OpenVINO {openvino.__version__} can't load the model: {_said(error)}",
                hint='it may run on ONNX Runtime: set [endpoint] engine = "onnxruntime"',
                code="model_load_failed",
            ) from error
        return cls(compiled.create_infer_request(), signature)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer for `inputs`, by name; raise InvalidInput for what doesn't fit the signature or fails inside."""
        feed = {name: checked_input(self._inputs, name, array) for name, array in inputs.items()}
        if len(feed) != len(self._inputs):
            absent = ", ".join(repr(name) for name in self._inputs if name not in feed)
            raise InvalidInput(f"the model also needs the input {absent}", given=sorted(inputs))
        try:
            with self._turn:
                # The arrays are read where they are. `infer` would say nothing when a run on one thread fails, and
                # leave the answers of the run before (seen in 2026.4).
                self._request.start_async(feed, share_inputs=True)
                self._request.wait()
                # The next run writes over what comes out, so it is copied.
                found = [np.array(array) for array in self._request.results.to_tuple()]
        except RuntimeError as error:
            raise InvalidInput(
                f"the model could not answer for these inputs: {_said(error)}", code="model_run_failed"
            ) from error
        return dict(zip(self._outputs, found, strict=True))


class OpenVinoBf16Runner(OpenVinoRunner):
    """The same, computing in bfloat16 where the processor has units for it."""

    precision = "bf16"


def _spec(port: Any, role: str) -> TensorSpec:
    # A port also goes by the names of what was folded into it; its node goes by the file's.
    own = str(port.node.friendly_name).partition("/sink_port_")[0]
    name = own if own in port.names else min(port.names, key=len, default="")
    kind = port.element_type.get_type_name()
    if not name or kind not in _DATATYPES:
        raise InvalidInput(
            f"the model's {role} {name!r} is of the type '{kind}', which OpenVINO can't take or give here"
        )
    shape = tuple(size.get_length() if size.is_static else -1 for size in port.partial_shape)
    return TensorSpec(name=name, datatype=_DATATYPES[kind], shape=shape)


def _said(error: Exception) -> str:
    """Return in one line what was said, without the places in the runtime's source."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not _WHERE.match(line))[:500] or type(error).__name__
