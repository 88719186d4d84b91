"""Where the ranks of a training find each other: the job of the first host listens, every rank dials.

Each time all ranks have come, they form a *generation*: a number, a random word, and the addresses of all. When a rank
is lost, all come again and form the next one. Connections between ranks are opened for one generation only, so what is
left of a former one (a rank that was frozen and wakes up) finds no door open and can't take part.

With some patience given, a later generation is formed without those that have not come in time; they may come again.
"""

import contextlib
import secrets
import socket
import threading
from pathlib import Path
from typing import Any

import msgspec

from argosy.core.clock import SystemClock
from argosy.core.digest import digest_tree
from argosy.core.errors import ArgosyError, Conflict, DeadlineExceeded, Denied, InvalidInput, Unavailable, from_dict
from argosy.core.errors import to_dict as error_to_dict
from argosy.train.network.handshake import Door, Guest, Secure, dial, listen

JOIN_S = 120.0
"""How long ranks wait for each other: starting Python with torch on a busy host takes tens of seconds."""
_ANSWER_GRACE_S = 5.0
_LOOK_S = 0.2
_RETRY_S = 0.1

# Not an injected clock: these are waits for other machines, which no fake clock moves.
_clock = SystemClock()


class Hello(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a rank says of itself."""

    rank: int
    world_size: int
    digest: str
    generation: int
    address: str
    join_s: float


class Roster(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One generation: who takes part, by the numbers they came with, and where each of them is."""

    generation: int
    session: str
    addresses: list[str]
    ranks: list[int]


class _Answer(msgspec.Struct, frozen=True, kw_only=True):
    roster: Roster | None = None
    refused: dict[str, Any] | None = None


class Rendezvous:
    """Brings ranks together, one generation after the other, until it is closed. Threads of its own do the work."""

    def __init__(
        self,
        world_size: int,
        *,
        token: str,
        digest: str = "",
        host: str = "127.0.0.1",
        port: int = 0,
        generation: int = 0,
        patience_s: float = 0.0,
        secure: Secure | None = None,
    ) -> None:
        """Listen on `host` and `port` (0: a free one). `generation` is the last one there was; 0 before the first.

        `patience_s`: when rank 0 and perhaps others have come again and for so long nobody else, they form the next
        generation by themselves; 0 waits for all. `digest` is that of the code all ranks must run. Raises Conflict with
        the code `port_taken`.
        """
        self.world_size = world_size
        self.generation = generation
        self._digest = digest
        self._patience_s = patience_s
        self._came = _clock.monotonic()
        self._taking_part: list[int] = []
        self._here: dict[int, Hello] = {}
        self._formed: dict[int, Roster | ArgosyError] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        listener = listen(host, port)
        name, found = listener.getsockname()[:2]
        self.address = f"[{name}]:{found}" if ":" in name else f"{name}:{found}"
        self._door = Door(listener, token, self._admit, secure=secure)

    def close(self) -> None:
        """Stop listening; ranks that wait are told."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
        self._door.close()

    def expect(self, world_size: int) -> None:
        """Form the next generation of that many ranks; those who wait already with another number are refused."""
        with self._changed:
            self.world_size = world_size
            self._here.clear()
            self._changed.notify_all()

    def missing(self) -> list[int]:
        """Return the ranks that have not come yet to the generation that is forming."""
        with self._changed:
            return self._missing()

    def left_out(self) -> list[int]:
        """Return the ranks that wait while the others train without them."""
        with self._changed:
            if 0 in self._here or not self._taking_part:
                return []
            return sorted(rank for rank in self._here if rank not in self._taking_part)

    def _missing(self) -> list[int]:
        return [rank for rank in range(self.world_size) if rank not in self._here]

    def _admit(self, guest: Guest) -> None:
        try:
            answer = _Answer(roster=self._meet(guest))
        except ArgosyError as error:
            answer = _Answer(refused=error_to_dict(error))
        except msgspec.MsgspecError:
            answer = _Answer(refused=error_to_dict(InvalidInput("the rank said what this version can't read")))
        with contextlib.suppress(OSError):
            guest.answer(msgspec.json.encode(answer))
        guest.connection.close()

    def _meet(self, guest: Guest) -> Roster:
        hello = msgspec.json.decode(guest.hello, type=Hello)
        until = _clock.monotonic() + hello.join_s
        with self._changed:
            self._check(hello)
            self._here[hello.rank] = hello
            self._came = _clock.monotonic()
            mine = self.generation + 1
            if not self._missing():
                self._form()
            while self.generation < mine:
                # With a limit, to look whether the guest still waits: a rank that was killed must not count as here.
                self._changed.wait(_LOOK_S)
                if self.generation < mine:
                    self._check_waiting(guest, hello, until)
                    self._form_without_the_missing()
            found = self._formed[mine]
            if isinstance(found, ArgosyError):
                raise found
            return found

    def _form_without_the_missing(self) -> None:
        is_later = self.generation > 0 and 0 in self._here
        if self._patience_s and is_later and _clock.monotonic() - self._came > self._patience_s:
            self._form()

    def _form(self) -> None:
        self.generation += 1
        self._taking_part = sorted(self._here)
        addresses = [self._here[rank].address for rank in self._taking_part]
        session = secrets.token_hex(16)
        roster = Roster(generation=self.generation, session=session, addresses=addresses, ranks=self._taking_part)
        self._formed[self.generation] = _unreachable(addresses) or roster
        # A thread that is slow to wake may still look for its own; nobody looks for older ones.
        self._formed.pop(self.generation - 8, None)
        self._here = {}
        self._changed.notify_all()

    def _check(self, hello: Hello) -> None:
        if hello.digest != self._digest:
            raise InvalidInput(
                f"rank {hello.rank} has other code, data or settings ({_short(hello.digest)}) than the first host's "
                f"job ({_short(self._digest)})",
                hint="install the same version of argosy, copy the same project with its data, and give the same "
                "options on all hosts",
                code="other_code",
            )
        if hello.world_size != self.world_size or not 0 <= hello.rank < self.world_size:
            raise InvalidInput(
                f"rank {hello.rank} of {hello.world_size} asked to join a training of {self.world_size} ranks",
                hint="give all hosts the same number of workers; ranks count from 0",
                code="other_world_size",
            )
        if hello.generation not in (0, self.generation + 1):
            raise Denied(
                f"rank {hello.rank} belongs to generation {hello.generation} of this training, "
                f"which is at {self.generation}",
                hint="end this rank: another one has taken its place",
                code="former_generation",
            )

    def _check_waiting(self, guest: Guest, hello: Hello, until: float) -> None:
        if self._here.get(hello.rank) is not hello:
            raise Conflict(
                f"another process has come as rank {hello.rank} after this one, or the number of ranks has changed",
                hint="give every rank its own number",
                code="rank_taken",
            )
        if self._is_closed or guest.is_gone():
            del self._here[hello.rank]
            raise Unavailable("the first host's job has ended before all ranks had come", code="no_rendezvous")
        if _clock.monotonic() > until:
            del self._here[hello.rank]
            raise ranks_missing(hello, [rank for rank in self._missing() if rank != hello.rank])


def _unreachable(addresses: list[str]) -> ArgosyError | None:
    """Return an error if some ranks can be reached on their own host only, and others are not on it."""
    local = [rank for rank, address in enumerate(addresses) if address.startswith(("127.", "[::1]"))]
    if not local or len(local) == len(addresses):
        return None
    return InvalidInput(
        f"rank {local[0]} came by the loopback address ({addresses[local[0]]}), where other hosts can't reach it",
        hint="on the first host, too, give its ranks the address by which the other hosts reach it",
        code="bad_address",
    )


def ranks_missing(hello: Hello, missing: list[int]) -> DeadlineExceeded:
    """Return the error of a rank that has waited long enough for the others."""
    return DeadlineExceeded(
        f"rank {hello.rank} waited {hello.join_s:.1f} s for all {hello.world_size} ranks; "
        f"not there: {', '.join(map(str, missing)) or 'the answer'}",
        hint="see whether the other hosts' jobs have started and reach the first host",
        code="ranks_missing",
    )


def meet(address: str, hello: Hello, listener_at: "Listening", *, token: str, secure: Secure | None = None) -> Roster:
    """Come to the rendezvous at `address` as the rank that `hello` describes and wait until all are there.

    `listener_at` opens this rank's own listener once it is known by which of this host's addresses the others can
    reach it; its address is put into the hello.
    """
    until = _clock.monotonic() + hello.join_s

    def introduce(connection: socket.socket) -> bytes:
        mine = listener_at.open(connection.getsockname()[0])
        left_s = max(0.1, until - _clock.monotonic())
        return msgspec.json.encode(msgspec.structs.replace(hello, address=mine, join_s=left_s))

    while True:
        wait_s = max(0.1, until - _clock.monotonic()) + _ANSWER_GRACE_S
        try:
            connection, answer = dial(address, token, b"", answer_s=wait_s, secure=secure, prepare=introduce)
            break
        except OSError as error:
            if _clock.monotonic() > until:
                raise Unavailable(
                    f"rank {hello.rank} found nobody at {address} within {hello.join_s:g} s: {error}",
                    hint="see whether the first host's job runs, and whether a firewall is between the hosts",
                    code="no_rendezvous",
                ) from error
            _clock.sleep(_RETRY_S)
    connection.close()
    found = msgspec.json.decode(answer, type=_Answer)
    if found.roster is None:
        raise from_dict(found.refused or {})
    return found.roster


class Listening:
    """This rank's own door to the others, opened when the address is known."""

    def __init__(self, bind: str) -> None:
        self._bind = bind
        self.listener: socket.socket | None = None

    def open(self, reached_from: str) -> str:
        """Listen on the address that was asked for, or else `reached_from`; return it as `host:port`."""
        if self.listener is None:
            self.listener = listen(self._bind or reached_from, 0)
        name, port = self.listener.getsockname()[:2]
        return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"

    def close(self) -> None:
        """Stop listening."""
        if self.listener is not None:
            self.listener.close()


def code_digest() -> str:
    """Return the digest of Argosy's own code, which all ranks must have in common."""
    return digest_tree(Path(__file__).parents[2])


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:12] or "no digest"
