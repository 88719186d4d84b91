"""What a path holds: told by contents, then by name; and refused where it can't be what it says."""

from pathlib import Path

import msgspec

from argosy.core.errors import InvalidInput, NotFound
from argosy.formats.conversion.archives import (
    check_folder,
    check_gguf,
    check_safetensors,
    check_zip,
    read_start,
)
from argosy.formats.conversion.graph import FORMATS
from argosy.formats.conversion.jobs.pickle_names import first_unknown
from argosy.formats.hf_folder import is_folder
from argosy.formats.onnx_check import MAX_BYTES, check_onnx, read_model_file

GRAPH_FILE, WEIGHTS_FILE, CODE_FILE = "graph.onnx", "weights.safetensors", "model.py"
_BY_SUFFIX = {
    ".onnx": "onnx", ".tflite": "litert", ".so": "tvm", ".mindir": "mindir", ".joblib": "scikit-learn",
    ".pkl": "scikit-learn", ".pickle": "scikit-learn", ".h5": "keras", ".hdf5": "keras", ".keras": "keras",
    ".pt": "torchscript", ".pth": "torchscript", ".pt2": "torch-export", ".xml": "openvino",
}  # fmt: skip
_OUTPUTS = {".pt": "torchscript", ".pt2": "torch-export", ".onnx": "onnx", ".xml": "openvino", ".tflite": "litert",
            ".so": "tvm", ".mindir": "mindir"}  # fmt: skip
_HDF5 = b"\x89HDF\r\n\x1a\n"


class Source(msgspec.Struct, frozen=True, kw_only=True):
    """A model that is to be converted."""

    path: Path
    format: str
    entry: str = ""
    """The function that builds a PyTorch module, in the file `path`."""


def recognize(what: str, asked: str = "") -> Source:
    """Return what the model `what` is: a path, or `file.py:function`. `asked` is the format the user says it has.

    Raises NotFound, or InvalidInput for what is no model, is damaged, or is hostile: sizes that its bytes can't hold,
    names that lead elsewhere, archives that unpack without end. Takes a fraction of a second and no library.
    """
    file, _, function = what.partition(":")
    if file.endswith(".py"):
        if not Path(file).is_file():
            raise NotFound(f"there is no file '{file}'", hint="name a PyTorch module as file.py:function")
        return _as_asked(Source(path=Path(file).absolute(), format="pytorch", entry=function or "build"), asked)
    path = Path(what)
    found = _folder(path) if path.is_dir() else _file(path, asked)
    return _as_asked(found, asked)


def _as_asked(found: Source, asked: str) -> Source:
    if asked:
        FORMATS.load(asked)  # raises NotFound with the names there are
        if asked != found.format:
            raise InvalidInput(
                f"'{found.path.name}' is not in the format '{asked}': by its contents it is '{found.format}'",
                hint=f"leave --from away, or give --from {found.format}",
                code="format_differs",
            )
    return found


def _folder(path: Path) -> Source:
    check_folder(path)
    inside = path.absolute()
    if (path / "saved_model.pb").is_file():
        if (path / "saved_model.pb").stat().st_size > MAX_BYTES:
            raise InvalidInput(f"'{path / 'saved_model.pb'}' has more than {MAX_BYTES} bytes", code="model_damaged")
        return Source(path=inside, format="savedmodel")
    if is_folder(path):
        for weights in path.glob("*.safetensors"):
            check_safetensors(weights)
        return Source(path=inside, format="huggingface")
    if (path / CODE_FILE).is_file() and (path / GRAPH_FILE).is_file():
        check_onnx(read_model_file(path / GRAPH_FILE))
        check_safetensors(path / WEIGHTS_FILE)
        return Source(path=inside / CODE_FILE, format="pytorch", entry="build")
    raise InvalidInput(
        f"'{path}' is a folder of no known kind",
        hint="known are: SavedModel (saved_model.pb), Hugging Face (config.json), and PyTorch as Argosy writes it",
        code="format_unknown",
    )


