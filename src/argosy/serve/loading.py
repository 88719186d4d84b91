"""Loads a version into this process: verified, confined where its own code runs, and within its bound of memory."""

import contextlib
import os
import threading
from pathlib import Path
from typing import NamedTuple

import msgspec

from argosy.cluster.confinement import confine
from argosy.cluster.machine import process_memory_bytes
from argosy.core.errors import InvalidInput
from argosy.core.units import format_size
from argosy.registry.versions import Manifest
from argosy.serve.control import ReplicaConfig
from argosy.serve.engine import Engine, engine_of


class Version(NamedTuple):
    """A loaded version."""

    engine: Engine
    manifest: Manifest


def load(config: ReplicaConfig, *, spinning: bool = False) -> Version:
    """Load a version whose signature and digests verify; `spinning` as in `formats/runner.py`.

    Raises NotFound or IntegrityError for one that is not whole, InvalidInput for one that can't run here.
    """
    from argosy.registry.blobs import Blobs
    from argosy.registry.store import open_store
    from argosy.registry.versions import open_version
    from argosy.security.keys import KeyRing

    home = Path(config.home)
    blobs = Blobs(open_store(config.store), home / "cache")
    version, files = open_version(blobs, KeyRing.open(home), config.digest)
    if version.manifest.format == "python":
        # Its code runs from here on. Growth is seen from outside and answered in good order; this is for leaps.
        confine(memory_bytes=2 * config.memory_bytes)
    elif version.manifest.format == "onnx":
        # Reading and hashing the files leaves the interpreter free.
        threading.Thread(target=_import_runtime, name="import", daemon=True).start()
    engine = engine_of(version.manifest, files, threads=config.threads, spinning=spinning)
    files.check_rest()
    return Version(engine, version.manifest)


def _import_runtime() -> None:
    with contextlib.suppress(Exception):  # what is wrong with it, its first use says
        import onnxruntime  # noqa: F401


def load_solo(config: ReplicaConfig, threads: int) -> Version:
    """Load a version once more, for runs that have the machine to themselves.

    Raises InvalidInput where that would take more memory than this replica may have, and what `load` raises.
    """
    expected = 2 * process_memory_bytes(os.getpid())
    if config.memory_bytes and expected > config.memory_bytes:
        raise InvalidInput(
            f"'{config.ref}' would take {format_size(expected)} of memory when loaded twice, but a replica may take "
            f"{format_size(config.memory_bytes)}",
            code="memory_bound",
        )
    return load(msgspec.structs.replace(config, threads=threads), spinning=True)


def check_memory(config: ReplicaConfig) -> None:
    """Raise InvalidInput when loading alone took more memory than a replica of this endpoint may have."""
    taken = process_memory_bytes(os.getpid())
    if config.memory_bytes and taken > config.memory_bytes:
        raise InvalidInput(
            f"'{config.ref}' takes {format_size(taken)} of memory once it is loaded, but a replica may take "
            f"{format_size(config.memory_bytes)}",
            hint='allow more: [endpoint] memory = "..." in argosy.toml; the default is half of the machine',
            code="memory_bound",
        )
