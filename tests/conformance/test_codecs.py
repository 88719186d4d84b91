"""What every codec keeps, checked against each of them."""

import numpy as np
import pytest

from argosy.core.clock import FakeClock
from argosy.core.errors import InvalidInput
from argosy.train.network.codec import CODECS, MAX_COUNT
from argosy.train.network.codecs import BlockInt8, Half, TopK, coding_s

KINDS = {
    "fp16": Half,
    "int8": BlockInt8,
    "int8 in large blocks": lambda: BlockInt8(1024),
    "int8 by chance": lambda: BlockInt8(256, generator=np.random.default_rng(1)),
    "top-k": TopK,
    "top-k of all": lambda: TopK(1.0),
}


@pytest.fixture(params=list(KINDS))
def make(request):
    return KINDS[request.param]


def there_and_back(codec, values):
    data = np.full(codec.size_bytes(values.size), 0xAA, np.uint8)
    before = values.copy()
    codec.encode(values, data)
    assert values.tobytes() == before.tobytes(), "encoding leaves the values alone"
    found = np.full(values.size, np.nan, np.float32)
    codec.decode(data, found)
    return data, found


@pytest.mark.parametrize("count", [0, 1, 2, 255, 256, 257, 1000, 65_000, MAX_COUNT])
def test_any_number_of_values_comes_back_as_many_and_finite(make, count):
    values = np.random.default_rng(count).normal(size=count).astype(np.float32)
    _, found = there_and_back(make(), values)
    assert np.isfinite(found).all()
    assert np.abs(found - values).max(initial=0.0) <= np.abs(values).max(initial=0.0)


def test_zeros_come_back_as_zeros(make):
    _, found = there_and_back(make(), np.zeros(3000, np.float32))
    assert not found.any()


@pytest.mark.parametrize("size", [1e-45, 1e-40, 1.2e-38, 1e-20, 1.0, 1e20, 3.4028235e38])
def test_values_of_any_size_come_back_finite_and_no_larger_than_the_largest(make, size):
    values = (np.random.default_rng(5).uniform(-1, 1, 2000) * size).astype(np.float32)
    values[77] = size
    _, found = there_and_back(make(), values)
    assert np.isfinite(found).all()
    # Half precision may round the largest up, too.
    assert float(np.abs(found).max()) <= float(np.abs(values).max()) * (1 + 2.0**-11)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 700, 2999])
def test_values_that_are_not_finite_are_refused(make, bad, place):
    values = np.ones(3000, np.float32)
    values[place] = bad
    codec = make()
    with pytest.raises(InvalidInput, match="infinite or not a number") as caught:
        codec.encode(values, np.empty(codec.size_bytes(3000), np.uint8))
    assert caught.value.code == "not_finite"


def test_decoding_gives_the_same_bits_in_another_object(make):
    values = np.random.default_rng(9).normal(size=5000).astype(np.float32)
    data, found = there_and_back(make(), values)
    again = np.empty(5000, np.float32)
    make().decode(data, again)
    assert again.tobytes() == found.tobytes()


def test_the_size_depends_on_the_count_alone_and_adds_up(make):
    codec = make()
    sizes = [codec.size_bytes(count) for count in range(3000)]
    assert sizes[0] == 0
    assert sizes == sorted(sizes)


def test_with_error_feedback_the_mean_of_what_comes_is_the_mean_of_what_was_sent(make):
    values = np.random.default_rng(2).normal(size=4000).astype(np.float32)
    codec, error, total = make(), np.zeros(4000, np.float32), np.zeros(4000)
    for _ in range(400):
        wanted = values + error
        _, found = there_and_back(codec, wanted)
        error = wanted - found
        total += found
    assert np.abs(total / 400 - values).mean() < 0.15


def test_what_coding_costs_is_found_in_a_moment(make):
    clock = FakeClock()

    class Slow:
        """The codec on a machine where each number takes a nanosecond each way."""

        def __init__(self, codec):
            self.codec, self.size_bytes = codec, codec.size_bytes

        def encode(self, values, data):
            clock.advance(values.size * 1e-9)
            self.codec.encode(values, data)

        def decode(self, data, found):
            clock.advance(found.size * 1e-9)
            self.codec.decode(data, found)

    assert coding_s(Slow(make()), clock=clock) == pytest.approx(2e-9)
    assert 0.001 < clock.monotonic() < 0.05


def test_ranks_can_tell_codecs_and_settings_by_their_names():
    names = [make().name for make in (Half, BlockInt8, lambda: BlockInt8(256), TopK, lambda: TopK(0.5))]
    assert len(set(names)) == len(names)


def test_the_table_makes_every_codec_with_its_defaults():
    for name in CODECS.names():
        codec = CODECS.load(name)()
        assert codec.name.partition(":")[0] == name


@pytest.mark.parametrize(
    "make_it", [lambda: BlockInt8(8), lambda: BlockInt8(99.5), lambda: TopK(0.0), lambda: TopK(1.5)]
)
def test_settings_that_make_no_sense_are_refused(make_it):
    with pytest.raises(InvalidInput):
        make_it()
