"""The section with several hosts: Argosy and PyTorch DDP over emulated networks, and a host that is cut off.

Nothing is chosen for Argosy: `strategy = "auto"` over as many hosts. Needs root, for network namespaces.
"""

import json
import os
import secrets
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from netlab.lab import Lab, LabUnavailable, congestion_control, why_not
from serving.environments import Failed, discard, run

from training.contenders import MALLOC
from training.prepare import Prepared
from training.tasks import FAR

HERE = Path(__file__).parent
PORT = 29400
_SAVE_S = 10.0
_LOOK_S = 0.25
_START_S = 90.0
_CUT_S = 60.0
ARGOSY, DDP_WAY, HALF = "argosy", "ddp", "ddp-fp16"
TITLES = {
    ARGOSY: '**Argosy**, `strategy = "auto"`',
    DDP_WAY: "PyTorch DDP",
    HALF: "PyTorch DDP with its fp16 hook",
}

Row = dict[str, Any]


@dataclass(frozen=True)
class Network:
    """Hosts and what lies between them."""

    name: str
    hosts: int
    rate_mbit: float
    round_trip_ms: float
    task: str

    def lab(self) -> Lab:
        """Open it."""
        return Lab(self.hosts, rate_mbit=self.rate_mbit, round_trip_ms=self.round_trip_ms)


SLOW_NETWORK = Network("2 hosts, 100 Mbit/s, 5 ms there and back", 2, 100.0, 5.0, FAR.name)
FAST_NETWORK = Network("4 hosts, 1 Gbit/s", 4, 1000.0, 0.0, "mlp")


@dataclass(frozen=True)
class Lengths:
    """How long things are watched. The defaults are those of a complete run."""

    train_s: float = 600.0
    """DDP's training, whose last loss the other has to reach."""
    seeds: int = 3
    speed_s: float = 40.0
    """Of each turn in which only steps are counted."""
    turns: int = 2


def network(ready: Prepared, scratch: Path, lengths: Lengths) -> list[Row]:
    """Return rows of three kinds: `loss` over time, `speed`, and `cut`."""
    reason = why_not(with_delay=True)
    if reason:
        raise Failed(f"the network part emulates hosts: {reason}")
    rows: list[Row] = []
    try:
        for seed in range(lengths.seeds):
            rows += _race(ready, scratch / f"race-{seed}", seed, lengths)
        for turn in range(lengths.turns):
            for way in (ARGOSY, DDP_WAY, HALF)[:: 1 if turn % 2 == 0 else -1]:
                rows.append(_speed(ready, scratch / f"speed-{turn}-{way}", FAST_NETWORK, way, lengths.speed_s))
        rows.append(_cut(ready, scratch / "cut"))
    except LabUnavailable as error:
        raise Failed(str(error)) from error
    return rows


def _race(ready: Prepared, scratch: Path, seed: int, lengths: Lengths) -> list[Row]:
    """Let DDP train for its time, and Argosy for half of it, in which it has to reach DDP's last loss."""
    found, target = [], 0.0
    for way, share in ((DDP_WAY, 1.0), (ARGOSY, 0.5)):
        out = scratch / way
        turn = _Turn(ready, out, SLOW_NETWORK, way, seed=seed, save_s=_SAVE_S)
        begun = turn.run(share * lengths.train_s, None)
        # Files know the time of day, and the notes of processes the time since the machine's start.
        curve = [[each["at"] - turn.begun_at, each["step"], each["loss"]] for each in _losses(ready, out)]
        row = turn.row("loss", begun) | {"seed": seed, "curve": curve}
        if not curve:
            raise Failed(f"{way} has kept no model within {lengths.train_s:.0f} s")
        if way == DDP_WAY:
            target = row["target"] = curve[-1][2]
            row["reached_s"] = curve[-1][0]
        else:
            row["target"] = target
            row["reached_s"] = _when(curve, target)
        found.append(row)
        print(
            f"{SLOW_NETWORK.name}, seed {seed}: {way:9}{row['steps_per_s']:7.3f} steps/s  loss {curve[-1][2]:.4f} "
            f"after {curve[-1][0]:.0f} s; {target:.4f} after {row['reached_s'] or -1:.0f} s  {row['says']}",
            flush=True,
        )
    return found


