"""A training over several hosts: each runs the job with ranks of its own, and all end with the same weights."""

import os
import signal
import threading
import time

import msgspec
import numpy as np
import pytest
from safetensors.numpy import load

from argosy.cluster.local import LocalLauncher
from argosy.core.digest import sha256_file
from argosy.core.errors import Conflict, InvalidInput
from argosy.train.config import LocalConfig, ModelConfig, TrainConfig
from argosy.train.hosts import Hosts
from argosy.train.job import run_training
from argosy.train.network.handshake import new_token
from argosy.train.network.ports import free_address
from ranks import save_table

MODEL = ModelConfig(family="mlp", options={"hidden": [16, 8], "batch_norm": True, "dropout": 0.1})
PLAIN = ModelConfig(family="mlp", options={"hidden": [16, 8], "dropout": 0.1})
# 84 samples are 6 steps per epoch, the last one of 4 samples.
TRAIN = TrainConfig(
    strategy="data-parallel",
    epochs=12,
    batch_size=16,
    dtype="float64",
    schedule="cosine",
    checkpoint_s=0.05,
    compression="none",
)
SECONDS = 120.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hosts")
    save_table(folder)
    return folder


class Together:
    """The jobs of several hosts, each in a thread and with a folder of its own."""

    def __init__(self, place, name, settings, *, hosts=2, model=MODEL, patience_s=60.0):
        self.place, self.name, self.model = place, name, model
        self.settings = settings if isinstance(settings, list) else [settings] * hosts
        address = free_address()
        token = new_token()
        self.hosts = [
            Hosts(count=hosts, number=n, address=address, token=token, patience_s=patience_s) for n in range(hosts)
        ]
        self.listeners = {}
        self.results, self.errors, self.news = {}, {}, {n: [] for n in range(hosts)}

    def work(self, number):
        return self.place / f"{self.name}-{number}"

    def job(self, number):
        def report(news):
            self.news[number].append((time.monotonic(), news))
            self.listeners.get(number, lambda _: None)(news)

        try:
            self.results[number] = run_training(
                self.place / "dataset",
                self.model,
                self.settings[number],
                self.place,
                self.work(number),
                report,
                threads=1,
                hosts=self.hosts[number],
            )
        except BaseException as error:  # noqa: BLE001 - looked at by the test
            self.errors[number] = error

    def run(self, meanwhile=lambda: None):
        threads = [threading.Thread(target=self.job, args=(host.number,)) for host in self.hosts]
        for thread in threads:
            thread.start()
        try:
            meanwhile()
        finally:
            for thread in threads:
                thread.join(SECONDS)
        assert not any(thread.is_alive() for thread in threads), "a job hangs"
        return self

    def said(self, number):
        return [news.message for _, news in self.news[number] if news.message]

    def living(self, number):
        found = LocalLauncher(self.work(number) / "processes").list(role="rank")
        return [info.pid for info in found if info.alive and info.pid]

    def digests(self):
        if self.errors:
            raise next(iter(self.errors.values()))
        return [sha256_file(self.results[number].weights) for number in sorted(self.results)]


@pytest.mark.capability("T1")
@pytest.mark.parametrize(("hosts", "workers"), [(2, 1), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_hosts_learn_what_one_process_does(place, hosts, workers):
    """Each rank draws its own dropout, so there is none here."""
    model = ModelConfig(family="mlp", options={"hidden": [16, 8], "batch_norm": True})
    settings = msgspec.structs.replace(TRAIN, workers=workers)
    found = Together(place, f"same-{workers}", settings, hosts=hosts, model=model).run()
    assert len(set(found.digests())) == 1
    usual = msgspec.structs.replace(settings, strategy="auto", workers=1, compression="auto")
    one = run_training(place / "dataset", model, usual, place, place / f"alone-{workers}", threads=1)
    expected, weights = load(one.weights.read_bytes()), load(found.results[1].weights.read_bytes())
    for name, values in expected.items():
        np.testing.assert_allclose(weights[name], values, atol=1e-6)
    assert found.results[0].metric == one.metric
    assert found.results[0].best_metric == pytest.approx(one.best_metric)


@pytest.mark.capability("T5")
@pytest.mark.parametrize("outer", [pytest.param("average", marks=pytest.mark.slow), "diloco"])
def test_hosts_that_meet_in_rounds_end_with_the_same_weights(place, outer):
    settings = msgspec.structs.replace(
        TRAIN,
        strategy="local-sgd",
        workers=2,
        dtype="float32",
        compression="int8",
        learning_rate=0.01,
        local=LocalConfig(interval=4, delay=2, outer=outer),
        epochs=30,
    )
    found = Together(place, f"rounds-{outer}", settings).run()
    assert len(set(found.digests())) == 1
    history = found.results[0].history
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]


@pytest.mark.capability("T5")
@pytest.mark.parametrize(
    "compression",
    [pytest.param("fp16", marks=pytest.mark.slow), "int8", pytest.param("powersgd", marks=pytest.mark.slow)],
)
def test_gradients_may_be_compressed_between_hosts(place, compression):
    settings = msgspec.structs.replace(TRAIN, dtype="float32", compression=compression, learning_rate=0.01, epochs=30)
    found = Together(place, f"coded-{compression}", settings).run()
    assert len(set(found.digests())) == 1
    history = found.results[0].history
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]


@pytest.mark.capability("T5")
def test_auto_looks_at_the_network_and_says_why(place):
    settings = msgspec.structs.replace(TRAIN, strategy="auto", dtype="float32", compression="auto", epochs=4)
    found = Together(place, "auto", settings).run()
    assert len(set(found.digests())) == 1
    first = found.said(0)
    assert any("over 2 hosts: " in line for line in first)
    assert any("Mbit/s" in line for line in first)
    assert any("exchanging in every step" in line for line in first)
    again = Together(place, "auto", settings).run()
    assert again.digests() == found.digests()


