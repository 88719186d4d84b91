"""One model in a process of its own, run on request: `python judge_server.py RUNTIME FILE THREADS [LOADER MODULE]`.

Reads one JSON command per line and answers with one. Every contender is run by this file, in its own environment; so
what differs between two of them is the model and its runtime.
"""

import importlib
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from given import Arrays, answers, trimmed

LONG_S = 0.5
Run = Callable[[Arrays], np.ndarray]


def onnxruntime(path: Path, threads: int) -> Run:
    """As Argosy and most users run it: all graph optimizations, so many threads."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    output = session.get_outputs()[0].name
    names = {given.name for given in session.get_inputs()}
    return lambda inputs: session.run([output], {name: inputs[name] for name in names})[0]


def openvino(path: Path, threads: int, precision: str) -> Run:
    """For the shortest time of one request; `precision` is what it may compute in where the model says float32."""
    import openvino as ov

    core = ov.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    if precision:
        settings["INFERENCE_PRECISION_HINT"] = precision
    compiled = core.compile_model(core.read_model(str(path)), "CPU", settings)
    names = [given.get_any_name() for given in compiled.inputs]
    request = compiled.create_infer_request()

    def run(inputs: Arrays) -> np.ndarray:
        found = request.infer({name: inputs[name] for name in names}, share_inputs=True)
        return found[0]

    return run


def torch(path: Path, threads: int, loader: str, module: str) -> Run:
    """As the peer's own `loader` makes it ready."""
    import torch as library

    library.set_num_threads(threads)
    source, _, function = loader.partition(":")
    ready = getattr(importlib.import_module(source), function)(path, json.loads(Path(module).read_text()))
    order = ("image", "input_ids", "attention_mask")

    def run(inputs: Arrays) -> np.ndarray:
        named = [library.from_numpy(inputs[name]) for name in order if name in inputs]
        with library.inference_mode():
            return ready(*named).float().numpy()

    return run


class Feeds:
    """Batches that stand for the traffic: for texts short and long ones."""

    def __init__(self, path: Path) -> None:
        with np.load(path, allow_pickle=False) as found:
            self.inputs = {name: found[name] for name in found.files if name != "y"}

    def of(self, size: int) -> list[Arrays]:
        """Return batches of this size; texts of a batch are of like lengths, as a server that batches sorts them."""
        count = len(next(iter(self.inputs.values())))
        rows = np.arange(count)
        if "attention_mask" in self.inputs:
            # A regular sample of all lengths, the shortest and the longest among them.
            order = np.argsort(self.inputs["attention_mask"].sum(axis=1), kind="stable")
            rows = order[np.linspace(0, count - 1, 64).astype(int)] if size > 1 else order[:: max(1, count // 24)]
        else:
            rows = rows[: 8 * size]
        chosen = [rows[at : at + size] for at in range(0, len(rows) - size + 1, size)]
        return [trimmed({name: array[part] for name, array in self.inputs.items()}) for part in chosen]


def turn(run: Run, batches: list[Arrays], cycles: int) -> dict:
    """Run all batches so many times; return the time of each call and the processor time of all together."""
    times = []
    cpu = time.process_time()
    begun = time.perf_counter()
    for _ in range(cycles):
        for batch in batches:
            before = time.perf_counter()
            run(batch)
            times.append(time.perf_counter() - before)
    return {"times": times, "wall_s": time.perf_counter() - begun, "cpu_s": time.process_time() - cpu}


def main() -> None:
    """Load, say so, and obey until the input ends."""
    # Libraries print to standard output when they like; the answers need a channel of their own.
    channel = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    runtime, path, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    loader, module = [*sys.argv[4:], "", ""][:2]
    try:
        if runtime == "onnxruntime":
            run = onnxruntime(path, threads)
        elif runtime == "openvino":
            run = openvino(path, threads, loader)
        else:
            run = torch(path, threads, loader, module)
    except Exception as error:  # noqa: BLE001 - told to the judge
        channel.write(json.dumps({"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}) + "\n")
        return
    channel.write(json.dumps({"ready": True}) + "\n")
    feeds: dict[int, list[Arrays]] = {}
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            if asked["do"] == "answers":
                inputs = Feeds(Path(asked["inputs"])).inputs
                np.save(asked["to"], answers(run, inputs))
                told = {}
            elif asked["do"] == "warm":
                feeds[asked["batch"]] = Feeds(Path(asked["inputs"])).of(asked["batch"])
                for _ in range(3):
                    told = {"cycle_s": turn(run, feeds[asked["batch"]], 1)["wall_s"]}
                    # What takes so long has little to gain by more warming up.
                    if told["cycle_s"] > LONG_S:
                        break
            else:
                told = turn(run, feeds[asked["batch"]], asked["cycles"])
                told["samples"] = asked["cycles"] * len(feeds[asked["batch"]]) * asked["batch"]
        except Exception as error:  # noqa: BLE001 - told to the judge
            told = {"failed": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
        channel.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
