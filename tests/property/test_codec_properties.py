"""How much codecs lose at most, whatever the numbers are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from argosy.train.network.codecs import BlockInt8, Half, TopK

FINITE = st.floats(width=32, allow_nan=False, allow_infinity=False)
VALUES = st.integers(1, 700).flatmap(lambda count: arrays(np.float32, count, elements=FINITE))


def there_and_back(codec, values):
    data = np.empty(codec.size_bytes(values.size), np.uint8)
    codec.encode(values, data)
    found = np.empty_like(values)
    codec.decode(data, found)
    return found.astype(np.float64), values.astype(np.float64)


@given(values=VALUES)
@pytest.mark.capability("T5")
def test_half_precision_loses_at_most_its_rounding(values):
    found, exact = there_and_back(Half(), values)
    largest = np.abs(exact).max()
    # Numbers far below the largest fall into half precision's subnormal range, which has a fixed step; the last term
    # is float32's own: where all are subnormal numbers of it, a scale and its inverse have few bits.
    bound = np.maximum(np.abs(exact) * 2.0**-11, max(largest * 2.0**-39, 2.0**-140))
    assert (np.abs(found - exact) <= bound).all()


@given(values=VALUES, block=st.sampled_from([16, 100, 256, 512]))
@pytest.mark.capability("T5")
def test_int8_loses_at_most_half_a_step_of_its_block(values, block):
    found, exact = there_and_back(BlockInt8(block), values)
    for start in range(0, values.size, block):
        part = slice(start, start + block)
        largest = np.abs(exact[part]).max()
        bound = largest / 254 * (1 + 1e-5) if largest >= 2.0**-119 else largest
        assert np.abs(found[part] - exact[part]).max() <= bound


@given(values=VALUES, seed=st.integers(0, 100))
def test_int8_by_chance_loses_at_most_a_step_of_its_block(values, seed):
    found, exact = there_and_back(BlockInt8(512, generator=np.random.default_rng(seed)), values)
    for start in range(0, values.size, 512):
        part = slice(start, start + 512)
        largest = np.abs(exact[part]).max()
        bound = largest / 127 * (1 + 1e-5) if largest >= 2.0**-119 else largest
        assert np.abs(found[part] - exact[part]).max() <= bound


@settings(max_examples=5)
@given(seed=st.integers(0, 1000))
def test_int8_by_chance_is_right_on_average(seed):
    values = np.random.default_rng(seed).uniform(-1, 1, 64).astype(np.float32)
    codec = BlockInt8(64, generator=np.random.default_rng(seed + 1))
    mean = np.mean([there_and_back(codec, values)[0] for _ in range(300)], axis=0)
    # A step is 1/127; its standard error over 300 tries is below 1/127/2/sqrt(300), and 6 of them hold for all.
    assert np.abs(mean - values).max() < 6 / 127 / 2 / np.sqrt(300)


@given(values=VALUES, share=st.sampled_from([0.01, 0.1, 0.7]))
def test_top_k_keeps_the_largest_as_they_are(values, share):
    found, exact = there_and_back(TopK(share), values)
    kept = max(1, round(share * values.size))
    smallest_kept = np.sort(np.abs(exact))[-kept]
    assert ((found == exact) | (found == 0)).all()
    assert (found[np.abs(exact) > smallest_kept] == exact[np.abs(exact) > smallest_kept]).all()
    assert np.count_nonzero(found) <= kept
