"""How many replicas with how many threads do best on a machine: throughput first, then latency, within its memory."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from argosy.core.units import format_size, format_time
from argosy.serve.profile import Shape, shape_text

GATEWAY_S = 5e-5
"""CPU seconds a gateway spends on a small request. Measured on one 2-core machine: 0.03 to 0.06 ms."""
_NEAR_BEST = 0.95
"""A smaller number of replicas that reaches this part of the best rate is enough."""
_AS_FAST = 0.97
"""Ways to use the cores that differ by less differ by noise: then the latency of one row decides."""
_QUICKER = 0.75
"""A row must take at most this part of the time for latency to decide."""
_WORTH_ALL_CORES = 1.2
"""How much faster one replica must get by using all cores, where the user wants only one."""
_WORTH_SOLO = 1.2
"""How much faster a run that has the machine to itself must get by more threads, for a second engine in memory."""
_MOST_SOLO = 16
_MEMORY_PART = 0.5
"""Of the memory that is free, for all replicas of a version together."""
_MOST_REPLICAS = 64


class Choice(NamedTuple):
    """What was chosen, and why."""

    replicas: int
    threads: int
    alone: int
    most: int
    reasons: tuple[str, ...]


def shapes_to_try(cores: int) -> list[tuple[int, int]]:
    """Return (replicas, threads) that use all cores and are worth measuring, apart from one replica with one thread.

    >>> shapes_to_try(2), shapes_to_try(1), shapes_to_try(8)
    ([(2, 1), (1, 2)], [], [(8, 1), (1, 8), (4, 2)])
    """
    if cores == 1:
        return []
    found = [(cores, 1), (1, cores)]
    middle = 2 ** (math.ceil(math.log2(cores)) // 2)
    return found if middle in (1, cores) or cores < 4 else [*found, (cores // middle, middle)]


def solo_threads_to_try(cores: int, threads: int) -> list[int]:
    """Return numbers of threads for a run that has the machine to itself, where replicas have `threads`.

    >>> solo_threads_to_try(2, 1), solo_threads_to_try(6, 1), solo_threads_to_try(64, 4), solo_threads_to_try(2, 2)
    ([2], [2, 4, 6], [8, 16], [])
    """
    most = min(cores, _MOST_SOLO)
    powers = [2**n for n in range(1, most.bit_length()) if threads < 2**n <= most]
    return sorted({*powers, most}) if most > threads else []


def solo_choice(plain: Sequence[float], others: Mapping[int, Sequence[float]]) -> int:
    """Return the threads of a run that has the machine to itself; 1: not worth it.

    `plain` has the seconds of a row alone, at some lengths, in a replica as it is; `others` by threads. More threads
    must bring much at the middle length and hurt at none.

    >>> solo_choice([0.01, 0.02, 0.04], {2: [0.009, 0.012, 0.02], 4: [0.009, 0.0115, 0.015]})
    2
    >>> solo_choice([0.001, 0.02, 0.04], {2: [0.002, 0.012, 0.02]}), solo_choice([0.02], {})
    (1, 1)
    """
    best, gain = 1, _WORTH_SOLO
    for threads, seconds in sorted(others.items()):
        gains = [before / max(after, 1e-9) for before, after in zip(plain, seconds, strict=True)]
        if min(gains) >= 1 and gains[len(gains) // 2] >= gain:
            best, gain = threads, _WORTH_SOLO * gains[len(gains) // 2]
    return best


def replicas_that_fit(memory_bytes: int, free_bytes: int) -> int:
    """Return for how many replicas there is memory; the one that was measured is among them, so at least one."""
    if memory_bytes <= 0:
        return _MOST_REPLICAS
    return max(1, min(_MOST_REPLICAS, int(_MEMORY_PART * (free_bytes + memory_bytes) / memory_bytes)))


def useful_replicas(row_s: float, cores: int) -> int:
    """Return how many replicas of one thread a gateway on the same machine can keep busy.

    n replicas answer n / row_s rows a second, one gateway passes on 1 / GATEWAY_S, and all together have `cores`. The
    smallest number that comes near the best is enough.

    >>> useful_replicas(1e-6, 2), useful_replicas(5e-5, 2), useful_replicas(5e-3, 2), useful_replicas(5e-3, 8)
    (1, 1, 2, 8)
    """
    row_s = max(row_s, 1e-9)
    rates = [min(1 / GATEWAY_S, n / row_s, cores / (GATEWAY_S + row_s)) for n in range(1, cores + 1)]
    return next(n for n, rate in enumerate(rates, 1) if rate >= _NEAR_BEST * max(rates))


def tiny_choice(row_s: float, cores: int, most: int) -> Choice | None:
    """Return the choice where it needs no further measurement: one core, or a version so quick that one is enough."""
    if cores == 1:
        return Choice(1, 1, 1, most, ("this machine has one core, so one replica with one thread uses all of it",))
    if useful_replicas(row_s, cores) > 1:
        return None
    keeps_up = (
        f"a row takes {format_time(row_s)} of a replica, and the gateway spends about {format_time(GATEWAY_S)} on a "
        "request: one replica keeps up with it, and more would only take its cores"
    )
    return Choice(1, 1, 1, most, (keeps_up, "waking a second thread would take longer than a run"))


def choose(single: Shape, shapes: Sequence[Shape], *, cores: int, memory: tuple[int, int]) -> Choice:
    """Return how many replicas with how many threads to run.

    `single` is one replica with one thread, `shapes` the other ways that were measured, `memory` the bytes that one
    replica takes, and that are free beside it; ways for which that is too little are left out.
    """
    memory_bytes, free_bytes = memory
    most = replicas_that_fit(memory_bytes, free_bytes)
    useful = useful_replicas(1 / single.rows_s, cores)
    reasons: list[str] = []
    fitting: list[Shape] = [single]
    for shape in shapes:
        if shape.replicas > most:
            reasons.append(
                f"{shape.replicas} replicas of {format_size(memory_bytes)} each would take more than half of the "
                f"{format_size(free_bytes + memory_bytes)} of memory that are free"
            )
        elif shape.threads == 1 and shape.replicas > useful:
            # Between the sizes that were measured the rate grows evenly.
            part = useful / shape.replicas
            fitting.append(Shape(replicas=useful, threads=1, rows_s=part * shape.rows_s, row_s=shape.row_s))
            reasons.append(f"the gateway keeps {useful} replicas of such short runs busy, not {shape.replicas}")
        else:
            fitting.append(shape)
    best = max(fitting, key=lambda shape: shape.rows_s)
    near = [shape for shape in fitting if shape.rows_s >= _AS_FAST * best.rows_s]
    quickest = min(near, key=lambda shape: shape.row_s)
    chosen = quickest if quickest.row_s <= _QUICKER * best.row_s else min(near, key=lambda s: (s.threads, s.replicas))
    reasons = [_because(chosen, best, fitting), *reasons]
    alone = _alone(single, shapes)
    return Choice(chosen.replicas, chosen.threads, alone, most, tuple(reasons))


def _because(chosen: Shape, best: Shape, fitting: Sequence[Shape]) -> str:
    others = [shape for shape in fitting if shape is not chosen]
    if not others:
        return f"{_rate(chosen)}; there was nothing else to choose from"
    compared = " and ".join(_rate(shape) for shape in others)
    if chosen is best:
        return f"{_rate(chosen)}, against {compared}"
    return (
        f"{_rate(chosen)}, as many as {_rate(best)} up to noise, but a row takes {format_time(chosen.row_s)} "
        f"instead of {format_time(best.row_s)}"
    )


def _rate(shape: Shape) -> str:
    return f"{shape_text(shape.replicas, shape.threads)}: {shape.rows_s:.4g} rows/s"


def _alone(single: Shape, shapes: Sequence[Shape]) -> int:
    """Return how many threads one replica should have."""
    wide = max((shape for shape in shapes if shape.replicas == 1), key=lambda shape: shape.rows_s, default=single)
    return wide.threads if wide.rows_s >= _WORTH_ALL_CORES * single.rows_s else 1
