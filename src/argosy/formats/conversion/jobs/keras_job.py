"""Keras files (.keras, .h5): looked at before Keras opens them, run, followed layer by layer, converted to ONNX."""

import zipfile
from pathlib import Path
from typing import Any

import argosy_child

shared = argosy_child.job("shared")

_MAX_GROWTH = 50
_MAX_SMALL = 64 * 2**20
_MAX_OBJECTS = 200_000


def check_h5(path: Path) -> None:
    """Refuse HDF5 data that leads to other files, or unpacks to far more than the file holds. Imports no TensorFlow."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            _check_group(path, file)
    except OSError as error:
        raise _damaged(path, str(error)) from error


def _check_group(path: Path, file: Any) -> None:
    import h5py

    size = path.stat().st_size
    total = count = 0
    todo = [file]
    seen = set()
    while todo:
        group = todo.pop()
        for name in group:
            count += 1
            if count > _MAX_OBJECTS:
                raise _damaged(path, f"it holds more than {_MAX_OBJECTS} objects")
            link = group.get(name, getlink=True)
            if isinstance(link, h5py.ExternalLink):
                raise _leads(path, f"'{name}' is a link to '{link.filename}'")
            if isinstance(link, h5py.SoftLink):
                continue
            found = group[name]
            if isinstance(found, h5py.Group):
                # A group may hold itself.
                if found.id not in seen:
                    seen.add(found.id)
                    todo.append(found)
                continue
            if not isinstance(found, h5py.Dataset):
                continue
            if found.external or found.is_virtual:
                raise _leads(path, f"the data of '{name}' lies in another file")
            total += found.size * found.dtype.itemsize if found.size else 0
            if total > _MAX_GROWTH * size + _MAX_SMALL:
                raise argosy_child.Refused(
                    f"'{path.name}' is refused: '{name}' unpacks to far more than a file of {size} bytes should hold",
                    hint="get the file again from where it was made",
                    code="archive_bomb",
                )


def _damaged(path: Path, why: str) -> Any:
    return argosy_child.Refused(
        f"'{path.name}' is damaged: {why[:300]}", hint="get the file again from where it was made", code="model_damaged"
    )


def _leads(path: Path, why: str) -> Any:
    return argosy_child.Refused(f"'{path.name}' is refused: {why}", code="leads_outside")


def check(config: dict[str, Any]) -> dict[str, Any]:
    """Look through a file before anything else is imported."""
    path = Path(config["path"])
    if not zipfile.is_zipfile(path):
        check_h5(path)
        return {}
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            if entry.filename.endswith(".h5"):
                copied = Path(config["folder"]) / "tmp" / "weights.h5"
                try:
                    copied.write_bytes(archive.read(entry))
                except (zipfile.BadZipFile, OSError, EOFError) as error:
                    raise _damaged(path, str(error)) from error
                check_h5(copied)
                copied.unlink()
    return {}


def load(config: dict[str, Any]) -> tuple[Any, list[dict[str, Any]]]:
    """Return a model and its inputs; code in the file is never run."""
    check(config)
    import keras

    path = Path(config["path"])
    try:
        named = path
        if zipfile.is_zipfile(path) != (path.suffix == ".keras"):
            # Keras goes by the name's end.
            named = Path(config["folder"]) / "tmp" / ("model.keras" if zipfile.is_zipfile(path) else "model.h5")
            named.write_bytes(path.read_bytes())
        model = keras.saving.load_model(named, compile=False, safe_mode=True)
    except Exception as error:
        raise _unloadable(path, error) from error
    if not getattr(model, "inputs", None):
        raise argosy_child.Refused(
            "the model doesn't say what it takes: it is a subclass of keras.Model",
            hint="export it where it was made: model.export('folder'), and convert that SavedModel",
            code="inputs_unknown",
        )
    inputs = [
        shared.describe(
            tensor.name.partition(":")[0], (-1 if s is None else s for s in tensor.shape), str(tensor.dtype)
        )
        for tensor in model.inputs
    ]
    return model, inputs


def _unloadable(path: Path, error: Exception) -> Any:
    text = " ".join(line.strip() for line in str(error).splitlines() if line.strip())
    if "Lambda" in text or "unsafe" in text.lower() or "marshal" in text:
        return argosy_child.Refused(
            f"'{path.name}' holds Python code of its own (a Lambda layer), which is never run",
            hint="replace it by a layer of Keras's, or export the model where you trust it: model.export('folder')",
            code="unsupported_operator",
        )
    if "Could not locate class" in text or "Unknown layer" in text:
        return argosy_child.Refused(
            f"'{path.name}' needs classes that are not in it: {text[:300]}",
            hint="export it where it was made: model.export('folder'), and convert that SavedModel",
            code="unsupported_operator",
        )
    return _damaged(path, f"{type(error).__name__}: {text}")


def _samples(config: dict[str, Any], model: Any, inputs: list[dict[str, Any]]) -> Any:
    import keras

    # An embedding takes rows of its table, whatever datatype its input has.
    tables = [layer for layer in model.layers if isinstance(layer, keras.layers.Embedding)]
    names = {layer.input.name.partition(":")[0] for layer in tables if hasattr(layer, "input")}
    if not config.get("samples") and names:
        kinds = [{**one, "dtype": "int64"} if one["name"] in names else one for one in inputs]
        found = shared.samples_for(config, kinds, highest=min(int(layer.input_dim) for layer in tables))
        found = {one["name"]: found[one["name"]].astype(one["dtype"]) for one in inputs}
        shared.save(Path(config["folder"]) / "samples.npz", found)
        return found
    return shared.samples_for(config, inputs)


def _function(model: Any) -> Any:
    def run(*tensors: Any) -> Any:
        return model(list(tensors) if len(tensors) > 1 else tensors[0], training=False)

    return run


def answer(config: dict[str, Any]) -> dict[str, Any]:
    """Run samples through a model."""
    model, inputs = load(config)
    common = argosy_child.job("tensorflow_shared")
    return dict(common.run_samples(config, _function(model), inputs, _samples(config, model, inputs)))


def to_onnx(config: dict[str, Any]) -> dict[str, Any]:
    """Convert a model to one ONNX file."""
    model, inputs = load(config)
    argosy_child.job("tensorflow_shared").write_onnx(_function(model), inputs, Path(config["target"]))
    return {}


def to_litert(config: dict[str, Any]) -> dict[str, Any]:
    """Convert a model to one LiteRT file."""
    model, _ = load(config)
    # Straight from the model, TensorFlow 2.21 writes files that answer NaN.
    folder = Path(config["folder"]) / "tmp" / "exported"
    model.export(folder, verbose=False)
    return dict(argosy_child.job("savedmodel_job").to_litert({**config, "path": str(folder)}))


def trace(config: dict[str, Any]) -> dict[str, Any]:
    """Follow a run layer by layer."""
    import keras

    model, inputs = load(config)
    samples = shared.load(Path(config["samples"]))
    shown = [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]
    layers = [layer for layer in shown if isinstance(getattr(layer, "output", None), keras.KerasTensor)]
    probe = keras.Model(model.inputs, [layer.output for layer in layers])
    given = [samples[one["name"]] for one in inputs]
    values = probe(given if len(given) > 1 else given[0], training=False)
    found = shared.Trace()
    for layer, value in zip(layers, values if isinstance(values, list) else [values], strict=True):
        takes = layer.input if isinstance(layer.input, list) else [layer.input]
        found.add(layer.name, type(layer).__name__, [one.name for one in takes], layer.output.name, value.numpy())
    found.write(Path(config["trace"]))
    return {}