def _losses(ready: Prepared, out: Path) -> list[Row]:
    command = [
        str(ready.programs["argosy"] / "python"),
        str(HERE / "evaluate.py"),
        str(ready.tasks[FAR.name]),
        str(out),
    ]
    found: list[Row] = json.loads(run(command, "the kept models could not be judged"))
    return found


def _when(curve: Sequence[Sequence[float]], target: float) -> float | None:
    """Return when a curve of (seconds, step, loss) reached a loss, between two points on a straight line."""
    former: Sequence[float] | None = None
    for at, step, loss in curve:
        if loss <= target:
            if former is None:
                return at
            share = (former[2] - target) / (former[2] - loss)
            return former[0] + share * (at - former[0])
        former = (at, step, loss)
    return None


def _speed(ready: Prepared, out: Path, where: Network, way: str, seconds: float) -> Row:
    turn = _Turn(ready, out, where, way, seed=0, save_s=0.0)
    row = turn.row("speed", turn.run(seconds, None))
    print(f"{where.name}: {way:9}{row['steps_per_s']:7.3f} steps/s  {row['says']}", flush=True)
    return row


def _cut(ready: Prepared, out: Path) -> Row:
    """Cut a host off while it trains; return after how many seconds the first one's job has said so."""
    turn = _Turn(ready, out, SLOW_NETWORK, ARGOSY, seed=0, save_s=_SAVE_S)
    found: Row = {"kind": "cut", "network": SLOW_NETWORK.name}

    def act(lab: Lab) -> None:
        lab.cut(1)
        found["cut"] = time.monotonic()

    turn.run(_CUT_S, lambda: turn.said("lost", "start again", "no sign of life"), after=act)
    heard = [note for note in turn.notes() if note[0] > found["cut"] and "start again" in note[2]]
    found["noticed_s"] = heard[0][0] - found.pop("cut") if heard else None
    found["says"] = heard[0][2] if heard else ""
    print(f"a host cut off: noticed after {found['noticed_s'] or -1:.1f} s  {found['says']}", flush=True)
    return found


