"""Opens the connections between all ranks of one generation, and none to anybody else."""

import contextlib
import socket
import threading

import msgspec

from argosy.core.clock import SystemClock
from argosy.core.errors import ArgosyError, DeadlineExceeded, Denied
from argosy.train.network.handshake import Door, Guest, Secure, dial
from argosy.train.network.rendezvous import Roster

CONTROL, FOREGROUND, BACKGROUND = "control", "foreground", "background"
PURPOSES = (CONTROL, FOREGROUND, BACKGROUND)
"""Signs of life never stand behind numbers, nor numbers that are waited for behind those that are not."""
_WELCOME = b"welcome"
_RETRY_S = 0.1
_KEEP_ALIVE_S = 30

_clock = SystemClock()


class _Call(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    generation: int
    session: str
    source: int
    target: int
    purpose: str


Connections = dict[str, dict[int, socket.socket]]
"""By purpose, then by the other side's rank."""


class Mesh:
    """The connections of one rank while they are being made: it dials lower ranks and is dialled by higher ones."""

    def __init__(self, roster: Roster, rank: int, token: str, *, secure: Secure | None = None) -> None:
        self._roster = roster
        self._rank = rank
        self._token = token
        self._secure = secure
        self._found: Connections = {purpose: {} for purpose in PURPOSES}
        self._changed = threading.Condition()

    def connect(self, listener: socket.socket, join_s: float) -> Connections:
        """Return the connections to all other ranks, made within `join_s`; the listener is closed then."""
        until = _clock.monotonic() + join_s
        door = Door(listener, self._token, self._admit, secure=self._secure)
        try:
            for peer in range(self._rank):
                for purpose in PURPOSES:
                    self._found[purpose][peer] = self._dial(peer, purpose, until)
            self._await_higher_ranks(until)
        except BaseException:
            self._close_all()
            raise
        finally:
            door.close()
        for connections in self._found.values():
            for connection in connections.values():
                _tune(connection)
        return self._found

    def _await_higher_ranks(self, until: float) -> None:
        with self._changed:
            self._changed.wait_for(lambda: not self._missing(), max(0.0, until - _clock.monotonic()))
            if self._missing():
                raise self._too_late(self._missing()[0])

    def _missing(self) -> list[int]:
        ranks = [rank for rank in range(len(self._roster.addresses)) if rank != self._rank]
        return [rank for rank in ranks if any(rank not in self._found[purpose] for purpose in PURPOSES)]

    def _dial(self, peer: int, purpose: str, until: float) -> socket.socket:
        call = _Call(
            generation=self._roster.generation,
            session=self._roster.session,
            source=self._rank,
            target=peer,
            purpose=purpose,
        )
        hello = msgspec.json.encode(call)
        while True:
            try:
                connection, answer = dial(self._roster.addresses[peer], self._token, hello, secure=self._secure)
                break
            except OSError as error:
                if _clock.monotonic() > until:
                    raise self._too_late(peer) from error
                _clock.sleep(_RETRY_S)
        if answer != _WELCOME:
            connection.close()
            raise Denied(
                f"rank {peer} takes part in another generation than {self._roster.generation}, that of this rank",
                hint="end this rank: another one has taken its place",
                code="former_generation",
            )
        return connection

    def _too_late(self, peer: int) -> ArgosyError:
        address = self._roster.addresses[peer]
        return DeadlineExceeded(
            f"rank {self._rank} got no connection with rank {peer} ({address}) in time",
            hint=f"see whether a firewall lets connections to {address} through in both directions",
            code="ranks_missing",
        )

    def _admit(self, guest: Guest) -> None:
        try:
            call = msgspec.json.decode(guest.hello, type=_Call)
            is_ours = self._is_ours(call)
            guest.answer(_WELCOME if is_ours else b"former generation")
        except (OSError, msgspec.MsgspecError):
            is_ours = False
        with self._changed:
            if is_ours and call.source not in self._found[call.purpose]:
                self._found[call.purpose][call.source] = guest.connection
                self._changed.notify_all()
                return
        guest.connection.close()

    def _is_ours(self, call: _Call) -> bool:
        return (
            (call.generation, call.session) == (self._roster.generation, self._roster.session)
            and call.target == self._rank
            and self._rank < call.source < len(self._roster.addresses)
            and call.purpose in PURPOSES
        )

    def _close_all(self) -> None:
        with self._changed:
            for connections in self._found.values():
                for connection in connections.values():
                    with contextlib.suppress(OSError):
                        connection.close()


def _tune(connection: socket.socket) -> None:
    connection.setblocking(False)
    # Every message is written whole, so there is nothing to wait for and to put together. The sizes of the kernel's
    # buffers stay its own: setting one turns off that it grows them with bandwidth times delay.
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    # Lanes are silent while all compute; what stands between hosts may forget connections that are.
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _KEEP_ALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _KEEP_ALIVE_S)
