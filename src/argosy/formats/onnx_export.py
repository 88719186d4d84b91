"""PyTorch modules as single, self-contained ONNX files. Needs torch, onnx and onnxscript (`argosy[train]`)."""

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from argosy.core.errors import ArgosyError, InvalidInput
from argosy.core.files import write_atomic
from argosy.core.plugins import missing
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.formats.parity import check_parity

if TYPE_CHECKING:
    import torch

# The newest opset that every onnxruntime we accept (1.20 and later) and its quantizer know thoroughly.
OPSET = 18
# Names of the free dimensions.
BATCH, TOKENS = "batch", "tokens"


def export_onnx(
    module: "torch.nn.Module",
    example: "torch.Tensor | Mapping[str, torch.Tensor]",
    path: Path,
    *,
    input_name: str = "x",
    output: str | Sequence[str] = "logits",
    free_lengths: bool = False,
) -> None:
    """Write `module` in inference mode to `path` as one ONNX file with a free first dimension called "batch".

    `example` is one or more rows of real input, or several inputs by name in the order of the module's arguments;
    their datatypes become the inputs'. With `free_lengths` the inputs' second dimension is free too and called
    "tokens", as texts need it. A module that returns a tuple has a name in `output` for each part. `module` is left as
    it was: training flags, parameters and device. Equal modules give equal bytes. The dynamo exporter is tried first
    and the TorchScript exporter next, for texts the other way round; an exporter's file is taken only when it answers
    as the module does, with a batch of any size.
    Raises InvalidInput when neither succeeds, naming what each said; nothing is written then.
    """
    write_atomic(path, onnx_bytes(module, example, input_name=input_name, output=output, free_lengths=free_lengths))


def onnx_bytes(
    module: "torch.nn.Module",
    example: "torch.Tensor | Mapping[str, torch.Tensor]",
    *,
    input_name: str = "x",
    output: str | Sequence[str] = "logits",
    is_draft: bool = False,
    free_lengths: bool = False,
) -> bytes:
    """Return what `export_onnx` writes. A draft is made by the older exporter first, in a tenth of the time."""
    try:
        import onnxscript  # noqa: F401 - only to name the extra before the exporter fails in its own words
        import torch
    except ModuleNotFoundError as error:
        raise missing(error, "train") from error

    named = {input_name: example} if isinstance(example, torch.Tensor) else dict(example)
    for array in named.values():
        if array.ndim == 0 or len(array) == 0:
            raise InvalidInput(
                f"an export needs at least one row of input; the example has the shape {list(array.shape)}"
            )
    # Sizes 0 and 1 are always frozen by torch.export, so the example has at least two rows.
    rows = {name: torch.cat([a, a])[: max(2, min(4, len(a)))].detach() for name, a in named.items()}
    form = _Form(rows, (output,) if isinstance(output, str) else tuple(output), free_lengths)
    module = _same_datatype(module, rows)
    said: list[str] = []
    # Of encoders the TorchScript exporter makes the faster graph, in a fifth of the time (docs/how-to/serve-text.md).
    is_older_first = is_draft or free_lengths
    with _inference_mode(module), silence():
        for exporter in (_with_torchscript, _with_dynamo) if is_older_first else (_with_dynamo, _with_torchscript):
            try:
                found = clean_bytes(exporter(module, form))
                _check_answers(module, form, found)
            except ArgosyError as error:
                said.append(f"{exporter.__name__.removeprefix('_with_')}: {error.message}")
            except Exception as error:  # noqa: BLE001 - exporters raise whatever the user's code and torch raise
                said.append(f"{exporter.__name__.removeprefix('_with_')}: {told(error)}")
            else:
                return found
    raise InvalidInput(
        "the model could not be exported to ONNX; " + "; ".join(said),
        hint="the forward method must take tensors, return one tensor, and keep the batch as first dimension",
        code="export_failed",
    )


class _Form(NamedTuple):
    """What is exported: example rows by the inputs' names, the outputs' names, and whether lengths are free."""

    rows: "dict[str, torch.Tensor]"
    outputs: tuple[str, ...]
    free_lengths: bool

    def free(self, dimension: Any) -> dict[int, Any]:
        """Return the free dimensions of an input, each as `dimension` makes it of its name."""
        return {0: dimension(BATCH), 1: dimension(TOKENS)} if self.free_lengths else {0: dimension(BATCH)}


