"""The transport between ranks on different hosts: TCP, with everything that a lost host needs to be noticed.

Ranks meet at a `Rendezvous`, which the job of the first host holds open, and then talk directly. Between each two ranks
there are three connections: for signs of life, for exchanges that somebody waits for, and for those in the background.
"""

import queue
import threading
from collections.abc import Callable
from typing import Self

from argosy.core.clock import Clock, SystemClock
from argosy.core.errors import ArgosyError, Internal, InvalidInput
from argosy.train.network.codec import Codec, Floats
from argosy.train.network.exchanges import Exchanges, cuts
from argosy.train.network.handshake import Secure
from argosy.train.network.lane import Lane
from argosy.train.network.mesh import BACKGROUND, CONTROL, FOREGROUND, Connections, Mesh
from argosy.train.network.pulse import Pulse
from argosy.train.network.rendezvous import JOIN_S, Hello, Listening, Roster, meet
from argosy.train.transport import Numbers, check_numbers

SILENCE_S = 10.0
DEADLINE_S = 600.0
BEAT_S = 1.0
_CONNECT_S = 20.0


class Pending:
    """An exchange that goes on in the background."""

    def __init__(self) -> None:
        self._done = threading.Event()
        self._error: BaseException | None = None

    def is_done(self) -> bool:
        """Return whether `wait` would return or raise at once."""
        return self._done.is_set()

    def wait(self) -> None:
        """Wait until the exchange has ended; raise what it failed with. Bounded by the transport's own deadlines."""
        self._done.wait()
        if self._error is not None:
            raise self._error

    def run(self, work: Callable[[], None]) -> None:
        """Do the work, in whatever thread this is, and wake those who wait."""
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised again in `wait`
            self._error = error
        finally:
            self._done.set()


