"""An HTTP client that costs little: some 30 us per request, so that it is not what is measured.

It keeps connections alive (or doesn't, if asked), checks every answer by its value, and counts from the moment a
request was due, however late its connection came.
"""

import asyncio
import json
import random
import socket
import struct
import time
from collections.abc import Callable
from typing import Any

from faultlab.tape import BROKEN, CANCELLED, NO_ANSWER, OK, WRONG, Tape

VALUES = 1_000_000
"""Inputs are whole numbers, different for each request of a group until so many have been sent; float32 holds them."""


class Group:
    """Connections of one kind, and what they have in common."""

    def __init__(self, tape: Tape, loop: asyncio.AbstractEventLoop, number: int, asked: dict[str, Any]) -> None:
        self.tape = tape
        self.loop = loop
        self.number = number
        self.kind = asked["kind"]
        self.address = ("127.0.0.1", asked["port"])
        self.connections = asked.get("connections", 16)
        self.patience_s = asked.get("patience_s", 40.0)
        self.cancel_share = asked.get("cancel", 0.0)
        self.cancel_s = asked.get("cancel_s", 0.02)
        self.chance = random.Random(asked.get("seed", 0) * 1000 + number)
        self.on_free: Callable[[], None] = _nothing
        self.all: set[Connection] = set()
        self.idle: list[Connection] = []
        self.offsets = {int(k): v for k, v in asked.get("offsets", {}).items()}
        self._next = 0
        self._values = asked.get("values", VALUES)
        self._base = asked.get("base", number) * VALUES
        version = asked.get("version", 0)
        model = asked.get("model", "m") + (f"/versions/{version}" if version else "")
        timeout = f"argosy-timeout: {asked['timeout']}\r\n" if asked.get("timeout") else ""
        more = "connection: close\r\n" if self.kind == "reconnect" else ""
        self._head = f"POST /v2/models/{model}/infer HTTP/1.1\r\nhost: 127.0.0.1\r\n{timeout}{more}"
        self._is_binary = self.kind == "binary"
        if self._is_binary:
            described = json.dumps(
                {
                    "inputs": [
                        {"name": "x", "datatype": "FP32", "shape": [1, 1], "parameters": {"binary_data_size": 4}}
                    ],
                    "parameters": {"binary_data_output": True},
                }
            )
            self._fixed = (
                f"{self._head}inference-header-content-length: {len(described)}\r\n"
                f"content-length: {len(described) + 4}\r\n\r\n{described}"
            ).encode()

    def next_value(self) -> int:
        """Return the next input: one that nobody else of this run sends, unless few were asked for."""
        self._next = (self._next + 1) % self._values
        return self._base + self._next

    def request(self, value: int) -> bytes:
        """Return the bytes of a request."""
        if self._is_binary:
            return self._fixed + struct.pack("<f", value)
        body = f'{{"inputs":[{{"name":"x","datatype":"FP32","shape":[1,1],"data":[{value}.0]}}]}}'
        return f"{self._head}content-length: {len(body)}\r\n\r\n{body}".encode()

    def value_in(self, head: bytes, body: bytes) -> float:
        """Return the answer's number; ValueError if there is none."""
        if self._is_binary and b"inference-header-content-length" in head:
            return float(struct.unpack("<f", body[-4:])[0])
        at = body.index(b'"data":[') + 8
        return float(body[at : body.index(b"]", at)])

    def expected(self, value: int, version: int) -> float:
        """Return what a version answers."""
        return value + self.offsets.get(version, version)

    async def open(self) -> None:
        """Open all connections."""
        if self.kind != "reconnect":
            for _ in range(self.connections):
                self.idle.append(await self.connect())

    async def connect(self) -> "Connection":
        """Return a new connection."""
        _, connection = await self.loop.create_connection(lambda: Connection(self), *self.address)
        return connection

    def send(self, due: float) -> None:
        """Send a request that was due at `due`, on an idle connection or a new one."""
        if self.idle:
            self.idle.pop().send(due)
        else:
            self.loop.create_task(self._send_anew(due))

    async def _send_anew(self, due: float) -> None:
        try:
            connection = await self.connect()
        except OSError as error:
            now = time.monotonic()
            self.tape.note(self.number, due, now, now, BROKEN, code="connect")
            self.tape.explain(time=now, status=BROKEN, body=f"no connection: {error}")
            self.on_free()
            return
        connection.send(due)

    def sweep(self, now: float) -> None:
        """Give up what has had no answer for too long, and connections that are not needed."""
        for connection in list(self.all):
            if connection.is_busy and now - connection.sent > self.patience_s:
                connection.end(NO_ANSWER, f"no answer within {self.patience_s:g} s")
        # What a burst has opened is closed again, as pools do; those used last are at the end.
        for connection in self.idle[: max(0, len(self.idle) - self.connections)]:
            connection.hang_up()

    def finish(self) -> None:
        """Hang up."""
        for connection in list(self.all):
            connection.hang_up()


