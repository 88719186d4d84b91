"""PyTorch modules as single, self-contained ONNX files. Needs torch, onnx and onnxscript (`argosy[train]`)."""

import contextlib
import copy
import io
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

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
# Names of the only free dimension.
BATCH = "batch"


def export_onnx(
    module: "torch.nn.Module",
    example: "torch.Tensor",
    path: Path,
    *,
    input_name: str = "x",
    output: str = "logits",
) -> None:
    """Write `module` in inference mode to `path` as one ONNX file with a free first dimension called "batch".

    `example` is one or more rows of real input; its datatype becomes the input's. `module` is left as it was: training
    flags, parameters and device. Equal modules give equal bytes. The dynamo exporter is tried first and the TorchScript
    exporter next; an exporter's file is taken only when it answers as the module does, with a batch of any size.
    Raises InvalidInput when neither succeeds, naming what each said; nothing is written then.
    """
    write_atomic(path, onnx_bytes(module, example, input_name=input_name, output=output))


def onnx_bytes(
    module: "torch.nn.Module",
    example: "torch.Tensor",
    *,
    input_name: str = "x",
    output: str = "logits",
    is_draft: bool = False,
) -> bytes:
    """Return what `export_onnx` writes. A draft is made by the older exporter first, in a tenth of the time."""
    try:
        import onnxscript  # noqa: F401 - only to name the extra before the exporter fails in its own words
        import torch
    except ModuleNotFoundError as error:
        raise missing(error, "train") from error

    if example.ndim == 0 or len(example) == 0:
        raise InvalidInput(
            f"an export needs at least one row of input; the example has the shape {list(example.shape)}"
        )
    # Sizes 0 and 1 are always frozen by torch.export, so the example has at least two rows.
    rows = torch.cat([example, example])[: max(2, min(4, len(example)))].detach()
    module = _same_datatype(module, rows)
    said: list[str] = []
    with _inference_mode(module), silence():
        for exporter in (_with_torchscript, _with_dynamo) if is_draft else (_with_dynamo, _with_torchscript):
            try:
                found = clean_bytes(exporter(module, rows, input_name, output))
                _check_answers(module, rows, found, input_name, output)
            except ArgosyError as error:
                said.append(f"{exporter.__name__.removeprefix('_with_')}: {error.message}")
            except Exception as error:  # noqa: BLE001 - exporters raise whatever the user's code and torch raise
                said.append(f"{exporter.__name__.removeprefix('_with_')}: {told(error)}")
            else:
                return found
    raise InvalidInput(
        "the model could not be exported to ONNX; " + "; ".join(said),
        hint="the forward method must take one tensor, return one tensor, and keep the batch as first dimension",
        code="export_failed",
    )


def _with_dynamo(module: "torch.nn.Module", rows: "torch.Tensor", input_name: str, output: str) -> Any:
    import torch

    program = torch.onnx.export(
        module,
        (rows,),
        dynamo=True,
        opset_version=OPSET,
        input_names=[input_name],
        output_names=[output],
        dynamic_shapes=({0: torch.export.Dim(BATCH)},),
        external_data=False,
        verbose=False,
    )
    assert program is not None
    return program.model_proto


def _with_torchscript(module: "torch.nn.Module", rows: "torch.Tensor", input_name: str, output: str) -> Any:
    import onnx
    import torch

    buffer = io.BytesIO()
    torch.onnx.export(
        module,
        (rows,),
        cast("Any", buffer),  # it takes streams too, but doesn't say so
        dynamo=False,
        opset_version=OPSET,
        input_names=[input_name],
        output_names=[output],
        dynamic_axes={input_name: {0: BATCH}, output: {0: BATCH}},
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


def _check_answers(module: "torch.nn.Module", rows: "torch.Tensor", found: bytes, input_name: str, output: str) -> None:
    import torch

    def reference(samples: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        with torch.no_grad():
            answer = module(torch.from_numpy(samples[input_name]).to(rows.device))
        return {output: answer.cpu().numpy()}

    runner = OnnxRunner.load(found)
    if not runner.signature.is_batched:
        shapes = {spec.name: list(spec.shape) for spec in (*runner.signature.inputs, *runner.signature.outputs)}
        raise InvalidInput(f"the batch size was frozen during export: {shapes}")
    samples = rows.cpu().numpy()
    if samples.dtype.kind == "f":
        # A branch that depends on the data is frozen by tracing; other signs often take the other branch.
        samples = np.concatenate([samples, -samples, np.zeros_like(samples)])
    check_parity(reference, runner.run, {input_name: samples}).require("the exported model")


def _same_datatype(module: "torch.nn.Module", rows: "torch.Tensor") -> "torch.nn.Module":
    """A model trained in float64 is exported in the datatype that callers send; the module itself stays."""
    kept = {p.dtype for p in module.parameters() if p.is_floating_point()}
    if not rows.is_floating_point() or kept <= {rows.dtype}:
        return module
    return copy.deepcopy(module).to(rows.dtype)


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
