"""Ways to use the cores, and the profile that comes of them, with versions and machines that are made up."""

import threading

import pytest

from argosy.core.clock import FakeClock
from argosy.serve import calibrator
from argosy.serve.bench import EngineBench, together
from argosy.serve.calibration import Cost
from argosy.serve.calibrator import Calibrator, Loaded, Memory
from argosy.serve.profile import Host, Shape
from argosy.serve.samples import Samples
from argosy.serve.scaling import choose, replicas_that_fit, shapes_to_try, tiny_choice, useful_replicas

GB = 10**9
DIGEST = "sha256:" + "ab" * 32


class FakeMachine:
    def __init__(self, cores=2, own=200_000_000, free=16 * GB, busy=0.0):
        self.host = Host(cpu="made up", cores=cores, memory_bytes=16 * GB, runtime="none 1")
        self._memory = Memory(own, free)
        self._busy = busy
        self.clock = FakeClock()

    def memory(self):
        return self._memory

    def others_s(self):
        return self._busy * self.host.cores * self.clock.monotonic()


RUNNING = [1]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Let runs that were started together know of each other, instead of racing threads on a made-up clock."""

    def at_once(benches, case, runs):
        RUNNING[0] = len(benches)
        try:
            return [[bench(case) for _ in range(runs)] for bench in benches]
        finally:
            RUNNING[0] = 1

    monkeypatch.setattr(calibrator, "together", at_once)


class FakeVersion:
    """A version whose run of n rows takes `cost(n)` with one thread; scaled by threads and by how many run at once."""

    def __init__(self, machine, cost, *, together=1.0, threads=1.0, shared=True):
        self.machine = machine
        self.cost = cost
        self.together = together
        self.gain = threads
        self.shared = shared
        self.loads = []

    def load(self, threads):
        self.loads.append(threads)
        return Loaded(bench=lambda case: self._run(len(case), threads), lengths=(0,), is_shared=self.shared)

    def _run(self, rows, threads):
        alone = self.cost(rows) / (self.gain if threads > 1 else 1.0)
        seconds = alone * (self.together if RUNNING[0] > 1 and threads == 1 else 1.0)
        self.machine.clock.advance(seconds / RUNNING[0])
        return Cost(seconds, seconds)

    def profile(self, **options):
        return Calibrator(DIGEST, self.load, self.machine, self.machine.clock).full(**options)


def heavy(n):
    return 0.04 * n


def test_a_replica_per_core_where_that_gives_the_most():
    found = FakeVersion(FakeMachine(), heavy, together=1.05, threads=1.5).profile()
    assert (found.replicas, found.threads, found.alone) == (2, 1, 2)
    assert found.reasons[0].startswith("2 replicas x 1 thread: ")
    assert "against 1 replica x 1 thread" in found.reasons[0]
    assert [(s.replicas, s.threads) for s in found.shapes] == [(1, 1), (2, 1), (1, 2)]
    assert found.shapes[1].rows_s == pytest.approx(2 / (1.05 * 0.04), rel=0.01)


def test_all_cores_for_one_replica_where_replicas_are_in_each_others_way():
    found = FakeVersion(FakeMachine(), heavy, together=1.9, threads=1.8).profile()
    assert (found.replicas, found.threads) == (1, 2)
    assert set(found.batching) == {1, 2}


def test_latency_decides_between_what_is_as_fast():
    found = FakeVersion(FakeMachine(), heavy, together=1.0, threads=1.99).profile()
    assert (found.replicas, found.threads) == (1, 2)
    assert "up to noise, but a row takes 20.1 ms instead of 40 ms" in found.reasons[0]


def test_threads_that_bring_nothing_are_not_used_for_a_single_replica_either():
    assert FakeVersion(FakeMachine(), heavy, threads=1.1).profile().alone == 1


def test_memory_bounds_replicas_and_what_is_loaded_to_measure():
    machine = FakeMachine(own=9 * GB, free=8 * GB)
    version = FakeVersion(machine, heavy, together=1.0, threads=1.5)
    found = version.profile()
    assert (found.replicas, found.threads, found.most) == (1, 1, 1)
    assert version.loads == [1]  # no second copy
    assert any("2 replicas of 9 GB each would take more than half of the 17 GB" in reason for reason in found.reasons)


def test_eight_cores_are_tried_in_three_ways():
    version = FakeVersion(FakeMachine(cores=8), heavy, together=1.3, threads=3.0)
    found = version.profile()
    assert [(s.replicas, s.threads) for s in found.shapes] == [(1, 1), (8, 1), (1, 8), (4, 2)]


class FakeSolos:
    """Engines for runs that have the machine to themselves: `gains` by threads, at each length."""

    def __init__(self, version, gains):
        self.version, self.gains, self.loads = version, gains, []

    def load(self, threads):
        self.loads.append(threads)

        def bench(case):
            seconds = self.version.cost(len(case)) / self.gains[threads]
            self.version.machine.clock.advance(seconds)
            return Cost(seconds, seconds)

        return Loaded(bench=bench, lengths=(0,))

    def profile(self):
        machine = self.version.machine
        made = Calibrator(DIGEST, self.version.load, machine, machine.clock, load_solo=self.load)
        return made.full()


def test_a_request_that_comes_alone_gets_as_many_threads_as_are_worth_it():
    version = FakeVersion(FakeMachine(cores=8), heavy, together=1.05, threads=1.5)
    solos = FakeSolos(version, {2: 1.8, 4: 3.0, 8: 3.2})
    found = solos.profile()
    assert (found.replicas, found.threads, found.solo, found.advice.solo) == (8, 1, 4, 4)
    assert "a request that comes alone is computed by 4 threads, in 13.3 ms instead of 40 ms" in found.reasons
    assert solos.loads == [2, 4, 8]


def test_a_request_that_comes_alone_is_computed_like_others_where_threads_bring_little():
    solos = FakeSolos(FakeVersion(FakeMachine(), heavy, together=1.05), {2: 1.15})
    found = solos.profile()
    assert (found.solo, found.advice.solo) == (1, 1)
    assert not any("alone" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    "version",
    [
        FakeVersion(FakeMachine(cores=1), heavy),
        FakeVersion(FakeMachine(own=3 * GB, free=10 * GB), heavy, together=1.05),
        FakeVersion(FakeMachine(), heavy, shared=False),
        FakeVersion(FakeMachine(), lambda n: 1e-5 + 1e-6 * n),
        FakeVersion(FakeMachine(), heavy, threads=1.99),
    ],
    ids=["one core", "no memory", "the interpreter", "tiny", "all cores anyway"],
)
def test_where_it_can_not_help_no_second_copy_is_loaded(version):
    solos = FakeSolos(version, {2: 1.9})
    assert (solos.profile().solo, solos.loads) == (1, [])


def test_a_tiny_version_gets_one_replica_with_one_thread_and_the_reason():
    machine = FakeMachine()
    version = FakeVersion(machine, lambda n: 1e-5 + 1e-6 * n)
    batching, found = Calibrator(DIGEST, version.load, machine, machine.clock).quick(version.load(1))
    assert (found.replicas, found.threads, found.alone) == (1, 1, 1)
    assert batching.max_batch == found.batching[1].max_batch == 128
    assert "one replica keeps up with it" in found.reasons[0]
    assert found.is_quiet
    assert machine.clock.monotonic() < 0.2
    again = version.profile()
    assert (again.replicas, again.threads, again.shapes) == (1, 1, ())


def test_a_slow_version_answers_before_it_is_measured():
    machine = FakeMachine()
    version = FakeVersion(machine, heavy)
    batching, found = Calibrator(DIGEST, version.load, machine, machine.clock).quick(version.load(1))
    assert (batching.max_batch, batching.row_s, found) == (1, 0.04, None)
    assert machine.clock.monotonic() <= 0.08


def test_a_version_that_takes_no_made_up_inputs_runs_as_carefully_as_can_be():
    machine = FakeMachine()

    def fail(n):
        raise ValueError("not these")

    version = FakeVersion(machine, fail)
    batching, found = Calibrator(DIGEST, version.load, machine, machine.clock).quick(version.load(1))
    assert (batching.max_batch, found) == (1, None)
    found = version.profile()
    assert (found.replicas, found.threads, found.batching[1].max_batch) == (1, 1, 1)
    assert "takes no made-up inputs" in found.reasons[0]
    assert "ValueError: not these" in found.reasons[0]


def test_what_others_take_of_the_machine_meanwhile_is_said():
    found = FakeVersion(FakeMachine(busy=0.7), heavy).profile()
    assert not found.is_quiet
    assert any("others took 70% of the machine meanwhile" in reason for reason in found.reasons)
    assert FakeVersion(FakeMachine(busy=0.1), heavy).profile().is_quiet


def test_a_version_that_holds_the_interpreter_gets_a_replica_per_core_unmeasured():
    version = FakeVersion(FakeMachine(cores=4), heavy, shared=False)
    found = version.profile()
    assert (found.replicas, found.threads) == (4, 1)
    assert version.loads == [1]


def test_batches_are_measured_for_the_threads_that_were_asked_for_too():
    found = FakeVersion(FakeMachine(), heavy, threads=1.5).profile(threads=3)
    assert set(found.batching) == {1, 3}


# Choosing -------------------------------------------------------------------------------------------------------------


def shape(replicas, threads, rows_s, row_s=0.01):
    return Shape(replicas=replicas, threads=threads, rows_s=rows_s, row_s=row_s)


def test_no_choice_is_slower_than_the_best_that_fits_by_more_than_noise():
    single = shape(1, 1, 100, 0.01)
    for wide in (50, 110, 150, 190, 195, 205, 300):
        for spread in (100, 150, 190, 200):
            shapes = [shape(2, 1, spread), shape(1, 2, wide, 0.006)]
            found = choose(single, shapes, cores=2, memory=(0, 0))
            rates = {(1, 1): 100, (2, 1): spread, (1, 2): wide}
            assert rates[found.replicas, found.threads] >= 0.97 * max(rates.values())


@pytest.mark.parametrize(("row_s", "cores", "replicas"), [(1e-6, 64, 1), (4e-5, 2, 1), (2e-4, 2, 2), (2e-4, 8, 4)])
def test_no_more_replicas_than_a_gateway_keeps_busy(row_s, cores, replicas):
    assert useful_replicas(row_s, cores) == replicas


def test_short_runs_get_fewer_replicas_than_cores():
    found = choose(shape(1, 1, 5000), [shape(8, 1, 36000), shape(1, 8, 5000)], cores=8, memory=(0, 0))
    assert (found.replicas, found.threads) == (4, 1)
    assert any("the gateway keeps 4 replicas of such short runs busy, not 8" in reason for reason in found.reasons)


def test_one_core_leaves_nothing_to_choose():
    assert shapes_to_try(1) == []
    assert tiny_choice(1.0, 1, 5).replicas == 1


@pytest.mark.parametrize(
    ("own", "free", "found"), [(GB, 9 * GB, 5), (GB, 0, 1), (0, GB, 64), (10 * GB, GB, 1), (1, 10**12, 64)]
)
def test_replicas_fit_into_half_of_the_free_memory_and_one_always_runs(own, free, found):
    assert replicas_that_fit(own, free) == found


# Timing ---------------------------------------------------------------------------------------------------------------


class Counted:
    def __init__(self, clock):
        self.clock = clock
        self.calls = 0

    def __call__(self, inputs):
        self.calls += 1
        self.clock.advance(2e-5)
        return inputs


class Processor:
    """A machine on which everything stands in line for a quarter of its time."""

    def __init__(self, clock):
        self.clock = clock

    def stood_in_line(self):
        return self.clock.monotonic() / 4


def test_short_runs_are_repeated_until_reading_the_clock_does_not_count():
    from plane import SIGNATURE

    clock = FakeClock()
    compute = Counted(clock)
    bench = EngineBench(compute, Samples(SIGNATURE), clock, Processor(clock))
    assert bench((0,)) == pytest.approx((2e-5, 1.5e-5))
    assert compute.calls == 1
    assert bench((0,)) == pytest.approx((2e-5, 1.5e-5))
    assert compute.calls == 11


def test_runs_together_do_run_together_and_a_failure_is_told():
    started = threading.Barrier(3, timeout=10)
    calls = [0, 0, 0]

    def bench(index):
        def run(case):
            calls[index] += 1
            if calls[index] <= 3:  # the first untimed, and those that are timed
                started.wait()
            return Cost(1.0, 1.0)

        return run

    assert together([bench(index) for index in range(3)], (0,), 2) == [[Cost(1.0, 1.0)] * 2] * 3

    def fail(case):
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        together([lambda case: Cost(1.0, 1.0), fail], (0,), 1)