@pytest.mark.capability("T7")
@pytest.mark.parametrize(
    ("host", "strategy"),
    [
        (0, "data-parallel"),
        pytest.param(1, "data-parallel", marks=pytest.mark.slow),
        pytest.param(1, "local-sgd", marks=pytest.mark.slow),
    ],
)
def test_a_lost_rank_on_one_host_brings_all_back_to_the_last_checkpoint_and_the_same_bits(place, host, strategy):
    settings = msgspec.structs.replace(
        TRAIN, strategy=strategy, workers=2, epochs=60, local=LocalConfig(interval=3, delay=0)
    )
    undisturbed = Together(place, f"whole-{strategy}", settings, model=PLAIN).run()
    found = Together(place, f"killed-{strategy}-{host}", settings, model=PLAIN)

    def kill():
        deadline = time.monotonic() + SECONDS
        while not all(any((found.work(n) / "checkpoints").glob("step-*.json")) for n in (0, 1)):
            assert time.monotonic() < deadline, "no checkpoint ever"
            time.sleep(0.002)
        os.kill(found.living(host)[-1], signal.SIGKILL)

    found.run(kill)
    assert found.digests() == undisturbed.digests()
    for number in (0, 1):
        assert found.results[number].restarts >= 1
        assert any(f"host {host} " in line for line in found.said(1 - host)), found.said(1 - host)
        assert any("goes on from the checkpoint of step" in line for line in found.said(number))
        assert found.living(number) == []


@pytest.mark.capability("T7")
@pytest.mark.slow
def test_a_host_without_checkpoints_gets_those_of_another(place):
    settings = msgspec.structs.replace(TRAIN, epochs=60)
    undisturbed = Together(place, "kept", settings, model=PLAIN).run()
    found = Together(place, "bare", settings, model=PLAIN)

    def lose():
        deadline = time.monotonic() + SECONDS
        folder = found.work(1) / "checkpoints"
        while not any(folder.glob("step-*.json")):
            assert time.monotonic() < deadline, "no checkpoint ever"
            time.sleep(0.002)
        for pid in found.living(1):
            os.kill(pid, signal.SIGKILL)
        for path in [*folder.glob("step-*.json"), *folder.glob("step-*.safetensors")]:
            path.unlink(missing_ok=True)

    found.run(lose)
    assert found.digests() == undisturbed.digests()
    assert any("goes on from the checkpoint of step" in line for line in found.said(1))


class _Gone(Exception):
    """What ends a host's job in the midst of it."""


@pytest.mark.capability("T7")
@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["data-parallel", "local-sgd"])
def test_the_others_go_on_without_a_host_and_with_it_when_it_comes_back(place, strategy):
    settings = msgspec.structs.replace(
        TRAIN, strategy=strategy, epochs=400, learning_rate=0.01, local=LocalConfig(interval=3, delay=2)
    )
    found = Together(place, f"fewer-{strategy}", settings, hosts=3, model=PLAIN, patience_s=4.0)
    back = threading.Event()

    def leave(_):
        if any((found.work(2) / "checkpoints").glob("step-*.json")):
            raise _Gone

    def listen(_):
        if any("going on with 2 of 3 hosts" in line for line in found.said(0)):
            back.set()

    def come_back():
        assert back.wait(SECONDS), found.said(0)
        found.listeners.clear()
        assert isinstance(found.errors.pop(2), _Gone)
        found.job(2)

    found.listeners = {2: leave, 0: listen}
    found.run(come_back)
    assert any("host 2 has come back; all ranks start again" in line for line in found.said(0))
    assert len(set(found.digests())) == 1
    history = found.results[0].history
    assert len(history) == settings.epochs
    assert history[-1]["loss"] < 0.6 * history[0]["loss"]


def test_hosts_with_other_settings_are_told_so(place):
    found = Together(place, "other", TRAIN)
    with found.hosts[0].open("another training"):
        found.job(1)
    assert isinstance(found.errors[1], InvalidInput)
    assert found.errors[1].code == "other_code"
    assert "host 1 has other code, data or settings" in str(found.errors[1])


@pytest.mark.parametrize(
    ("settings", "hosts", "code", "says"),
    [
        ({"strategy": "sharded"}, {}, "one_host_only", "works on one host, not on 2"),
        ({"strategy": "parameter-server", "max_staleness": 3}, {}, "one_host_only", "max_staleness = 3"),
        ({"batch_size": 3, "workers": 2}, {}, "invalid_input", "too few samples for 4 workers on 2 hosts"),
        ({}, {"number": 2}, "invalid_input", "host 2 of 2 can't be"),
        ({}, {"token": "short"}, "weak_token", "at least 32"),
        ({}, {"address": "nowhere"}, "bad_address", "'host:port'"),
    ],
)
def test_what_hosts_can_not_do_is_refused_before_anything_starts(place, settings, hosts, code, says):
    usual = {"count": 2, "number": 0, "address": "127.0.0.1:1", "token": new_token()}
    with pytest.raises(InvalidInput, match=says) as caught:
        Hosts(**(usual | hosts)).check(msgspec.structs.replace(TRAIN, **settings))
    assert caught.value.code == code


def test_a_taken_port_is_named(place):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        found = Together(place, "taken", TRAIN)
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        found.hosts = [msgspec.structs.replace(host, address=address) for host in found.hosts]
        found.job(0)
    assert isinstance(found.errors[0], Conflict)
    assert found.errors[0].code == "port_taken"
