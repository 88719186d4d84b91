"""int8 weights and activations by ONNX Runtime: static and calibrated on training samples, or for texts dynamic.

Which operand types are fast depends on the processor: on one without VNNI, U8S8 ran at 1.6x and S8S8 at 0.62x of
float32 on the same network. So the variants are candidates, to be timed where the search runs.

Encoders of texts have activations of very different size from one token to the next, which one range for all cannot
hold: on one that was right always, static quantization lost 23 points. Their ranges are taken anew in every run.

What loses too much keeps the layers that it hurts most in float: each is rounded alone to find them
(`passes.sensitivity`).
"""

import contextlib
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from argosy.compress.candidate import Candidate
from argosy.compress.passes import Bench, Made, Model, Settings, SoFar, named_settings
from argosy.compress.passes.export import shaped_rows
from argosy.compress.passes.kinds import is_quantized, takes_tokens
from argosy.compress.passes.nncf_int8 import by_nncf, has_nncf
from argosy.compress.passes.optimize import has_openvino
from argosy.compress.passes.sensitivity import most_sensitive, sensitivities
from argosy.compress.passes.simplify import simplified
from argosy.compress.select import drop_high, is_sure
from argosy.compress.sparse import stored_sparse
from argosy.core.errors import InvalidInput
from argosy.data.text import ATTENTION_MASK, without_padding

_QUANTIZED = ("DequantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits", "GatherBlockQuantized")
# Enough for the ranges of activations to settle; the error of a range falls slower than its cost rises.
_CALIBRATION_SAMPLES, _CALIBRATION_TEXTS = 256, 64
_FEWEST = 8
_KEPT_READY = 2
# Shares of the layers to keep in float where int8 loses too much, tried in turn,
_KEEPS = (0.05, 0.1, 0.25, 0.5)
# where that should be so much smaller and faster than what keeps the bound so far.
_WORTH = 0.95
_LEFT = "loss_left"


class Quantize:
    """The pass `quantize`.

    Settings: `operands` (u8s8 and s8s8: activations and weights, calibrated; dynamic; nncf: calibrated, smoothed and
    bias-corrected by NNCF; weights-8, weights-4: weights only), `per_channel`, `reduce_range` (7 bits), `keep`: the
    share of the layers that stay in float, those that int8 hurts most.
    """

    usual: ClassVar[Settings] = {"operands": "u8s8", "per_channel": True, "reduce_range": False, "keep": 0.0}
    cost, rank = 0, 2

    def label(self, settings: Settings) -> str:
        """Return the datatypes and what the scales stand for."""
        operands = settings.get("operands", "u8s8")
        keep = settings.get("keep", 0.0)
        kept = [f"but {keep:.0%} of layers"] if keep else []
        if operands.startswith("weights-"):
            return " ".join([f"int{operands.removeprefix('weights-')} weights", *kept])
        if operands == "nncf":
            return " ".join(["int8 by NNCF", *kept])
        words = ["int8", operands, "per channel" if settings.get("per_channel", True) else "per tensor"]
        return " ".join(words + ["reduced range"] * bool(settings.get("reduce_range")) + kept)

    def accepts(self, model: Model) -> bool:
        """Take any float ONNX graph."""
        return "quantize" not in model.passes and not is_quantized(model)

    def default(self, model: Model) -> Settings:
        """Calibrate; for texts take ranges anew in every run."""
        return _settings("dynamic" if takes_tokens(model) else "u8s8")

    def propose(self, model: Model, so_far: SoFar) -> Settings | None:
        """Try the operand types on the original, then variants of the faster one; on others, what was best there.

        For texts only dynamic ones, and NNCF's, which smooths what is calibrated. Where the fastest lose too much, they
        keep layers in float: as few as do.
        """
        done = list(map(_settings_of, so_far.tried))
        if model.recipe:
            ladder = _best_elsewhere(so_far.elsewhere, so_far.budget.max_drop)
        elif takes_tokens(model):
            ladder = [_settings("dynamic"), _settings("dynamic", reduce_range=True), *_with_nncf()]
        else:
            ladder = [_settings("u8s8"), _settings("s8s8")]
            if len(so_far.tried) >= len(ladder):
                operands = _settings_of(min(so_far.tried, key=_time_of))["operands"]
                if operands != "nncf":
                    ladder += [_settings(operands, reduce_range=True), _settings(operands, per_channel=False)]
            ladder += _with_nncf()
            ladder = [s for s in ladder if s in done] + [s for s in ladder if s not in done]
        found = next((settings for settings in ladder if settings not in done), None)
        return found or (None if model.recipe else _keeping_layers(so_far))

    def draft(self, model: Model, settings: Settings, bench: Bench) -> bytes | None:
        """There is nothing to train."""
        return None

    def apply(self, model: Model, settings: Settings, bench: Bench) -> Made:
        """Fold what can be folded, calibrate on training samples, and quantize."""
        asked = named_settings(settings, self.usual)
        if asked["operands"] not in _OPERANDS:
            raise InvalidInput(
                f"there are no operands {asked['operands']!r}; there are: {', '.join(_OPERANDS)}", known=_OPERANDS
            )
        if not 0 <= asked["keep"] < 1:
            raise InvalidInput(f"quantize keeps a share of the layers in float, from 0 to below 1, not {asked['keep']}")
        engine = "onnxruntime"
        with tempfile.TemporaryDirectory(prefix="argosy-quantize-") as folder, _silence():
            prepared = _prepared(model.path, bench)
            ready, note = prepared.path, prepared.note
            target = Path(folder) / "int8.onnx"
            kept = most_sensitive(prepared.sensitivities(bench), asked["keep"]) if asked["keep"] else []
            if asked["keep"] and not kept:
                raise InvalidInput("which layers int8 hurts most can't be found out: the graph is too large or too old")
            if asked["operands"].startswith("weights-"):
                _weights_only(ready, target, kept, bits=int(asked["operands"].removeprefix("weights-")))
            elif asked["operands"] == "nncf":
                is_text = takes_tokens(model)
                by_nncf(ready, target, calibration_rows(bench), kept, is_text=is_text)
                # For encoders ONNX Runtime has no fast kernels for this form: 0.83x of float32; OpenVINO has: 2.5x.
                engine = "openvino" if is_text and has_openvino() else engine
            else:
                _by_onnxruntime(ready, target, asked, kept, bench)
            made = _made(target, note, engine, is_pruned="prune" in model.passes)
        if asked["keep"]:
            made.changed["kept_in_float"] = kept
            made.changed[_LEFT] = _left_by_share(prepared.sensitivities(bench))
        return made


