"""What this machine has for jobs: all of it, less what its endpoints need."""

import math
import os
from collections.abc import Iterable
from pathlib import Path

from argosy.cluster.launcher import ProcessInfo
from argosy.core.machine import total_memory, usable_cores
from argosy.operate.desired import Desired
from argosy.operate.jobs.schedule import Resources
from argosy.operate.layout import wanted_replicas
from argosy.operate.replicas import key_of, version_key

REPLICA_BYTES = 300_000_000
"""Counted for a replica whose size nobody has said or seen yet: Python, an engine, and a model of some size."""
GROWTH = 1.25
"""A replica is counted so much larger than it is: its next batch may be the largest so far."""
_RESERVE, _MOST_RESERVE = 0.1, 2_000_000_000
_ROOT = Path("/")


def machine_resources(root: Path = _ROOT) -> Resources:
    """Return what jobs could have if nothing was served: a tenth of the memory (at most 2 GB) stays with the system."""
    memory = total_memory(root)
    reserve = min(int(memory * _RESERVE), _MOST_RESERVE)
    return Resources(cpus=usable_cores(root), memory_bytes=memory - reserve, gpus=count_gpus(root))


def count_gpus(root: Path = _ROOT) -> int:
    """Return how many GPUs NVIDIA's driver knows on this machine."""
    try:
        return sum(1 for entry in (root / "proc/driver/nvidia/gpus").iterdir() if entry.is_dir())
    except OSError:
        return 0


def endpoint_bytes(desired: Desired, processes: Iterable[ProcessInfo]) -> int:
    """Return the memory that endpoints need: that of their replicas, those that are only wanted yet included."""
    living: dict[str, list[int]] = {}
    for info in processes:
        if info.role == "replica" and info.alive:
            living.setdefault(key_of(info.name), []).append(info.memory_bytes)
    total = 0
    if desired.is_running:
        for digest, want in wanted_replicas(desired.endpoints.values()).items():
            sizes = living.pop(version_key(digest), [])
            one = want.memory_bytes or math.ceil(max(sizes, default=0) * GROWTH) or REPLICA_BYTES
            total += one * max(want.replicas, len(sizes))
    # Those that nobody wants any more have their memory until they are gone.
    return total + sum(sum(sizes) for sizes in living.values())


def jobs_capacity(machine: Resources, needed_bytes: int) -> Resources:
    """Return what is left for jobs beside endpoints.

    Cores are not taken away from jobs: they run at a lower priority of the kernel's, so that replicas go first.
    """
    return Resources(machine.cpus, max(0, machine.memory_bytes - needed_bytes), machine.gpus)


def choose_cores(count: int, taken: Iterable[Iterable[int]]) -> tuple[int, ...]:
    """Return the cores that a job is to keep to, those that the fewest other jobs keep to first."""
    cores = sorted(os.sched_getaffinity(0))
    uses = dict.fromkeys(cores, 0)
    for others in taken:
        for core in others:
            if core in uses:
                uses[core] += 1
    return tuple(sorted(sorted(cores, key=lambda core: (uses[core], core))[:count]))


def choose_gpus(count: int, taken: Iterable[Iterable[int]], total: int) -> tuple[int, ...]:
    """Return the numbers of the GPUs that a job gets; no two jobs get the same."""
    used = {gpu for others in taken for gpu in others}
    return tuple(gpu for gpu in range(total) if gpu not in used)[:count]
