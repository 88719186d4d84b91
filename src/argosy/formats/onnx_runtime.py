"""ONNX files on ONNX Runtime. Needs neither torch nor onnx."""

from pathlib import Path
from typing import Any, Self

import numpy as np

from argosy.core.errors import InvalidInput
from argosy.core.tensors import DATATYPES, Signature, TensorSpec
from argosy.formats.values import checked_content, checked_input, first_line

# ONNX Runtime's names of element types; what is missing here (bfloat16, float8, sequences, maps) is refused.
_DATATYPES = {
    "tensor(bool)": "BOOL",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(float16)": "FP16",
    "tensor(float)": "FP32",
    "tensor(double)": "FP64",
    "tensor(string)": "BYTES",
}
# A constant that folding would blow up beyond this stays an operation, so that loading a file of a kilobyte
# can't take gigabytes.
_MAX_FOLDED_BYTES = 64 * 2**20


class OnnxRunner:
    """A model on ONNX Runtime's CPU provider."""

    def __init__(self, session: Any, signature: Signature) -> None:
        self._session = session
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

        `threads` is the number of cores one run may use; 0 leaves the choice to the runtime. `spinning`: they wait
        awake for each other while a run lasts. Raises InvalidInput for what is not one self-contained ONNX model or
        holds what this runtime can't run; NotFound for a missing file.
        """
        content = checked_content(data, threads)
        session = _open_session(content, threads, spinning=spinning)
        try:
            signature = Signature(
                inputs=tuple(_spec(arg, "input") for arg in session.get_inputs()),
                outputs=tuple(_spec(arg, "output") for arg in session.get_outputs()),
            )
        except UnicodeDecodeError as error:
            raise InvalidInput("the model is damaged: a name in it is not UTF-8 text") from error
        if not signature.outputs:
            raise InvalidInput("the model has no outputs, so it can't answer anything")
        return cls(session, signature)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Answer for `inputs`, by name; raise InvalidInput for what doesn't fit the signature or fails inside."""
        feed = {name: checked_input(self._inputs, name, array) for name, array in inputs.items()}
        if len(feed) != len(self._inputs):
            absent = ", ".join(repr(name) for name in self._inputs if name not in feed)
            raise InvalidInput(f"the model also needs the input {absent}", given=sorted(inputs))
        try:
            found = self._session.run(self._outputs, feed)
        except Exception as error:
            # ONNX Runtime raises classes of its own without a common base, and RuntimeError.
            raise InvalidInput(
                f"the model could not answer for these inputs: {first_line(error)}", code="model_run_failed"
            ) from error
        return dict(zip(self._outputs, found, strict=True))


def _open_session(content: bytes, threads: int, *, spinning: bool) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Fatal only: what goes wrong is raised, and warnings about graphs are not for the standard error of a server.
    options.log_severity_level = 4
    # Waiting threads give their core back, at least when the run ends: requests, replicas and training share the
    # machine.
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spinning else "0")
    if spinning:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    # Bytes that look like the runtime's own format would be read as such, past every check of ours.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    options.add_session_config_entry("optimization.constant_folding_max_output_size_in_bytes", str(_MAX_FOLDED_BYTES))
    try:
        return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # As in `run`: no common base class.
        raise InvalidInput(
            f"ONNX Runtime {ort.__version__} can't load the model: {first_line(error)}",
            hint="check the file with: python -m onnx.checker model.onnx, or export it with an older opset",
            code="model_load_failed",
        ) from error


def _spec(arg: Any, role: str) -> TensorSpec:
    if arg.type not in _DATATYPES:
        raise InvalidInput(
            f"the model's {role} {arg.name!r} is of the type '{arg.type}', which can't be sent or received",
            hint="export it with tensor outputs; for scikit-learn models: options={'zipmap': False}",
        )
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in arg.shape)
    return TensorSpec(name=arg.name, datatype=_DATATYPES[arg.type], shape=shape)