_OPERANDS = ("u8s8", "s8s8", "dynamic", "nncf", "weights-8", "weights-4")


def _by_onnxruntime(ready: Path, target: Path, asked: Settings, kept: list[str], bench: Bench) -> None:
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    if asked["operands"] == "dynamic":
        quantize_dynamic(
            str(ready),
            str(target),
            weight_type=QuantType.QInt8,
            per_channel=asked["per_channel"],
            reduce_range=asked["reduce_range"],
            nodes_to_exclude=_as_matmuls(kept),
        )
        return
    quantize_static(
        str(ready),
        str(target),
        _Calibration(calibration_rows(bench)),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8 if asked["operands"] == "u8s8" else QuantType.QInt8,
        weight_type=QuantType.QInt8,
        per_channel=asked["per_channel"],
        reduce_range=asked["reduce_range"],
        nodes_to_exclude=_as_matmuls(kept),
    )


def _weights_only(ready: Path, target: Path, kept: list[str], *, bits: int) -> None:
    """Blocks of 32 weights share a scale; tables of word vectors are quantized as well."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import DefaultWeightOnlyQuantConfig, MatMulNBitsQuantizer
    from onnxruntime.quantization.onnx_model import ONNXModel

    kinds = ("MatMul", "Gather") if bits == 4 else ("MatMul",)
    config = DefaultWeightOnlyQuantConfig(
        block_size=32, is_symmetric=True, accuracy_level=4, bits=bits, op_types_to_quantize=kinds
    )
    model = ONNXModel(onnx.load(str(ready)))
    model.replace_gemm_with_matmul()  # the quantizer knows linear layers by this name only
    quantizer = MatMulNBitsQuantizer(model.model, algo_config=config, nodes_to_exclude=_as_matmuls(kept))
    quantizer.process()
    onnx.save(quantizer.model.model, str(target))


def calibration_rows(bench: Bench) -> list[dict[str, np.ndarray]]:
    """Return training samples in batches, chosen at random, by the names of the graph's inputs."""
    names = [spec.name for spec in bench.runner.signature.inputs]
    inputs = bench.samples.train
    if not set(names) <= set(inputs):
        inputs = dict(zip(names, inputs.values(), strict=False))
    count = len(next(iter(inputs.values())))
    if count < _FEWEST:
        raise InvalidInput(
            f"{count} samples are too few to find the ranges of activations; {_FEWEST} are the least",
            hint="give more data, or quantize without calibration: operands=dynamic or weights-8",
            code="too_few_samples",
        )
    # A text has as many samples in it as tokens, and costs as much.
    samples, batch = (_CALIBRATION_TEXTS, 8) if ATTENTION_MASK in inputs else (_CALIBRATION_SAMPLES, 32)
    chosen = np.random.default_rng(bench.seed).permutation(count)[:samples]
    return [
        without_padding({name: inputs[name][chosen[start : start + batch]] for name in names})
        for start in range(0, len(chosen), batch)
    ]


