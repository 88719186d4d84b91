"""Running text in files, read as a stream: no more of it is in memory than is being looked at."""

import codecs
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from argosy.core.errors import InvalidInput, NotFound

_SUFFIXES = (".txt", ".text", ".md")
_STRETCH_BYTES = 4 << 20


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A text in a file (UTF-8); a line ends with one character, whatever the file has."""

    path: Path
    name: str
    """As an error shows it."""
    letters: int

    def between(self, start: int, end: int) -> Iterator[str]:
        """Yield the characters from `start` up to `end` in stretches."""
        at = 0
        for text in _stretches(self.path, self.name):
            if found := text[max(start - at, 0) : max(end - at, 0)]:
                yield found
            at += len(text)
            if at >= end:
                return


def documents_in(files: Sequence[Path], path: Path, name: str) -> list[Document]:
    """Return the texts of `files`, those of `path`, which the user calls `name`; empty ones are left out.

    Every text is read once, to see that it is one. Raises InvalidInput.
    """
    named = [(file, name if file == path else f"{name}/{file.relative_to(path)}") for file in files]
    found = [document for file, shown in named if (document := _document(file, shown)) is not None]
    if not found:
        raise InvalidInput(f"'{name}' holds no text", path=name)
    return found


def text_files(path: Path, name: str) -> list[Path]:
    """Return the text file `path`, or those in that folder at any depth, in order of their names; raise NotFound."""
    if not path.is_dir():
        return [path]
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in _SUFFIXES and not file.name.startswith(".") and file.is_file()
    )
    if not files:
        raise NotFound(
            f"the folder '{name}' has no texts; files that end in {', '.join(_SUFFIXES)} are read", path=str(path)
        )
    return files


def _document(file: Path, name: str) -> Document | None:
    letters, is_blank = 0, True
    for text in _stretches(file, name):
        letters += len(text)
        is_blank = is_blank and not text.strip()
    return None if is_blank else Document(path=file, name=name, letters=letters)


def _stretches(file: Path, name: str) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    at, held = 0, ""
    with file.open("rb") as stream:
        while True:
            data = stream.read(_STRETCH_BYTES)
            pending = len(decoder.getstate()[0])
            try:
                text = decoder.decode(data, final=not data)
            except UnicodeDecodeError as error:
                raise InvalidInput(
                    f"'{name}' is not UTF-8 text at byte {at - pending + error.start}",
                    hint="convert it, such as with: iconv -f latin1 -t utf-8",
                    path=str(file),
                ) from error
            if not at:
                text = text.removeprefix("\ufeff")
            at += len(data)
            # A line's end may be cut in two.
            text, held = held + text, ""
            if data and text.endswith("\r"):
                text, held = text[:-1], "\r"
            if text:
                yield text.replace("\r\n", "\n")
            if not data:
                return
