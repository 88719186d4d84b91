"""Samples, batches and answers as files, for the jobs of every tool. Standard library and NumPy only."""

import json
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]
Specs = list[dict[str, Any]]

# A free dimension other than the batch gets this size in generated samples.
FREE_SIZE = 8
_MAX_ELEMENTS = 2**24
_MAX_TRACE_BYTES = 2**30


class WrongSamples(ValueError):
    """Samples that a model doesn't take, or that can't be made for it; told to the user as they are."""

    code = "samples_wrong"


def describe(name: str, shape: Iterable[Any], dtype: str) -> dict[str, Any]:
    """Return an input or output as plain values; whatever is no positive number is a free dimension, -1."""
    sizes = [int(size) if isinstance(size, (int, np.integer)) and size >= 0 else -1 for size in shape]
    return {"name": name, "shape": sizes, "dtype": dtype}


def samples_for(config: dict[str, Any], inputs: Specs, *, highest: int = 2) -> Arrays:
    """Return the samples a check runs on: those given, by name or by position, or generated ones.

    They are also written to `samples.npz` of the work folder. Half of the generated rows are uniform in [0, 1), half
    normal; whole numbers are below `highest`. A frozen batch size sets the number of rows.
    """
    given = config.get("samples")
    if given:
        found = _named(load(Path(given)), inputs)
    else:
        random = np.random.default_rng(int(config.get("seed", 0)))
        found = {one["name"]: _values(one, int(config.get("rows", 8)), random, highest) for one in inputs}
    size = inputs[0]["shape"][0] if inputs and inputs[0]["shape"] else -1
    if size > 0:
        found = {name: array[:size] for name, array in found.items()}
    save(Path(config["folder"]) / "samples.npz", found)
    return found


def _named(given: Arrays, inputs: Specs) -> Arrays:
    names = [one["name"] for one in inputs]
    if set(given) != set(names):
        if len(given) != len(names):
            raise WrongSamples(f"the samples hold {', '.join(given) or 'nothing'}; the model takes {', '.join(names)}")
        given = dict(zip(names, given.values(), strict=True))
    wanted = {one["name"]: one["dtype"] for one in inputs}
    found = {}
    for name in names:
        dtype = "float32" if wanted[name] == "bfloat16" else wanted[name]
        found[name] = given[name] if dtype == "str" else np.ascontiguousarray(given[name].astype(dtype))
    return found


def _values(one: dict[str, Any], rows: int, random: np.random.Generator, highest: int) -> np.ndarray:
    shape = [size if size >= 0 else (rows if at == 0 else FREE_SIZE) for at, size in enumerate(one["shape"])]
    # Python's integers, because a hostile shape overflows NumPy's.
    if math.prod(shape) > _MAX_ELEMENTS:
        raise ValueError(
            f"input '{one['name']}' has {math.prod(shape)} elements; at most {_MAX_ELEMENTS} are generated"
        )
    dtype = one["dtype"]
    if dtype == "str":
        return np.full(shape, "text")
    if not dtype.startswith(("float", "bfloat")):
        return random.integers(0, 2 if dtype == "bool" else highest, shape).astype(dtype)
    found = random.random(shape)
    half = len(found) // 2 if shape else 0
    if half:
        found[half:] = random.standard_normal(found[half:].shape)
    return found.astype("float32" if dtype == "bfloat16" else dtype)


def answer(config: dict[str, Any], samples: Arrays, run: Callable[[Arrays], Arrays], cuts: Sequence[Any] = ()) -> None:
    """Write what `run` gives for each batch of rows in `cuts` (or for all rows) as `answers-0.npz` and so on."""
    place = Path(config["answers"])
    place.mkdir(parents=True, exist_ok=True)
    count = len(next(iter(samples.values())))
    for number, (start, stop) in enumerate(cuts or [(0, count)]):
        found = run({name: np.ascontiguousarray(array[start:stop]) for name, array in samples.items()})
        save(place / f"answers-{number}.npz", found)


def save(path: Path, found: Arrays) -> None:
    """Write arrays in the given order, without anything that only a pickle could hold."""
    plain: dict[str, Any] = {f"{at:05d}": _plain(np.asarray(array)) for at, array in enumerate(found.values())}
    plain["names"] = np.array(list(found), dtype=str)
    np.savez(path, allow_pickle=False, **plain)


def load(path: Path) -> Arrays:
    """Read what `save` wrote, as data only."""
    with np.load(path, allow_pickle=False) as archive:
        return {str(name): archive[f"{at:05d}"] for at, name in enumerate(archive["names"])}


def _plain(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "O":
        return array.astype(str)
    # What NumPy itself doesn't know (bfloat16 and the like) goes as float32.
    return array.astype(np.float32) if array.dtype.kind == "V" or array.dtype.name == "bfloat16" else array


class Trace:
    """Every step of one run in order: what it took, and the array it gave. What grows beyond 1 GiB is left out."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.arrays: Arrays = {}
        self._left = _MAX_TRACE_BYTES

    def add(self, layer: str, kind: str, takes: Sequence[str], gives: str, array: Any) -> None:
        """Note that `layer` made the value `gives` of the values `takes`."""
        number = len(self.steps)
        self.steps.append({"layer": layer, "kind": kind, "takes": list(takes), "gives": gives})
        self._left -= 0 if array is None else array.nbytes
        if array is not None and self._left > 0:
            self.arrays[str(number)] = np.asarray(array)

    def write(self, folder: Path) -> None:
        """Write `trace.json` and `trace.npz`."""
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "trace.json").write_text(json.dumps(self.steps))
        save(folder / "trace.npz", self.arrays)
