"""How small and fast can a model become before it loses a point? Argosy's search and other tools on the same models.

    python benchmarks/compression.py [--only cnn,minilm,...] [--peers nncf,olive,...] [--quick]

Each tool runs in an environment of its own and gets the ONNX file, training part and validation part; one judge then
measures size, quality on a hidden test part, and speed beside float32 onnxruntime, in turns. Prints the tables. Each
model that all tools took part in is written into results/compression.{json,md}, with a picture, when it is done; the
other models there stay as they were measured before.
"""

import argparse
import json
import os
import shlex
import signal
import sys
import time
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import Any

from compression import report
from compression.environments import PEERS, PEERS_FOLDER, Failed, Ready, carry_out, entry, job, programs_of
from compression.judge import Entry, judge_quality, judge_speed
from compression.models import CASES, Place, make
from compression.peers import given
from compression.targets import ORIGINAL, OURS, judge
from serving.environments import versions
from serving.report import commit, machine, now

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"
TITLES = {OURS: "Argosy", ORIGINAL: "the original", **{peer.name: peer.title for peer in PEERS.values()}}
OURS_PATIENCE_S = 5400
HOPELESS = 5
"""What loses more than so many times the bound is timed once only."""


class Bench:
    """One run."""

    def __init__(self, asked: argparse.Namespace) -> None:
        self.asked = asked
        self.cache: Path = asked.cache.resolve()
        self.environments = self.cache / "environments"
        self.work = self.cache / ("quick-work" if asked.quick else "work")
        self.ready: dict[str, Ready] = {}
        self.failed: dict[str, str] = {}
        self.models: dict[str, Any] = {}

    def prepare(self) -> None:
        """Make the environments; a tool that can't be installed is noted."""
        self.engine = programs_of(PEERS["onnxruntime"], self.environments)
        for name in self.asked.peers:
            try:
                self.ready[name] = Ready(PEERS[name], self.environments)
            except Failed as error:
                self.failed[name] = str(error)
                print(f"{name} FAILED: {error}", flush=True)

    def run(self, name: str) -> None:
        """Let all tools compress a model, then judge everything in rounds."""
        begun, load = time.monotonic(), os.getloadavg()[0]
        case = CASES[name]
        place = make(case, self.cache, quick=self.asked.quick)
        original = Entry(ORIGINAL, "float32, onnxruntime", str(place.onnx), "onnxruntime", str(self.engine))
        judge_quality(original, place)
        if original.failed:
            raise SystemExit(f"the original of {name} can't be run: {original.failed}")
        entries = self._ours(place) if self.asked.ours else []
        if case.has_peers:
            for ready in self.ready.values():
                entries += ready.compress(place, self.work, quick=self.asked.quick)
        for who, why in self.failed.items() if case.has_peers else ():
            entries.append(Entry(who, "all of it", "", "", "", failed=f"not installed: {why}"))
        self._judge(place, original, entries)
        self.models[name] = {
            "facts": place.facts,
            "max_drop": case.max_drop,
            "entries": [asdict(each) for each in (original, *entries)],
            "distillation": self._distil(place) if name == "r52" and self.asked.ours else [],
            "run": {
                "command": "python " + shlex.join(["benchmarks/compression.py", *sys.argv[1:]]),
                "date": now(),
                "commit": commit(ROOT),
                "machine": machine(),
                "load_average": [round(load, 2), round(os.getloadavg()[0], 2)],
                "seconds": round(time.monotonic() - begun),
                "rounds": self.asked.rounds,
            },
            "tools": self.tools(),
        }

    def _ours(self, place: Place) -> list[Entry]:
        print(f"argosy compresses {place.case.name} ...", flush=True)
        told = job(place, quick=self.asked.quick)
        if self.asked.quick:
            from compression.ours import ASKS

            told["variants"] = [ASKS[place.case.name][0].name]
        out = self.work / place.case.name / OURS
        if not self.asked.resume:
            import shutil

            # Its own cache of earlier searches would make it look fast.
            shutil.rmtree(out, ignore_errors=True)
        script = [sys.executable, str(ROOT / "benchmarks" / "compression" / "ours.py")]
        lines = carry_out(script, told, out, OURS_PATIENCE_S)
        return [entry(OURS, Path(sys.executable).parent, self.environments, line) for line in lines]

    def _judge(self, place: Place, original: Entry, entries: list[Entry]) -> None:
        for each in entries:
            if not each.failed:
                judge_quality(each, place)
            says = each.failed or f"{each.quality:.4f}, agreement {each.agreement:.2%}, {each.size_bytes / 1e6:.2f} MB"
            print(f"{place.case.name:10}{each.who:24}{each.name}: {says}", flush=True)
        threads = (1,) if self.asked.quick else (1, 2)
        for turn in range(self.asked.rounds):
            # Forwards and backwards, so that nobody is always measured at the same time of the run.
            for each in [original, *entries][:: 1 if turn % 2 == 0 else -1]:
                lost = original.quality - each.quality
                # Compiling takes minutes, so what torch compiles has all its units in one go.
                is_compiled = each.runtime == "torch"
                if each.failed or (turn and (is_compiled or lost > HOPELESS * place.case.max_drop)):
                    continue
                before = len(each.units)
                judge_speed(each, original, place, threads=threads, units=self.asked.rounds if is_compiled else 1)
                shown = "  ".join(
                    f"{u['threads']} core{'s' * (u['threads'] > 1)}, batch {u['batch']}: {u['ratio']:.2f}x"
                    for u in each.units[before:]
                )
                print(f"{place.case.name:10}{each.who:24}{each.name}: {each.failed or shown}", flush=True)

    def _distil(self, place: Place) -> list[dict[str, Any]]:
        from compression.distilled import distillation_against_hard_labels

        print("distillation against hard labels ...", flush=True)
        path = self.work / "r52" / "distilled.json"
        path.write_text(json.dumps({**job(place, quick=self.asked.quick), "out": str(self.work)}))
        seeds = range(1 if self.asked.quick else 3)
        options = {"epochs": 1} if self.asked.quick else {}
        try:
            return distillation_against_hard_labels(place, given.Job(path), seeds, **options)
        except Exception as error:  # noqa: BLE001 - the tables are worth printing without it
            print(f"distillation FAILED: {type(error).__name__}: {error}", flush=True)
            return []

    def tools(self) -> dict[str, Any]:
        """Return the versions of everything, and how each tool was used."""
        mine = versions(Path(sys.executable).parent)
        kept = ("argosy", "torch", "onnxruntime", "openvino", "nncf", "torch-pruning", "onnx", "transformers")
        told = {OURS: {"versions": {n: mine[n] for n in kept if n in mine}, "note": "its search, nothing set by hand"}}
        return told | {
            name: {"versions": ready.versions, "note": ready.peer.note} for name, ready in self.ready.items()
        }


