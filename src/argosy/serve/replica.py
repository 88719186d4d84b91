"""A replica process: one verified version, loaded once, that answers the batches its gateway hands it.

It computes and nothing else. It dials the gateway, and dials again for as long as it is wanted, so a gateway may end
and come back without a model being loaded anew.
"""

import contextlib
import os
import signal
import socket
import threading
from pathlib import Path
from typing import Any

from argosy.cluster import current
from argosy.cluster.confinement import confine
from argosy.cluster.machine import process_memory_bytes
from argosy.core.clock import Clock, SystemClock
from argosy.core.config import from_plain
from argosy.core.errors import ArgosyError, InvalidInput
from argosy.core.logs import configure_logs, get_logger
from argosy.core.units import format_size
from argosy.serve import wire
from argosy.serve.calibration import calibrate
from argosy.serve.control import ReplicaConfig
from argosy.serve.engine import Engine, engine_of

log = get_logger()

_BEAT_S = 0.5
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0
# After SIGTERM the gateway says when to go; if it doesn't, the process goes by itself within launchers' 5 s of grace.
_LEAVE_S = 4.0


def main(config: dict[str, Any]) -> None:
    """Load the version, then serve until SIGTERM or until nobody wants this replica any more."""
    settings = from_plain(config, ReplicaConfig, where="replica")
    configure_logs(settings.log_level, process="replica", replica=settings.id)
    clock = SystemClock()
    engine = load_engine(settings)
    max_batch, run_s = calibrate(engine.compute, engine.signature, clock)
    check_memory(settings)
    hello = wire.Hello(settings.id, os.getpid(), settings.digest, settings.ref, engine.signature, max_batch, run_s)
    log.info("replica_loaded", version=settings.ref, max_batch=max_batch, run_ms=round(run_s * 1e3, 3))
    replica = Replica(settings, hello, engine, clock)
    signal.signal(signal.SIGTERM, lambda *_: replica.leave())
    replica.serve()


def load_engine(config: ReplicaConfig) -> Engine:
    """Load a version whose signature and digests verify, as one function."""
    from argosy.registry.blobs import Blobs
    from argosy.registry.store import open_store
    from argosy.registry.versions import VersionFiles, load_version
    from argosy.security.keys import KeyRing

    home = Path(config.home)
    blobs = Blobs(open_store(config.store), home / "cache")
    version = load_version(blobs, KeyRing.open(home), config.digest)
    if version.manifest.format == "python":
        # Its code runs from here on. Growth is seen from outside and answered in good order; this is for leaps.
        confine(memory_bytes=2 * config.memory_bytes)
    return engine_of(version.manifest, VersionFiles(blobs, version), threads=config.threads)


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


class Replica:
    """The conversation with the gateway."""

    def __init__(self, config: ReplicaConfig, hello: wire.Hello, engine: Engine, clock: Clock) -> None:
        self._config = config
        self._hello = hello
        self._engine = engine
        self._clock = clock
        self._leaving = threading.Event()
        self._sending = threading.Lock()
        self._connection: socket.socket | None = None

    def leave(self) -> None:
        """Begin to end: a signal handler, so it only raises a flag that the heart sees at once."""
        self._leaving.set()

    def serve(self) -> None:
        """Answer batches until told to go."""
        threading.Thread(target=self._beat, name="heart", daemon=True).start()
        wait_s = _FIRST_WAIT_S
        while not self._leaving.is_set():
            connection = self._dial()
            if connection is not None:
                wait_s = _FIRST_WAIT_S
                with connection:
                    if self._converse(connection):
                        return
                self._connection = None
                log.info("gateway_lost")
            if not self._is_wanted():
                log.info("replica_not_wanted")
                return
            self._leaving.wait(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)

    def _dial(self) -> socket.socket | None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.connect(self._config.socket)
            wire.send(connection, self._hello)
        except OSError:
            connection.close()
            return None
        self._connection = connection
        return connection

    def _converse(self, connection: socket.socket) -> bool:
        """Answer until the gateway says goodbye (True) or is gone (False)."""
        while True:
            try:
                frame, body = wire.receive(connection)
            except ArgosyError:
                return False
            if isinstance(frame, wire.Bye):
                return True
            if not isinstance(frame, wire.Run):
                return False
            done, pieces = self._run(frame, body)
            try:
                with self._sending:
                    wire.send(connection, done, pieces)
            except OSError:
                return False

    def _run(self, order: wire.Run, body: memoryview) -> tuple[wire.Done, list[bytes | memoryview]]:
        begun = self._clock.monotonic()
        try:
            done, pieces, was_repeated = self._engine.run(order, body)
        except Exception as error:
            # The outermost loop of the process: whatever one batch does, the next is answered.
            log.exception("batch_failed")
            text = error.message if isinstance(error, InvalidInput) else "the answer could not be sent"
            return wire.Done(order.batch, 0.0, error=("model_run_failed", text)), []
        if sum(len(piece) for piece in pieces) > wire.MAX_BODY_BYTES:
            text = f"the answer is larger than {wire.MAX_BODY_BYTES} bytes; send fewer rows"
            return wire.Done(order.batch, 0.0, error=("model_run_failed", text)), []
        if was_repeated:
            log.info("batch_repeated_singly", requests=len(order.rows), failed=len(done.failures))
        run_s = self._clock.monotonic() - begun
        return wire.Done(done.batch, run_s, done.outputs, done.failures, done.error), pieces

    def _beat(self) -> None:
        """Tell the gateway that this process runs, also while it computes; and that it wants to go, when it does."""
        while not self._leaving.wait(_BEAT_S):
            self._tell(wire.Beat())
        self._tell(wire.Leaving())
        self._clock.sleep(_LEAVE_S)
        connection = self._connection
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _tell(self, message: wire.Message) -> None:
        connection = self._connection
        if connection is None:
            return
        # A break shows in the main thread, which reads.
        with self._sending, contextlib.suppress(OSError):
            wire.send(connection, message)

    def _is_wanted(self) -> bool:
        if self._config.record and not Path(self._config.record).exists():
            return False
        return current.is_wanted()