def _with_dynamo(module: "torch.nn.Module", form: _Form) -> Any:
    import torch

    free = form.free(torch.export.Dim)
    program = torch.onnx.export(
        module,
        tuple(form.rows.values()),
        dynamo=True,
        opset_version=OPSET,
        input_names=list(form.rows),
        output_names=list(form.outputs),
        dynamic_shapes=tuple(free for _ in form.rows),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _with_torchscript(module: "torch.nn.Module", form: _Form) -> Any:
    import onnx
    import torch

    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        tuple(form.rows.values()),
        cast("Any", buffer),  # it takes streams too, but doesn't say so
        dynamo=False,
        opset_version=OPSET,
        input_names=list(form.rows),
        output_names=list(form.outputs),
        dynamic_axes={
            name: form.free(str) if name in form.rows else {0: BATCH} for name in (*form.rows, *form.outputs)
        },
    )
    return onnx.load_from_string(buffer.getvalue())


def clean_bytes(model: Any) -> bytes:
    """Drop what only debugs the exporter: it holds paths of this machine, and can be larger than the weights."""
    graphs = [model.graph]
    while graphs:
        graph = graphs.pop()
        graph.doc_string = ""
        del graph.metadata_props[:]
        for part in (*graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            part.doc_string = ""
            del part.metadata_props[:]
        for node in graph.node:
            for attribute in node.attribute:
                attribute.doc_string = ""
                graphs.extend([attribute.g] if attribute.HasField("g") else attribute.graphs)
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""
    del model.metadata_props[:]
    model.doc_string = ""
    return bytes(model.SerializeToString(deterministic=True))


def _check_answers(module: "torch.nn.Module", form: _Form, found: bytes) -> None:
    import torch

    def reference(samples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            answer = module(*(torch.from_numpy(samples[name]).to(a.device) for name, a in form.rows.items()))
        answers = answer if isinstance(answer, tuple) else (answer,)
        return {name: one.cpu().numpy() for name, one in zip(form.outputs, answers, strict=True)}

    runner = OnnxRunner.load(found)
    if not runner.signature.is_batched:
        shapes = {spec.name: list(spec.shape) for spec in (*runner.signature.inputs, *runner.signature.outputs)}
        raise InvalidInput(f"the batch size was frozen during export: {shapes}")
    samples = {name: array.cpu().numpy() for name, array in form.rows.items()}
    if all(array.dtype.kind == "f" for array in samples.values()):
        # A branch that depends on the data is frozen by tracing; other signs often take the other branch.
        samples = {name: np.concatenate([a, -a, np.zeros_like(a)]) for name, a in samples.items()}
    check_parity(reference, runner.run, samples).require("the exported model")
    if form.free_lengths:
        # The start of each text is a text too, and shows whether the length was frozen.
        shorter = {name: array[:, : max(1, array.shape[1] // 2)] for name, array in samples.items()}
        check_parity(reference, runner.run, shorter).require("the exported model, for texts of another length,")


def _same_datatype(module: "torch.nn.Module", rows: "dict[str, torch.Tensor]") -> "torch.nn.Module":
    """A model trained in float64 is exported in the datatype that callers send; the module itself stays."""
    kept = {p.dtype for p in module.parameters() if p.is_floating_point()}
    sent = {array.dtype for array in rows.values() if array.is_floating_point()}
    if not sent or kept <= sent:
        return module
    return copy.deepcopy(module).to(sent.pop())


@contextlib.contextmanager
def _inference_mode(module: "torch.nn.Module") -> Iterator[None]:
    flags = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Keep exporters from printing, warning and logging; what they raise is told by ours."""
    disabled = logging.root.manager.disable
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)


def told(error: BaseException) -> str:
    """The first line of what went wrong underneath: the exporters wrap it in pages about themselves, in colours."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in re.sub(r"\x1b\[[0-9;]*m", "", str(error)).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
