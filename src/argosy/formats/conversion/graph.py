"""The graph of formats and converters, and the shortest trusted path through it. Imports no tool."""

import heapq

import msgspec

from argosy.core.errors import InvalidInput
from argosy.core.plugins import Plugins


class Format(msgspec.Struct, frozen=True, kw_only=True):
    """A node: what models come as."""

    name: str
    title: str
    """As people say it."""
    job: str = ""
    """Module of `conversion/jobs` (or path of a file) whose `answer` and `trace` run such a model; empty: none does."""
    tool: str = ""
    """What `job` needs beside Argosy, as `argosy tools install` calls it."""
    is_traced: bool = False
    """Whether `job` can show the values inside a run."""
    suffix: str = ""
    """How an output's name ends; empty for a folder."""


class Converter(msgspec.Struct, frozen=True, kw_only=True):
    """An edge: how one format becomes another."""

    source: str
    target: str
    job: str
    """`file:function`, run in a child process; the file is a module of `conversion/jobs` or a path."""
    does: str
    """What it uses, for the plan."""
    tool: str = ""
    cost: float = 1.0
    """Less is trusted more; a path's costs add up."""


FORMATS: Plugins[Format] = Plugins(
    "argosy.formats",
    {
        "pytorch": "argosy.formats.conversion.nodes:PYTORCH",
        "torchscript": "argosy.formats.conversion.nodes:TORCHSCRIPT",
        "torch-export": "argosy.formats.conversion.nodes:TORCH_EXPORT",
        "huggingface": "argosy.formats.conversion.nodes:HUGGINGFACE",
        "onnx": "argosy.formats.conversion.nodes:ONNX",
        "savedmodel": "argosy.formats.conversion.nodes:SAVEDMODEL",
        "keras": "argosy.formats.conversion.nodes:KERAS",
        "scikit-learn": "argosy.formats.conversion.nodes:SCIKIT_LEARN",
        "openvino": "argosy.formats.conversion.nodes:OPENVINO",
        "litert": "argosy.formats.conversion.nodes:LITERT",
        "tvm": "argosy.formats.conversion.nodes:TVM",
        "mindir": "argosy.formats.conversion.nodes:MINDIR",
    },
)

CONVERTERS: Plugins[Converter] = Plugins(
    "argosy.converters",
    {
        "pytorch-onnx": "argosy.formats.conversion.edges:PYTORCH_ONNX",
        "pytorch-torchscript": "argosy.formats.conversion.edges:PYTORCH_TORCHSCRIPT",
        "pytorch-export": "argosy.formats.conversion.edges:PYTORCH_EXPORT",
        "torchscript-onnx": "argosy.formats.conversion.edges:TORCHSCRIPT_ONNX",
        "export-onnx": "argosy.formats.conversion.edges:EXPORT_ONNX",
        "huggingface-onnx": "argosy.formats.conversion.edges:HUGGINGFACE_ONNX",
        "savedmodel-onnx": "argosy.formats.conversion.edges:SAVEDMODEL_ONNX",
        "savedmodel-litert": "argosy.formats.conversion.edges:SAVEDMODEL_LITERT",
        "keras-litert": "argosy.formats.conversion.edges:KERAS_LITERT",
        "keras-onnx": "argosy.formats.conversion.edges:KERAS_ONNX",
        "scikit-learn-onnx": "argosy.formats.conversion.edges:SCIKIT_LEARN_ONNX",
        "onnx-pytorch": "argosy.formats.conversion.edges:ONNX_PYTORCH",
        "onnx-openvino": "argosy.formats.conversion.edges:ONNX_OPENVINO",
        "onnx-litert": "argosy.formats.conversion.edges:ONNX_LITERT",
        "onnx-tvm": "argosy.formats.conversion.edges:ONNX_TVM",
        "onnx-mindir": "argosy.formats.conversion.edges:ONNX_MINDIR",
    },
)


def find_path(source: str, target: str, converters: list[Converter] | None = None) -> list[Converter]:
    """Return the converters from one format to another whose costs add up to the least.

    Raises NotFound for a format nobody knows, InvalidInput (`no_conversion`) where nothing leads, with what can be
    reached from the source.
    """
    for name in (source, target):
        FORMATS.load(name)
    if source == target:
        raise InvalidInput(
            f"the model is in the format '{source}' already", hint="name another with --to", code="no_conversion"
        )
    edges = all_converters() if converters is None else converters
    # The tuple's second entry makes the choice between equal costs the same everywhere.
    todo: list[tuple[float, tuple[str, ...], str, list[Converter]]] = [(0.0, (), source, [])]
    seen: set[str] = set()
    while todo:
        cost, names, here, path = heapq.heappop(todo)
        if here == target:
            return path
        if here in seen:
            continue
        seen.add(here)
        for edge in edges:
            if edge.source == here:
                heapq.heappush(todo, (cost + edge.cost, (*names, edge.job), edge.target, [*path, edge]))
    reached = ", ".join(sorted(seen - {source}))
    raise InvalidInput(
        f"no converter leads from '{source}' to '{target}'",
        hint=f"from '{source}' a model can become: {reached}" if reached else f"'{source}' is an output only",
        code="no_conversion",
    )


def all_converters() -> list[Converter]:
    """Return every edge, those of installed packages too."""
    return [CONVERTERS.load(name) for name in CONVERTERS.names()]
