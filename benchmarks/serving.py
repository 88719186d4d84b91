"""Serving, side by side: Argosy, its peers and the bare runtime on the same ONNX files, under the same client.

    python benchmarks/serving.py             about three quarters of an hour; writes results/serving.{json,md}
    python benchmarks/serving.py --quick     about a quarter of an hour; one short turn, writes nothing
    python benchmarks/serving.py --tune      tries every setting of every peer; writes results/serving_tuning.json

Environments of the contenders are made on the first run, below `.bench/`. What is measured and how to read it:
benchmarks/README.md.
"""

import argparse
import fcntl
import json
import os
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import IO, Any

from serving import report
from serving.argosy_server import ArgosyServer
from serving.contenders import PEERS, Peer, Settings
from serving.environments import Failed
from serving.load import ensure_wrk
from serving.models import MINILM, MODELS, RESNET18, Model
from serving.prepare import Prepared, prepare
from serving.report import BATCHING, SCALING, TABLE
from serving.running import Contender, Limit, Place
from serving.targets import judge

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
SECTIONS = (TABLE, BATCHING, SCALING)
BATCHING_CONNECTIONS = (1, 2, 4, 8, 16, 64)
SCALING_CONNECTIONS = 16
LOCKED_S = 40.0
BUSY = 0.1
STARTS = 3
NEARBY, NEAR = ("fastapi", "fastapi1", "limit", "unbatched", "one-core", "limit-one"), 2
"""Those that are close to Argosy are measured so many times as often as the others."""

TITLES = {
    "argosy": "**Argosy**",
    **{peer.name: peer.title for peer in PEERS},
    "limit": "limit: the runtime alone",
    "unbatched": "Argosy, batches of one",
    "one-core": "Argosy, one replica on one core",
    "two-cores": "Argosy, two replicas on two cores",
}