class _Turn:
    """One training over emulated hosts."""

    def __init__(self, ready: Prepared, out: Path, where: Network, way: str, *, seed: int, save_s: float) -> None:
        discard(out)
        out.mkdir(parents=True)
        self._ready, self._out, self._where, self._way = ready, out, where, way
        self._seed, self._save_s = seed, save_s
        self.begun_at = 0.0

    def run(
        self, seconds: float, is_over: Callable[[], bool] | None, after: Callable[[Lab], None] | None = None
    ) -> float:
        """Train for so long after the first step, or until it is over; return when the first step was.

        `after` is done when the first models have been kept.
        """
        with self._where.lab() as lab:
            self.begun_at, begun = time.time(), time.monotonic()
            processes = [self._start(lab, host) for host in range(self._where.hosts)]
            try:
                self._watch(lab, processes, begun, seconds=seconds, is_over=is_over, after=after)
            finally:
                for process in processes:
                    if process.poll() is None:
                        os.killpg(process.pid, signal.SIGKILL)
        return begun

    def _watch(
        self,
        lab: Lab,
        processes: list["subprocess.Popen[Any]"],
        begun: float,
        *,
        seconds: float,
        is_over: Callable[[], bool] | None,
        after: Callable[[Lab], None] | None,
    ) -> None:
        first = 0.0
        while True:
            time.sleep(_LOOK_S)
            now = time.monotonic()
            if any(process.poll() not in {None, 0} for process in processes):
                raise Failed(f"{self._way} over {self._where.name}: {self._last_words()}")
            if not first:
                if self.steps():
                    first = now
                elif now - begun > _START_S:
                    raise Failed(f"{self._way} over {self._where.name} made no step within {_START_S:.0f} s")
                continue
            if after is not None and self.kept():
                after(lab)
                after = None
            if now - first > seconds or (after is None and is_over is not None and is_over()):
                return

    def _start(self, lab: Lab, host: int) -> "subprocess.Popen[Any]":
        where, ready, task = self._where, self._ready, self._ready.tasks[self._where.task]
        address = f"{lab.addresses[0]}:{PORT}"
        environment = {
            **os.environ,
            **MALLOC,
            "BENCH_OUT": str(self._out),
            "BENCH_TASK": str(task),
            "OMP_NUM_THREADS": "1",
            "GLOO_SOCKET_IFNAME": "eth0",
            "PYTHONPATH": str(HERE / "peers"),
        }
        if self._way == ARGOSY:
            settings = json.dumps({"seed": self._seed, "checkpoint_s": self._save_s or 3600.0})
            command = [str(ready.programs["argosy"] / "python"), str(HERE / "network_argosy.py"), str(self._out)]
            command += [str(task), settings, str(where.hosts), str(host), address, _TOKEN]
        else:
            command = [str(ready.programs["train-torch"] / "python"), "-m", "torch.distributed.run"]
            command += ["--nproc-per-node", "1", "--nnodes", str(where.hosts), "--node-rank", str(host)]
            command += ["--master-addr", lab.addresses[0], "--master-port", str(PORT)]
            command += [str(HERE / "peers" / "network_ddp.py"), str(self._seed), str(self._save_s)]
            command += ["fp16"] if self._way == HALF else []
        with (self._out / f"log-{host}").open("ab") as log:
            return lab.start(host, command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def notes(self) -> list[list[Any]]:
        """Return what rank 0, or the first host's job, has noted."""
        path = self._out / ("news-0.jsonl" if self._way == ARGOSY else "steps-0.jsonl")
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines if line.endswith("]")]

    def steps(self) -> list[tuple[float, int]]:
        """Return moments and numbers of steps."""
        return [(note[0], note[1]) for note in self.notes() if note[1]]

    def said(self, *words: str) -> bool:
        """Return whether the first host's job has said one of these words."""
        return any(word in str(note[2]) for note in self.notes() for word in words)

    def kept(self) -> bool:
        """Return whether a model has been kept."""
        return any(self._out.glob("model-*.safetensors"))

    def row(self, kind: str, begun: float) -> Row:
        """Return what this turn came to."""
        steps = self.steps()
        # The first step warms up.
        (first_at, first), (last_at, last) = steps[min(1, len(steps) - 1)], steps[-1]
        said = [note[2] for note in self.notes() if self._way == ARGOSY and note[3]]
        return {
            "kind": kind,
            "network": self._where.name,
            "way": self._way,
            "steps_per_s": (last - first) / max(1e-9, last_at - first_at),
            "start_s": steps[0][0] - begun,
            "says": said[0] if said else "",
            "reasons": said[:3],
            "congestion_control": congestion_control(),
        }

    def _last_words(self) -> str:
        for path in sorted(self._out.glob("log-*")):
            lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
            if lines:
                return f"{path.name}: {' | '.join(lines[-3:])[-600:]}"
        return "it ended without a word"


_TOKEN = secrets.token_hex(32)


def ratios(rows: Sequence[Row]) -> dict[str, list[float]]:
    """Return the figures that the targets are about: each a list with one entry per seed or turn."""
    races: dict[int, dict[str, Row]] = {}
    for row in rows:
        if row["kind"] == "loss":
            races.setdefault(row["seed"], {})[row["way"]] = row
    pairs = [(race[ARGOSY], race[DDP_WAY]) for race in races.values() if len(race) == 2]
    speeds: dict[str, list[float]] = {}
    for row in rows:
        if row["kind"] == "speed":
            speeds.setdefault(row["way"], []).append(row["steps_per_s"])
    return {
        "steps": [ours["steps_per_s"] / theirs["steps_per_s"] for ours, theirs in pairs],
        "time": [theirs["reached_s"] / ours["reached_s"] for ours, theirs in pairs if ours["reached_s"]],
        "missed": [ours["seed"] for ours, _ in pairs if not ours["reached_s"]],
        "fast": [a / b for a, b in zip(speeds.get(ARGOSY, []), speeds.get(DDP_WAY, []), strict=False)],
        "cut": [row["noticed_s"] for row in rows if row["kind"] == "cut" and row["noticed_s"] is not None],
    }


def middle(values: Sequence[float]) -> float | None:
    """Return the median, if there is one."""
    return median(values) if values else None
