"""Which home's controller acts, where several homes share a store.

The log decides: whoever wrote the last election leads, and a leader that was deposed is refused at its next entry
(`Reconciler._append`), so two never both act, however clocks and networks behave. The lease only keeps homes from
deposing each other in turns: the leader shows every few seconds that it lives, and another home waits while it does.
No clocks are compared. A follower watches whether the sign changes, by its own clock, as Kubernetes' leader election
does.
"""

import hashlib
import socket
from pathlib import Path

import msgspec

from argosy.core.clock import Clock
from argosy.core.errors import ArgosyError, NotFound
from argosy.operate.desired import ELECTED
from argosy.operate.folding import LogLike
from argosy.registry.store import ObjectStore

KEY = "leases/controller.json"
BEAT_S = 5.0
"""Time between two signs of life."""
LEASE_S = 20.0
"""A leader without a sign for so long may be followed. It is longer than a store is usually away."""
LOOK_S = 2.0
"""Time between two looks of a home that waits."""


class Sign(msgspec.Struct, frozen=True):
    """What a leader writes."""

    epoch: int
    """The number of the log's entry by which it was elected."""
    beat: int
    released: bool = False
    """It has stopped in order; nobody needs to wait."""


def home_id(home: Path) -> str:
    """Return what tells a home from others that share its store: a digest of machine and folder."""
    return hashlib.sha256(f"{socket.gethostname()}\0{home.resolve()}".encode()).hexdigest()[:12]


class Lease:
    """One home's view of the lease."""

    def __init__(self, store: ObjectStore, clock: Clock, home: str, host: str) -> None:
        self._store = store
        self._clock = clock
        self._home = home
        self._host = host
        self._seen: tuple[int, bytes] | None = None
        self._changed = 0.0
        self._epoch = 0
        self._beats = 0
        self._next_beat = 0.0

    @property
    def claim(self) -> dict[str, str]:
        """What an election says of who was elected."""
        return {"home": self._home, "host": self._host}

    def holder(self, log: LogLike) -> str:
        """Return the host of another home that leads and lives; empty when this home may be elected.

        Ask again and again: only a sign that stays the same for `LEASE_S` says that its leader is gone. Raises what
        the store raises.
        """
        log.refresh()
        last = log.last(ELECTED, "controller")
        if last is None or last.data.get("home", self._home) == self._home:
            return ""  # it is this home's own, and the lock on its folder says that it is over
        try:
            content = self._store.get(KEY)
        except NotFound:
            content = b""
        sign = _decoded(content)
        if sign is None or sign.epoch != last.seq:
            content, sign = b"", None
        if sign is not None and sign.released:
            return ""
        now = self._clock.monotonic()
        if self._seen != (last.seq, content):
            self._seen, self._changed = (last.seq, content), now
        return "" if now - self._changed >= LEASE_S else str(last.data.get("host") or "another host")

    def lead(self, epoch: int) -> None:
        """Start to show that this home leads since the entry `epoch`."""
        self._epoch, self._next_beat = epoch, 0.0

    def beat(self) -> None:
        """Show that this home lives, if it is time; a store that fails is tried again at the next beat."""
        now = self._clock.monotonic()
        if self._epoch and now >= self._next_beat:
            self._next_beat = now + BEAT_S
            self._beats += 1
            self._put(Sign(self._epoch, self._beats))

    def release(self) -> None:
        """Let others lead at once. Harmless for one that does not lead."""
        if self._epoch:
            self._put(Sign(self._epoch, self._beats, released=True))
            self._epoch = 0

    def _put(self, sign: Sign) -> None:
        try:
            self._store.put(KEY, msgspec.json.encode(sign))
        except ArgosyError:
            # The log is on the same store: without it this controller cannot act either.
            return


def _decoded(content: bytes) -> Sign | None:
    try:
        return msgspec.json.decode(content, type=Sign)
    except msgspec.DecodeError:
        return None
