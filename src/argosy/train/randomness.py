"""Randomness that depends on the seed, the step and the rank alone, so that no checkpoint needs a generator's state."""

import contextlib
import hashlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed what a model may draw from: the global generators of torch, Python and NumPy.

    About 15 us. Not torch.manual_seed, which asks every kind of device and takes ten times as long.
    """
    mixed = int.from_bytes(hashlib.blake2b(f"{seed}/{step}/{rank}".encode(), digest_size=8).digest())
    torch.default_generator.manual_seed(mixed)
    random.seed(mixed)
    np.random.seed(mixed & 0xFFFFFFFF)  # noqa: NPY002 - the global generator is what models' own code uses


@contextlib.contextmanager
def own_randomness() -> Iterator[None]:
    """Put the global generators back as they were at the end."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - as above
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002 - as above
