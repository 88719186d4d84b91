"""The engine and the form of the graph: what costs no quality, or next to none, and is decided by timing it here."""

import functools
import importlib.util
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import msgspec

from argosy.compress.passes import Bench, Made, Model, Settings, SoFar, named_settings
from argosy.compress.passes.export import shaped_rows
from argosy.compress.passes.simplify import simplified
from argosy.core.errors import InvalidInput
from argosy.core.plugins import missing
from argosy.formats.onnx_check import read_model_file

_ENGINES = ("openvino-bf16", "openvino")
_KNOWN = ("onnxruntime", *_ENGINES)
# An engine without kernels for a form of graph computes it step by step: dynamic int8 of an encoder ran 3.4 times as
# long on OpenVINO, in either precision.
_FOREIGN = 2.0


class Optimize:
    """The pass `optimize`. Settings: `engine` (onnxruntime, openvino, openvino-bf16), `fold`: constants, sizes."""

    usual: ClassVar[Settings] = {"engine": "onnxruntime", "fold": False}
    cost, rank = 0, 3

    def label(self, settings: Settings) -> str:
        """Return the engine."""
        words = {"openvino": "on OpenVINO", "openvino-bf16": "on OpenVINO in bf16"}
        return words.get(settings.get("engine", "onnxruntime"), "folded")

    def accepts(self, model: Model) -> bool:
        """Take any graph."""
        return "optimize" not in model.passes

    def default(self, model: Model) -> Settings:
        """Fold constants, for the engine every installation has."""
        return {"engine": "onnxruntime", "fold": True}

    def propose(self, model: Model, so_far: SoFar) -> Settings | None:
        """Try the engines that are installed beside ONNX Runtime; on what was made of the original, those that paid."""
        if not has_openvino() or _has_no_kernels(model, so_far):
            return None
        done = [candidate.recipe[-1][1]["engine"] for candidate in so_far.tried]
        left = [engine for engine in _ENGINES if engine not in done and engine != model.engine]
        return next(({"engine": e} for e in left if not model.recipe or _pays(e, model, so_far)), None)

    def draft(self, model: Model, settings: Settings, bench: Bench) -> bytes | None:
        """There is nothing to train."""
        return None

    def apply(self, model: Model, settings: Settings, bench: Bench) -> Made:
        """Name the engine; with `fold` also compute beforehand what depends on no input, and sizes where these do."""
        asked = named_settings(settings, self.usual)
        if asked["engine"] not in _KNOWN:
            raise InvalidInput(f"there is no engine {asked['engine']!r}; there are: {', '.join(_KNOWN)}", known=_KNOWN)
        if asked["engine"] != "onnxruntime" and not has_openvino():
            raise missing(ModuleNotFoundError(name="openvino"), "openvino")
        content = read_model_file(model.path)
        changed: dict[str, object] = {"engine": asked["engine"]}
        if asked["fold"]:
            made = simplified(folded(content), shaped_rows(bench))
            changed |= {"nodes_before": node_count(content), "nodes_after": node_count(made)}
            content = made
        return Made(onnx=content, engine=asked["engine"], changed=changed)


def _has_no_kernels(model: Model, so_far: SoFar) -> bool:
    """Whether what was tried was so much slower than on ONNX Runtime that another precision won't help."""
    base = next((c for c in so_far.elsewhere if c.recipe == list(model.recipe) and c.status == "measured"), None)
    before = base.latency_ratio if base is not None else 1.0
    return any(c.status == "measured" and c.latency_ratio > _FOREIGN * before for c in so_far.tried)


def _pays(engine: str, model: Model, so_far: SoFar) -> bool:
    """Whether the engine was faster for models of the same datatype, or hasn't been tried on one."""
    kind = _datatype(model.recipe)
    known = {msgspec.json.encode(c.recipe): c for c in so_far.elsewhere if c.status == "measured"}
    gains = []
    for candidate in so_far.elsewhere:
        if not candidate.recipe or candidate.recipe[-1] != ("optimize", {"engine": engine}):
            continue
        before = candidate.recipe[:-1]
        if _datatype(before) != kind:
            continue
        if candidate.status != "measured":
            return False
        base = known.get(msgspec.json.encode(before))
        gains.append(candidate.latency_ratio / (base.latency_ratio if base is not None else 1.0))
    return not gains or min(gains) < 1.0


def _datatype(recipe: Sequence[tuple[str, Settings]]) -> str:
    """What a recipe's numbers are: every quantizer writes a graph of its own, which engines know or don't."""
    return next((str(settings.get("operands", "u8s8")) for name, settings in recipe if name == "quantize"), "float")


@functools.cache
def has_openvino() -> bool:
    """Return whether OpenVINO is installed; it takes a second to import, so this only looks."""
    return importlib.util.find_spec("openvino") is not None


def node_count(content: bytes) -> int:
    """Return how many nodes a graph has."""
    import onnx

    return len(onnx.load_model_from_string(content).graph.node)


def folded(content: bytes) -> bytes:
    """Return a graph of standard operators whose constant parts are computed."""
    import onnx
    import onnxruntime as ort

    with tempfile.TemporaryDirectory(prefix="argosy-fold-") as folder:
        target = Path(folder) / "folded.onnx"
        options = ort.SessionOptions()
        # The basic level keeps to standard operators, so the file stays one for every engine and machine.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(target)
        options.log_severity_level = 4
        ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        model = onnx.load(str(target))
    for node in model.graph.node:
        del node.metadata_props[:]
    del model.metadata_props[:]
    return bytes(model.SerializeToString(deterministic=True))
