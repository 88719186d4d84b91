"""Replicas follow the load on a real gateway with a real controller: to zero and back, and without the controller."""

import os
import signal
import threading
import time

import pytest

from argosy.operate import commands
from argosy.operate.config import EndpointConfig
from argosy.operate.scaling_file import ScalingFile
from argosy.operate.view import Observer
from controlled import Controlled
from served import constant, slow, until

pytestmark = pytest.mark.capability("R6")


@pytest.fixture
def home():
    made = Controlled()
    made.observer = Observer(
        made.registry.log, made.launcher, made.client, time.time, scaling=ScalingFile(made.settings.runtime).read
    )
    yield made
    made.close()


def deploy(home, model, name="m", **endpoint):
    version = home.publish(model, name=name)
    commands.deploy(home.registry, str(version), name=name, endpoint=EndpointConfig(**endpoint))
    home.start()
    until(lambda: home.endpoint(name).state == "ready")
    return version


def replicas(home):
    return [info for info in home.launcher.list("replica") if info.alive]


def asleep(home):
    until(lambda: not replicas(home) and home.endpoint().state == "idle")
    return home


def test_an_idle_endpoint_uses_no_replica_and_answers_its_next_request_after_one_load(home):
    deploy(home, constant(7.0), replicas="0..2", idle="1s")
    asleep(home)
    # Ready all the same: whoever balances load over it must not take it out.
    assert home.ask("GET", "/v2/health/ready")[0] == 200
    assert home.ask("GET", "/v2/models/m/ready")[0] == 200
    started = len([name for name in home.launcher.list() if name.role == "replica"])
    status, _, body = home.infer([[1.0]], timeout=30)
    assert (status, body["outputs"][0]["data"]) == (200, [7.0])
    assert len(replicas(home)) == 1
    assert len([name for name in home.launcher.list() if name.role == "replica"]) <= started + 1
    assert home.endpoint().scaling.wanted == 1


def test_all_requests_that_are_held_are_answered_by_the_one_replica_that_is_started(home):
    deploy(home, constant(7.0), replicas="0..2", idle="1s")
    asleep(home)
    answers = []
    threads = [threading.Thread(target=lambda: answers.append(home.infer([[1.0]], timeout=30))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, *_ in answers] == [200] * 12


def test_a_held_request_has_a_killed_controller_started_anew(home):
    deploy(home, constant(7.0), replicas="0..1", idle="1s")
    asleep(home)
    killed = home.kill("controller")
    until(lambda: not home.is_controlled())
    status, _, body = home.infer([[1.0]], timeout=30)
    assert (status, body["outputs"][0]["data"]) == (200, [7.0])
    assert [info.pid for info in home.launcher.list("controller") if info.alive] not in ([], [killed])


def test_a_held_request_is_refused_with_a_time_to_retry_when_nobody_comes(home):
    deploy(home, constant(7.0), replicas="0..1", idle="1s")
    asleep(home)
    controller = next(info for info in home.launcher.list("controller") if info.alive)
    os.kill(controller.pid, signal.SIGSTOP)
    status, headers, body = home.infer([[1.0]], headers={"argosy-timeout": "0.5"})
    os.kill(controller.pid, signal.SIGCONT)
    assert status == 503
    assert int(headers["retry-after"]) >= 1
    assert "no replica of 'm:1' was ready" in str(body)


@pytest.mark.slow
def test_an_endpoint_at_zero_is_remembered_by_a_restarted_gateway_and_controller(home):
    deploy(home, constant(7.0), replicas="0..1", idle="1s")
    asleep(home)
    home.kill("gateway")
    home.kill("controller")
    until(lambda: not home.is_controlled())
    home.start()
    until(lambda: home.look().gateway == "running")
    status, _, body = home.infer([[1.0]], timeout=30)
    assert (status, body["outputs"][0]["data"]) == (200, [7.0])


@pytest.mark.slow
def test_more_replicas_come_with_the_load_and_no_request_is_refused(home):
    deploy(home, slow(layers=4, width=512, value=3.0), replicas="1..2", target_concurrency=1.0, threads=1)
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            answers.append(home.infer([[1.0]], timeout=30)[0])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    try:
        until(lambda: len([r for v in home.endpoint().versions for r in v.replicas if r.state == "ready"]) == 2, 40)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert set(answers) == {200}
    found = home.endpoint().scaling
    assert (found.wanted, found.low, found.high) == (2, 1, 2)
    assert "requests at once" in found.reason
