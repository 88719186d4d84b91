"""The client of slow models: each connection sends its next request when the last one is answered.

What is answered in a window is counted, while the load goes on before and after it. A client that starts and stops with
its measurement (wrk does) leaves out what a server is still computing at the end: next to nothing of thousands of short
requests, but two batches of eight texts are a tenth of what is answered in two seconds.
"""

import itertools
import os
import selectors
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import httptools

from serving.load import Load, percentile

FILL_S = 0.7
LONGEST_FILL_S = 15.0


class _Connection:
    """One connection, its parser's callbacks, and the request under way."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=30)
        self.sent = 0.0
        self.is_answered = self.is_kept = False
        self.parser = httptools.HttpResponseParser(self)

    def on_message_complete(self) -> None:
        """Take the end of an answer. Whether the connection stays open can be asked now, not afterwards."""
        self.is_answered = True
        self.is_kept = self.parser.should_keep_alive()

    def send(self, request: bytes) -> None:
        """Send a request."""
        self.is_answered = False
        self.sent = time.perf_counter()
        self.socket.sendall(request)

    def receive(self) -> bool:
        """Read; return whether the answer is complete. OSError if the connection has ended."""
        data = self.socket.recv(1 << 18)
        if not data:
            raise ConnectionResetError("the server closed the connection")
        self.parser.feed_data(data)
        return self.is_answered


class Loop:
    """A closed loop in a thread of its own, from `start` to `stop`."""

    def __init__(self, port: int, requests: Sequence[bytes], connections: int, cores: Sequence[int]) -> None:
        self._port = port
        self._cores = cores
        self._requests = itertools.cycle(requests)
        self._count = connections
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="client", daemon=True)
        self.answers: list[tuple[float, float, int]] = []
        """When each came, after how many seconds, and its status."""
        self.broken = 0
        self.cpu_s = 0.0

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def stop(self) -> None:
        """Close all connections, whatever is under way."""
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        if self._cores:
            os.sched_setaffinity(0, self._cores)  # of this thread alone
        with selectors.DefaultSelector() as selector:
            for _ in range(self._count):
                self._open(selector)
            while not self._stopping.is_set():
                for key, _ in selector.select(0.05):
                    self._go_on(selector, key.data)
                self.cpu_s = time.thread_time()
            for key in list(selector.get_map().values()):
                key.data.socket.close()

    def _open(self, selector: selectors.BaseSelector) -> None:
        connection = _Connection(self._port)
        selector.register(connection.socket, selectors.EVENT_READ, connection)
        connection.send(next(self._requests))

    def _go_on(self, selector: selectors.BaseSelector, connection: _Connection) -> None:
        try:
            if not connection.receive():
                return
            now = time.perf_counter()
            self.answers.append((now, now - connection.sent, connection.parser.get_status_code()))
            if connection.is_kept:
                connection.parser = httptools.HttpResponseParser(connection)
                connection.send(next(self._requests))
                return
        except (OSError, httptools.HttpParserError):
            self.broken += 1
        selector.unregister(connection.socket)
        connection.socket.close()
        self._open(selector)


def drive(
    port: int,
    requests: Sequence[bytes],
    connections: int,
    seconds: float,
    *,
    read: Callable[[], Any],
    cores: Sequence[int] = (),
) -> tuple[Load, Any, Any]:
    """Return what was answered in `seconds` of steady load, and what `read` returned before and after them."""
    loop = Loop(port, requests, connections, cores)
    loop.start()
    try:
        began = time.perf_counter()
        while time.perf_counter() < began + FILL_S or (
            len(loop.answers) < connections and time.perf_counter() < began + LONGEST_FILL_S
        ):
            time.sleep(0.05)
        before, client_s, begin = read(), loop.cpu_s, time.perf_counter()
        time.sleep(seconds)
        end, after = time.perf_counter(), read()
        client_s = loop.cpu_s - client_s
    finally:
        loop.stop()
    inside = [(took, status) for when, took, status in loop.answers if begin <= when < end]
    took = [took for took, status in inside if status < 400]
    found = Load(
        answered=len(took),
        refused=len(inside) - len(took),
        broken=loop.broken,
        seconds=end - begin,
        p50_ms=1e3 * percentile(took, 0.5),
        p99_ms=1e3 * percentile(took, 0.99),
        client_cpu_s=client_s,
    )
    return found, before, after
