"""A replica's side of calibrating: the stored profile, a calibration where there is none, and what may go wrong."""

from types import SimpleNamespace

import msgspec
import pytest

from argosy.core.clock import FakeClock
from argosy.serve.control import ReplicaConfig
from argosy.serve.profile import Batching, Host, Profile, encode
from argosy.serve.profile_store import ProfileStore
from argosy.serve.tuning import Tuning

VERSION = "sha256:" + "12" * 32
HOST = Host(cpu="some", cores=4, memory_bytes=1 << 34, runtime="onnxruntime 1.2.3")


def profile(max_batch=8, threads=1, **changes):
    given = {
        "version": VERSION, "host": HOST, "measured": 1.0, "took_s": 1.0,
        "batching": {threads: Batching(max_batch=max_batch)}, "replicas": 4, "threads": 1, "alone": 4, "most": 9,
        "solo": 1, "memory_bytes": 1,
    }  # fmt: skip
    return Profile(**given | changes)


class FakeChild:
    def __init__(self):
        self.written = None
        self.is_killed = False

    def result(self):
        return self.written

    def kill(self):
        self.is_killed = True


@pytest.fixture
def home(tmp_path):
    """A home in which replicas can be made; `children` are the calibrations that were started."""
    world = SimpleNamespace(clock=FakeClock(), children=[], requests=[], has_memory=True)

    def start(request):
        world.requests.append(request)
        world.children.append(FakeChild())
        return world.children[-1]

    def replica(threads=1):
        config = ReplicaConfig(
            id="r", digest=VERSION, ref="m:1", socket="", store="", home=str(tmp_path), threads=threads
        )
        return Tuning(
            config, ProfileStore(tmp_path, HOST), world.clock, start=start, has_memory=lambda: world.has_memory
        )

    world.replica = replica
    world.store = ProfileStore(tmp_path, HOST)
    return world


def test_with_a_stored_profile_nothing_is_measured(home):
    home.store.keep(profile())
    tuning = home.replica()
    assert tuning.stored().batching.max_batch == 8
    assert tuning.stored().advice.replicas == 4
    for _ in range(100):
        home.clock.advance(10)
        assert tuning.look() is None
    assert (tuning.is_settled, home.children) == (True, [])


def test_without_one_a_calibration_is_started_and_its_result_kept_and_taken(home):
    tuning = home.replica()
    assert tuning.stored() is None
    assert tuning.look() is None
    assert tuning.look() is None
    (child,) = home.children
    assert (home.requests[0].replica.digest, home.requests[0].is_gentle) == (VERSION, True)
    child.written = encode(profile(16))
    assert tuning.look().batching.max_batch == 16
    assert home.store.read(VERSION) == profile(16)
    assert tuning.is_settled
    assert tuning.look() is None


def test_one_replica_measures_and_the_others_take_its_result(home):
    first, second = home.replica(), home.replica()
    assert (first.stored(), second.stored()) == (None, None)
    assert (first.look(), second.look(), second.look()) == (None, None, None)
    assert len(home.children) == 1
    home.children[0].written = encode(profile(16))
    first.look()
    assert second.look().batching.max_batch == 16
    assert len(home.children) == 1
    assert second.is_settled


def test_a_profile_that_was_written_between_looking_and_locking_is_taken(home):
    first, second = home.replica(), home.replica()
    second.stored()
    original = second._store.lock

    def lock():
        home.store.keep(profile(16))
        return original()

    second._store.lock = lock
    assert second.look().batching.max_batch == 16
    assert home.children == []
    assert first._store.lock().acquire()


def test_a_replica_with_other_threads_has_its_own_batches_measured_and_both_are_kept(home):
    home.store.keep(profile(8))
    tuning = home.replica(threads=4)
    assert tuning.stored() is None
    tuning.look()
    assert home.requests[0].replica.threads == 4
    home.children[0].written = encode(profile(2, threads=4))
    assert tuning.look().batching.max_batch == 2
    assert set(home.store.read(VERSION).batching) == {1, 4}


