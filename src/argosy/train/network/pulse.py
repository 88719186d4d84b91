"""Signs of life between ranks, on connections and a thread of their own, and the news that a rank is gone.

Messages: `.` I live; `B` goodbye, I have done my part; `F` I failed, with the rank that is to blame (or none) and why.
A connection that ends without a goodbye is a process that has ended.
"""

import contextlib
import errno
import os
import select
import socket
import struct
import threading

from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError
from argosy.train.transport import rank_lost

_BEAT, _GOODBYE, _FAILED = b"."[0], b"B"[0], b"F"[0]
_FAILURE = struct.Struct(">hH")
"""The rank that is to blame, or -1, and the length of the text that follows."""
_MAX_REASON_BYTES = 400
_FAREWELL_S = 1.0
_ENDED = "has ended without a word"


class Pulse:
    """Tells the others that this rank lives, and notices when one of them doesn't.

    `alarm` is a descriptor that becomes readable, for good, as soon as a rank is lost.
    """

    def __init__(
        self,
        rank: int,
        connections: dict[int, socket.socket],
        clock: Clock,
        *,
        silence_s: float,
        beat_s: float,
    ) -> None:
        self._rank = rank
        self._connections = connections
        self._clock = clock
        self._silence_s = silence_s
        self._beat_s = min(beat_s, silence_s / 4)
        self.alarm = os.eventfd(0)
        self._wake = os.eventfd(0)
        self._lost: tuple[int, str] | None = None
        self._left: set[int] = set()
        self._farewell: bytes | None = None
        self._changed = threading.Condition()
        self._received = {peer: bytearray() for peer in connections}
        self._heard = dict.fromkeys(connections, clock.monotonic())
        for connection in connections.values():
            # Here, and only here: numbers may lie unread for long while the other side computes, signs of life never.
            limit_ms = int(silence_s * 1000)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, limit_ms)
        self._thread = threading.Thread(target=self._live, name="argosy-pulse", daemon=True)
        self._thread.start()

    def error(self) -> ArgosyError | None:
        """Return the error that tells which rank is lost, or None."""
        return rank_lost(*self._lost) if self._lost else None

    def explain(self, peer: int) -> ArgosyError:
        """Return the error for a connection with `peer` that has ended, whose reason may be just arriving."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost is not None or peer in self._left, _FAREWELL_S)
            if self._lost is None and peer in self._left:
                return rank_lost(peer, "has left")
        return self.error() or rank_lost(peer, "has closed its connection")

    def part(self, *, failed: bool, blame: int = -1) -> None:
        """Say goodbye, or that this rank has failed, because of rank `blame` if that is not -1; end the signs of life.

        After a failure the alarm is on, so that no exchange of this rank waits any more.
        """
        with self._changed:
            lost, why = self._lost or (blame, "took no part in an exchange in time")
        text = why.encode()[:_MAX_REASON_BYTES]
        self._farewell = bytes([_FAILED]) + _FAILURE.pack(lost, len(text)) + text if failed else bytes([_GOODBYE])
        os.eventfd_write(self._wake, 1)
        self._thread.join()
        if failed:
            self._lose(self._rank, "has stopped")

    def close(self) -> None:
        """Give back the descriptors, when nobody looks at the alarm any more."""
        os.close(self._wake)
        os.close(self.alarm)

    def _live(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        peers = {connection.fileno(): peer for peer, connection in self._connections.items()}
        for descriptor in peers:
            poll.register(descriptor, select.POLLIN)
        next_beat = before = self._clock.monotonic()
        while self._farewell is None:
            ready = poll.poll(max(0.0, next_beat - self._clock.monotonic()) * 1000)
            now = self._clock.monotonic()
            if now - before > self._beat_s + self._silence_s / 2:
                # This process was stopped itself: it can't say for how long the others were silent.
                self._heard = dict.fromkeys(self._heard, now)
            before = now
            for descriptor, _ in ready:
                if descriptor in peers and not self._listen(peers[descriptor], now):
                    poll.unregister(descriptor)
            if now >= next_beat:
                next_beat = now + self._beat_s
                self._beat(now)
        self._part()

    def _beat(self, now: float) -> None:
        for peer, connection in self._connections.items():
            # A peer that doesn't read has a full buffer in time: its own silence tells, not ours.
            with contextlib.suppress(OSError):
                connection.send(bytes([_BEAT]))
            if peer not in self._left and now - self._heard[peer] > self._silence_s:
                self._lose(peer, f"gave no sign of life for {now - self._heard[peer]:.1f} s")

    def _listen(self, peer: int, now: float) -> bool:
        """Take what `peer` says; return whether more may come."""
        try:
            data = self._connections[peer].recv(4096)
        except BlockingIOError:
            return True
        except OSError as error:
            has_ended = error.errno in {errno.ECONNRESET, errno.EPIPE}
            self._lose(peer, _ENDED if has_ended else f"can't be reached: {error.strerror or error}")
            return False
        self._heard[peer] = now
        self._received[peer] += data
        self._understand(peer)
        if not data and peer not in self._left:
            self._lose(peer, _ENDED)
        return bool(data)

    def _understand(self, peer: int) -> None:
        received = self._received[peer]
        while received:
            kind, size = received[0], 1
            if kind == _GOODBYE:
                self._leave(peer)
            elif kind == _FAILED:
                head = 1 + _FAILURE.size
                if len(received) < head:
                    return
                blame, length = _FAILURE.unpack_from(received, 1)
                size = head + min(length, _MAX_REASON_BYTES)
                if len(received) < size:
                    return
                self._take_failure(peer, blame, received[head:size].decode(errors="replace"))
            elif kind != _BEAT:
                self._lose(peer, "speaks another language")
                received.clear()
                return
            del received[:size]

    def _take_failure(self, peer: int, blame: int, reason: str) -> None:
        if blame == self._rank:
            # Others have given this rank up; it may have been frozen. It must not go on.
            self._lose(self._rank, f"was given up by rank {peer}: it {reason}")
        elif blame >= 0:
            self._lose(blame, reason)
        else:
            self._lose(peer, "stopped with an error")

    def _lose(self, peer: int, why: str) -> None:
        with self._changed:
            if self._lost is None:
                self._lost = (peer, why)
                os.eventfd_write(self.alarm, 1)
                self._changed.notify_all()

    def _leave(self, peer: int) -> None:
        with self._changed:
            self._left.add(peer)
            self._changed.notify_all()

    def _part(self) -> None:
        for connection in self._connections.values():
            with contextlib.suppress(OSError):
                connection.settimeout(_FAREWELL_S)
                connection.sendall(self._farewell or b"")
                connection.shutdown(socket.SHUT_WR)
        for connection in self._connections.values():
            connection.close()
