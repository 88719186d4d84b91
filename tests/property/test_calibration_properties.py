"""Whatever a version costs, no batch that calibration allows runs slower than its rows one by one."""

import math

from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.serve.calibration import HOP_S
from synthetic import measured, padded, rows

# Not a promise about noise of any size, but up to it the figures below must hold.
TOLERANCE = {0.0: 1e-9, 0.1: 0.03, 0.3: 0.10}


@st.composite
def costs(draw):
    """A cost by rows that never falls: fixed part, part per row, blocks of the kernel, and a cache that overflows."""
    fixed = draw(st.floats(0, 2))
    block = draw(st.sampled_from([1, 1, 2, 3, 4, 8, 16]))
    power = draw(st.floats(0.6, 1.2))
    cliff = draw(st.integers(2, 64))
    beyond = draw(st.floats(0, 3))
    scale = draw(st.sampled_from([1e-5, 1e-4, 1e-3, 1e-2]))

    def cost(n):
        rounded = n if n == 1 else block * math.ceil(n / block)
        return scale * (fixed + rounded**power + beyond * max(0, n - cliff))

    return cost


@settings(max_examples=300, deadline=None)
@given(costs(), st.sampled_from([0.0, 0.1, 0.3]), st.integers(0, 1000), st.sampled_from([0.2, 1.5, 10.0]))
def test_no_allowed_batch_is_slower_than_its_rows_one_by_one(cost, noise, seed, budget_s):
    found, _ = measured(rows(cost), noise=noise, seed=seed, budget_s=budget_s)
    for n in range(2, found.batching.max_batch + 1):
        assert cost(n) + HOP_S <= n * (cost(1) + HOP_S) * (1 + TOLERANCE[noise])


@st.composite
def texts(draw):
    """A cost by padded bytes, which grow dearer beyond what a cache holds."""
    fixed_s, byte_s = draw(st.floats(0, 5e-3)), draw(st.floats(1e-7, 1e-4))
    return padded(fixed_s, byte_s, cache_bytes=draw(st.integers(50, 5000)), slower=draw(st.floats(1.0, 3.0)))


@settings(max_examples=150, deadline=None)
@given(texts(), st.sampled_from([0.0, 0.1]), st.integers(0, 1000))
def test_no_allowed_batch_of_texts_is_slower_padding_included(cost, noise, seed):
    found, _ = measured(cost, lengths=(48, 200, 720), takes_texts=True, budget_s=3.0, noise=noise, seed=seed)
    batching = found.batching
    for length in (48, 200, 720):
        bound = min(batching.max_batch, batching.max_bytes // length) if batching.max_bytes else batching.max_batch
        for n in range(2, bound + 1):
            alone = n * (cost((length,)) + HOP_S)
            assert cost((length,) * n) + HOP_S <= alone * (1 + TOLERANCE[noise])
            # All but one are padded by as much as may be.
            short = max(1, math.ceil(length - batching.spare))
            mixed = cost((length,)) + (n - 1) * cost((short,)) + n * HOP_S
            assert cost((length,) * n) + HOP_S <= mixed * (1 + 2 * TOLERANCE[noise])
