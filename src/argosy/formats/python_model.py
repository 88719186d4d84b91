"""What people write models of their own with: `argosy.Model`, `argosy.RowModel` and the types of inputs and outputs.

    from typing import NamedTuple
    import argosy

    class Answer(NamedTuple):
        label: argosy.Text
        score: argosy.FP32

    class Sentiment(argosy.Model):
        def load(self, files: argosy.Files) -> None:
            self.words = files["words.txt"].decode().split()

        def predict(self, text: argosy.Text) -> Answer: ...

The annotations of `predict` are the version's signature; `formats.python_signature` reads them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, NamedTuple, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from argosy.core.errors import Refused
from argosy.core.files import resolve_inside

__all__ = [
    "BOOL", "FP16", "FP32", "FP64", "INT8", "INT16", "INT32", "INT64", "UINT8", "UINT16", "UINT32", "UINT64", "Bytes",
    "Columns", "Files", "Image", "ImageFile", "Model", "Refused", "RowModel", "Shape", "Text",
]  # fmt: skip


class Datatype(NamedTuple):
    """Part of an annotation: the datatype of the Open Inference Protocol, and what a BYTES tensor holds."""

    name: str
    content: str = ""


class Shape(tuple[int, ...]):
    """Part of an annotation: the sizes of one row; -1 is any size. Without it a row is a single value.

    `Annotated[argosy.FP32, argosy.Shape(3, 224, 224)]` is one image per row, and a batch of them in `argosy.Model`.
    """

    __slots__ = ()

    def __new__(cls, *sizes: int) -> Self:
        """Take the sizes one by one."""
        return super().__new__(cls, sizes)


class Columns(tuple[str, ...]):
    """Part of an annotation: a row is a table's row, with these columns; callers may send and get them by name.

    `Annotated[argosy.FP32, argosy.Columns("age", "income")]`
    """

    __slots__ = ()

    def __new__(cls, *names: str) -> Self:
        """Take the names one by one."""
        return super().__new__(cls, names)


BOOL: TypeAlias = Annotated[npt.NDArray[np.bool_], Datatype("BOOL")]
UINT8: TypeAlias = Annotated[npt.NDArray[np.uint8], Datatype("UINT8")]
UINT16: TypeAlias = Annotated[npt.NDArray[np.uint16], Datatype("UINT16")]
UINT32: TypeAlias = Annotated[npt.NDArray[np.uint32], Datatype("UINT32")]
UINT64: TypeAlias = Annotated[npt.NDArray[np.uint64], Datatype("UINT64")]
INT8: TypeAlias = Annotated[npt.NDArray[np.int8], Datatype("INT8")]
INT16: TypeAlias = Annotated[npt.NDArray[np.int16], Datatype("INT16")]
INT32: TypeAlias = Annotated[npt.NDArray[np.int32], Datatype("INT32")]
INT64: TypeAlias = Annotated[npt.NDArray[np.int64], Datatype("INT64")]
FP16: TypeAlias = Annotated[npt.NDArray[np.float16], Datatype("FP16")]
FP32: TypeAlias = Annotated[npt.NDArray[np.float32], Datatype("FP32")]
FP64: TypeAlias = Annotated[npt.NDArray[np.float64], Datatype("FP64")]
Text: TypeAlias = Annotated[npt.NDArray[Any], Datatype("BYTES", "text")]
"""Texts, an array of `str`."""
Bytes: TypeAlias = Annotated[npt.NDArray[Any], Datatype("BYTES")]
"""An array of `bytes`."""
Image: TypeAlias = Annotated[npt.NDArray[Any], Datatype("BYTES", "image")]
"""An array of `bytes`, each a whole image file."""
ImageFile: TypeAlias = Annotated[bytes, Datatype("BYTES", "image")]
"""The bytes of one image file, for `argosy.RowModel`."""


class Files(Mapping[str, bytes]):
    """The files that were deployed with a model, by name. What is read was verified against the signed version."""

    def __init__(self, content: Mapping[str, bytes], names: Sequence[str], make_folder: Callable[[], Path]) -> None:
        """`names`: which of `content` there are; `make_folder`: makes the place for files asked for by path."""
        self._content = content
        self._names = names
        self._make_folder = make_folder
        self._folder: Path | None = None

    def __getitem__(self, name: str) -> bytes:
        """Return the bytes of a file; KeyError lists the names there are."""
        if name not in self._names:
            raise KeyError(f"no file {name!r} was deployed with the model; there are: {', '.join(self) or 'none'}")
        return self._content[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def path(self, name: str = "") -> Path:
        """Put a file, or a folder with all that is in it, into this process's private folder, and return its path.

        For libraries that want a path. Without a name: the folder with every file. KeyError lists the names there are.
        """
        wanted = [known for known in self if not name or known == name or known.startswith(f"{name}/")]
        if not wanted and name:
            self[name]  # raises
        if self._folder is None:
            self._folder = self._make_folder()
        for known in wanted:
            place = resolve_inside(self._folder, known)
            if not place.exists():
                place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                place.write_bytes(self[known])
        return self._folder / name


class Model:
    """The base of a model of your own that answers batch by batch.

    Write `predict(self, ...)`: every parameter an input, annotated with its type (`argosy.FP32`, `argosy.Text`, ...),
    and the result a NamedTuple, dataclass or TypedDict whose fields are the outputs, or a single type. It gets arrays
    whose first dimension is the batch, in which requests of several callers may stand together, and returns as many
    rows. It is called from one thread, one batch at a time, and may be called again with requests of a batch that
    raised. Raise `argosy.Refused` for what callers must not send; any other error is the version's fault.
    """

    examples: ClassVar[Sequence[Mapping[str, Any]]] = ()
    """Rows that `predict` takes, such as `[{"text": "a fine film"}]`: for the check at deployment and for timing
    batches. Without them zeros, ones and made-up texts are used."""

    def load(self, files: Files) -> None:
        """Prepare for `predict`; called once, before the first request. `files` are those deployed with `--with`."""


class RowModel(Model):
    """The base of a model of your own that answers row by row: `predict` gets one row and returns one.

    Inputs and outputs may be plain types here: `str`, `bytes`, `bool`, `int` (INT64) and `float` (FP64), and arrays
    of one row, such as `Annotated[argosy.FP32, argosy.Shape(3)]`.
    """
