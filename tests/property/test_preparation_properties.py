import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from argosy.data.config import DataConfig
from argosy.data.dataset import batches
from argosy.data.fit import fit_preparation, raw_inputs
from argosy.data.prepare import apply, apply_finish, finish_steps, steps_from_plain, steps_to_plain
from argosy.data.shuffle import permutation
from argosy.data.split import split_rows, strata_of_numbers

numbers = st.floats(width=64, allow_nan=True, allow_infinity=True)
words = st.one_of(st.none(), st.text(max_size=4), st.sampled_from(["red", "blue", " red", "grün", "7"]))
rows = st.integers(2, 12)
FEW = settings(max_examples=60, deadline=None)


@st.composite
def tables(draw):
    n = draw(rows)
    columns = {}
    for place in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["float", "int", "bool", "text", "date"]))
        name = f"{kind}-{place}"
        if kind == "float":
            columns[name] = draw(hnp.arrays(np.float64, n, elements=numbers))
        elif kind == "int":
            columns[name] = draw(hnp.arrays(np.int64, n, elements=st.integers(-(2**40), 2**40)))
        elif kind == "bool":
            columns[name] = draw(hnp.arrays(np.bool_, n))
        elif kind == "text":
            columns[name] = np.array(draw(st.lists(words, min_size=n, max_size=n)), dtype=object)
        else:
            seconds = draw(hnp.arrays(np.int64, n, elements=st.integers(-(10**9), 10**10)))
            columns[name] = seconds.astype("datetime64[s]").astype("datetime64[us]")
    return columns


@pytest.mark.capability("D2")
@FEW
@given(tables(), st.sampled_from([None, ["standardize"], ["minmax"], ["impute"], []]))
def test_a_batch_of_n_is_n_batches_of_one_bit_for_bit_and_survives_json(columns, prepare):
    steps, specs = fit_preparation(DataConfig(train="x", prepare=prepare, columns=list(columns)), columns)
    raw = raw_inputs(specs, columns)
    x = apply(steps, raw)["x"]
    assert x.dtype == np.float32
    assert np.isfinite(x).all()
    served = steps_from_plain(json.loads(json.dumps(steps_to_plain(steps))))
    assert served == steps
    alone = [apply(served, {name: array[row : row + 1] for name, array in raw.items()})["x"] for row in range(len(x))]
    assert np.concatenate(alone).tobytes() == x.tobytes()


@pytest.mark.capability("D2")
@FEW
@given(st.integers(1, 9), st.integers(2, 40), st.integers(0, 2**32))
def test_answers_of_a_batch_are_the_answers_one_by_one_bit_for_bit(n, classes, seed):
    logits = np.random.default_rng(seed).normal(0, 8, (n, classes)).astype(np.float32)
    steps = finish_steps("classification", [str(k) for k in range(classes)])
    together = apply_finish(steps, {"logits": logits})
    # A column-major array, as some runtimes give, must not be summed in another order.
    turned = apply_finish(steps, {"logits": np.asfortranarray(logits)})
    for row in range(n):
        alone = apply_finish(steps, {"logits": logits[row : row + 1]})
        assert alone["probabilities"].tobytes() == together["probabilities"][row : row + 1].tobytes()
        assert alone["label"][0] == together["label"][row]
    assert turned["probabilities"].tobytes() == together["probabilities"].tobytes()


@FEW
@given(
    st.lists(st.integers(0, 5), min_size=12, max_size=200),
    st.floats(0.1, 0.4),
    st.floats(0.1, 0.4),
    st.integers(0, 1000),
)
def test_parts_are_disjoint_cover_all_rows_and_keep_each_class_to_its_share(classes, validation, test, seed):
    y = np.array(classes)
    parts = split_rows(y, validation=validation, test=test, seed=seed, rare_in_train=True)
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(len(y)))
    assert set(y[parts["train"]]) == set(y)
    again = split_rows(y, validation=validation, test=test, seed=seed, rare_in_train=True)
    assert all(np.array_equal(parts[name], again[name]) for name in parts)
    plain = split_rows(y, validation=validation, test=test, seed=seed)
    if len(plain["train"]) >= len(set(classes)):  # else train can only grow
        assert [len(rows) for rows in plain.values()] == [len(rows) for rows in parts.values()]
    for k in set(classes):
        assert abs(int(np.sum(y[plain["test"]] == k)) - test * classes.count(k)) <= 1


@FEW
@given(st.integers(0, 200), st.integers(1, 50), st.integers(1, 7), st.integers(0, 9), st.integers(0, 9))
def test_slices_of_all_ranks_put_together_are_the_global_batches(n, batch_size, world_size, seed, epoch):
    whole = list(batches(n, batch_size, seed=seed, epoch=epoch))
    ranks = [
        list(batches(n, batch_size, seed=seed, epoch=epoch, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert {len(found) for found in ranks} == {len(whole)}
    for step, batch in enumerate(whole):
        slices = [found[step] for found in ranks]
        assert np.concatenate(slices).tolist() == batch.tolist()
        assert max(map(len, slices)) - min(map(len, slices)) <= 1
    assert sorted(np.concatenate([np.empty(0, np.int64), *whole]).tolist()) == list(range(n))


@FEW
@given(st.integers(0, 300), st.integers(0, 2**63), st.integers(0, 1000))
def test_a_permutation_holds_every_number_once(n, seed, epoch):
    assert sorted(permutation(n, seed, epoch).tolist()) == list(range(n))


def test_orders_stay_the_same_for_ever():
    assert permutation(8, 0).tolist() == FROZEN[0]
    assert permutation(8, 7, 3).tolist() == FROZEN[1]


FROZEN = ([5, 7, 2, 0, 3, 1, 6, 4], [0, 2, 5, 1, 3, 4, 7, 6])


def test_seeds_and_epochs_give_different_orders():
    orders = {tuple(permutation(30, seed, epoch).tolist()) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25


def test_every_place_is_reached_about_equally_often():
    first = np.bincount([permutation(10, seed)[0] for seed in range(5000)], minlength=10)
    # Binomial(5000, 0.1): 500 with deviation 21; five deviations.
    assert np.abs(first - 500).max() < 107


@FEW
@given(hnp.arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e6, 1e6, width=32)))
def test_tenths_of_a_regression_are_equally_full(y):
    counts = np.bincount(strata_of_numbers(y), minlength=10)
    assert len(counts) == 10
    assert counts.max() - counts.min() <= 1
