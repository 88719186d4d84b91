"""Steady traffic for an endpoint: real test images over HTTP, and now and then a blank frame, as a camera sends them.

    python traffic.py http://127.0.0.1:8700 --rate 150

Counts what callers see. Stops with Ctrl-C, or when its standard input is closed, and prints the counts as JSON.
"""

import argparse
import contextlib
import http.client
import json
import random
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

BLANK_SHARE = 0.04


class Traffic:
    """A few connections that together send `rate` requests per second, spaced at random like independent callers."""

    def __init__(self, url: str, endpoint: str, data: Path, rate: float, connections: int = 6) -> None:
        found = np.load(data)
        self.images, self.labels = found["image"], found["label"]
        self.address = urlsplit(url).netloc
        self.path = f"/predict/{endpoint}"
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._threads = [
            threading.Thread(target=self._caller, args=(rate / connections, seed), daemon=True)
            for seed in range(connections)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def stop(self) -> dict[str, int]:
        self._over.set()
        for thread in self._threads:
            thread.join(timeout=40)
        return self.seen()

    def seen(self) -> dict[str, int]:
        with self._lock:
            return dict(self.counts)

    def _caller(self, rate: float, seed: int) -> None:
        chance = random.Random(seed)
        connection = http.client.HTTPConnection(self.address, timeout=35)
        due = time.monotonic()
        while not self._over.is_set():
            due = max(due + chance.expovariate(rate), time.monotonic() - 1.0)
            self._over.wait(max(0.0, due - time.monotonic()))
            row = chance.randrange(len(self.images))
            is_blank = chance.random() < BLANK_SHARE
            image = np.zeros((1, 8, 8), np.uint8) if is_blank else self.images[row]
            body = json.dumps({"inputs": {"image": image.tolist()}})
            try:
                connection.request("POST", self.path, body, {"content-type": "application/json"})
                answer = connection.getresponse()
                found = json.loads(answer.read())
                self._count(answer, found, None if is_blank else str(self.labels[row]))
            except (OSError, http.client.HTTPException, ValueError) as error:
                connection.close()
                self._fail(f"{type(error).__name__}: {error}")

    def _count(self, answer: http.client.HTTPResponse, found: dict, label: str | None) -> None:
        if answer.status != 200:
            self._fail(f"{answer.status}: {json.dumps(found)[:200]}")
            return
        with self._lock:
            self.counts["answered"] += 1
            self.counts[f"by {answer.getheader('argosy-version')}"] += 1
            if answer.getheader("argosy-failover"):
                self.counts["saved by another version"] += 1
            if label is not None:
                self.counts["digits"] += 1
                self.counts["right"] += str(found["outputs"]["label"]) == label
            self.last_prediction = answer.getheader("argosy-prediction")

    def _fail(self, says: str) -> None:
        with self._lock:
            self.counts["failed"] += 1
            if len(self.failures) < 20:
                self.failures.append(says)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--endpoint", default="digits")
    parser.add_argument("--rate", type=float, default=150.0)
    parser.add_argument("--data", type=Path, default=Path(__file__).parent / "data" / "test.npz")
    given = parser.parse_args()
    traffic = Traffic(given.url, given.endpoint, given.data, given.rate)
    traffic.start()
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.read()
    print(json.dumps(traffic.stop()))


if __name__ == "__main__":
    main()