class Bench:
    """One run: turns of contenders, what they measured, and who failed why."""

    def __init__(self, ready: Prepared, asked: argparse.Namespace) -> None:
        self.ready = ready
        self.asked = asked
        self.cells: list[dict[str, Any]] = []
        self.starts: list[dict[str, Any]] = []
        self.failed = dict(ready.failed)
        self.places: dict[str, Place] = {}
        self.lock: IO[bytes] | None = None
        self.locked = 0.0

    def compare(
        self,
        section: str,
        first: Contender,
        others: Sequence[tuple[Contender, Place]],
        place: Place,
        connections: Sequence[int],
    ) -> None:
        """Measure `first` and each of the others in turns, both running: what drifts slower than a turn cancels."""
        try:
            if not self._start(section, first, place, times=STARTS if section == TABLE else 1):
                return
            for other, there in others:
                try:
                    if self._start(section, other, there):
                        self._in_turns(section, (first, other), connections)
                finally:
                    other.stop()
        finally:
            first.stop()

    def alone(self, section: str, contender: Contender, place: Place, connections: Sequence[int]) -> None:
        """Measure a contender by itself."""
        try:
            if self._start(section, contender, place):
                for at in connections:
                    self._measure(section, contender, at, contender.name)
        finally:
            contender.stop()

    def run(self) -> None:
        """Measure everything that was asked for."""
        sections = self.asked.sections
        wanted = [model for model in MODELS if model.name in self.ready.places]
        ours = self.ready.argosy
        if TABLE in sections:
            for model in wanted:
                place, at = self.ready.places[model.name], self._connections(model)
                if self.has_ours and self.table:
                    self.compare(TABLE, ours, [(other, place) for other in self.table], place, at)
                else:
                    for contender in [ours] * self.has_ours + self.table:
                        self.alone(TABLE, contender, place, at)
        if BATCHING in sections and MINILM in wanted:
            place = self.ready.places[MINILM.name]
            self.compare(BATCHING, ours, [(self.unbatched, place)], place, BATCHING_CONNECTIONS)
        if SCALING in sections and len(os.sched_getaffinity(0)) > 1:
            for model in (MINILM, RESNET18):
                if model in wanted:
                    self._scaling(self.ready.places[model.name])

    def _start(self, section: str, contender: Contender, place: Place, *, times: int = 1) -> bool:
        """Start a contender, several times for the time it takes; one that fails is noted and left alone."""
        who = f"{contender.name}, {place.model.name}"
        self.places[contender.name] = place
        if who in self.failed:
            return False
        labels = {"section": section, "model": place.model.name, "contender": contender.name}
        try:
            self._lock()
            for at in range(times):
                seconds = self._first_answer(contender, place)
                self.starts.append({**labels, "seconds": seconds})
                print(f"{section} {place.model.name:9}{contender.name:11} started in {seconds:.2f} s", flush=True)
                if at < times - 1:
                    contender.stop()
        except (Failed, RuntimeError) as error:
            self._fail(who, error)
            return False
        return True

    def _first_answer(self, contender: Contender, place: Place) -> float:
        """Start a contender, once more if that fails: pytriton's model sometimes dials before its server listens."""
        try:
            return contender.start(place)
        except Failed as error:
            print(f"{contender.name}, {place.model.name} did not start and is tried again: {error}", flush=True)
            contender.stop()
            return contender.start(place)

    def _in_turns(self, section: str, pair: tuple[Contender, Contender], connections: Sequence[int]) -> None:
        turns = self.asked.rounds * (NEAR if pair[1].name in NEARBY else 1)
        for at in connections:
            for turn in range(turns):
                for contender, other in (pair, pair[::-1])[:: 1 if turn % 2 == 0 else -1]:
                    with other.paused():
                        is_measured = self._measure(section, contender, at, f"{pair[1].name}.{turn}")
                    if not is_measured:
                        return

    def _measure(self, section: str, contender: Contender, connections: int, turn: str) -> bool:
        """Measure once; `turn` names what is compared with it."""
        model = self.places[contender.name].model.name
        try:
            self._lock()
            cell = contender.measure(connections, self.asked.seconds)
        except (Failed, RuntimeError, OSError) as error:
            self._fail(f"{contender.name}, {model}", error)
            return False
        labels = {"section": section, "model": model, "contender": contender.name, "round": turn}
        self.cells.append({**labels, "connections": connections, **cell.as_dict()})
        print(
            f"{section} {model:9}{contender.name:11}{connections:4} connections: {cell.per_s:9.1f}/s"
            f"  p50 {cell.p50_ms:8.2f}  p99 {cell.p99_ms:8.2f} ms  CPU {cell.cpu_ms:8.4f} ms"
            f"  PSS {cell.pss_mb:5.0f} MB  others {cell.others_cpu:.2f} cores  ({turn})"
            + (f"  REFUSED {cell.refused} BROKEN {cell.broken}" if cell.refused or cell.broken else ""),
            flush=True,
        )
        if self.lock is not None and time.monotonic() - self.locked > LOCKED_S:
            self.lock.close()
        return True

    def _fail(self, who: str, error: Exception) -> None:
        self.failed[who] = str(error)
        print(f"{who} FAILED: {error}", flush=True)

    def prepare(self, chosen: Mapping[str, Mapping[str, Settings]]) -> None:
        """Make the contenders, with their settings by peer and model."""
        ready = self.ready
        self.has_ours = "argosy" in self.asked.contenders
        self.table: list[Contender] = []
        for peer in PEERS:
            if peer.name in self.asked.contenders and peer.name in ready.programs:
                self.table.append(ready.peer(peer, chosen[peer.name]))
        if "limit" in self.asked.contenders:
            self.table.append(ready.limit())
        homes, programs = ready.argosy.homes, ready.programs["argosy"]
        self.unbatched = ArgosyServer(programs, homes, name="unbatched", title="Argosy, batches of one")
        fixed = ("--set", "endpoint.threads=1", "--replicas")
        self.scaled = [
            ArgosyServer(programs, homes, name="one-core", title="one", options=(*fixed, "1")),
            ArgosyServer(programs, homes, name="two-cores", title="two", options=(*fixed, "2")),
        ]
        ways = {name: ({"threads": 1, "workers": count},) for name, count in (("limit-one", 1), ("limit-two", 2))}
        self.bare = [Limit(ready.programs["limit"], name=name, together=way) for name, way in ways.items()]
        if BATCHING in self.asked.sections and MINILM.name in ready.places:
            try:
                self.unbatched.copy_unbatched(ready.argosy, ready.places[MINILM.name])
            except Failed as error:
                self.failed[f"unbatched, {MINILM.name}"] = str(error)

    def _lock(self) -> None:
        """Wait until nobody else measures or builds on this machine; held for some turns, then given up."""
        if self.asked.lock and (self.lock is None or self.lock.closed):
            self.lock = self.asked.lock.open("ab")
            fcntl.flock(self.lock, fcntl.LOCK_EX)
            self.locked = time.monotonic()

    def _scaling(self, place: Place) -> None:
        one, two = sorted(os.sched_getaffinity(0))[:2]
        alone, both = replace(place, cores=(one,), client_cores=(two,)), replace(place, cores=(one, two))
        for server in (self.scaled[0], self.scaled[1]):
            server.sources = self.ready.argosy.sources
        self.compare(SCALING, self.scaled[1], [(self.scaled[0], alone)], both, (SCALING_CONNECTIONS,))
        self.compare(SCALING, self.bare[1], [(self.bare[0], alone)], both, (SCALING_CONNECTIONS,))

    def _connections(self, model: Model) -> Sequence[int]:
        return model.quick if self.asked.quick else model.connections


