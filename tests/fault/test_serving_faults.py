"""Processes killed, frozen and replaced under load: what callers see of it is nothing."""

import contextlib
import http.client
import json
import os
import signal
import time

import pytest

from load import Load
from malformed import get, infer
from served import Served, constant, logarithm, slow, until


@pytest.fixture
def served():
    found = Served()
    try:
        yield found.gateway()
    finally:
        found.close()


def states(served):
    return {r.id: r.state for r in served.client.status().replicas}


@pytest.mark.capability("R4")
def test_a_killed_replica_loses_no_request(served):
    version = served.publish(slow())
    names = [served.replica(version) for _ in range(2)]
    served.ready(*names).route(version)
    with Load(served) as load:
        for name in names:
            load.answered(20)
            busy = served.pid(name)
            os.kill(busy, signal.SIGKILL)
            load.answered(20)
            served.ready(served.replica(version))
    assert load.problems == []
    (endpoint,) = served.client.status().endpoints
    assert endpoint.failed == 0
    assert endpoint.replayed > 0


def test_the_only_replicas_death_is_waited_out(served):
    version = served.publish(slow())
    name = served.replica(version)
    served.ready(name).route(version)
    with Load(served) as load:
        load.answered(10)
        os.kill(served.pid(name), signal.SIGKILL)
        served.replica(version)
        load.answered(20)
    assert load.problems == []


def test_a_frozen_replica_loses_no_request_and_works_again_when_it_thaws(served):
    version = served.publish(slow())
    names = [served.replica(version) for _ in range(2)]
    served.ready(*names).route(version)
    with Load(served) as load:
        load.answered(20)
        os.kill(served.pid(names[0]), signal.SIGSTOP)
        until(lambda: states(served)[names[0]] == "frozen")
        load.answered(20)
        os.kill(served.pid(names[0]), signal.SIGCONT)
        served.ready(*names)
        load.answered(20)
    assert load.problems == []


def test_a_replica_that_is_stopped_finishes_what_it_has(served):
    version = served.publish(slow())
    names = [served.replica(version) for _ in range(2)]
    served.ready(*names).route(version)
    with Load(served) as load:
        load.answered(10)
        served.launcher.stop(names[0])
        load.answered(20)
    assert load.problems == []
    assert served.launcher.get(names[0]).exit_code == 0
    (endpoint,) = served.client.status().endpoints
    assert endpoint.replayed == 0


@pytest.mark.capability("R7")
def test_version_changes_under_load_lose_no_request(served):
    versions = [served.publish(slow(value=float(i))) for i in range(3)]
    current = served.replica(versions[0])
    served.ready(current).route(versions[0])
    with Load(served) as load:
        for version in versions[1:]:
            load.answered(20)
            # At once, before the new one is ready: the gateway stays with the former until then.
            served.route(version)
            replacement = served.replica(version)
            served.ready(replacement)
            served.client.drain(current)
            until(lambda: states(served).get(current) == "drained")  # noqa: B023
            served.launcher.stop(current)
            current = replacement
        load.answered(20)
    assert load.problems == []
    assert load.versions == {"m:1", "m:2", "m:3"}


@pytest.mark.capability("R2")
def test_callers_never_see_a_failing_canary(served):
    good, bad = served.publish(constant(1.0)), served.publish(logarithm())
    served.ready(served.replica(good), served.replica(bad))
    served.route(good, canary=bad, share=0.3, rollout="r", window_s=0.5)
    body = infer(shape=[1, 1], data=[-1.0])
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", served.port, timeout=10)) as connection:
        for _ in range(200):
            connection.request("POST", "/v2/models/m/infer", body.partition(b"\r\n\r\n")[2])
            answer = connection.getresponse()
            found = json.loads(answer.read())
            assert answer.status == 200
            assert found["outputs"][0]["data"] == [1.0]
            assert answer.headers["argosy-version"] == "m:1"
    windows = until(lambda: (w := served.client.windows()) and sum(x.requests_stable for x in w) > 50 and w)
    assert sum(w.failed_canary for w in windows) == sum(w.requests_canary for w in windows) > 0
    assert sum(w.failed_stable for w in windows) == 0