def _file(path: Path, asked: str) -> Source:
    start = read_start(path)
    inside = path.absolute()
    if start.startswith(b"GGUF"):
        check_gguf(path)
        raise InvalidInput(
            f"'{path.name}' is a GGUF file, from which no converter leads",
            hint="convert the model it was made from",
            code="no_conversion",
        )
    if start.startswith((b"PK\x03\x04", b"PK\x05\x06")):
        return Source(path=inside, format=_zip(path, check_zip(path)))
    if start.startswith(_HDF5):
        return Source(path=inside, format="keras")
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        check_safetensors(path)
        raise InvalidInput(
            f"'{path.name}' holds weights without the model they belong to",
            hint=f"name the code that builds it: argosy convert model.py:build OUT --weights '{path}'",
            code="weights_only",
        )
    if start[4:8] == b"TFL3":
        return Source(path=inside, format="litert")
    if start.startswith((b"\x7fELF", b"<?xml")):
        return Source(path=inside, format="tvm" if start.startswith(b"\x7fELF") else "openvino")
    if suffix == ".onnx" or (asked == "onnx" and not start.startswith(b"\x80")):
        check_onnx(read_model_file(path), external=path.parent)
        return Source(path=inside, format="onnx")
    if suffix in (".keras", ".pt2", ".zip"):
        raise InvalidInput(
            f"'{path.name}' is damaged: it should be an archive, and does not begin like one",
            hint="get the file again from where it was made",
            code="model_damaged",
        )
    if start[:1] == b"\x80" or suffix in (".joblib", ".pkl", ".pickle"):
        return _pickled(path, suffix, asked)
    found = _BY_SUFFIX.get(suffix, "")
    if found and found not in ("keras", "torchscript", "litert", "tvm", "openvino"):
        return Source(path=inside, format=found)
    raise InvalidInput(
        f"'{path.name}' is no model file that is known" + (f", or it is damaged: it is no {found}" if found else ""),
        hint=f"known formats are: {', '.join(FORMATS.names())}; say which with --from",
        code="format_unknown",
    )


def _pickled(path: Path, suffix: str, asked: str) -> Source:
    if suffix in (".pt", ".pth", ".bin", ".ckpt") and asked != "scikit-learn":
        raise _checkpoint(path)
    unknown = first_unknown(path)
    if unknown:
        raise InvalidInput(
            f"the pickle asks for '{unknown}', which no scikit-learn model needs; it is not loaded",
            hint="a pickle runs what it names; convert only scikit-learn's own classes, from a maker you trust",
            code="pickle_refused",
        )
    return Source(path=path.absolute(), format="scikit-learn")


def _zip(path: Path, names: list[str]) -> str:
    inside = {name.partition("/")[2] for name in names} | set(names)
    if "model.weights.h5" in names and "config.json" in names:
        return "keras"
    if "constants.pkl" in inside and any(name.startswith("code/") for name in inside):
        return "torchscript"
    if "archive_format" in inside or any("serialized_exported_program" in name for name in inside):
        return "torch-export"
    if "data.pkl" in inside:
        raise _checkpoint(path)
    raise InvalidInput(
        f"'{path.name}' is an archive of no known kind",
        hint="known are: Keras (.keras), TorchScript (.pt) and torch.export (.pt2)",
        code="format_unknown",
    )


def _checkpoint(path: Path) -> InvalidInput:
    return InvalidInput(
        f"'{path.name}' is a pickled checkpoint, which is never loaded: a pickle runs whatever code is in it",
        hint="where you trust it, save its weights by safetensors.torch.save_file(model.state_dict(), 'weights."
        "safetensors'), and convert model.py:build with --weights weights.safetensors",
        code="pickled_weights",
    )


def target_of(out: Path, asked: str = "") -> str:
    """Return the format an output has by its name, or `asked`; InvalidInput where neither says."""
    if asked:
        FORMATS.load(asked)
        return asked
    found = _OUTPUTS.get(out.suffix.lower())
    if found is None:
        raise InvalidInput(
            f"the name '{out.name}' doesn't say what the model is to become",
            hint=f"end it in one of {', '.join(_OUTPUTS)}, or say --to pytorch (a folder)",
            code="format_unknown",
        )
    return found
