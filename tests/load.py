"""Callers that ask without pause, for tests that break things meanwhile."""

import contextlib
import http.client
import json
import threading

from malformed import infer
from served import until


class Load:
    """Callers that ask without pause until stopped; every answer is kept."""

    def __init__(self, served, callers=6, name="m", headers=None, value=0.5):
        self.statuses = []
        self.versions = set()
        self.failovers = 0
        self.problems = []
        self._served = served
        self._stop = threading.Event()
        self._request = (
            f"/v2/models/{name}/infer",
            infer(shape=[1, 1], data=[value]).partition(b"\r\n\r\n")[2],
            headers or {},
        )
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(callers)]

    def _ask(self):
        connection = http.client.HTTPConnection("127.0.0.1", self._served.port, timeout=20)
        path, body, headers = self._request
        with contextlib.closing(connection):
            while not self._stop.is_set():
                try:
                    connection.request("POST", path, body, headers)
                    answer = connection.getresponse()
                    found = json.loads(answer.read())
                except (OSError, http.client.HTTPException) as error:
                    self.problems.append(repr(error))
                    return
                self.statuses.append(answer.status)
                if answer.status != 200:
                    self.problems.append(found)
                self.versions.add(answer.headers["argosy-version"])
                self.failovers += "argosy-failover" in answer.headers

    def answered(self, count):
        """Wait for so many more answers."""
        goal = len(self.statuses) + count
        until(lambda: self.problems or len(self.statuses) >= goal, seconds=30)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
