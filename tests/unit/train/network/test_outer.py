"""Local SGD: what its rounds compute, that they converge, and that they can be gone on with."""

import numpy as np
import pytest

from argosy.core.errors import InvalidInput
from argosy.train.network.links import Link
from argosy.train.network.outer import AVERAGING, DILOCO, LocalRounds, OuterStep, choose_delay, choose_interval
from argosy.train.network.reductions import PlainReduction, open_reduction
from argosy.train.transport import MemoryTransport
from network_ranks import tcp_ranks
from ranks import run_ranks

FEATURES, SAMPLES, RATE = 8, 120, 0.06


class Task:
    """Least squares, with other samples on each rank, and noise; its optimum is known."""

    def __init__(self, ranks, seed=0):
        draw = np.random.default_rng(seed)
        self.x = draw.normal(size=(ranks, SAMPLES, FEATURES)) * np.linspace(0.5, 1.5, FEATURES)
        self.y = self.x @ draw.normal(size=FEATURES) + 0.3 * draw.normal(size=(ranks, SAMPLES))
        self.optimum = np.linalg.lstsq(self.x.reshape(-1, FEATURES), self.y.reshape(-1), rcond=None)[0]

    def gradient(self, rank, parameters):
        return self.x[rank].T @ (self.x[rank] @ parameters - self.y[rank]) / SAMPLES

    def excess(self, parameters):
        """Return how much greater the mean square is than at the optimum."""
        return np.mean((self.x.reshape(-1, FEATURES) @ (parameters - self.optimum)) ** 2)


def train(task, ranks, steps, make, seen=None):
    """Train with full gradients of each rank's samples; return every rank's parameters."""

    def work(transport):
        parameters = np.zeros(FEATURES)
        rounds = make(transport, parameters)
        for step in range(steps):
            parameters -= RATE * task.gradient(transport.rank, parameters)
            rounds.step_done(parameters)
            if seen is not None:
                seen(transport.rank, step, parameters, rounds)
        rounds.settle(parameters)
        return parameters

    return run_ranks(MemoryTransport.group(ranks), work)


def rounds_of(ranks, **options):
    return lambda transport, parameters: LocalRounds(parameters, PlainReduction(transport), world_size=ranks, **options)


OVERLAPS = [{"overlap": "none"}, {"overlap": "delayed", "delay": 2}, {"overlap": "delayed"}, {"overlap": "eager"}]


def named(options):
    return "-".join(map(str, options.values()))


@pytest.mark.parametrize("step", [AVERAGING, DILOCO], ids=["averaging", "diloco"])
@pytest.mark.parametrize("overlap", OVERLAPS, ids=named)
@pytest.mark.parametrize("ranks", [1, 3])
@pytest.mark.capability("T5")
def test_it_comes_to_the_optimum_of_all_samples(ranks, overlap, step):
    task = Task(ranks)
    found = train(task, ranks, 1000, rounds_of(ranks, interval=5, step=step, **overlap))
    # Ranks that train alone are drawn to their own optima, which moves the fixed point a little.
    assert task.excess(found[0]) < 1e-3 * task.excess(np.zeros(FEATURES))
    assert all((each == found[0]).all() for each in found)


@pytest.mark.parametrize("overlap", OVERLAPS, ids=named)
def test_with_one_step_a_round_and_plain_averages_it_is_gradient_descent_on_all_samples(overlap):
    """Exactly so without overlap; with it ranks are a step apart, and come near to the same optimum."""
    task, ranks, steps = Task(2), 2, 1500
    found = train(
        task,
        ranks,
        steps,
        rounds_of(ranks, interval=1, step=AVERAGING, **overlap_of_one(overlap)),
    )
    expected = np.zeros(FEATURES)
    for _ in range(steps):
        expected -= RATE * np.mean([task.gradient(rank, expected) for rank in range(ranks)], axis=0)
    if overlap["overlap"] == "none":
        assert np.abs(found[0] - expected).max() < 1e-12
    assert np.abs(found[0] - task.optimum).max() < 1e-3


def overlap_of_one(overlap):
    return {key: min(value, 1) if key == "delay" else value for key, value in overlap.items()}