def options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(CASES), help="models, with commas (default: %(default)s)")
    parser.add_argument(
        "--peers", default=",".join(["argosy", *PEERS]), help="tools, with commas; none: argosy (default: %(default)s)"
    )
    parser.add_argument("--rounds", type=int, default=3, help="units of turns per model (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="models trained for one epoch, one round; writes nothing")
    parser.add_argument("--resume", action="store_true", help="let Argosy's search find its own earlier tries again")
    parser.add_argument(
        "--cache",
        type=Path,
        default=ROOT / ".bench" / "compression",
        help="environments, data, models (default: .bench/compression)",
    )
    asked = parser.parse_args()
    asked.only, asked.peers = ([word for word in text.split(",") if word] for text in (asked.only, asked.peers))
    known = [*CASES, *PEERS, OURS]
    if unknown := [w for w in asked.only if w not in CASES] + [w for w in asked.peers if w not in {*PEERS, OURS}]:
        parser.error(f"unknown: {', '.join(unknown)}; known are {', '.join(known)}")
    asked.ours = OURS in asked.peers
    asked.peers = [name for name in asked.peers if name != OURS]
    asked.is_kept = asked.ours and set(asked.peers) == set(PEERS) and not asked.quick
    if asked.quick:
        asked.rounds = 1
    return asked


def keep(bench: Bench, target: Path) -> str:
    """Write what was measured so far beside what `target` has of other models; return the report."""
    path = target / "compression.json"
    known = json.loads(path.read_text())["models"] if target == RESULTS and path.exists() else {}
    models = {name: found for name in CASES if (found := bench.models.get(name) or known.get(name))}
    run: dict[str, Any] = {"titles": TITLES, "models": models}
    run["targets"] = judge(run)
    text = report.markdown(run)
    target.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(run, indent=1, default=str) + "\n")
    (target / "compression.md").write_text(text)
    for name, model in bench.models.items():
        report.draw(name, model, TITLES, target / f"compression_{name}.svg")
    return text


def interrupted(number: int, _: FrameType | None) -> None:
    """End through the `finally` of whatever runs, so that no process is left."""
    sys.exit(128 + number)


def main() -> int:
    """Prepare, compress, judge, print, and keep the results of a complete run."""
    asked = options()
    signal.signal(signal.SIGTERM, interrupted)
    assert PEERS_FOLDER.is_dir()
    bench = Bench(asked)
    bench.prepare()
    target = RESULTS if asked.is_kept else bench.work / "report"
    text = ""
    for name in asked.only:
        bench.run(name)
        text = keep(bench, target)
    print("\n" + text)
    if not asked.is_kept:
        print(f"not all tools took part: benchmarks/results/ is left as it is; this run is in {target}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
