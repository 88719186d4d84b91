"""Pickled pipelines of scikit-learn: unpickled with the classes of scientific libraries only, converted to ONNX."""

from pathlib import Path
from typing import Any

import argosy_child
import numpy as np

shared = argosy_child.job("shared")

names = argosy_child.job("pickle_names")


def load(config: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Return an estimator and its input: one table of float32."""
    import joblib.numpy_pickle as reader

    class Careful(reader.NumpyUnpickler):  # type: ignore[misc]
        def find_class(self, module: str, name: str) -> Any:
            if not names.is_known(module, name):
                raise argosy_child.Refused(
                    f"the pickle asks for '{module}.{name}', which no scikit-learn model needs; it is not loaded",
                    hint="a pickle runs what it names; convert only scikit-learn's own classes, from a maker you trust",
                    code="pickle_refused",
                )
            return super().find_class(module, name)

    reader.NumpyUnpickler = Careful
    try:
        model = reader.load(config["path"])
    except (argosy_child.Refused, MemoryError):
        raise
    except Exception as error:
        raise argosy_child.Refused(
            f"the pickle can't be loaded: {type(error).__name__}: {str(error)[:300]}",
            hint="it may be damaged, or made by another version of scikit-learn",
            code="model_damaged",
        ) from error
    if not hasattr(model, "fit"):
        raise argosy_child.Refused(
            f"the pickle holds {type(model).__name__}, not an estimator of scikit-learn's", code="format_unknown"
        )
    return model, config.get("inputs") or [shared.describe("X", (-1, _columns(model)), "float32")]


def _columns(model: Any) -> int:
    found = getattr(model, "n_features_in_", None)
    if found is None:
        raise argosy_child.Refused(
            f"{type(model).__name__} doesn't say how many columns it takes",
            hint="say it: --input X:batch,13:float32; if it has not been fitted, fit it first",
            code="inputs_unknown",
        )
    return int(found)


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Run samples through an estimator."""
    model, inputs = load(config)
    samples = shared.samples_for(config, inputs)
    shared.answer(config, samples, lambda rows: _results(model, rows[inputs[0]["name"]]), config.get("cuts", ()))
    return {"inputs": inputs, "precision": "", "rows": len(next(iter(samples.values())))}


def _results(model: Any, rows: np.ndarray) -> dict[str, np.ndarray]:
    """Return what an estimator says, in the shapes that ONNX gives it."""
    try:
        if hasattr(model, "classes_"):
            found = {"label": np.asarray(model.predict(rows))}
            if hasattr(model, "predict_proba"):
                found["probabilities"] = np.asarray(model.predict_proba(rows), np.float32)
            return found
        if hasattr(model, "predict"):
            answers = np.asarray(model.predict(rows))
            if answers.dtype.kind == "f":
                answers = answers.astype(np.float32)
                return {"variable": answers.reshape(len(answers), -1)}
            return {"label": answers}
        return {"variable": np.asarray(model.transform(rows), np.float32)}
    except Exception as error:
        raise argosy_child.Refused(
            f"the model can't answer for a table of float32: {type(error).__name__}: {str(error)[:300]}",
            hint="models of named columns or texts are not supported; convert the part after their preparation",
            code="inputs_unsupported",
        ) from error


def to_onnx(config: dict[str, Any]) -> dict[str, Any]:
    """Convert an estimator to one ONNX file."""
    from skl2onnx import convert_sklearn
    from skl2onnx.common.data_types import DoubleTensorType, FloatTensorType

    model, inputs = load(config)
    one = inputs[0]
    kind = DoubleTensorType if one["dtype"] == "float64" else FloatTensorType
    types = [(one["name"], kind([None if size < 0 else size for size in one["shape"]]))]
    last = model.steps[-1][1] if hasattr(model, "steps") else model
    options = {id(last): {"zipmap": False}} if hasattr(model, "classes_") else None
    try:
        found = convert_sklearn(model, initial_types=types, options=options)
    except NameError:
        found = convert_sklearn(model, initial_types=types)
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        raise argosy_child.Refused(
            f"skl2onnx can't convert the model: {type(error).__name__}: {text}",
            hint="replace that step by one of scikit-learn's own",
            code="unsupported_operator",
        ) from error
    samples = shared.load(Path(config["folder"]) / "samples.npz")
    wanted = len(_results(model, samples[one["name"]][:1]))
    # Scores that scikit-learn gives only on request.
    del found.graph.output[wanted:]
    Path(config["target"]).write_bytes(found.SerializeToString())
    return {}


def trace(config: dict[str, Any]) -> dict[str, Any]:
    """Follow the steps of a pipeline."""
    model, inputs = load(config)
    rows: Any = shared.load(Path(config["samples"]))[inputs[0]["name"]]
    found = shared.Trace()
    takes = inputs[0]["name"]
    for name, step in getattr(model, "steps", [("model", model)]):
        if hasattr(step, "transform") and not hasattr(step, "predict"):
            rows = step.transform(rows)
            found.add(name, type(step).__name__, [takes], name, np.asarray(rows, np.float32))
        else:
            for output, value in _results(step, rows).items():
                found.add(name, type(step).__name__, [takes], f"{name}.{output}", value)
        takes = name
    found.write(Path(config["trace"]))
    return {}
