"""The project behind an endpoint, as far as operating needs it: its data, and its sections about serving.

The rest of the file is the run's business. Data is looked at cheaply (names, sizes, times), read only when it has
changed and lain still for a while, and compared by digest: a file that was touched or copied again is no new data.
"""

import zipfile
from pathlib import Path
from typing import Any

import msgspec

from argosy.core.config import from_plain, read_toml
from argosy.core.digest import digest_of, digest_tree, sha256_file
from argosy.core.errors import ArgosyError, InvalidInput, NotFound
from argosy.core.units import Bound
from argosy.data.location import located
from argosy.operate.config import EndpointConfig, RolloutConfig
from argosy.operate.jobs.config import UpdateConfig

_COUNTED = 1 << 20


class ProjectFile(msgspec.Struct, frozen=True, kw_only=True):
    """What operating reads of a project."""

    name: str
    base: Path
    train: str
    test: str
    update: UpdateConfig | None
    endpoint: EndpointConfig | None
    rollout: RolloutConfig | None


class DataState(msgspec.Struct, frozen=True):
    """What a project's data is at a moment."""

    digest: str
    rows: int
    """-1: not known."""


def read_project(path: Path) -> ProjectFile:
    """Read a project file. Raises NotFound when it is gone, InvalidInput when a section is wrong."""
    found = read_toml(path, dict[str, Any])
    data = _section(found, "data", path)
    project = ProjectFile(
        name=str(_section(found, "project", path).get("name", "")),
        base=path.parent,
        train=str(data.get("train", "")),
        test=str(data.get("test", "")),
        update=_read(found, "update", UpdateConfig, path),
        endpoint=_read(found, "endpoint", EndpointConfig, path),
        rollout=_read(found, "rollout", RolloutConfig, path),
    )
    for section in (project.update, project.endpoint, project.rollout):
        if section is not None:
            section.check()
    parity = _section(found, "evaluate", path).get("parity")
    if project.rollout is None or not parity:
        return project
    return msgspec.structs.replace(project, rollout=project.rollout.with_parity(Bound.parse(str(parity)).value))


def fingerprint(project: ProjectFile) -> str:
    """Return a word that changes when any file of the data does, as far as names, sizes and times tell.

    Raises NotFound when data is gone, InvalidInput for data that is not on this machine.
    """
    found: list[Any] = []
    for name in _names(project):
        _refuse_remote(name)
        with located(name, project.base) as path:
            files = sorted(path.rglob("*")) if path.is_dir() else [path]
            for file in files:
                try:
                    stat = file.stat()
                except FileNotFoundError:  # it went while the folder was read
                    continue
                if not file.is_dir():
                    found.append([str(file), stat.st_size, stat.st_mtime_ns, stat.st_ino])
    return digest_of(found)


def read_data(project: ProjectFile) -> DataState:
    """Return digest and rows of the data. Raises NotFound when it is gone."""
    digests: list[str] = []
    rows = 0
    for index, name in enumerate(_names(project)):
        try:
            with located(name, project.base) as path:
                digests.append(digest_tree(path, "*") if path.is_dir() else sha256_file(path))
                if index == 0:
                    rows = count_rows(path)
        except OSError as error:
            raise NotFound(f"'{name}' could not be read: {error.strerror}", path=name) from error
    return DataState(data_word(*digests), rows)


def data_word(train: str, test: str = "") -> str:
    """Return one digest for the data of a project, from those of its files or folders."""
    return digest_of([train, test]) if test else train


def count_rows(path: Path) -> int:
    """Return how many rows a file has, or files a folder; -1 for a form whose rows can't be counted cheaply."""
    if path.is_dir():
        return sum(1 for file in path.rglob("*") if file.is_file())
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".txt", ".data", ".jsonl", ".ndjson"):
        return _count_lines(path)
    try:
        if suffix in (".parquet", ".pq"):
            from pyarrow import parquet

            return int(parquet.read_metadata(path).num_rows)
        if suffix == ".npz":
            return _rows_of_npz(path)
    except (ImportError, OSError, ValueError, zipfile.BadZipFile):
        pass
    return -1


def _count_lines(path: Path) -> int:
    lines, last = 0, b"\n"
    with path.open("rb") as stream:
        while piece := stream.read(_COUNTED):
            lines += piece.count(b"\n")
            last = piece[-1:]
    return lines + (last != b"\n")


def _rows_of_npz(path: Path) -> int:
    """Read the first array's shape, not the array."""
    from numpy.lib import format as npy

    with zipfile.ZipFile(path) as archive, archive.open(archive.namelist()[0]) as stream:
        version = npy.read_magic(stream)
        read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape = read(stream)[0]
    return int(shape[0]) if shape else -1


def _names(project: ProjectFile) -> list[str]:
    if not project.train:
        raise InvalidInput(f"project '{project.name}' names no data in [data] train")
    return [name for name in (project.train, project.test) if name]


def _refuse_remote(name: str) -> None:
    if "://" in name and not name.startswith("file://"):
        raise InvalidInput(
            f"'{name}' is not on this machine, so nothing is seen of its changes",
            hint='update by on = ["schedule"] instead',
        )


def _section(found: dict[str, Any], name: str, path: Path) -> dict[str, Any]:
    section = found.get(name, {})
    if not isinstance(section, dict):
        raise InvalidInput(f"'{name}' of '{path}' is not a section")
    return section


def _read(found: dict[str, Any], name: str, kind: type[Any], path: Path) -> Any:
    return from_plain(found[name], kind, where=f"{path} [{name}]") if name in found else None


class DataWatch:
    """Watches the data of one project: says when it has changed and then lain still."""

    def __init__(self) -> None:
        self._file: tuple[str, str] = ("", "")
        self._since = 0.0
        self._read: DataState | None = None

    def look(self, project: ProjectFile, now: float) -> DataState | None:
        """Return what the data is, None while it is still changing. `now`: a clock that doesn't jump.

        Raises NotFound and InvalidInput, as `fingerprint` does. Reads the data once for each change.
        """
        seen = (str(project.base), fingerprint(project))
        if seen != self._file:
            self._file, self._since, self._read = seen, now, None
        if self._read is None:
            settle = project.update.settle_s if project.update is not None else 0.0
            if now - self._since < settle:
                return None
            state = read_data(project)
            if fingerprint(project) != seen[1]:
                return None  # it changed while it was read
            self._read = state
        return self._read


def problem(error: ArgosyError) -> str:
    """Return in one line why a project can't be looked at, with what to do about it."""
    return f"{error.message}; {error.hint}" if error.hint else error.message
