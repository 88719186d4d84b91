"""A contender that serves one model: started until its first right answer, checked, asked, measured, stopped."""

import contextlib
import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from serving import closed_loop, load
from serving.contenders import LIMIT, SERVERS, Peer, Settings, environment
from serving.dialects import Dialect
from serving.environments import Failed, discard, run
from serving.models import Model, inputs
from serving.processes import Tree, busy_s, free_port

START_S = 120.0
TOLERANCE = 1e-4
"""Greatest difference to the bare runtime's answer, relative to its largest number: a batch sums in another order."""


@dataclass(frozen=True)
class Place:
    """A model's folder with its file, its requests and their right answers; and the cores of the server."""

    model: Model
    folder: Path
    scratch: Path
    """For logs and working files."""
    cores: tuple[int, ...] = ()
    client_cores: tuple[int, ...] = ()

    @property
    def answers(self) -> np.ndarray[Any, Any]:
        """Return the right answers, one row per request."""
        return np.load(self.folder / "answers.npy")


@dataclass(frozen=True)
class Cell:
    """One measurement: a contender under so many connections."""

    per_s: float
    p50_ms: float
    p99_ms: float
    cpu_ms: float
    """Processor time of all its processes per answered request."""
    pss_mb: float
    rss_mb: float
    refused: int
    broken: int
    client_cpu: float
    """Cores that the client took."""
    others_cpu: float
    """Cores that anything else on the machine took: a measure of how quiet it was."""
    extra: dict[str, float]

    def as_dict(self) -> dict[str, Any]:
        """Return plain values."""
        return asdict(self)


class Contender(Protocol):
    """What the benchmark can measure."""

    name: str
    title: str

    def start(self, place: Place) -> float:
        """Start serving; return the seconds until the first right answer. Raises Failed."""
        ...

    def measure(self, connections: int, seconds: float) -> Cell:
        """Ask for so long. Raises Failed."""
        ...

    def paused(self) -> AbstractContextManager[None]:
        """Stand still, as far as it would take from others while it is not asked."""
        ...

    def stop(self) -> None:
        """End all of its processes."""
        ...


class Server:
    """What peers and Argosy have in common: an address, a dialect, a tree of processes."""

    name = ""
    title = ""
    tree: Tree
    port = 0
    dialect: Dialect
    headers: Mapping[str, str] = {}

    def __init__(self) -> None:
        self._checked: set[str] = set()

    def await_answer(self, place: Place, began: float, starter: subprocess.Popen[bytes] | None) -> float:
        """Poll until the first request is answered rightly; return the seconds since `began`."""
        item, right = inputs(place.folder)[0], place.answers[0]
        said = ""
        while time.monotonic() - began < START_S:
            try:
                got = self.dialect.ask(place.model.name, item, self.port, self.headers)
            except (OSError, ValueError) as error:
                said = str(error)
            else:
                if differs(got, right):
                    raise Failed(f"its first answer is wrong: {got[:4]}... instead of {right[:4]}...")
                return time.monotonic() - began
            if starter is not None and starter.poll() not in (None, 0):
                raise Failed(f"it ended with status {starter.returncode}: {self.last_words()}")
            time.sleep(0.02)
        raise Failed(f"no right answer within {START_S:g} s ({said[:200]}): {self.last_words()}")

    def check(self, place: Place) -> float:
        """Ask every request once, many at a time, and return the greatest relative difference to the right answers."""
        items = inputs(place.folder)

        def ask(item: Any) -> Any:
            return self.dialect.ask(place.model.name, item, self.port, self.headers)

        with ThreadPoolExecutor(16) as pool:
            try:
                rows = list(pool.map(ask, items))
            except (OSError, ValueError) as error:
                raise Failed(f"a request of the check failed: {error}") from error
        worst = max(difference(row, right) for row, right in zip(rows, place.answers, strict=True))
        if worst > TOLERANCE:
            raise Failed(f"its answers differ from the bare runtime's by {worst:.2g} of their size")
        return worst

    def serve(self, place: Place) -> None:
        """Write the requests as the client sends them; the first time, check all answers."""
        self._place = place
        self._requests = place.scratch / f"{self.name}-{place.model.name}.requests"
        self._extra: dict[str, float] = {}
        self._sent = [self.dialect.request(place.model.name, i, self.port, self.headers) for i in inputs(place.folder)]
        load.write_requests(self._requests, self._sent)
        if place.model.name not in self._checked:
            self._extra["difference"] = self.check(place)
            self._checked.add(place.model.name)
        self.tree.settle()

    def measure(self, connections: int, seconds: float) -> Cell:
        """Drive with the model's client; processor time is read around it."""
        found, cpu_s, busy = (
            self._wrk(connections, seconds) if self._place.model.is_fast else self._loop(connections, seconds)
        )
        pss, rss = self.tree.memory_mb()
        if not found.answered:
            raise Failed(f"nothing was answered: {found.refused} refused, {found.broken} broken; {self.last_words()}")
        return Cell(
            per_s=found.per_s,
            p50_ms=found.p50_ms,
            p99_ms=found.p99_ms,
            cpu_ms=cpu_s * 1e3 / found.answered,
            pss_mb=pss,
            rss_mb=rss,
            refused=found.refused,
            broken=found.broken,
            client_cpu=found.client_cpu_s / found.seconds,
            others_cpu=max(0.0, busy - cpu_s - found.client_cpu_s) / found.seconds,
            extra=dict(self._extra),
        )

    def _wrk(self, connections: int, seconds: float) -> tuple[load.Load, float, float]:
        cores = self._place.client_cores
        load.drive(self.port, self._requests, connections, 1, cores)
        self.tree.settle()
        before, busy = self._spent()
        found = load.drive(self.port, self._requests, connections, seconds, cores)
        after, busy_after = self._spent()
        return found, after - before, busy_after - busy

    def _loop(self, connections: int, seconds: float) -> tuple[load.Load, float, float]:
        found, (before, busy), (after, busy_after) = closed_loop.drive(
            self.port, self._sent, connections, seconds, read=self._spent, cores=self._place.client_cores
        )
        self.tree.settle()
        return found, after - before, busy_after - busy

    def _spent(self) -> tuple[float, float]:
        return self.tree.cpu_s(), busy_s()

    def last_words(self) -> str:
        """Return the end of the log."""
        with contextlib.suppress(OSError, AttributeError):
            lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
            return " | ".join(lines[-3:])[-500:]
        return "no log"

    log: Path


