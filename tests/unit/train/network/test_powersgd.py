"""PowerSGD: what it keeps of matrices, and that training with it comes to the same optimum."""

import numpy as np
import pytest

from argosy.core.errors import InvalidInput
from argosy.train.network.powersgd import PowerSgd
from argosy.train.transport import MemoryTransport
from ranks import run_ranks


def low_rank(rows, columns, rank, seed):
    draw = np.random.default_rng(seed)
    return (draw.normal(size=(rows, rank)) @ draw.normal(size=(rank, columns))).astype(np.float32)


@pytest.mark.capability("T5")
def test_matrices_of_no_higher_rank_come_through_and_vectors_always():
    shapes = [(60, 50), (60,)]
    # Of the same row space on both ranks, so that their sum has rank 2, too.
    base = low_rank(60, 50, 2, 0)
    vector = np.arange(60, dtype=np.float32)

    def work(transport):
        reduction = PowerSgd(transport, shapes, rank=3, seed=4)
        for _ in range(4):
            values = np.concatenate([(base * (transport.rank + 1)).reshape(-1), vector])
            reduction.sum(values)
        return values

    for values in run_ranks(MemoryTransport.group(2), work):
        assert np.abs(values[:3000].reshape(60, 50) - 3 * base).max() < 1e-3 * np.abs(base).max()
        assert values[3000:].tolist() == (2 * vector).tolist()


def test_begun_where_the_last_call_ended_it_finds_the_best_approximation():
    """Subspace iteration over calls (the paper's section 4.2) comes close to the truncated SVD."""
    draw = np.random.default_rng(3)
    left, _ = np.linalg.qr(draw.normal(size=(40, 40)))
    right, _ = np.linalg.qr(draw.normal(size=(30, 30)))
    sizes = 0.5 ** np.arange(30)
    matrix = ((left[:, :30] * sizes) @ right.T).astype(np.float32)
    best = np.linalg.norm(sizes[4:])
    reduction = PowerSgd(MemoryTransport.group(1)[0], [(40, 30)], rank=4)
    errors = []
    for _ in range(6):
        reduction.load_state({**reduction.state(), "error": np.zeros(1200, np.float32)})
        values = matrix.reshape(-1).copy()
        reduction.sum(values)
        errors.append(np.linalg.norm(values.reshape(40, 30) - matrix))
    assert errors[-1] < 1.02 * best < errors[0]


@pytest.mark.capability("T5")
def test_regression_with_it_comes_to_the_optimum():
    draw = np.random.default_rng(0)
    x = draw.normal(size=(2, 200, 20)).astype(np.float32)
    y = x @ draw.normal(size=(20, 15)).astype(np.float32) + 0.1 * draw.normal(size=(2, 200, 15)).astype(np.float32)
    optimum = np.linalg.lstsq(x.reshape(-1, 20), y.reshape(-1, 15), rcond=None)[0]

    def work(transport):
        reduction, weights = PowerSgd(transport, [(20, 15)], rank=2), np.zeros((20, 15), np.float32)
        for _ in range(800):
            gradient = x[transport.rank].T @ (x[transport.rank] @ weights - y[transport.rank]) / 400
            flat = gradient.reshape(-1).copy()
            reduction.sum(flat)
            weights -= 0.15 * flat.reshape(20, 15)
        return weights

    for weights in run_ranks(MemoryTransport.group(2), work):
        assert np.abs(weights - optimum).max() < 0.01


def test_a_matrix_of_zeros_stays_one():
    reduction = PowerSgd(MemoryTransport.group(1)[0], [(30, 30)], rank=2)
    for _ in range(3):
        values = np.zeros(900, np.float32)
        reduction.sum(values)
        assert not values.any()
    # All factors vanished; that must not be where the next calls begin.
    values = low_rank(30, 30, 1, 0).reshape(-1)
    found = values.copy()
    reduction.sum(found)
    assert np.linalg.norm(found - values) < 1e-3 * np.linalg.norm(values)


def test_small_matrices_are_sent_as_they_are():
    values = np.random.default_rng(0).normal(size=12 + 5).astype(np.float32)
    reduction = PowerSgd(MemoryTransport.group(1)[0], [(4, 3), (5,)], rank=4)
    found = values.copy()
    reduction.sum(found)
    assert found.tobytes() == values.tobytes()
    assert reduction.wire_bytes(17) == 4 * 17


def test_arrays_of_another_size_are_refused():
    reduction = PowerSgd(MemoryTransport.group(1)[0], [(4, 3)])
    with pytest.raises(InvalidInput, match="made for 12 float32 numbers, not 13 float32"):
        reduction.sum(np.zeros(13, np.float32))
    with pytest.raises(InvalidInput, match="not 12 float64"):
        reduction.sum(np.zeros(12))
