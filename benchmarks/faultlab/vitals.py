"""What a process holds: memory, descriptors, threads; and whether that grows."""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any, Self

import numpy as np

MEASURES = ("anonymous_mb", "pss_mb", "descriptors", "threads")
_ESTABLISHED = "01"
"""As /proc/net/tcp writes the state; a connection that its client has left, and the server not yet, is another one."""


def vitals(pid: int) -> dict[str, float]:
    """Return what a process holds now.

    `anonymous_mb` is what it has allocated itself. Its share of libraries (in `pss_mb`) changes whenever another
    process that maps them starts or ends, so growth is judged by the former.
    """
    sizes = {}
    for text in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, _, rest = text.partition(":")
        sizes[name] = int(rest.split()[0]) * 1024 / 1e6
    return {
        "anonymous_mb": sizes["Pss_Anon"] + sizes.get("Pss_Shmem", 0.0),
        "pss_mb": sizes["Pss"],
        "descriptors": float(_own_descriptors(pid)),
        "threads": float(sum(1 for _ in Path(f"/proc/{pid}/task").iterdir())),
    }


def cpu_s(pid: int) -> float:
    """Return the CPU seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Peak:
    """The most memory a process had while this was open, in megabytes (RSS: reading it does not hold it up)."""

    def __init__(self, pid: int) -> None:
        self.value = 0.0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self) -> None:
        while not self._stop.wait(0.25):
            pages = int(Path(f"/proc/{self._pid}/statm").read_text().split()[1])
            self.value = max(self.value, pages * os.sysconf("SC_PAGE_SIZE") / 1e6)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


class Course:
    """How some processes' vitals went over time."""

    def __init__(self, pids: dict[str, int]) -> None:
        self.pids = pids
        self.times: list[float] = []
        self.samples: dict[str, list[dict[str, float]]] = {name: [] for name in pids}

    def look(self) -> None:
        """Take a sample of each."""
        self.times.append(time.monotonic())
        for name, pid in self.pids.items():
            self.samples[name].append(vitals(pid))

    def growth(self, name: str, measure: str, *, after: float) -> dict[str, Any]:
        """Return a measure's course from a moment on: its level, its growth by regression, and that one's error."""
        times = np.asarray(self.times)
        keep = times >= after
        x = times[keep] - times[keep][0]
        y = np.asarray([sample[measure] for sample in self.samples[name]])[keep]
        slope, start = np.polyfit(x, y, 1)
        rest = y - (slope * x + start)
        spread = float(np.sqrt(np.sum(rest**2) / max(1, len(x) - 2) / np.sum((x - x.mean()) ** 2)))
        return {
            "mean": round(float(y.mean()), 3),
            "first": round(float(y[: max(1, len(y) // 5)].mean()), 3),
            "last": round(float(y[-max(1, len(y) // 5) :].mean()), 3),
            "growth": round(float(slope * x[-1]), 4),
            "error": round(spread * float(x[-1]), 4),
            "seconds": round(float(x[-1]), 1),
        }


def _own_descriptors(pid: int) -> int:
    """Return how many descriptors are open, but for living connections: how many those are is for clients to say."""
    connected = set()
    for table in ("tcp", "tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == _ESTABLISHED:
                    connected.add(f"socket:[{fields[9]}]")
    found = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            found += str(path.readlink()) not in connected
    return found