def test_plain_averages_are_the_means_of_the_parameters():
    before = np.random.default_rng(0).normal(size=10)
    own = np.random.default_rng(1).normal(size=(3, 10))

    def work(transport):
        rounds = LocalRounds(before, PlainReduction(transport), world_size=3, interval=1, step=AVERAGING)
        parameters = own[transport.rank].copy()
        assert rounds.step_done(parameters)
        return parameters

    for parameters in run_ranks(MemoryTransport.group(3), work):
        assert np.abs(parameters - own.mean(axis=0)).max() < 1e-15


def test_the_outer_step_is_that_of_torch():
    """torch.optim.SGD(nesterov=True) on the mean of the deltas, as torchft's and the paper's DiLoCo have it."""
    import torch

    start = np.random.default_rng(0).normal(size=6)
    anchor = torch.nn.Parameter(torch.from_numpy(start.copy()))
    optimizer = torch.optim.SGD([anchor], lr=0.7, momentum=0.9, nesterov=True)
    rounds = LocalRounds(start, PlainReduction(MemoryTransport.group(1)[0]), world_size=1, interval=1)
    parameters = start.copy()
    for seed in range(5):
        change = np.random.default_rng(seed).normal(size=6)
        anchor.grad = torch.from_numpy(change.copy())
        optimizer.step()
        parameters -= change
        rounds.step_done(parameters)
        assert np.abs(parameters - anchor.detach().numpy()).max() < 1e-14


@pytest.mark.parametrize("overlap", OVERLAPS, ids=named)
def test_what_ranks_have_in_common_has_the_same_bits_at_every_step(overlap):
    seen = {}

    def look(rank, step, parameters, rounds):
        seen.setdefault(step, []).append(rounds.common.tobytes())

    train(Task(3), 3, 40, rounds_of(3, interval=4, **overlap), look)
    assert all(len(set(found)) == 1 for found in seen.values())
    assert len({found[0] for found in seen.values()}) > 5


def test_late_deltas_keep_what_was_changed_meanwhile():
    """With plain averages, used late, the own progress since the end of the round stays on top."""

    def work(transport):
        rounds = LocalRounds(
            np.zeros(1), PlainReduction(transport), world_size=2, interval=4, step=AVERAGING, overlap="delayed", delay=2
        )
        parameters, found = np.zeros(1), []
        for _ in range(6):
            parameters += 1.0 + transport.rank
            rounds.step_done(parameters)
            found.append(float(parameters[0]))
        return found

    one, other = run_ranks(MemoryTransport.group(2), work)
    # After 4 steps they were at 4 and 8, the mean is 6; two steps later 2 and 4 more.
    assert one == [1, 2, 3, 4, 5, 8]
    assert other == [2, 4, 6, 8, 10, 10]


def test_eager_rounds_use_their_own_deltas_at_once_and_the_others_later():
    def work(transport):
        rounds = LocalRounds(
            np.zeros(1), PlainReduction(transport), world_size=2, interval=1, step=AVERAGING, overlap="eager"
        )
        parameters, found = np.zeros(1), []
        for change in ([1.0, 10.0, 100.0], [2.0, 20.0, 200.0])[transport.rank]:
            parameters += change
            rounds.step_done(parameters)
            found.append(float(parameters[0]))
        return found

    one, other = run_ranks(MemoryTransport.group(2), work)
    # Each time: all of the former rounds' means, and half of the own newest change.
    assert one == pytest.approx([0.5, 1.5 + 5, 1.5 + 15 + 50])
    assert other == pytest.approx([1.0, 1.5 + 10, 1.5 + 15 + 100])


@pytest.mark.parametrize("codec", ["none", "fp16", "int8", "top-k:0.25"])
@pytest.mark.parametrize("overlap", OVERLAPS, ids=named)
@pytest.mark.capability("T5")
def test_coded_deltas_over_a_network_come_to_the_same_optimum(overlap, codec):
    task = Task(2)
    task.x, task.y = task.x.astype(np.float32), task.y.astype(np.float32)

    def work(transport):
        parameters = np.zeros(FEATURES, np.float32)
        rounds = LocalRounds(
            parameters, open_reduction(codec, transport), world_size=2, interval=5, step=AVERAGING, **overlap
        )
        for _ in range(600):
            parameters -= np.float32(RATE) * task.gradient(transport.rank, parameters)
            rounds.step_done(parameters)
        rounds.settle(parameters)
        return parameters

    found = run_ranks(tcp_ranks(2), work)
    assert found[0].tobytes() == found[1].tobytes()
    assert task.excess(found[0]) < 2e-3 * task.excess(np.zeros(FEATURES))


