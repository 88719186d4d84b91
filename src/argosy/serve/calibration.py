"""A short measurement at load time: how many rows are worth running together, for this model on this machine."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from argosy.core.clock import Clock
from argosy.core.tensors import DATATYPES, Signature
from argosy.serve.engine import Arrays

MAX_BATCH = 128
# Doubling a batch must bring rows at least so much cheaper; less is noise, and larger batches only delay.
_WORTH = 0.95
# A run longer than this holds up whoever comes next more than it saves.
_MAX_RUN_S = 0.1
_FREE_SIZE = 8


def calibrate(
    compute: Callable[[Arrays], Any], signature: Signature, clock: Clock, *, budget_s: float = 0.2
) -> tuple[int, float]:
    """Return the most rows worth running together, and the seconds a run of them takes. Takes `budget_s` at most, or
    two runs if they are slower. 1 for a version that can't be batched or doesn't take made-up inputs.
    """
    begun = clock.monotonic()
    best, best_s = 1, 0.0
    rows = 1
    try:
        compute(samples(signature, 1))  # the first run allocates; its time says nothing
        while rows <= MAX_BATCH:
            run_s = _fastest(compute, samples(signature, rows), clock, until=begun + budget_s)
            if best_s and (run_s / rows > _WORTH * best_s / best or run_s > _MAX_RUN_S):
                break
            best, best_s = rows, run_s
            if not signature.is_batched or clock.monotonic() - begun + 2 * run_s > budget_s:
                break
            rows *= 2
    except Exception:  # noqa: BLE001 - a model may raise anything on zeros; real requests will tell
        return best, best_s
    return best, best_s


def _fastest(compute: Callable[[Arrays], Any], inputs: Arrays, clock: Clock, *, until: float) -> float:
    fastest = math.inf
    for _ in range(3):
        begun = clock.monotonic()
        compute(inputs)
        ended = clock.monotonic()
        fastest = min(fastest, ended - begun)
        if ended + fastest > until:
            break
    return fastest


def samples(signature: Signature, rows: int) -> Arrays:
    """Return made-up inputs: zeros and empty texts, free dimensions at 8."""
    found: Arrays = {}
    for spec in signature.inputs:
        shape = tuple(
            (rows if axis == 0 and signature.is_batched else _FREE_SIZE if axis else 1) if size == -1 else size
            for axis, size in enumerate(spec.shape)
        )
        if spec.datatype == "BYTES":
            found[spec.name] = np.full(shape, b"", dtype=object)
        else:
            found[spec.name] = np.zeros(shape, dtype=DATATYPES[spec.datatype][0])
    return found