def _as_matmuls(kept: list[str]) -> list[str]:
    """ONNX Runtime's quantizers split a Gemm before they look for names; the product then has one of its own."""
    return [*kept, *(f"{name}_MatMul" for name in kept)]


def _with_nncf() -> list[Settings]:
    return [_settings("nncf")] if has_nncf() else []


def _settings(operands: str, *, per_channel: bool = True, reduce_range: bool = False) -> Settings:
    return {"operands": operands, "per_channel": per_channel, "reduce_range": reduce_range}


def _settings_of(candidate: Candidate) -> Settings:
    return candidate.recipe[-1][1]


def _time_of(candidate: Candidate) -> float:
    return candidate.latency_ratio if candidate.status == "measured" else float("inf")


def _best_elsewhere(elsewhere: Sequence[Candidate], max_drop: float) -> list[Settings]:
    """The fastest variant on the original within the drop, on its best engine, and the nearest to its answers."""
    found = [c for c in elsewhere if c.recipe and c.recipe[0][0] == "quantize" and c.status == "measured" and c.quality]
    within = [c for c in found if c.quality is not None and c.quality.drop <= max_drop] or found
    if not within:
        return [_settings("u8s8")]
    fastest = min(within, key=_time_of)
    # A variant that runs at half the speed is no alternative, however faithful.
    rivals = [c for c in within if _time_of(c) <= 1.1 * _time_of(fastest)]
    truest = max(rivals, key=lambda c: c.quality.agreement if c.quality else 0.0)
    return [fastest.recipe[0][1], truest.recipe[0][1]]


def _keeping_layers(so_far: SoFar) -> Settings | None:
    """Keep in float what int8 hurts most, of what loses too much: the least that may keep the bound.

    What lost least comes first, since it needs the fewest. From the first such try on it is known how much of the loss
    each share of the layers takes away, so that shares are skipped that won't do, and those that would gain nothing.
    """
    measured = [c for c in (*so_far.tried, *so_far.elsewhere) if c.status == "measured" and c.quality is not None]
    best = min((c.cost for c in measured if is_sure(c, so_far.budget)), default=1.0)
    plain = [c for c in so_far.tried if c in measured and not _kept(c)]
    lossy = [c for c in plain if not is_sure(c, so_far.budget)]
    left = next((c.changed[_LEFT] for c in so_far.tried if _LEFT in c.changed), None)
    for candidate in sorted(lossy, key=drop_high):
        base = _settings_of(candidate)
        alike = [c for c in so_far.tried if {**_settings_of(c), "keep": 0.0} == {**base, "keep": 0.0}]
        if not all(c in measured for c in alike) or any(is_sure(c, so_far.budget) for c in alike):
            continue
        last = max(alike, key=_kept)
        for keep in (keep for keep in _KEEPS if keep > _kept(last)):
            if _cost_with(candidate, keep) > _WORTH * best:
                break
            if left is None or drop_high(last) * _left(left, keep) <= so_far.budget.max_drop * _left(left, _kept(last)):
                return {**base, "keep": keep}
    return None


def _kept(candidate: Candidate) -> float:
    return float(_settings_of(candidate).get("keep", 0.0))


def _cost_with(candidate: Candidate, keep: float) -> float:
    """Size times time if a share of the layers were as large and slow as the original's."""
    size, time = (part + keep * (1.0 - part) for part in (candidate.size_ratio, candidate.latency_ratio))
    return size * time


