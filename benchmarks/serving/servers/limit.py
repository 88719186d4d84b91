"""The limit: the engine alone, without any server, in processes that each answer one request after the other.

`python limit.py` with `seconds` in BENCH prints one JSON line: how many requests were answered, how long they took, how
long the model took to load. Without `seconds` it writes the right answers of all requests to `answers.npy` in the
model's folder.
"""

import json
import multiprocessing
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from engine import Engine, Input, settings


def inputs(folder: Path) -> list[Input]:
    """Return the requests of a model, as `serving/models.py` wrote them."""
    if (folder / "inputs.npy").exists():
        return [image.tobytes() for image in np.load(folder / "inputs.npy")]
    return json.loads((folder / "inputs.json").read_text())


def caller(asked: dict[str, Any], ready: Any, told: Any) -> None:
    """Answer in a loop from the common start until `seconds` are over; tell how long each request took."""
    began = time.perf_counter()
    engine = Engine(asked["model"], asked["folder"], asked["threads"])
    load_s = time.perf_counter() - began
    items = inputs(Path(asked["folder"]))
    for item in items[:3]:
        engine([item])
    ready.wait()
    took = []
    cpu_s = time.process_time()
    now = time.perf_counter()
    end = now + asked["seconds"]
    while now < end:
        engine([items[len(took) % len(items)]])
        after = time.perf_counter()
        took.append(after - now)
        now = after
    told.put((load_s, asked["seconds"] + now - end, time.process_time() - cpu_s, np.array(took)))


def main() -> None:
    """See the head of this file."""
    began = time.monotonic()
    asked = settings()
    folder = Path(asked["folder"])
    if "seconds" not in asked:
        engine = Engine(asked["model"], asked["folder"], 1)
        np.save(folder / "answers.npy", np.stack([engine([item])[0] for item in inputs(folder)]))
        return
    spawn = multiprocessing.get_context("spawn")
    ready, told = spawn.Barrier(asked["workers"] + 1), spawn.Queue()
    callers = [spawn.Process(target=caller, args=(asked, ready, told)) for _ in range(asked["workers"])]
    for process in callers:
        process.start()
    ready.wait(60)
    found = [told.get(timeout=asked["seconds"] + 60) for _ in callers]
    took_ms = np.concatenate([took for _, _, _, took in found]) * 1e3
    told_of = {
        "load_s": max(load_s for load_s, _, _, _ in found),
        "per_s": sum(len(took) / seconds for _, seconds, _, took in found),
        "cpu_ms": sum(cpu_s for _, _, cpu_s, _ in found) * 1e3 / len(took_ms),
        "p50_ms": float(np.percentile(took_ms, 50)),
        "p99_ms": float(np.percentile(took_ms, 99)),
        "all_s": time.monotonic() - began,
    }
    print(json.dumps(told_of), flush=True)
    sys.stdin.readline()  # until its memory is read
    for process in callers:
        process.join()


if __name__ == "__main__":
    main()