@pytest.mark.parametrize("stop", [7, 8, 9, 10])
@pytest.mark.parametrize("codec", ["none", "int8"])
@pytest.mark.parametrize("overlap", OVERLAPS, ids=named)
@pytest.mark.capability("T7")
def test_going_on_from_a_state_gives_the_same_bits(overlap, codec, stop):
    task, ranks = Task(2), 2

    def make(transport):
        return LocalRounds(
            np.zeros(FEATURES, np.float32), open_reduction(codec, transport), world_size=ranks, interval=4, **overlap
        )

    def steps(transport, rounds, parameters, count):
        for _ in range(count):
            parameters -= np.float32(RATE) * task.gradient(transport.rank, parameters).astype(np.float32)
            rounds.step_done(parameters)

    def undisturbed(transport):
        rounds, parameters = make(transport), np.zeros(FEATURES, np.float32)
        steps(transport, rounds, parameters, 25)
        return parameters

    def resumed(transport):
        rounds, parameters = make(transport), np.zeros(FEATURES, np.float32)
        steps(transport, rounds, parameters, stop)
        state, kept = rounds.state(), parameters.copy()
        steps(transport, rounds, parameters, 3)  # what came after the checkpoint is lost
        again = make(transport)
        again.load_state(state)
        steps(transport, again, kept, 25 - stop)
        return kept

    expected = run_ranks(tcp_ranks(ranks), undisturbed)
    found = run_ranks(tcp_ranks(ranks), resumed)
    assert [each.tobytes() for each in found] == [each.tobytes() for each in expected]


def test_a_state_of_another_model_is_refused():
    def rounds(count):
        return LocalRounds(np.zeros(count), PlainReduction(MemoryTransport.group(1)[0]), world_size=1, interval=1)

    with pytest.raises(InvalidInput, match="the state has 3 parameters, this model 4"):
        rounds(4).load_state(rounds(3).state())


@pytest.mark.parametrize("options", [{"interval": 0}, {"interval": 4, "delay": 5}, {"interval": 4, "delay": -1}])
def test_rounds_that_make_no_sense_are_refused(options):
    with pytest.raises(InvalidInput, match="make no sense"):
        LocalRounds(np.zeros(3), PlainReduction(MemoryTransport.group(1)[0]), world_size=1, **options)


@pytest.mark.parametrize("options", [{"rate": 0.0}, {"momentum": 1.0}, {"momentum": -0.1}])
def test_outer_steps_that_diverge_are_refused(options):
    with pytest.raises(InvalidInput, match="makes no sense"):
        OuterStep(**options)


@pytest.mark.parametrize("megabits", [10, 100, 1000])
@pytest.mark.parametrize("ranks", [2, 4])
@pytest.mark.capability("T5")
def test_the_interval_keeps_exchanges_below_a_twentieth_of_computing(megabits, ranks):
    link = Link(bytes_s=megabits * 125_000, round_trip_s=0.005)
    wire_bytes, step_s = 20_000_000, 0.5
    steps = choose_interval(step_s, wire_bytes, link, world_size=ranks)
    share = 1.0 if ranks == 2 else 1.5
    wire_s = share * wire_bytes / link.bytes_s + (0.0025 if ranks == 2 else 0.005)
    assert wire_s <= 0.05 * steps * step_s
    assert steps == 1 or wire_s > 0.05 * (steps - 1) * step_s


def test_the_interval_is_one_on_a_fast_link_and_bounded_on_a_slow_one():
    assert choose_interval(1.0, 1000, Link(bytes_s=1e9, round_trip_s=1e-4)) == 1
    assert choose_interval(0.01, 1e9, Link(bytes_s=1e6, round_trip_s=0.1)) == 1000
    assert choose_interval(0.01, 1e9, Link(bytes_s=1e6, round_trip_s=0.1), most=200) == 200


def test_the_delay_leaves_time_for_the_exchange():
    link = Link(bytes_s=12.5e6, round_trip_s=0.005)
    assert choose_delay(0.5, 20_000_000, link) == 5  # 1.6 s and half as much to spare
    assert choose_delay(10.0, 1000, link) == 1


def test_steps_without_time_are_refused():
    with pytest.raises(InvalidInput, match="make no sense"):
        choose_interval(0.0, 1, Link(bytes_s=1.0, round_trip_s=0.0))
