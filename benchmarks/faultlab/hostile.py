"""Clients that mean no good, in a process of their own: they open connections and hold on to them.

    python -m faultlab.hostile CONFIG.json      waits for a line on its input, attacks, prints what became of it as JSON

When a connection was closed is read from the kernel's table of sockets, on the server's side: a peer that never reads
does not notice, and what counts is that the server has its descriptor back.
"""

import contextlib
import json
import socket
import struct
import sys
import time
from pathlib import Path
from typing import Any

HEADER_TRICKLE, HALF_LINE, SILENCE, BODY_TRICKLE = "header trickle", "half request line", "silence", "body trickle"
NEVER_READS = {"never reads 2 MB": 128, "never reads 256 KB": 16}
"""Rows that are asked for. What exceeds the kernel's buffers waits in the server, what doesn't in the kernel."""
SLOW = (HEADER_TRICKLE, HALF_LINE, SILENCE, BODY_TRICKLE)

_TRICKLE_S = 0.5
_LOOK_S = 0.5
_ACCEPT_S = 2.0


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
        self.was_held = False
        self.port: int = self.socket.getsockname()[1]
        self._drip = drip
        self._next_drip = self.opened + _TRICKLE_S
        if begin:
            self.socket.sendall(begin)
        self.socket.setblocking(False)

    def look(self, held: set[int]) -> None:
        """Note whether the server still holds this connection; one that it has not accepted yet it doesn't."""
        now = time.monotonic()
        if self.port in held:
            self.was_held = True
        elif not self.closed and (self.was_held or now - self.opened > _ACCEPT_S):
            self.closed = now

    def trickle(self, now: float) -> None:
        """Send one more byte when it is time; each connection in its own rhythm, as if from a machine of its own."""
        if self._drip and not self.closed and now >= self._next_drip:
            self._next_drip += _TRICKLE_S
            byte, self._drip = self._drip[:1], self._drip[1:] + self._drip[:1]
            with contextlib.suppress(OSError):
                self.socket.send(byte)


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
    begun = time.monotonic()
    next_look = begun + asked["ramp_s"]
    while (now := time.monotonic()) < begun + asked["ramp_s"] + asked["seconds"]:
        due = min(len(kinds), int(len(kinds) * (now - begun) / asked["ramp_s"]) + 1)
        peers += [Peer(kind, address, *begins[kind]) for kind in kinds[len(peers) : due]]
        for peer in peers:
            peer.trickle(now)
        if now >= next_look:
            next_look += _LOOK_S
            held = server_sockets(asked["port"])
            for peer in peers:
                peer.look(held)
            if len(peers) == len(kinds) and all(peer.closed for peer in peers):
                break
        time.sleep(0.01)
    return {
        "began": begun,
        "ended": time.monotonic(),
        "kinds": {kind: _summary([peer for peer in peers if peer.kind == kind]) for kind in asked["counts"]},
    }


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
    asked = json.loads(Path(sys.argv[1]).read_text())
    for _ in sys.stdin:
        print(json.dumps(attack(asked)), flush=True)


if __name__ == "__main__":
    main()