def tune(bench: Bench) -> dict[str, Any]:
    """Measure every setting of every peer, and return all figures with the best of each."""
    found: dict[str, Any] = {}
    for peer in [peer for peer in PEERS if peer.name in bench.ready.programs and peer.name in bench.asked.contenders]:
        for place in bench.ready.places.values():
            tried = [_tried(bench, peer, place, settings) for settings in peer.tried[place.model.name]]
            best = max(tried, key=lambda each: each["score"])
            found.setdefault(peer.name, {})[place.model.name] = {"best": best["settings"], "tried": tried}
    return found


def _tried(bench: Bench, peer: Peer, place: Place, settings: Settings) -> dict[str, Any]:
    before = len(bench.cells)
    bench.failed.pop(f"{peer.name}, {place.model.name}", None)
    bench.alone(TABLE, bench.ready.peer(peer, {place.model.name: settings}), place, place.model.quick)
    per_s = {cell["connections"]: cell["per_s"] for cell in bench.cells[before:]}
    score = per_s.get(max(place.model.quick), 0.0)
    failed = bench.failed.get(f"{peer.name}, {place.model.name}", "")
    return {"settings": settings, "score": score, "per_s": per_s, **({"failed": failed} if failed else {})}


def chosen_settings() -> dict[str, dict[str, Settings]]:
    """Return the settings of each peer for each model: the best that `--tune` has found, or the first."""
    path = RESULTS / "serving_tuning.json"
    tuned = json.loads(path.read_text())["found"] if path.exists() else {}
    return {
        peer.name: {
            model: tuned.get(peer.name, {}).get(model, {}).get("best", tried[0]) for model, tried in peer.tried.items()
        }
        for peer in PEERS
    }


def told_of(bench: Bench, chosen: Mapping[str, Mapping[str, Settings]]) -> dict[str, Any]:
    """Return for each contender its version, settings and what a reader must know."""
    ready = bench.ready
    runtime = f"onnxruntime {ready.versions['argosy'].get('onnxruntime', '')}"
    models = list(ready.places)
    profiles = {model: ready.argosy.profile(ready.places[model].model) for model in models}
    told: dict[str, Any] = {
        "argosy": {
            "version": f"{ready.versions['argosy'].get('argosy', '')}, {runtime}",
            "settings": {model: _calibrated(profile) for model, profile in profiles.items() if profile},
            "note": "as `argosy deploy` leaves it; a key for each request, limits and metrics on",
        }
    }
    for peer in PEERS:
        if peer.name in ready.versions:
            package = peer.packages[0].partition("==")[0].partition("[")[0]
            told[peer.name] = {
                "version": f"{package} {ready.versions[peer.name].get(package, '')}, {runtime}",
                "settings": {model: chosen[peer.name][model] for model in models},
                "note": peer.note,
            }
    told["limit"] = {
        "version": runtime,
        "settings": {},
        "note": "no server and no client; one or two processes and threads, whichever is better",
    }
    return told


