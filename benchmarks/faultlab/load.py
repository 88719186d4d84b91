"""Clients as processes of their own, and what their tapes say."""

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import numpy as np

from faultlab.tape import CANCELLED, OK, ROW

FOLDER = Path(__file__).resolve().parent.parent
_START_S, _END_S = 60.0, 90.0

Rows = np.ndarray[Any, np.dtype[Any]]


class Heard:
    """What one client, or several, heard."""

    def __init__(self, rows: Rows, codes: list[str], failures: list[dict[str, Any]], cpu_share: float) -> None:
        self.rows = rows
        self.codes = codes
        self.failures = failures
        self.cpu_share = cpu_share
        """Of one core, by the busiest client."""

    @property
    def answered(self) -> Rows:
        """Requests that were answered, and rightly."""
        return self.rows[self.rows["status"] == OK]

    @property
    def failed(self) -> Rows:
        """Requests that were not, except those the client itself gave up."""
        return self.rows[(self.rows["status"] != OK) & (self.rows["status"] != CANCELLED)]

    def between(self, begin: float, end: float) -> "Heard":
        """Return what was due in a stretch of time."""
        rows = self.rows[(self.rows["due"] >= begin) & (self.rows["due"] < end)]
        return Heard(rows, self.codes, self.failures, self.cpu_share)

    def within(self, spans: Sequence[tuple[float, float]]) -> "Heard":
        """Return what was due in any of some stretches."""
        keep = np.zeros(len(self.rows), bool)
        for begin, end in spans:
            keep |= (self.rows["due"] >= begin) & (self.rows["due"] < end)
        return Heard(self.rows[keep], self.codes, self.failures, self.cpu_share)

    def of(self, *groups: int) -> "Heard":
        """Return what some groups heard."""
        return Heard(self.rows[np.isin(self.rows["group"], groups)], self.codes, self.failures, self.cpu_share)

    def latency_ms(self, percentile: float) -> float:
        """Return a percentile of the answered requests' time from when they were due."""
        rows = self.answered
        return float(np.percentile(rows["done"] - rows["due"], percentile)) * 1e3 if len(rows) else float("nan")

    def lag_ms(self, percentile: float) -> float:
        """Return how late the client itself was."""
        rows = self.rows
        return float(np.percentile(rows["sent"] - rows["due"], percentile)) * 1e3 if len(rows) else float("nan")

    def outcomes(self) -> dict[str, int]:
        """Return how many requests ended how."""
        pairs = zip(self.rows["status"].tolist(), self.rows["code"].tolist(), strict=True)
        named = Counter(f"{status} {self.codes[code]}".strip() for status, code in pairs)
        return dict(named.most_common())


def together(heard: Sequence[Heard], *, same_groups: bool = False) -> Heard:
    """Return several clients' tapes as one; groups are numbered through, or are the same ones again and again."""
    rows: list[Rows] = []
    codes: list[str] = []
    failures: list[dict[str, Any]] = []
    groups = 0
    for one in heard:
        mine = one.rows.copy()
        mine["group"] += 0 if same_groups else groups
        mine["code"] += len(codes)
        groups += 1 + int(one.rows["group"].max(initial=0))
        codes += one.codes
        failures += one.failures
        rows.append(mine)
    whole = np.concatenate(rows) if rows else np.empty(0, ROW)
    return Heard(whole, codes, failures, max((one.cpu_share for one in heard), default=0.0))


class Client:
    """One client process. `go`, then `stop`, which returns what it heard."""

    def __init__(self, groups: Sequence[dict[str, Any]]) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="faults-client-")
        self._stem = Path(self._folder.name) / "tape"
        config = Path(self._folder.name) / "config.json"
        config.write_text(json.dumps({"groups": list(groups), "stem": str(self._stem)}))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "faultlab.client", str(config)],
            cwd=FOLDER,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._expect("ready")

    def go(self, begin: float = 0.0) -> float:
        """Begin, at the moment given or in a tenth of a second; return the moment."""
        begin = begin or time.monotonic() + 0.1
        self._tell(f"go {begin}")
        return begin

    def stop(self) -> Heard:
        """Stop, wait for what is under way, and return what was heard."""
        if self._process.poll() is None:
            self._tell("stop")
        return self.finished()

    def finished(self) -> Heard:
        """Wait until the schedule is over, and return what was heard."""
        self._expect("done")
        self._process.wait(_END_S)
        told = json.loads(self._stem.with_suffix(".json").read_text())
        rows = np.load(self._stem.with_suffix(".npy"))
        return Heard(rows, told["codes"], told["failures"], told["cpu_s"] / max(told["seconds"], 1e-9))

    def close(self) -> None:
        """End the process whatever it does."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _tell(self, line: str) -> None:
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _expect(self, word: str) -> None:
        found = self._process.stdout.readline().strip()
        if found != word:
            raise RuntimeError(f"the load client said {found!r} instead of {word!r}; its errors stand above")


@contextmanager
def clients(*configs: Sequence[dict[str, Any]]) -> Iterator[list[Client]]:
    """Run several clients that begin together."""
    running: list[Client] = []
    try:
        running.extend(map(Client, configs))
        begin = time.monotonic() + 0.1
        for client in running:
            client.go(begin)
        yield running
    finally:
        for client in running:
            client.close()


def stop_all(running: Sequence[Client]) -> Heard:
    """Stop clients and return what they heard together."""
    return together([client.stop() for client in running])
