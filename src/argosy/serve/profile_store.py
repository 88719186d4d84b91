"""Where profiles are kept: a small file per version and machine in the home's cache. Losing one costs a calibration."""

import contextlib
from pathlib import Path

import msgspec

from argosy.core.digest import check_digest
from argosy.core.errors import ArgosyError
from argosy.core.files import FileLock, resolve_inside, write_atomic
from argosy.serve.host import host_key, this_host
from argosy.serve.profile import Host, Profile, decode, encode

_MAX_BYTES = 1 << 20


class ProfileStore:
    """The profiles of one home, as far as they are of this machine."""

    def __init__(self, home: Path, host: Host | None = None) -> None:
        self.folder = home / "cache" / "calibration"
        self.host = host or this_host()
        self._key = host_key(self.host)

    def read(self, version: str) -> Profile | None:
        """Return what is known of a version (by digest); None too when its file is damaged, foreign or outdated."""
        with contextlib.suppress(OSError, ArgosyError), self._path(version).open("rb") as stream:
            return decode(stream.read(_MAX_BYTES), version, self.host)
        return None

    def keep(self, profile: Profile) -> Profile | None:
        """Keep a profile, with what was known of other numbers of threads, and return it as it is kept.

        None when it can't be kept: a full or read-only disk is no reason not to serve.
        """
        former = self.read(profile.version)
        if former is not None:
            profile = msgspec.structs.replace(profile, batching={**former.batching, **profile.batching})
        try:
            write_atomic(self._path(profile.version), encode(profile), mode=0o600)
        except (OSError, ArgosyError):
            return None
        return profile

    def forget(self, version: str) -> None:
        """Drop what is known of a version, so that it is measured again."""
        with contextlib.suppress(OSError, ArgosyError):
            self._path(version).unlink()

    def stamp(self, version: str) -> tuple[int, int]:
        """Return what changes when another profile is written; costs one look at the file's record."""
        try:
            found = self._path(version).stat()
        except (OSError, ArgosyError):
            return (0, 0)
        return (found.st_ino, found.st_mtime_ns)

    def lock(self) -> FileLock:
        """Return the lock that lets one process of this home measure at a time: two would measure each other."""
        return FileLock(self.folder / f"{self._key}.lock")

    def _path(self, version: str) -> Path:
        return resolve_inside(self.folder, f"{check_digest(version).removeprefix('sha256:')}.{self._key}.json")
