"""What Keras files and SavedModels have in common: functions that become ONNX. Needs the tool `tensorflow`."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import argosy_child

shared = argosy_child.job("shared")

# The newest that tf2onnx 1.17 writes and every onnxruntime Argosy accepts reads.
OPSET = 18


def write_onnx(function: Callable[..., Any], inputs: list[dict[str, Any]], target: Path) -> None:
    """Write a function of tensors by position, with its variables, as one ONNX file."""
    import tensorflow as tf
    import tf2onnx

    given = specs(inputs)
    try:
        model, _ = tf2onnx.convert.from_function(tf.function(function, input_signature=given), given, opset=OPSET)
    except Exception as error:
        raise _unsupported(error) from error
    unknown = sorted({(node.op_type, node.name) for node in model.graph.node if node.domain not in ("", "ai.onnx.ml")})
    if unknown:
        raise argosy_child.Refused(
            "the model uses operators that ONNX has no form of: "
            + ", ".join(f"{kind} (at '{name}')" for kind, name in unknown[:5]),
            hint="replace these layers",
            code="unsupported_operator",
        )
    target.write_bytes(model.SerializeToString())


def write_litert(function: Callable[..., Any], inputs: list[dict[str, Any]], target: Path, model: Any) -> None:
    """Write a function of tensors by position as one LiteRT file that needs no operators of TensorFlow's."""
    import tensorflow as tf

    concrete = tf.function(function, input_signature=specs(inputs)).get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], model)
    try:
        target.write_bytes(converter.convert())
    except Exception as error:
        named = sorted(set(re.findall(r"'?(tf\.[A-Z]\w+)'? op", str(error))))
        said = f"no form in LiteRT of {', '.join(named)}" if named else " ".join(str(error).split())[:400]
        raise argosy_child.Refused(
            f"TensorFlow's converter can't convert the model: {said}",
            hint="replace the layers that need these; recurrent layers need a fixed batch size or unroll=True",
            code="unsupported_operator" if named else "export_failed",
        ) from error


def specs(inputs: list[dict[str, Any]]) -> list[Any]:
    """Return inputs as TensorFlow says them; free sizes are None."""
    import tensorflow as tf

    return [
        tf.TensorSpec([None if size < 0 else size for size in one["shape"]], one["dtype"], name=one["name"])
        for one in inputs
    ]


def _unsupported(error: Exception) -> Any:
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())[:500]
    code = "unsupported_operator" if "not supported" in text or "Unsupported" in text else "export_failed"
    return argosy_child.Refused(f"tf2onnx can't convert the model: {type(error).__name__}: {text}", code=code)


def run_samples(
    config: dict[str, Any], function: Callable[..., Any], inputs: list[dict[str, Any]], samples: dict[str, Any]
) -> dict[str, Any]:
    """Write what a function of tensors by position answers."""

    def run(rows: dict[str, Any]) -> dict[str, Any]:
        found = function(*(rows[one["name"]] for one in inputs))
        return named(found)

    shared.answer(config, samples, run, config.get("cuts", ()))
    return {"inputs": inputs, "precision": "", "rows": len(next(iter(samples.values())))}


def named(found: Any) -> dict[str, Any]:
    """Return whatever a model gives as named arrays, in the order in which TensorFlow flattens it."""
    if isinstance(found, dict):
        return {str(name): found[name].numpy() for name in sorted(found)}
    if isinstance(found, (tuple, list)):
        return {f"output_{at}": one.numpy() for at, one in enumerate(found)}
    return {"output": found.numpy()}