class TcpTransport:
    """A transport between hosts. Made by `join`.

    Beyond the Protocol it sums in parts, sends to one rank, compresses, and sums in the background. Methods are called
    from one thread, all ranks call the same in the same order, but exchanges in the background have an order of their
    own, beside that of the others.
    """

    def __init__(
        self,
        rank: int,
        roster: Roster,
        connections: Connections,
        clock: Clock,
        *,
        silence_s: float,
        deadline_s: float,
        beat_s: float,
    ) -> None:
        self.rank = rank
        self.world_size = len(roster.addresses)
        self.generation = roster.generation
        self._pulse = Pulse(rank, connections[CONTROL], clock, silence_s=silence_s, beat_s=beat_s)

        def lane(purpose: str) -> Exchanges:
            found = Lane(
                rank, roster.generation, connections[purpose], pulse=self._pulse, clock=clock, deadline_s=deadline_s
            )
            return Exchanges(found)

        self._now, self._behind = lane(FOREGROUND), lane(BACKGROUND)
        self._queue: queue.SimpleQueue[tuple[Pending, Callable[[], None]] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False
        self._failure: ArgosyError | None = None

    @classmethod
    def join(
        cls,
        address: str,
        rank: int,
        world_size: int,
        *,
        token: str,
        digest: str = "",
        generation: int = 0,
        bind: str = "",
        secure: Secure | None = None,
        clock: Clock | None = None,
        join_s: float = JOIN_S,
        silence_s: float = SILENCE_S,
        deadline_s: float = DEADLINE_S,
        beat_s: float = BEAT_S,
    ) -> "TcpTransport":
        """Come to the rendezvous at `address` (`host:port`) as `rank` of `world_size`; wait until all are there.

        `digest` says which code this rank runs: another one than the rendezvous' is refused. `generation` is that to
        take part in; 0 is whichever forms next. When some are missing and the rendezvous goes on without them, ranks
        are numbered anew, in the same order: `rank` and `world_size` of what is returned say how. This rank listens on
        `bind`, or on that of this host's addresses by which it reached the rendezvous (the loopback address if that is
        on this host); its port is a free one.

        A rank without a sign of life for `silence_s` (they come every `beat_s` from a thread of their own) is lost to
        the others; so is one that lives but moves no byte of an exchange for `deadline_s`.

        Raises DeadlineExceeded (`ranks_missing`), Unavailable (`no_rendezvous`), Denied (`wrong_token`,
        `former_generation`), InvalidInput (`other_code`, `other_world_size`), Conflict (`rank_taken`).
        """
        timing = clock or SystemClock()
        until = timing.monotonic() + join_s
        listening = Listening(bind)
        hello = Hello(rank=rank, world_size=world_size, digest=digest, generation=generation, address="", join_s=join_s)
        try:
            roster = meet(address, hello, listening, token=token, secure=secure)
            if listening.listener is None:
                raise Internal("the rendezvous answered before it was asked")
            # All are there and listen, so this takes a moment; who isn't reached by now won't be.
            left_s = max(1.0, min(_CONNECT_S, until - timing.monotonic()))
            own = roster.ranks.index(rank)
            connections = Mesh(roster, own, token, secure=secure).connect(listening.listener, left_s)
        finally:
            listening.close()
        return cls(own, roster, connections, timing, silence_s=silence_s, deadline_s=deadline_s, beat_s=beat_s)

    def all_reduce(self, values: Numbers, *, codec: Codec | None = None, error: Floats | None = None) -> None:
        """Replace `values`, in place, by the sum over all ranks, added in the order of ranks.

        With a codec (float32 only), ranks get the sum of what the codec makes of their values: also the same bits on
        all. `error`, float32 of the same size and zeros before the first call, is added to the values, and replaced by
        what the codec lost: error feedback. It holds what this rank lost of its values, and of the sums it coded.
        """
        self._check(values, codec, error)
        if self.world_size > 1:
            self._guarded(lambda: self._now.sum(values.reshape(-1), codec, error))

    def start_all_reduce(self, values: Numbers, *, codec: Codec | None = None, error: Floats | None = None) -> Pending:
        """Begin an `all_reduce` and return at once; the arrays belong to it until `wait` of what is returned."""
        self._check(values, codec, error)
        pending = Pending()
        if self.world_size == 1:
            pending.run(lambda: None)
            return pending
        if self._is_closed:
            raise Internal("the transport is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name="argosy-background", daemon=True)
            self._thread.start()
        self._queue.put((pending, lambda: self._behind.sum(values.reshape(-1), codec, error)))
        return pending

    def broadcast(self, values: Numbers, root: int = 0) -> None:
        """Replace `values`, in place, by those of rank `root`."""
        self._check(values)
        if self.world_size > 1:
            self._guarded(lambda: self._now.broadcast(values.reshape(-1), root))

    def reduce_scatter(self, values: Numbers) -> slice:
        """Sum over all ranks this rank's part of `values`, flat, in place; return where the part is."""
        self._check(values)
        if self.world_size > 1:
            self._guarded(lambda: self._now.reduce_scatter(values.reshape(-1)))
        return self.part(values.size)

    def all_gather(self, values: Numbers) -> None:
        """Replace every rank's part of `values`, flat, in place, by what that rank has there."""
        self._check(values)
        if self.world_size > 1:
            self._guarded(lambda: self._now.all_gather(values.reshape(-1)))

    def part(self, count: int) -> slice:
        """Return which of `count` numbers are this rank's in `reduce_scatter` and `all_gather`."""
        bounds = cuts(count, self.world_size)
        return slice(bounds[self.rank], bounds[self.rank + 1])

    def send(self, values: Numbers, to: int) -> None:
        """Send `values` to one rank, which calls `receive`."""
        self._check(values, peer=to)
        self._guarded(lambda: self._now.send(values.reshape(-1), to))

    def receive(self, values: Numbers, source: int) -> None:
        """Replace `values`, in place, by those that rank `source` sends with `send`."""
        self._check(values, peer=source)
        self._guarded(lambda: self._now.receive(values.reshape(-1), source))

    def close(self, *, failed: bool = False) -> None:
        """Leave; the first call decides whether as failed. What goes on in the background ends first, or fails."""
        if self._is_closed:
            return
        self._is_closed = True
        self._queue.put(None)
        if self._thread is not None and not failed:
            self._thread.join()
        blame = self._failure.context.get("rank", -1) if self._failure else -1
        self._pulse.part(failed=failed, blame=blame)
        if self._thread is not None:
            self._thread.join()
        for exchanges in (self._now, self._behind):
            exchanges.lane.close()
        self._pulse.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)

    def _check(
        self, values: Numbers, codec: Codec | None = None, error: Floats | None = None, peer: int | None = None
    ) -> None:
        check_numbers(values)
        if codec is not None and values.dtype.name != "float32":
            raise InvalidInput(f"codec {codec.name!r} takes float32, not {values.dtype.name}", code="wrong_datatype")
        if error is not None and (codec is None or error.dtype.name != "float32" or error.size != values.size):
            raise InvalidInput(f"the error of {values.size} coded numbers is as many float32, not {error.size}")
        if peer is not None and (peer == self.rank or not 0 <= peer < self.world_size):
            raise InvalidInput(f"rank {self.rank} of {self.world_size} can't exchange numbers with rank {peer}")

    def _guarded(self, exchange: Callable[[], None]) -> None:
        try:
            exchange()
        except ArgosyError as error:
            self._failure = self._failure or error
            raise

    def _work(self) -> None:
        while (job := self._queue.get()) is not None:
            pending, exchange = job
            pending.run(lambda exchange=exchange: self._guarded(exchange))  # type: ignore[misc]
