"""The one atomic writer, the one path resolver, and a lock that dies with its process."""

import contextlib
import errno
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from argosy.core.errors import Conflict, InvalidInput, Unavailable


def write_atomic(path: Path, data: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Write `data` so that `path` holds either its former bytes or all of `data`, also after a power cut.

    Temporary name, fsync, rename, fsync of the folder. Raises Unavailable when the disk is full; the temporary
    file is removed then.
    """
    with _staged(path, (data,), mode) as staged:
        os.replace(staged, path)
    _sync_folder(path.parent)


class WrongDigest(Exception):
    """What was to be written isn't what its digest says; `found` is the digest it has."""

    def __init__(self, found: str) -> None:
        super().__init__(found)
        self.found = found


def write_pieces(
    path: Path, pieces: Iterable[bytes | memoryview], *, mode: int = 0o644, digest: str | None = None
) -> str:
    """Write what is made piece by piece, as `write_atomic` does, and return its digest.

    Raises WrongDigest, and leaves `path` as it was, when that isn't `digest`.
    """
    found = hashlib.sha256()

    def hashed() -> Iterator[bytes | memoryview]:
        for piece in pieces:
            found.update(piece)
            yield piece

    with _staged(path, hashed(), mode) as staged:
        name = f"sha256:{found.hexdigest()}"
        if digest not in (None, name):
            raise WrongDigest(name)
        os.replace(staged, path)
    _sync_folder(path.parent)
    return name


def create_exclusive(path: Path, data: bytes | memoryview, *, mode: int = 0o644) -> None:
    """Write `data` to `path` only if nothing stands there; raise Conflict otherwise.

    As durable and as atomic as `write_atomic`: of several writers exactly one succeeds, and no reader sees a part.
    """
    with _staged(path, (data,), mode) as staged:
        try:
            os.link(staged, path)
        except FileExistsError as error:
            raise Conflict(f"'{path.name}' exists already", path=str(path)) from error
        os.unlink(staged)
    _sync_folder(path.parent)


@contextlib.contextmanager
def _staged(path: Path, pieces: Iterable[bytes | memoryview], mode: int) -> Iterator[str]:
    staged = f"{path}.{os.urandom(6).hex()}.tmp"
    try:
        _make_folder(path.parent)
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        try:
            for piece in pieces:
                view = memoryview(piece)
                while view:
                    view = view[os.write(descriptor, view) :]
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield staged
    except OSError as error:
        raise explained(error, path) from error
    finally:
        with contextlib.suppress(OSError):
            os.unlink(staged)


def explained(error: OSError, path: Path) -> Exception:
    """Return what a failed write means for the user: a full disk, missing permissions, or `error` itself."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return Unavailable(
            f"no space left to write '{path}'",
            hint="free some disk space and run the same command again; nothing was half-written",
            code="disk_full",
            retry_after_s=60.0,
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return InvalidInput(f"'{path}' cannot be written: {error.strerror}", hint="check the folder's permissions")
    return error


def _make_folder(folder: Path) -> None:
    """Make `folder` and the ones above it so that their names, too, outlive a power cut."""
    if not folder.is_dir():
        _make_folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync_folder(folder.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resolve_inside(root: Path, name: str) -> Path:
    """Return the path of `name` below `root`; refuse absolute names, `..`, and links on the way.

    Raises InvalidInput. Every name that comes from outside passes here before it is opened.
    """
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or any(p in ("..", "") for p in parts) or "\x00" in name:
        raise InvalidInput(f"{name!r} is not a name inside '{root}'")
    path = root
    for part in parts:
        path = path / part
        if path.is_symlink():
            raise InvalidInput(f"{name!r} passes through a link at '{path}', which is refused")
    return path


class FileLock:
    """An exclusive lock on a file, given back by the kernel when the process ends in whatever way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; return whether it was free. The file then holds this process's id."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            return False
        os.truncate(descriptor, 0)
        os.write(descriptor, str(os.getpid()).encode())
        self._descriptor = descriptor
        return True

    def release(self) -> None:
        """Give the lock back; harmless when it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def is_taken(self) -> bool:
        """Return whether some other holder has it now."""
        if self.acquire():
            self.release()
            return False
        return True

    def __enter__(self) -> Self:
        if not self.acquire():
            raise Conflict(f"'{self.path.name}' is held by another process", path=str(self.path))
        return self

    def __exit__(self, *_: object) -> None:
        self.release()
