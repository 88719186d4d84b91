"""Clients that mean no good, in a process of their own: they open connections and hold on to them.

    python -m faultlab.hostile CONFIG.json      waits for a line on its input, attacks, prints what became of it as JSON

When a connection was closed is the moment its own end here has left the state "established": that is asked of the
kernel for each socket, as a peer that never reads gets no word of it. That the server has its descriptors back is
looked up at the end, in the table of all sockets: reading that one stops a core for milliseconds.
"""

import contextlib
import json
import os
import socket
import struct
import sys
import time
from collections import deque
from pathlib import Path
from typing import Any

HEADER_TRICKLE, HALF_LINE, SILENCE, BODY_TRICKLE = "header trickle", "half request line", "silence", "body trickle"
NEVER_READS = {"never reads 2 MB": 128, "never reads 256 KB": 16}
"""Rows that are asked for. What exceeds the kernel's buffers waits in the server, what doesn't in the kernel."""
SLOW = (HEADER_TRICKLE, HALF_LINE, SILENCE, BODY_TRICKLE)

_TRICKLE_S = 0.5
_LOOK_S = 0.1
_CONFIRM_S = 0.2
_ESTABLISHED = 1
"""As Linux counts the states of a TCP connection."""


class Peer:
    """One hostile connection."""

    def __init__(self, kind: str, address: tuple[str, int], begin: bytes, drip: bytes) -> None:
        self.kind = kind
        self.socket = socket.socket()
        if kind in NEVER_READS:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.socket.connect(address)
        self.opened = time.monotonic()
        self.closed = 0.0
        self.port: int = self.socket.getsockname()[1]
        self._drip = drip
        if begin:
            self.socket.sendall(begin)
        self.socket.setblocking(False)

    def look(self) -> None:
        """Note whether the server has closed or reset this connection."""
        if not self.closed and self.socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != _ESTABLISHED:
            self.closed = time.monotonic()

    def trickle(self) -> None:
        """Send one more byte."""
        if not self.closed:
            with contextlib.suppress(OSError):
                self.socket.send(self._drip)


class Trickle:
    """Bytes that are sent one by one, by each connection in its own rhythm, as if from a machine of its own.

    What is due next stands first, so that waiting costs the machine nothing: it is shared with those who are measured.
    """

    def __init__(self) -> None:
        self._due: deque[tuple[float, Peer]] = deque()

    def add(self, peer: Peer) -> None:
        """Let a connection begin."""
        self._due.append((peer.opened + _TRICKLE_S, peer))

    def send(self, now: float) -> None:
        """Send whatever is due."""
        while self._due and self._due[0][0] <= now:
            due, peer = self._due.popleft()
            peer.trickle()
            if not peer.closed:
                self._due.append((due + _TRICKLE_S, peer))


def server_sockets(port: int) -> set[int]:
    """Return the peers' ports of all connections that the server at `port` still holds."""
    found = set()
    for text in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = text.split()
        if int(fields[1].rpartition(":")[2], 16) == port and fields[9] != "0":
            found.add(int(fields[2].rpartition(":")[2], 16))
    return found


def attack(asked: dict[str, Any]) -> dict[str, Any]:
    """Open everything over `ramp_s`, hold for `seconds`, and return for each kind when its connections were closed."""
    address = ("127.0.0.1", asked["port"])
    head = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    begins = {
        HEADER_TRICKLE: (head + b"x-slow: ", b"a"),
        HALF_LINE: (b"POST /v2/mod", b""),
        SILENCE: (b"", b""),
        BODY_TRICKLE: (head + b"content-length: 100000\r\n\r\n{", b" "),
    } | {kind: (_large_request(rows), b"") for kind, rows in NEVER_READS.items()}
    kinds = [kind for kind, count in asked["counts"].items() for _ in range(count)]
    kinds = [kind for i in range(5) for kind in kinds[i::5]]  # mixed
    peers: list[Peer] = []
    trickle = Trickle()
    begun = time.monotonic()
    next_look = begun + asked["ramp_s"]
    while (now := time.monotonic()) < begun + asked["ramp_s"] + asked["seconds"]:
        due = min(len(kinds), int(len(kinds) * (now - begun) / asked["ramp_s"]) + 1)
        for kind in kinds[len(peers) : due]:
            peers.append(Peer(kind, address, *begins[kind]))
            if begins[kind][1]:
                trickle.add(peers[-1])
        trickle.send(now)
        if now >= next_look:
            next_look += _LOOK_S
            for peer in peers:
                peer.look()
            if len(peers) == len(kinds) and all(peer.closed for peer in peers):
                break
        time.sleep(0.01)
    ended = time.monotonic()
    _confirm(peers, asked["port"])
    return {
        "began": begun,
        "ended": ended,
        "kinds": {kind: _summary([peer for peer in peers if peer.kind == kind]) for kind in asked["counts"]},
    }


def _confirm(peers: list[Peer], port: int) -> None:
    """Wait until the server has its descriptors back; which it holds for much longer were not closed."""
    for _ in range(20):
        held = server_sockets(port)
        left = [peer for peer in peers if peer.port in held]
        for peer in left:
            peer.closed = time.monotonic()
        if not left:
            return
        time.sleep(_CONFIRM_S)
    for peer in left:
        peer.closed = 0.0


def _large_request(rows: int) -> bytes:
    """Return a request whose answer has 16 KiB for each row."""
    body = struct.pack("<f", 1.0) * rows
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 1], "parameters": {"binary_data_size": len(body)}}
    told = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    head = b"POST /v2/models/wide/infer HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    head += b"inference-header-content-length: %d\r\ncontent-length: %d\r\n\r\n" % (len(told), len(told) + len(body))
    return head + told + body


def _summary(peers: list[Peer]) -> dict[str, Any]:
    times = sorted(peer.closed - peer.opened for peer in peers if peer.closed)
    return {
        "opened": len(peers),
        "closed": len(times),
        "first_s": round(times[0], 2) if times else None,
        "last_s": round(times[-1], 2) if times else None,
    }


def main() -> None:
    """Attack once for each line on the input."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(8192, hard), hard))
    # Attackers compute on machines of their own: here this process takes only what nobody else wants of the cores.
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    asked = json.loads(Path(sys.argv[1]).read_text())
    for _ in sys.stdin:
        print(json.dumps(attack(asked)), flush=True)


if __name__ == "__main__":
    main()
