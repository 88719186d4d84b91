"""A replica process: one verified version, loaded once, that answers the batches its gateway hands it.

It computes and nothing else. It dials the gateway, and dials again for as long as it is wanted, so a gateway may end
and come back without a model being loaded anew.
"""

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from argosy.cluster import current
from argosy.core.clock import Clock, SystemClock
from argosy.core.config import from_plain
from argosy.core.errors import ArgosyError, InvalidInput
from argosy.core.logs import configure_logs, get_logger
from argosy.core.tensors import Signature
from argosy.serve import wire
from argosy.serve.arena import LEAST_BYTES, Place, Window, write_pieces
from argosy.serve.awake import SOON_S
from argosy.serve.calibrating import ThisMachine, measurable
from argosy.serve.calibrator import Calibrator
from argosy.serve.control import ReplicaConfig
from argosy.serve.engine import Engine
from argosy.serve.loading import Version, check_memory, load, load_solo
from argosy.serve.profile_store import ProfileStore
from argosy.serve.tuning import Feed, Tuning

log = get_logger()

_BEAT_S = 0.5
# How often a replica looks what its calibration does, and whether it was calibrated anew.
_LOOK_S, _WATCH_S = 0.1, 2.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.05, 1.0
# After SIGTERM the gateway says when to go; if it doesn't, the process goes by itself within launchers' 5 s of grace.
_LEAVE_S = 4.0


def main(config: dict[str, Any]) -> None:
    """Load the version, then serve until SIGTERM or until nobody wants this replica any more."""
    settings = from_plain(config, ReplicaConfig, where="replica")
    configure_logs(settings.log_level, process="replica", replica=settings.id)
    clock = SystemClock()
    version = load(settings)
    check_memory(settings)
    tuning = Tuning(settings, ProfileStore(Path(settings.home)), clock)
    feed = first_feed(settings, version, tuning, clock)
    hello = hello_of(settings, version.engine.signature, feed)
    replica = Replica(settings, hello, version.engine, clock, tuning, load_solo=lambda n: soloist(settings, n))
    log.info("replica_loaded", version=settings.ref, max_batch=feed.batching.max_batch, measured=tuning.is_settled)
    signal.signal(signal.SIGTERM, lambda *_: replica.leave())
    replica.serve()


def first_feed(config: ReplicaConfig, version: Version, tuning: Tuning, clock: Clock) -> Feed:
    """Return how to be fed from the first request on: as stored, or measured now if that is a matter of a moment.

    Where nobody waits for it, because another version answers meanwhile, a replica may take `calibrate_s` for a
    calibration; otherwise it is fed as a first look at it says, mostly one row at a time, until that is done beside it.
    """
    loaded = measurable(version)
    stored = tuning.stored()
    if stored is not None:
        with contextlib.suppress(Exception):  # the first run allocates; whatever it raises, real inputs may do better
            loaded.bench((loaded.middle,))
        return stored
    calibrator = Calibrator(config.digest, lambda _: loaded, ThisMachine(tuning.host), clock)
    batching, profile = calibrator.quick(loaded, threads=config.threads)
    if profile is not None:
        return tuning.keep(profile)
    until = clock.monotonic() + config.calibrate_s
    while clock.monotonic() < until and not tuning.is_settled:
        found = tuning.look()
        if found is not None:
            return found
        clock.sleep(_LOOK_S)
    return Feed(batching, None)


def soloist(config: ReplicaConfig, threads: int) -> Engine:
    """Return an engine for runs that have the machine to themselves, ready for its first one."""
    version = load_solo(config, threads)
    loaded = measurable(version)
    with contextlib.suppress(Exception):  # as above
        loaded.bench((loaded.middle,))
    return version.engine


def hello_of(config: ReplicaConfig, signature: Signature, feed: Feed) -> wire.Hello:
    """Return the first frame of a replica that is fed so."""
    return wire.Hello(
        config.id,
        os.getpid(),
        config.digest,
        config.ref,
        signature,
        threads=config.threads,
        advice=feed.advice,
        **msgspec.structs.asdict(feed.batching),
    )


