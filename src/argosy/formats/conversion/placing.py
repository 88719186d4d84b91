"""Where outputs go: refused before the work when it can't be, and there whole or not at all after it."""

import mmap
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from argosy.core.digest import sha256
from argosy.core.errors import Conflict, InvalidInput
from argosy.core.files import write_atomic
from argosy.formats.conversion.graph import FORMATS, Format
from argosy.formats.conversion.recognize import CODE_FILE, GRAPH_FILE, WEIGHTS_FILE
from argosy.formats.conversion.report import ConversionReport

_FOLDERS = {"pytorch": (CODE_FILE, GRAPH_FILE, WEIGHTS_FILE)}
REPORT_SUFFIX = ".parity.json"


def artifact_name(target: str) -> str:
    """Return the name under which a converter writes its output in its folder."""
    return f"made{FORMATS.load(target).suffix}"


def check_out(out: Path, target: Format, source: Path) -> None:
    """Raise InvalidInput or Conflict for an output that can't be written, or would touch the original."""
    place, original = out.absolute(), source.resolve()
    if place.resolve() == original or (original.is_dir() and place.resolve().is_relative_to(original)):
        raise InvalidInput(f"'{out}' is the model that is to be converted, or lies in it", hint="give another name")
    if not place.parent.is_dir():
        raise InvalidInput(f"there is no folder '{place.parent}' to write '{out.name}' to", hint="make it first")
    if target.name in _FOLDERS:
        if place.exists() and (not place.is_dir() or any(place.iterdir())):
            raise Conflict(f"'{out}' exists already and is not an empty folder", hint="give another name, or remove it")
    elif place.is_dir():
        raise InvalidInput(f"'{out}' is a folder; {target.title} is a file", hint=f"name it model{target.suffix}")
    elif place.suffix.lower() != target.suffix:
        raise InvalidInput(f"'{out}' should end in {target.suffix}, as {target.title} files do", hint="rename it")


def place(
    made: Path, out: Path, target: Format, report: Callable[[dict[str, str]], ConversionReport]
) -> ConversionReport:
    """Put what was made, and its report beside it, where it belongs; each file appears whole, the model last."""
    out = out.absolute()
    proof = out.parent / f"{out.name}{REPORT_SUFFIX}"
    is_new = not proof.exists()
    try:
        if target.name in _FOLDERS:
            return _place_folder(made, out, _FOLDERS[target.name], report)
        return _place_files(made, out, target, report)
    except BaseException:
        if is_new:
            proof.unlink(missing_ok=True)
        raise


def _place_files(
    made: Path, out: Path, target: Format, report: Callable[[dict[str, str]], ConversionReport]
) -> ConversionReport:
    names = {made.name: out.name}
    if target.name == "openvino":
        names = {f"{made.stem}.bin": f"{out.stem}.bin", **names}
    digests = {new: _digest(made.parent / old) for old, new in names.items()}
    found = report(digests)
    write_atomic(out.parent / f"{out.name}{REPORT_SUFFIX}", _encoded(found))
    for old, new in names.items():
        with _bytes(made.parent / old) as content:
            write_atomic(out.parent / new, content)
    return found


def _place_folder(
    made: Path, out: Path, names: tuple[str, ...], report: Callable[[dict[str, str]], ConversionReport]
) -> ConversionReport:
    staged = out.parent / f".{out.name}.{os.urandom(6).hex()}.tmp"
    found = report({name: _digest(made / name) for name in names})
    try:
        for name in names:
            with _bytes(made / name) as content:
                write_atomic(staged / name, content)
        write_atomic(out.parent / f"{out.name}{REPORT_SUFFIX}", _encoded(found))
        os.rename(staged, out)  # noqa: PTH104 - an empty folder is replaced, as os.rename says
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return found


def _encoded(found: ConversionReport) -> bytes:
    return msgspec.json.format(msgspec.json.encode(found), indent=2) + b"\n"


def _digest(path: Path) -> str:
    with _bytes(path) as content:
        return sha256(content)


@contextmanager
def _bytes(path: Path) -> Iterator[memoryview]:
    """Map a file that a child process wrote; a link in its place would lead to a file of the user's."""
    if path.parent.is_symlink():
        raise InvalidInput(f"the converter left a link instead of '{path.name}'", code="conversion_ended")
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise InvalidInput(f"the converter left no '{path.name}': {error.strerror}", code="conversion_ended") from error
    try:
        if os.fstat(descriptor).st_size == 0:
            yield memoryview(b"")
            return
        # Closed by whoever lets go of it last: what fails in the middle still holds a piece, in its traceback.
        yield memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ))
    finally:
        os.close(descriptor)