def _nothing() -> None:
    return


class Connection(asyncio.Protocol):
    """One connection, at most one request at a time."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.is_busy = False
        self.sent = 0.0
        self._due = 0.0
        self._value = 0
        self._received = b""
        self._transport: asyncio.Transport | None = None
        self._cancel: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.group.all.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.group.all.discard(self)
        if self.is_busy:
            self.end(BROKEN, f"the connection ended: {exc}; received so far: {self._received[:300]!r}")
        elif self in self.group.idle:
            self.group.idle.remove(self)

    def send(self, due: float) -> None:
        """Send a request."""
        group = self.group
        self.is_busy = True
        self._due = due
        self._value = group.next_value()
        self._received = b""
        self.sent = time.monotonic()
        self._transport.write(group.request(self._value))
        if group.cancel_share and group.chance.random() < group.cancel_share:
            self._cancel = group.loop.call_later(group.chance.uniform(0, group.cancel_s), self.cancel)

    def cancel(self) -> None:
        """Hang up in the middle, as a client does that doesn't want the answer any more."""
        if self.is_busy:
            self.end(CANCELLED, "")

    def data_received(self, data: bytes) -> None:
        self._received = received = self._received + data if self._received else data
        split = received.find(b"\r\n\r\n")
        if split < 0:
            return
        head = received[:split].lower()
        at = head.find(b"content-length: ")
        # Another header ends in the same words.
        while at > 0 and head[at - 1] == 45:
            at = head.find(b"content-length: ", at + 1)
        end = head.find(b"\r", at)
        length = int(head[at + 16 : end if end > 0 else len(head)])
        if len(received) < split + 4 + length:
            return
        if self.is_busy:
            self._answered(head, received[split + 4 : split + 4 + length])
        if b"connection: close" in head:
            self.hang_up()

    def _answered(self, head: bytes, body: bytes) -> None:
        group = self.group
        done = time.monotonic()
        status = int(head[9:12])
        version = 0
        code = ""
        if status == OK:
            at = head.find(b"argosy-version: ")
            end = head.find(b"\r", at)
            name = head[at + 16 : end if end > 0 else len(head)]
            version = int(name.rpartition(b":")[2])
            try:
                found = group.value_in(head, body)
            except ValueError:
                found = float("nan")
            if found != group.expected(self._value, version):
                status, code = WRONG, "wrong_value"
                expected = group.expected(self._value, version)
                group.tape.explain(time=done, status=WRONG, body=repr(body), head=repr(head), expected=expected)
        else:
            try:
                code = str(json.loads(body).get("code"))
            except (ValueError, AttributeError):
                code = "no_json"
            if b"retry-after: " not in head and status == 503:
                code += " without retry-after"
            group.tape.explain(time=done, status=status, kind=group.kind, head=head.decode(), body=body.decode())
        self._over(done, status, version, code)

    def end(self, status: int, why: str) -> None:
        """Give the request up."""
        now = time.monotonic()
        if status != CANCELLED:
            self.group.tape.explain(time=now, status=status, kind=self.group.kind, sent=self.sent, body=why)
        is_open = self._transport is not None and not self._transport.is_closing()
        self._over(now, status, 0, "", is_reusable=False)
        if is_open:
            self._transport.abort()

    def _over(self, done: float, status: int, version: int, code: str, *, is_reusable: bool = True) -> None:
        group = self.group
        self.is_busy = False
        if self._cancel is not None:
            self._cancel.cancel()
            self._cancel = None
        group.tape.note(group.number, self._due, self.sent, done, status, version=version, code=code)
        if is_reusable and group.kind != "reconnect" and not self._transport.is_closing():
            group.idle.append(self)
        group.on_free()

    def hang_up(self) -> None:
        """Close without having been asked."""
        if self in self.group.idle:
            self.group.idle.remove(self)
        if self._transport is not None and not self._transport.is_closing():
            self._transport.close()