def _left(left: dict[str, float], keep: float) -> float:
    return left[f"{keep:g}"] if keep else 1.0


def _left_by_share(found: dict[str, float]) -> dict[str, float]:
    """How much of the sum of all sensitivities is left when a share of the layers stays in float, by share."""
    total = sum(found.values()) or 1.0
    return {f"{keep:g}": 1.0 - sum(found[name] for name in most_sensitive(found, keep)) / total for keep in _KEEPS}


class _Calibration:
    """Batches in the form ONNX Runtime's quantizer reads."""

    def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
        self._batches = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


class _Ready:
    """A graph that is ready to be quantized, in a folder of its own."""

    def __init__(self, original: Path, bench: Bench) -> None:
        self.folder = tempfile.TemporaryDirectory(prefix="argosy-quantize-")
        self.path, self.note = _prepare(original, Path(self.folder.name), bench)
        self._sensitivities: dict[str, float] | None = None

    def sensitivities(self, bench: Bench) -> dict[str, float]:
        """How much int8 hurts each layer, found once."""
        if self._sensitivities is None:
            self._sensitivities = sensitivities(self.path, calibration_rows(bench)[0])
        return self._sensitivities


_READY: dict[tuple[str, int, int], _Ready] = {}


def _prepared(path: Path, bench: Bench) -> _Ready:
    """Fold batch norm and constants, infer shapes, make the graph simpler; with less of it where a graph resists.

    For a large graph that takes longer than quantizing it, so the last ones are kept for the next settings.
    """
    stat = path.stat()
    key = str(path), stat.st_mtime_ns, stat.st_size
    if key not in _READY:
        while len(_READY) >= _KEPT_READY:
            _READY.pop(next(iter(_READY))).folder.cleanup()
        _READY[key] = _Ready(path, bench)
    return _READY[key]


def _prepare(path: Path, folder: Path, bench: Bench) -> tuple[Path, str]:
    from onnxruntime.quantization.shape_inference import quant_pre_process

    ladder: list[dict[str, Any]] = [
        {"auto_merge": True},
        {"skip_symbolic_shape": True},
        {"skip_symbolic_shape": True, "skip_optimization": True},
    ]
    for number, options in enumerate(ladder):
        target = folder / f"prepared-{number}.onnx"
        try:
            quant_pre_process(str(path), str(target), **options)
        except Exception:  # noqa: BLE001, S112 - shape inference raises bare Exception; the next rung asks for less
            continue
        # Here and not behind it: what rounds tells no wrong sum from a right one.
        target.write_bytes(simplified(target.read_bytes(), shaped_rows(bench)))
        _name_nodes(target)
        note = "" if number == 0 else f"the graph could not be fully prepared ({', '.join(options)})"
        return target, note
    return path, "the graph could not be prepared; it was quantized as it is"


def _name_nodes(path: Path) -> None:
    """Give every node a name: quantizers know those that stay in float by it."""
    import onnx

    model = onnx.load(str(path))
    names = [node.name for node in model.graph.node]
    if all(names) and len(set(names)) == len(names):
        return
    for number, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{number}"
    onnx.save(model, str(path))


def _made(target: Path, note: str, engine: str = "onnxruntime", *, is_pruned: bool) -> Made:
    import onnx

    model = onnx.load(str(target))
    quantized = sum(node.op_type in _QUANTIZED for node in model.graph.node)
    if quantized == 0:
        raise InvalidInput("the model has no operation that can be quantized")
    # Shapes in between are only for reading; the runtime infers them again.
    del model.graph.value_info[:]
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
    left = sorted({n.op_type for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")} & _floats(model))
    content = model.SerializeToString(deterministic=True)
    return Made(
        # Only zeros that pruning made: others come by rounding, and engines know such tensors best as they are.
        onnx=stored_sparse(content) if is_pruned else content,
        engine=engine,
        changed={"datatype": "int8", "quantized_operations": quantized},
        skipped=[note] * bool(note) + [f"{kind}: left in float" for kind in left],
    )


def _floats(model: Any) -> set[str]:
    """Kinds of operations with an input that no DequantizeLinear gives."""
    given = {name for node in model.graph.node if node.op_type == "DequantizeLinear" for name in node.output}
    return {node.op_type for node in model.graph.node if node.input and node.input[0] not in given}


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The quantizer advises on the root logger to do what was just done."""
    disabled = logging.root.manager.disable
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(disabled)
