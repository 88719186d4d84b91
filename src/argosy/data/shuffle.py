"""Order by chance, the same on every machine and with every NumPy: NumPy's own generators may change their streams."""

import numpy as np
import numpy.typing as npt

_GOLDEN = 0x9E3779B97F4A7C15
_MASK = (1 << 64) - 1

Indices = npt.NDArray[np.int64]


def mix(x: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Return other numbers, of which every bit changes with odds of a half with any bit of `x`.

    SplitMix64's finalizer (Steele, Lea, Flood 2014).
    """
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permutation(n: int, *seeds: int) -> Indices:
    """Return 0..n-1 in an order that depends on `seeds` alone.

    >>> permutation(5, 0).tolist() == permutation(5, 0).tolist(), sorted(permutation(5, 1).tolist())
    (True, [0, 1, 2, 3, 4])
    """
    state = np.zeros(1, dtype=np.uint64)
    for seed in seeds:
        state = mix(state + np.uint64((seed * _GOLDEN + _GOLDEN) & _MASK))
    keys = mix(state + np.arange(1, n + 1, dtype=np.uint64) * np.uint64(_GOLDEN))
    return np.argsort(keys, kind="stable").astype(np.int64)
