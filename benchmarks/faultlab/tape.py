"""What a load client writes down: one row per request, and everything about each that was not answered well."""

import json
from array import array
from pathlib import Path
from typing import Any

import numpy as np

ROW = np.dtype(
    [
        ("due", "f8"),  # when it had to be sent, on the clock CLOCK_MONOTONIC that all processes share
        ("sent", "f8"),
        ("done", "f8"),
        ("status", "i4"),
        ("version", "i4"),
        ("group", "i4"),
        ("code", "i4"),
    ]
)

OK = 200
BROKEN, WRONG, CANCELLED, NO_ANSWER = 0, -1, -2, -3
"""Statuses of our own: the connection ended, the value is not the version's, we hung up, nothing came in time."""

_MOST_FAILURES = 2000


class Tape:
    """Grows while a client runs, and is written to two files when it ends."""

    def __init__(self) -> None:
        self._floats = array("d")
        self._ints = array("i")
        self.codes: dict[str, int] = {"": 0}
        self.failures: list[dict[str, Any]] = []

    def note(
        self, group: int, due: float, sent: float, done: float, status: int, *, version: int = 0, code: str = ""
    ) -> None:
        """Add a request that is over."""
        self._floats.extend((due, sent, done))
        number = self.codes.setdefault(code, len(self.codes))
        self._ints.extend((status, version, group, number))

    def explain(self, **facts: Any) -> None:
        """Keep what is needed to explain a failure."""
        if len(self.failures) < _MOST_FAILURES:
            self.failures.append(facts)

    def write(self, stem: Path, **facts: Any) -> None:
        """Write `stem`.npy and `stem`.json."""
        floats = np.frombuffer(self._floats, "f8").reshape(-1, 3)
        ints = np.frombuffer(self._ints, "i4").reshape(-1, 4)
        rows = np.empty(len(floats), ROW)
        for i, name in enumerate(("due", "sent", "done")):
            rows[name] = floats[:, i]
        for i, name in enumerate(("status", "version", "group", "code")):
            rows[name] = ints[:, i]
        np.save(stem.with_suffix(".npy"), rows)
        told = {"codes": list(self.codes), "failures": self.failures, **facts}
        stem.with_suffix(".json").write_text(json.dumps(told, default=repr))
