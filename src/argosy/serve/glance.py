"""The gateway waits awake for an answer that comes in a moment: a `look` at the end of a turn of its event loop."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from argosy.serve.awake import look

QUICK_S = 100e-6
"""An answer that takes longer to compute is waited for asleep."""
_LOOK_S = 200e-6
"""So long the gateway looks, and does nothing else."""


class Glance:
    """Looks at a connection of an event loop's at the end of its turn, and hands what it finds to its protocol."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._socket: socket.socket | None = None

    def begin(self, is_wanted: Callable[[], bool]) -> None:
        """Look when all else that the loop has to do now is done, if it is still wanted then."""
        asyncio.get_running_loop().call_soon(self._look, is_wanted)

    def _look(self, is_wanted: Callable[[], bool]) -> None:
        if self._transport.is_closing() or not is_wanted():
            return
        if self._socket is None:
            # The loop's own socket can't be read from.
            self._socket = socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno()))
        data = look(self._socket, _LOOK_S)
        protocol = self._transport.get_protocol()
        if data and isinstance(protocol, asyncio.Protocol):
            protocol.data_received(data)

    def close(self) -> None:
        """Look no more."""
        if self._socket is not None:
            with contextlib.suppress(OSError):
                self._socket.close()