class Replica:
    """The conversation with the gateway."""

    def __init__(
        self,
        config: ReplicaConfig,
        hello: wire.Hello,
        engine: Engine,
        clock: Clock,
        tuning: Tuning | None = None,
        *,
        load_solo: Callable[[int], Engine] | None = None,
    ) -> None:
        self._config = config
        self._load_solo = load_solo
        self._solo: Engine | None = None
        self._is_getting_solo = False
        self._tuning = tuning
        self._hello = hello
        self._engine = engine
        self._clock = clock
        self._leaving = threading.Event()
        self._sending = threading.Lock()
        self._connection: socket.socket | None = None
        self._window = Window()

    def leave(self) -> None:
        """Begin to end: a signal handler, so it only raises a flag that the heart sees at once."""
        self._leaving.set()

    def serve(self) -> None:
        """Answer batches until told to go."""
        threading.Thread(target=self._beat, name="heart", daemon=True).start()
        if self._tuning is not None:
            threading.Thread(target=self._tune, args=(self._tuning,), name="tuning", daemon=True).start()
        wait_s = _FIRST_WAIT_S
        while not self._leaving.is_set():
            connection = self._dial()
            if connection is not None:
                wait_s = _FIRST_WAIT_S
                with connection:
                    if self._converse(connection):
                        return
                self._connection = None
                self._window.forget()
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
            with self._sending:  # so that what the tuning learns meanwhile is in it, or follows it
                wire.send(connection, self._hello)
                self._connection = connection
        except OSError:
            connection.close()
            return None
        return connection

    def _converse(self, connection: socket.socket) -> bool:
        """Answer until the gateway says goodbye (True) or is gone (False)."""
        receiver = wire.Receiver(connection)
        look_s, answered = 0.0, self._clock.monotonic()
        while True:
            try:
                frame, body = receiver.receive(look_s=look_s)
            except ArgosyError:
                return False
            if isinstance(frame, wire.Bye):
                return True
            if isinstance(frame, wire.GoSolo):
                self._go_solo(frame.threads)
                continue
            if not isinstance(frame, wire.Run):
                return False
            waited_s = self._clock.monotonic() - answered
            done, pieces = self._answer(frame, body)
            try:
                with self._sending:
                    wire.send(connection, done, pieces)
            except OSError:
                return False
            answered = self._clock.monotonic()
            # One after the other and soon: somebody waits for each answer before asking again. With more at once the
            # gateway needs the core.
            look_s = SOON_S if waited_s < SOON_S and sum(frame.rows) == 1 else 0.0

    def _answer(self, order: wire.Run, body: memoryview) -> tuple[wire.Done, list[bytes | memoryview]]:
        """Answer a batch, from and into shared memory where it came that way."""
        if self._clock.monotonic() > order.due:
            return wire.Done(order.batch, 0.0, error=(wire.TOO_LATE, "the replica got to it too late")), []
        *place, size = order.shared
        if not size:
            return self._run(order, body)
        try:
            memory = self._window.view(Place(*place))
        except OSError as error:
            return wire.Done(order.batch, 0.0, error=(wire.NO_ARENA, f"the replica can't share memory: {error}")), []
        done, pieces = self._run(order, memory[:size])
        answered = sum(len(piece) for piece in pieces)
        if not LEAST_BYTES <= answered <= len(memory) or any(_is_part_of(piece, memory) for piece in pieces):
            return done, pieces
        write_pieces(memory, pieces)
        return msgspec.structs.replace(done, shared=answered), []

    def _run(self, order: wire.Run, body: memoryview) -> tuple[wire.Done, list[bytes | memoryview]]:
        begun = self._clock.monotonic()
        try:
            engine = self._solo if order.is_solo and self._solo is not None else self._engine
            done, pieces, was_repeated = engine.run(order, body)
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

    def _go_solo(self, threads: int) -> None:
        """Begin to get an engine for runs that have the machine to themselves; answers go on meanwhile."""
        if self._load_solo is not None and not self._is_getting_solo:
            self._is_getting_solo = True
            threading.Thread(target=self._get_solo, args=(self._load_solo, threads), name="solo", daemon=True).start()

    def _get_solo(self, load_solo: Callable[[int], Engine], threads: int) -> None:
        try:
            self._solo = load_solo(threads)
        except Exception as error:  # noqa: BLE001 - the outermost point of this thread; answers don't need it
            log.warning("no_solo_engine", version=self._config.ref, threads=threads, why=str(error))
            return
        with self._sending:
            self._hello = msgspec.structs.replace(self._hello, solo=threads)
        self._tell(self._hello)
        log.info("solo_engine_ready", version=self._config.ref, threads=threads)

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

    def _tune(self, tuning: Tuning) -> None:
        """Follow what calibration finds out, and say hello again with it. It reads files: nothing for the heart."""
        while not self._leaving.wait(_WATCH_S if tuning.is_settled else _LOOK_S):
            try:
                feed = tuning.look()
            except Exception:
                # The outermost loop of this thread; requests are answered without it.
                log.exception("tuning_failed")
                return
            if feed is not None:
                with self._sending:
                    self._hello = msgspec.structs.replace(
                        self._hello, advice=feed.advice, **msgspec.structs.asdict(feed.batching)
                    )
                self._tell(self._hello)
        tuning.close()

    def _tell(self, message: wire.Message) -> None:
        # A break shows in the main thread, which reads.
        with self._sending, contextlib.suppress(OSError):
            if self._connection is not None:
                wire.send(self._connection, message)

    def _is_wanted(self) -> bool:
        if self._config.record and not Path(self._config.record).exists():
            return False
        return current.is_wanted()


def _is_part_of(piece: bytes | memoryview, memory: memoryview) -> bool:
    """Return whether an answer is made of the very bytes of the input, so that writing it there could spoil it."""
    import numpy as np

    return bool(len(piece)) and np.may_share_memory(np.frombuffer(piece, np.uint8), np.frombuffer(memory, np.uint8))
