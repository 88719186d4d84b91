"""SavedModel folders: run by their serving signature, converted to ONNX. Needs the tool `tensorflow`."""

from pathlib import Path
from typing import Any

import argosy_child

shared = argosy_child.job("shared")
_DEFAULT = "serving_default"


def load(config: dict[str, Any]) -> tuple[Any, list[dict[str, Any]], Any]:
    """Return a function of tensors by position, its inputs, and what must live as long as it."""
    import tensorflow as tf

    try:
        model = tf.saved_model.load(config["path"])
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
        raise argosy_child.Refused(
            f"the SavedModel can't be loaded: {type(error).__name__}: {lines[0][:300]}", code="model_damaged"
        ) from error
    signatures = dict(getattr(model, "signatures", {}))
    if not signatures:
        raise argosy_child.Refused(
            "the SavedModel has no signature, so nothing says what it takes",
            hint="save it with one: model.export('folder'), or tf.saved_model.save(model, folder, signatures=...)",
            code="inputs_unknown",
        )
    name = _DEFAULT if _DEFAULT in signatures else min(signatures)
    function = signatures[name]
    specs = function.structured_input_signature[1]
    inputs = [
        shared.describe(key, (-1 if size is None else size for size in spec.shape), spec.dtype.name)
        for key, spec in sorted(specs.items())
    ]

    def run(*tensors: Any) -> Any:
        given = zip(inputs, tensors, strict=True)
        return function(**{one["name"]: tf.convert_to_tensor(tensor, one["dtype"]) for one, tensor in given})

    return run, inputs, model


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Run samples through a model."""
    run, inputs, _kept = load(config)
    common = argosy_child.job("tensorflow_shared")
    return dict(common.run_samples(config, run, inputs, shared.samples_for(config, inputs)))


def to_onnx(config: dict[str, Any]) -> dict[str, Any]:
    """Convert a model to one ONNX file."""
    run, inputs, _kept = load(config)
    argosy_child.job("tensorflow_shared").write_onnx(run, inputs, Path(config["target"]))
    return {}


def to_litert(config: dict[str, Any]) -> dict[str, Any]:
    """Convert a model to one LiteRT file."""
    run, inputs, kept = load(config)
    argosy_child.job("tensorflow_shared").write_litert(run, inputs, Path(config["target"]), kept)
    return {}


def trace(config: dict[str, Any]) -> dict[str, Any]:
    """Follow a run operation by operation; loops are one operation."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    run, inputs, _kept = load(config)
    common = argosy_child.job("tensorflow_shared")
    concrete = tf.function(run, input_signature=common.specs(inputs)).get_concrete_function()
    # One graph without functions and variables, whose values can all be asked for.
    frozen = convert_variables_to_constants_v2(concrete)
    # What is made of weights alone is no step of the run; operations come behind what they take.
    reached = {value.name for value in frozen.inputs}
    values = []
    for one in frozen.graph.get_operations():
        if any(taken.name in reached for taken in one.inputs):
            reached.update(value.name for value in one.outputs)
            values += one.outputs
    shown = [value for value in values if value.dtype.is_floating]
    samples = shared.load(Path(config["samples"]))
    given = [tf.convert_to_tensor(samples[one["name"]], one["dtype"]) for one in inputs]
    answers = frozen.prune(frozen.inputs, shown)(*given)
    arrays = {value.name: answer.numpy() for value, answer in zip(shown, answers, strict=True)}
    found = shared.Trace()
    for value in values:
        takes = [taken.name for taken in value.op.inputs if taken.name in reached]
        found.add(value.op.name, value.op.type, takes, value.name, arrays.get(value.name))
    found.write(Path(config["trace"]))
    return {}