def test_a_new_calibration_is_taken_up_by_replicas_that_run(home):
    home.store.keep(profile(8))
    tuning = home.replica()
    tuning.stored()
    home.store.keep(profile(32, replicas=2))
    found = tuning.look()
    assert (found.batching.max_batch, found.advice.replicas) == (32, 2)


def test_a_damaged_file_is_measured_anew(home):
    home.store.keep(profile())
    for path in home.store.folder.glob("*.json"):
        path.write_bytes(path.read_bytes()[:50])
    tuning = home.replica()
    assert tuning.stored() is None
    tuning.look()
    assert len(home.children) == 1


@pytest.mark.parametrize(
    "written", [b"", b"{}", encode(profile(version="sha256:" + "34" * 32)), encode(profile(threads=2))]
)
def test_a_calibration_that_fails_is_tried_again_later_and_not_for_ever(home, written):
    tuning = home.replica()
    tuning.stored()
    for _ in range(3000):
        assert tuning.look() is None
        if home.children:
            home.children[-1].written = written
        home.clock.advance(1)
    assert len(home.children) == 3
    assert tuning.is_settled
    assert home.store.lock().acquire()  # and nobody is kept from measuring


def test_a_calibration_that_never_ends_is_ended(home):
    tuning = home.replica()
    tuning.stored()
    tuning.look()
    home.clock.advance(700)
    tuning.look()
    assert home.children[0].is_killed
    assert home.store.lock().acquire()


def test_a_machine_without_memory_for_another_copy_is_not_measured(home):
    home.has_memory = False
    tuning = home.replica()
    tuning.stored()
    for _ in range(1000):
        tuning.look()
        home.clock.advance(1)
    assert home.children == []
    assert tuning.is_settled


def test_what_was_measured_on_a_busy_machine_is_used_and_measured_again_a_few_times(home):
    home.store.keep(profile(4, is_quiet=False))
    tuning = home.replica()
    assert tuning.stored().batching.max_batch == 4
    assert not tuning.is_settled
    assert tuning.look() is None
    assert home.children == []  # not at once: the machine is as busy as it was
    home.clock.advance(61)
    tuning.look()
    home.children[0].written = encode(profile(8, is_quiet=False, measured=2.0))
    assert tuning.look().batching.max_batch == 8
    home.clock.advance(121)
    tuning.look()
    home.children[1].written = encode(profile(16, measured=3.0))
    assert tuning.look().batching.max_batch == 16
    assert tuning.is_settled
    home.clock.advance(10_000)
    assert tuning.look() is None
    assert len(home.children) == 2


def test_on_a_machine_that_is_always_busy_it_is_left_at_that(home):
    home.store.keep(profile(4, is_quiet=False))
    tuning = home.replica()
    tuning.stored()
    for number in range(3000):
        tuning.look()
        if home.children and home.children[-1].written is None:
            home.children[-1].written = encode(profile(4, is_quiet=False, measured=number))
        home.clock.advance(1)
    assert len(home.children) == 3
    assert tuning.is_settled


def test_what_cannot_be_stored_feeds_this_replica_and_is_recommended_to_nobody(home, monkeypatch):
    """Else each new replica would measure something slightly different, and be followed."""
    tuning = home.replica()
    tuning.stored()
    tuning.look()
    monkeypatch.setattr(ProfileStore, "keep", lambda self, profile: None)
    home.children[0].written = encode(profile(16))
    found = tuning.look()
    assert (found.batching.max_batch, found.advice) == (16, None)
    assert tuning.is_settled


def test_an_ended_replica_leaves_no_calibration_and_no_lock(home):
    tuning = home.replica()
    tuning.stored()
    tuning.look()
    tuning.close()
    assert home.children[0].is_killed
    assert home.store.lock().acquire()


def test_a_request_survives_the_pipe(home):
    home.replica().look()
    request = home.requests[0]
    assert msgspec.json.decode(msgspec.json.encode(request), type=type(request)) == request
