"""Does serving keep its promises while things go wrong? One line per promise, from a real deployment.

    python benchmarks/faults.py [--only PART] [--lock FILE]     writes results/faults.{json,md}

Deployments are made by the installed command in homes of their own. Clients are processes of their own; they check
every answer by its value and measure from the moment a request was due. `--lock` takes a file's lock for each piece
that needs a quiet machine, so that several people can measure on one.
"""

import argparse
import contextlib
import fcntl
import importlib
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

from faultlab.report import MISSES, Line, write

PARTS = {
    "changes": "20 version changes under HTTP and gRPC load, a third of them to versions that fail to start",
    "decisions": "a verdict, a return by hand, a version that fails everywhere: how soon it holds",
    "kills": "the busiest replica killed 50 times and frozen 10 times",
    "overload": "an open loop at 1x to 10x of the capacity",
    "slow_clients": "500 slow connections of four kinds, and readers that never read",
    "sharing": "clients that cancel, and equal inputs to two versions",
    "soak": "five minutes of kills and version changes: memory, descriptors, threads",
}
RESULTS = Path(__file__).parent / "results"


def quiet_by(path: str) -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which this process alone measures, if a lock was named."""

    @contextlib.contextmanager
    def quiet() -> Iterator[None]:
        if not path:
            yield
            return
        with Path(path).open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    return quiet


def main() -> int:
    """Run the parts asked for; the exit code says whether every promise that can be measured holds."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help=f"parts, with commas between: {', '.join(PARTS)}")
    parser.add_argument("--lock", default="", help="a file whose lock is held while measuring")
    parser.add_argument("--results", type=Path, default=RESULTS, help="where to write the tables")
    asked = parser.parse_args()
    chosen = [name for name in asked.only.split(",") if name] or list(PARTS)
    unknown = [name for name in chosen if name not in PARTS]
    if unknown:
        parser.error(f"there is no part {unknown[0]!r}; the parts are: {', '.join(PARTS)}")
    # A deployment is taken down on the way out.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))
    found: list[Line] = []
    for name in chosen:
        print(f"{name}: {PARTS[name]}", flush=True)
        begun = time.monotonic()
        lines = importlib.import_module(f"faultlab.{name}").run(quiet_by(asked.lock))
        print(f"  {time.monotonic() - begun:.0f} s", flush=True)
        write(asked.results, name, lines, f"python benchmarks/faults.py --only {name}")
        found += lines
    missed = sum(line.verdict == MISSES for line in found)
    print(f"{len(found)} lines, {missed} missed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
