"""int8 weights and activations by ONNX Runtime: static and calibrated on training samples, or for texts dynamic.

Which operand types are fast depends on the processor: on one without VNNI, U8S8 ran at 1.6x and S8S8 at 0.62x of
float32 on the same network. So the variants are candidates, to be timed where the search runs.

Encoders of texts have activations of very different size from one token to the next, which one range for all cannot
hold: on one that was right always, static quantization lost 23 points. Their ranges are taken anew in every run.
"""

import contextlib
import functools
import logging
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from argosy.compress.candidate import Candidate
from argosy.compress.passes import Bench, Made, Model, Settings
from argosy.core.errors import InvalidInput

# Enough for the ranges of activations to settle; the error of a range falls slower than its cost rises.
_CALIBRATION_SAMPLES = 256
_CALIBRATION_BATCH = 32


class Quantize:
    """The pass `quantize`. Settings: `operands` (u8s8, s8s8, dynamic), `per_channel`, `reduce_range` (7 bits)."""

    cost = 0

    def label(self, settings: Settings) -> str:
        """Return the datatypes and what the scales stand for."""
        words = ["int8", settings["operands"], "per channel" if settings["per_channel"] else "per tensor"]
        return " ".join(words + ["reduced range"] * bool(settings["reduce_range"]))

    def accepts(self, model: Model) -> bool:
        """Take any float ONNX graph."""
        return "quantize" not in model.passes

    def propose(
        self, model: Model, tried: Sequence[Candidate], elsewhere: Sequence[Candidate], max_drop: float
    ) -> Settings | None:
        """Try both operand types on the original, then variants of the faster one; on others, what was best there.

        For texts only dynamic ones.
        """
        done = list(map(_settings_of, tried))
        if _takes_tokens(model.path):
            ladder = [_settings("dynamic"), _settings("dynamic", reduce_range=True)]
        elif model.recipe:
            ladder = _best_elsewhere(elsewhere, max_drop)
        else:
            ladder = [_settings("u8s8"), _settings("s8s8")]
            if len(tried) >= len(ladder):
                faster = min(tried, key=_time_of)
                operands = _settings_of(faster)["operands"]
                ladder += [_settings(operands, reduce_range=True), _settings(operands, per_channel=False)]
        return next((settings for settings in ladder if settings not in done), None)

    def apply(self, model: Model, settings: Settings, bench: Bench) -> Made:
        """Fold what can be folded, calibrate on training samples, and quantize."""
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

        with tempfile.TemporaryDirectory(prefix="argosy-quantize-") as folder, _silence():
            ready, note = _prepared(model.path, Path(folder))
            target = Path(folder) / "int8.onnx"
            if settings["operands"] == "dynamic":
                quantize_dynamic(
                    str(ready),
                    str(target),
                    weight_type=QuantType.QInt8,
                    per_channel=settings["per_channel"],
                    reduce_range=settings["reduce_range"],
                )
                return _made(target, note)
            quantize_static(
                str(ready),
                str(target),
                _Calibration(bench.samples.train, bench.seed),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8 if settings["operands"] == "u8s8" else QuantType.QInt8,
                weight_type=QuantType.QInt8,
                per_channel=settings["per_channel"],
                reduce_range=settings["reduce_range"],
            )
            return _made(target, note)


def _settings(operands: str, *, per_channel: bool = True, reduce_range: bool = False) -> Settings:
    return {"operands": operands, "per_channel": per_channel, "reduce_range": reduce_range}


@functools.lru_cache(maxsize=8)
def _takes_tokens(path: Path | None) -> bool:
    """Whether a graph reads texts: all of its inputs are whole numbers."""
    if path is None:
        return False
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    held = {tensor.name for tensor in graph.initializer}
    kinds = {given.type.tensor_type.elem_type for given in graph.input if given.name not in held}
    return bool(kinds) and kinds <= {onnx.TensorProto.INT64, onnx.TensorProto.INT32}


def _settings_of(candidate: Candidate) -> Settings:
    return candidate.recipe[-1][1]


def _time_of(candidate: Candidate) -> float:
    return candidate.latency_ratio if candidate.status == "measured" else float("inf")


def _best_elsewhere(elsewhere: Sequence[Candidate], max_drop: float) -> list[Settings]:
    """The fastest variant on the original that is within the drop, and the one nearest to its answers."""
    found = [
        c for c in elsewhere if [name for name, _ in c.recipe] == ["quantize"] and c.status == "measured" and c.quality
    ]
    within = [c for c in found if c.quality is not None and c.quality.drop <= max_drop] or found
    if not within:
        return [_settings("u8s8")]
    fastest = min(within, key=_time_of)
    # A variant that runs at half the speed is no alternative, however faithful.
    rivals = [c for c in within if _time_of(c) <= 1.1 * _time_of(fastest)]
    truest = max(rivals, key=lambda c: c.quality.agreement if c.quality else 0.0)
    return [_settings_of(fastest), _settings_of(truest)]


class _Calibration:
    """The training samples in batches, in the form ONNX Runtime's quantizer reads."""

    def __init__(self, train: dict[str, np.ndarray], seed: int) -> None:
        count = len(next(iter(train.values())))
        chosen = np.random.default_rng(seed).permutation(count)[:_CALIBRATION_SAMPLES]
        self._batches = iter(
            [
                {name: array[chosen[start : start + _CALIBRATION_BATCH]] for name, array in train.items()}
                for start in range(0, len(chosen), _CALIBRATION_BATCH)
            ]
        )

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def _prepared(path: Path, folder: Path) -> tuple[Path, str]:
    """Fold batch norm and constants and infer shapes; with less of it where a graph resists, which it may."""
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
        note = "" if number == 0 else f"the graph could not be fully prepared ({', '.join(options)})"
        return target, note
    return path, "the graph could not be prepared; it was quantized as it is"


def _made(target: Path, note: str) -> Made:
    import onnx

    model = onnx.load(str(target))
    quantized = sum(node.op_type in ("DequantizeLinear", "MatMulInteger") for node in model.graph.node)
    if quantized == 0:
        raise InvalidInput("the model has no operation that ONNX Runtime can quantize")
    # Shapes in between are only for reading; the runtime infers them again.
    del model.graph.value_info[:]
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
    left = sorted({n.op_type for n in model.graph.node if n.op_type in ("Conv", "MatMul", "Gemm")} & _floats(model))
    return Made(
        onnx=model.SerializeToString(deterministic=True),
        changed={"datatype": "int8", "dequantized_tensors": quantized},
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