def _calibrated(profile: Mapping[str, Any]) -> Settings:
    """Return what calibration chose; values that are the default are not stored."""
    batching = profile["batching"][str(profile["threads"])]
    return {"replicas": profile["replicas"], "threads": profile["threads"], "max_batch": batching.get("max_batch", 1)}


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--only", default="", help="contenders and models to take, with commas: argosy,fastapi,limit,mlp"
    )
    parser.add_argument("--sections", default=",".join(SECTIONS), help="parts to run (default: all): %(default)s")
    parser.add_argument(
        "--rounds",
        type=int,
        default=1,
        help="turns of each pair, times two of those that are close (default: %(default)s)",
    )
    parser.add_argument(
        "--seconds", type=float, default=3, help="of each measurement, whole ones (default: %(default)s)"
    )
    parser.add_argument(
        "--quick", action="store_true", help="one turn of 2 s and the outer numbers of connections only"
    )
    parser.add_argument("--tune", action="store_true", help="try every setting of every peer instead of comparing")
    parser.add_argument(
        "--argosy", default=str(ROOT), help="tree or requirement to install as Argosy (default: this tree)"
    )
    parser.add_argument(
        "--cache", type=Path, default=ROOT / ".bench", help="environments, models, logs (default: .bench)"
    )
    parser.add_argument("--lock", type=Path, help="a file to hold an exclusive lock on (flock) while a contender runs")
    asked = parser.parse_args()
    if asked.quick:
        asked.rounds, asked.seconds = 1, 2
    words = [word for word in asked.only.split(",") if word]
    known = ["argosy", *(peer.name for peer in PEERS), "limit"]
    models = [model.name for model in MODELS]
    asked.sections = asked.sections.split(",")
    if unknown := [w for w in words if w not in {*known, *models}] + [s for s in asked.sections if s not in SECTIONS]:
        names = ", ".join([*known, *models])
        parser.error(f"unknown: {', '.join(unknown)}; known are {names}, and the parts {', '.join(SECTIONS)}")
    asked.contenders = [w for w in words if w in known] or known
    asked.models = [model for model in MODELS if model.name in words] or list(MODELS)
    return asked


def interrupted(number: int, _: FrameType | None) -> None:
    """End through the `finally` of the running turn, so that nothing is left running."""
    sys.exit(128 + number)


def main() -> None:
    """Prepare, measure in rounds, judge, print, and keep the results of a complete run."""
    asked = options()
    signal.signal(signal.SIGTERM, interrupted)
    load_before = os.getloadavg()[0]
    wrk = ensure_wrk()
    peers = [peer for peer in PEERS if peer.name in asked.contenders]
    try:
        ready = prepare(asked.cache.resolve(), asked.models, peers, source=asked.argosy)
    except Failed as error:
        raise SystemExit(f"the benchmark can't be prepared: {error}") from error
    bench = Bench(ready, asked)
    shared = {
        "command": "python " + shlex.join(["benchmarks/serving.py", *sys.argv[1:]]),
        "date": report.now(),
        "commit": report.commit(ROOT) if asked.argosy == str(ROOT) else asked.argosy,
        "machine": {**report.machine(), "client": wrk},
        "rounds": asked.rounds,
        "seconds": asked.seconds,
    }
    if asked.tune:
        found = {**shared, "found": tune(bench)}
        (RESULTS / "serving_tuning.json").write_text(json.dumps(found, indent=1) + "\n")
        return
    chosen = chosen_settings()
    bench.prepare(chosen)
    bench.run()
    run: dict[str, Any] = {
        **shared,
        "load_average": [round(load_before, 2), round(os.getloadavg()[0], 2)],
        "contenders": told_of(bench, chosen),
        "versions": bench.ready.versions,
        "deployed_s": bench.ready.argosy.deployed_s,
        "failed": bench.failed,
        "starts": bench.starts,
        "cells": bench.cells,
    }
    run["targets"] = judge(run, TITLES, [peer.name for peer in PEERS if peer.batches])
    text = report.markdown(run, TITLES)
    print("\n" + text)
    if asked.only or asked.quick or sorted(asked.sections) != sorted(SECTIONS):
        print("not a complete run: benchmarks/results/ is left as it is")
        return
    others = statistics.median(cell["others_cpu"] for cell in bench.cells)
    if others > BUSY:
        print(
            f"others took {others:.2f} cores of this machine (median; {BUSY} are allowed), which hurts servers of "
            "several processes most: benchmarks/results/ is left as it is; measure again when it is quiet"
        )
        return
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "serving.json").write_text(json.dumps(run, indent=1) + "\n")
    (RESULTS / "serving.md").write_text(text)


if __name__ == "__main__":
    main()
