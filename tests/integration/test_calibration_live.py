"""Calibration with real replicas: once per version and machine, beside the service, and never in its way."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import msgspec
import pytest

from argosy.cluster.machine import process_memory_bytes
from argosy.serve.host import this_host
from argosy.serve.profile_store import ProfileStore
from served import Served, linear, slow, until


@pytest.fixture
def home():
    found = Served()
    yield found
    found.close()


def status(home, name):
    return next(replica for replica in home.client.status().replicas if replica.id == name)


def profile(home, version):
    return ProfileStore(home.folder / "home").read(version.digest)


def events(home, name):
    lines = (line for line in home.launcher.log_tail(name, 200).splitlines() if line.startswith("{"))
    return [json.loads(line)["event"] for line in lines]


def children(pid):
    """The processes that a replica has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if int(path.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.capability("C7")
@pytest.mark.capability("I3")
def test_a_tiny_version_is_measured_before_its_first_answer_and_never_again(home):
    home.gateway()
    version = home.publish(linear())
    first = home.replica(version)
    home.ready(first)
    found = status(home, first)
    assert found.max_batch > 8
    assert (found.advice.replicas, found.advice.threads, found.threads) == (1, 1, 1)
    kept = profile(home, version)
    assert kept.host == this_host()
    assert kept.took_s < 1.0
    assert "one replica keeps up with it" in kept.reasons[0]
    stamp = ProfileStore(home.folder / "home").stamp(version.digest)
    second = home.replica(version)
    home.ready(second)
    assert (status(home, second).max_batch, status(home, second).advice) == (found.max_batch, found.advice)
    # It was read: had anything been measured, it would have been written again.
    assert ProfileStore(home.folder / "home").stamp(version.digest) == stamp
    assert children(home.pid(second)) == []


@pytest.mark.capability("I3")
def test_a_slow_version_answers_while_it_is_measured_beside_and_then_says_how_to_feed_it(home):
    home.gateway()
    version = home.publish(slow(layers=32, width=1024))
    name = home.replica(version)
    home.ready(name).route(version)
    answers = []
    stop = threading.Event()

    def ask():
        while not stop.is_set():
            begun = time.monotonic()
            code = home.infer([[1.0]])[0]
            answers.append((code, time.monotonic() - begun))
            stop.wait(0.02)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        until(lambda: status(home, name).advice is not None, 120)
    finally:
        stop.set()
        asking.join()
    assert {code for code, _ in answers} == {200}
    kept = profile(home, version)
    found = status(home, name)
    assert (found.advice.replicas, found.max_batch) == (kept.replicas, kept.batching[1].max_batch)
    assert found.advice.replicas * found.advice.threads <= max(1, this_host().cores)
    assert kept.reasons
    assert "calibrated" in events(home, name)
    again = home.replica(version)
    home.ready(again)
    assert status(home, again).advice == found.advice
    assert "calibrated" not in events(home, again)


def test_a_replica_that_nobody_waits_for_measures_first_and_joins_with_the_result(home):
    home.gateway()
    version = home.publish(slow(layers=32, width=1024))
    name = home.replica(version, calibrate_s=60.0)
    until(lambda: profile(home, version) is not None, 60)
    home.ready(name)
    until(lambda: status(home, name).advice is not None)
    assert status(home, name).max_batch == profile(home, version).batching[1].max_batch


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_calibration_ends_with_its_replica_however_that_ends(home, number):
    home.gateway()
    version = home.publish(slow(layers=32, width=1024))
    name = home.replica(version)
    home.ready(name)
    pid = home.pid(name)
    measuring = until(lambda: children(pid), 90)
    os.kill(pid, number)
    until(lambda: not any(Path(f"/proc/{child}").exists() for child in measuring), 30)


def test_a_killed_calibration_costs_no_answer(home):
    home.gateway()
    version = home.publish(slow(layers=32, width=1024))
    name = home.replica(version)
    home.ready(name).route(version)
    before = status(home, name)
    for child in until(lambda: children(home.pid(name)), 30):
        os.kill(child, signal.SIGKILL)
    until(lambda: "calibration_put_off" in events(home, name), 30)
    assert home.infer([[1.0]])[0] == 200
    after = status(home, name)
    assert (after.max_batch, after.advice) == (before.max_batch, None)
    # The lock is free for others.
    assert until(lambda: _is_free(home))


def stored_with(home, version, **changes):
    """Store a profile of a version, as if it had been calibrated."""
    home.gateway()
    first = home.replica(version, calibrate_s=60.0)
    until(lambda: profile(home, version) is not None, 60)
    home.ready(first)
    store = ProfileStore(home.folder / "home")
    store.keep(msgspec.structs.replace(store.read(version.digest), is_quiet=True, **changes))
    home.launcher.stop(first)
    until(lambda: not home.client.status().replicas)


@pytest.mark.capability("I3")
def test_one_replica_loads_the_version_again_for_requests_that_come_alone_and_answers_alike(home):
    version = home.publish(linear())
    stored_with(home, version, solo=2)
    names = [home.replica(version), home.replica(version)]
    home.ready(*names)
    home.route(version)
    soloist = until(lambda: [name for name in names if status(home, name).solo == 2])
    assert [status(home, name).solo for name in names].count(2) == 1
    before = {name: status(home, name).answered for name in names}
    for number in range(20):
        code, _, answer = home.infer([[number, 1.0, 2.0, 3.0]])
        assert (code, answer["outputs"][0]["data"]) == (
            200,
            home.infer([[number, 1.0, 2.0, 3.0]])[2]["outputs"][0]["data"],
        )
    assert {name: status(home, name).answered - before[name] for name in names} == {
        name: 40 if name in soloist else 0 for name in names
    }
    os.kill(home.pid(soloist[0]), signal.SIGKILL)
    other = next(name for name in names if name not in soloist)
    until(lambda: status(home, other).solo == 2)
    assert home.infer([[1.0, 1.0, 1.0, 1.0]])[0] == 200


def test_a_replica_without_memory_for_a_second_engine_answers_all_the_same(home):
    version = home.publish(linear())
    stored_with(home, version, solo=2)
    name = home.replica(version, memory_bytes=1)
    until(lambda: not home.launcher.get(name).alive)
    # Enough to load once, not twice.
    enough = home.replica(version)
    home.ready(enough)
    own = process_memory_bytes(home.pid(enough))
    home.launcher.stop(enough)
    name = home.replica(version, memory_bytes=int(1.5 * own))
    home.ready(name).route(version)
    until(lambda: "no_solo_engine" in events(home, name))
    assert status(home, name).solo == 0
    assert home.infer([[1.0, 1.0, 1.0, 1.0]])[0] == 200


def test_a_calibration_ends_well_where_a_replica_may_not_load_the_version_twice(home):
    version = home.publish(slow(layers=32, width=1024))
    home.gateway()
    first = home.replica(version)
    home.ready(first)
    own = process_memory_bytes(home.pid(first))
    home.launcher.stop(first)
    store = ProfileStore(home.folder / "home")
    for path in store.folder.glob("*.json"):
        path.unlink()
    name = home.replica(version, memory_bytes=int(1.5 * own))
    home.ready(name).route(version)
    until(lambda: profile(home, version) is not None, 120)
    until(lambda: status(home, name).advice is not None)
    assert "calibration_put_off" not in events(home, name)


def _is_free(home):
    lock = ProfileStore(home.folder / "home").lock()
    is_free = lock.acquire()
    lock.release()
    return is_free