def test_a_killed_gateway_serves_again_without_a_controller(served):
    version = served.publish(constant(4.0))
    name = served.replica(version)
    served.ready(name).route(version)
    (gateway,) = served.launcher.list("gateway")
    served.client.close()
    os.kill(gateway.pid, signal.SIGKILL)
    until(lambda: not served.launcher.get(gateway.name).alive)
    before = served.pid(name)
    served.gateway()
    # The first request may come before the replica has dialled again; it waits for it.
    status, headers, body = served.infer([[1.0]])
    assert (status, headers["argosy-version"]) == (200, "m:1")
    assert body["outputs"][0]["data"] == [4.0]
    assert served.pid(name) == before


def test_a_gateway_that_is_stopped_answers_what_it_accepted(served):
    version = served.publish(constant(4.0))
    name = served.replica(version)
    served.ready(name).route(version)
    # In its tracks, so that its batch is in its hands when the gateway is told to end.
    os.kill(served.pid(name), signal.SIGSTOP)
    connection = served.raw(infer(shape=[1, 1], data=[0.5]))
    until(lambda: any(r.in_flight for r in served.client.status().replicas))
    (gateway,) = served.launcher.list("gateway")
    os.kill(gateway.pid, signal.SIGTERM)
    until(lambda: "gateway_stops" in served.launcher.log_tail(gateway.name))
    os.kill(served.pid(name), signal.SIGCONT)
    until(lambda: not served.launcher.get(gateway.name).alive)
    assert connection.recv(100).startswith(b"HTTP/1.1 200")
    assert served.launcher.get(gateway.name).exit_code == 0


def test_a_client_that_goes_away_disturbs_neither_its_batch_nor_the_queue(served):
    version = served.publish(slow())
    served.ready(served.replica(version)).route(version)
    with Load(served, callers=3) as load:
        for _ in range(30):
            connection = served.raw(infer(shape=[1, 1], data=[0.5]))
            connection.close()
        load.answered(20)
    assert load.problems == []
    until(lambda: served.client.status().endpoints[0].waiting == 0)
    text = served.ask("GET", "/metrics")[2].decode()
    assert 'code="cancelled"' in text


def test_a_deadline_is_kept_while_the_replica_is_busy(served):
    version = served.publish(constant(4.0))
    name = served.replica(version)
    served.ready(name).route(version)
    os.kill(served.pid(name), signal.SIGSTOP)
    begun = time.monotonic()
    running = served.infer([[0.5]], headers={"argosy-timeout": "300ms"})
    waiting = served.infer([[0.5]], headers={"argosy-timeout": "0.1"})
    took = time.monotonic() - begun
    assert [(status, body["code"]) for status, _, body in (running, waiting)] == [(504, "deadline_exceeded")] * 2
    assert 0.4 <= took < 1.4


def test_overload_is_refused_at_once_with_retry_after():
    served = Served()
    try:
        served.gateway(queue_requests=4)
        version = served.publish(slow(layers=40))
        served.ready(served.replica(version)).route(version)
        connections = [served.raw(infer(shape=[1, 1], data=[0.5])) for _ in range(40)]
        heads = [connection.recv(2000) for connection in connections]
        refused = [head for head in heads if head.startswith(b"HTTP/1.1 503")]
        assert refused
        assert all(b"retry-after: 1" in head and b"queue_full" in head for head in refused)
        assert any(head.startswith(b"HTTP/1.1 200") for head in heads)
    finally:
        served.close()


def test_a_version_whose_files_were_changed_is_not_served(served):
    version = served.publish(constant(4.0))
    path = next(p for p in (served.folder / "home").rglob("*") if p.is_file() and p.read_bytes() == constant(4.0))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    name = served.replica(version)
    until(lambda: not served.launcher.get(name).alive)
    assert served.launcher.error(name).code == "blob_corrupt"
    assert served.client.status().replicas == ()


def test_a_replica_nobody_wants_ends_when_its_gateway_is_gone(served):
    version = served.publish(constant(4.0))
    name = served.replica(version)
    served.ready(name)
    (gateway,) = served.launcher.list("gateway")
    record = next((served.folder / "processes" / name).glob("lock"))
    record.unlink()
    os.kill(gateway.pid, signal.SIGKILL)
    pid = served.pid(name)

    def has_ended():
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return True
        return os.waitpid(pid, os.WNOHANG)[0] == pid if pid else True

    until(has_ended)


def test_clients_of_a_page_are_served_while_replicas_are_missing(served):
    version = served.publish(constant(4.0))
    served.route(version)
    connection = served.raw(get("/v2/health/ready"))
    assert connection.recv(100).startswith(b"HTTP/1.1 503")
    status, headers, body = served.infer([[1.0]])
    assert (status, body["code"], headers["retry-after"]) == (503, "not_ready", "1")
