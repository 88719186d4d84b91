"""How a request that is held wakes whoever starts replicas: at once, and also where no controller lives any more.

The controller listens on a datagram socket beside the gateway's; the gateway sends one byte. A controller that was
killed leaves a socket at which nobody listens, and the kernel says so: then the gateway starts another one.
"""

import contextlib
import select
import socket
from collections.abc import Callable
from pathlib import Path

from argosy.core.clock import Clock

NAME = "wake.sock"
"""Of the socket, beside the gateway's. Shorter than that one's, so where that fits, this does."""
AGAIN_S = 0.05
"""Between two rings."""
START_AGAIN_S = 5.0
"""Between two starts of a controller."""


class Bell:
    """The controller's end. Whoever makes it is the only controller of its home."""

    def __init__(self, path: Path) -> None:
        # A file that is still there was left by a controller that was killed.
        with contextlib.suppress(FileNotFoundError):
            path.unlink()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._socket.bind(str(path))
        path.chmod(0o600)

    def wait(self, seconds: float) -> bool:
        """Sleep for so long, or until it rings; return whether it did."""
        try:
            found, _, _ = select.select([self._socket], [], [], max(0.0, seconds))
        except InterruptedError:
            return False
        if found:
            with contextlib.suppress(BlockingIOError):
                while True:
                    self._socket.recv(64)
        return bool(found)

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


def ring(path: Path) -> bool:
    """Wake whoever listens at `path`; return whether somebody does. Never blocks."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        try:
            sender.sendto(b"!", str(path))
        except BlockingIOError:
            return True  # it was rung often enough, and has not looked yet
        except OSError:
            return False
    return True


class Waker:
    """The gateway's end: call it whenever a request is held."""

    def __init__(self, path: Path, clock: Clock, start: Callable[[], object] | None = None) -> None:
        """`start` has a controller started, and returns before that is done."""
        self._path = path
        self._clock = clock
        self._start = start
        self._rung = self._started = -START_AGAIN_S

    def __call__(self) -> None:
        """Wake the controller, or have one started."""
        now = self._clock.monotonic()
        if now - self._rung < AGAIN_S:
            return
        self._rung = now
        if ring(self._path) or self._start is None or now - self._started < START_AGAIN_S:
            return
        self._started = now
        self._start()