class PeerServer(Server):
    """One of the peers with one choice of settings."""

    def __init__(self, peer: Peer, programs: Path, chosen: Mapping[str, Settings]) -> None:
        super().__init__()
        self.name, self.title = peer.name, peer.title
        self._peer = peer
        self._programs = programs
        self._chosen = chosen

    def start(self, place: Place) -> float:
        self.port = free_port()
        scratch = place.scratch / f"{self.name}-{self.port}"
        discard(scratch)
        asked = {
            **self._chosen[place.model.name],
            "model": place.model.name,
            "folder": str(place.folder),
            "port": self.port,
            "scratch": str(scratch),
        }
        self.dialect = self._peer.dialect(asked)
        self.log = place.scratch / f"{self.name}-{place.model.name}.log"
        self.log.write_bytes(b"")
        self._scratch = scratch
        self.tree = Tree(place.cores)
        began = time.monotonic()
        starter = self.tree.start(
            self._peer.command(self._programs, asked),
            {**environment(), **self._peer.environment, "BENCH": json.dumps(asked)},
            folder=SERVERS,
            log=self.log,
        )
        seconds = self.await_answer(place, began, starter)
        self.serve(place)
        return seconds

    def paused(self) -> AbstractContextManager[None]:
        return self.tree.paused()

    def stop(self) -> None:
        if hasattr(self, "tree"):
            self.tree.stop()
            discard(self._scratch)


class Limit:
    """The bare runtime in a loop, without any server: what could be reached, with the cores used in the better way."""

    title = "limit: the runtime alone"

    def __init__(
        self,
        programs: Path,
        *,
        name: str = "limit",
        threads: Mapping[str, int] | None = None,
        together: Sequence[Settings] = LIMIT,
    ) -> None:
        """`threads`: of one request at a time, by model; as many as a replica has that is compared with it."""
        self.name = name
        self._python = programs / "python"
        self._threads = threads or {}
        self._together = together
        self._best: dict[str, Settings] = {}

    def start(self, place: Place) -> float:
        self._place = place
        return 0.0

    def answers(self, place: Place) -> None:
        """Compute the right answers of all requests, one by one."""
        asked = json.dumps({"model": place.model.name, "folder": str(place.folder)})
        run(["env", f"BENCH={asked}", str(self._python), str(SERVERS / "limit.py")], "limit.py")

    def measure(self, connections: int, seconds: float) -> Cell:
        """Return one caller's speed for one connection, else that of the better way, however many connections."""
        model = self._place.model.name
        if connections == 1:
            return self._run({"threads": self._threads.get(model, 1), "workers": 1}, seconds)
        if model not in self._best and len(self._together) > 1:
            tried = [(self._run(way, seconds).per_s, at) for at, way in enumerate(self._together)]
            self._best[model] = self._together[max(tried)[1]]
        return self._run(self._best.get(model, self._together[0]), seconds)

    def paused(self) -> AbstractContextManager[None]:
        """Nothing runs between measurements."""
        return contextlib.nullcontext()

    def stop(self) -> None:
        """Nothing runs between measurements."""

    def _run(self, way: Settings, seconds: float) -> Cell:
        place = self._place
        asked = {**way, "model": place.model.name, "folder": str(place.folder), "seconds": seconds}
        tree = Tree(place.cores)
        log = place.scratch / "limit.log"
        before = busy_s()
        try:
            process = tree.start(
                [str(self._python), str(SERVERS / "limit.py")],
                {**environment(), "BENCH": json.dumps(asked)},
                folder=SERVERS,
                log=log,
                pipes=True,
            )
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line.startswith(b"{"):
                raise Failed(f"limit.py failed: {log.read_text()[-500:]}")
            found = json.loads(line)
            others_cpu = max(0.0, busy_s() - before - tree.cpu_s()) / found["all_s"]
            pss, rss = tree.memory_mb()
        finally:
            tree.stop()
        return Cell(
            per_s=found["per_s"],
            p50_ms=found["p50_ms"],
            p99_ms=found["p99_ms"],
            cpu_ms=found["cpu_ms"],
            pss_mb=pss,
            rss_mb=rss,
            refused=0,
            broken=0,
            client_cpu=0.0,
            others_cpu=others_cpu,
            extra={"load_s": found["load_s"], **way},
        )


def difference(row: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> float:
    """Return the greatest difference between two rows, relative to the largest number of the right one."""
    if row.shape != right.shape:
        return float("inf")
    return float(np.abs(row - right).max() / np.abs(right).max())


def differs(row: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    """Return whether a row is not the right one."""
    return not difference(row, right) <= TOLERANCE
