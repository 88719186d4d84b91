"""Several processes speak HTTP on one port for one gateway; nothing else about serving changes."""

import json
import os
import signal
import socket
import threading
from pathlib import Path

import pytest

from argosy.security.api_keys import make_key
from argosy.serve.access import AccessKey, AccessRules
from malformed import CORPUS
from served import Served, constant, linear, until

ROW = [[1.0, 2.0, 3.0, 4.0]]


@pytest.fixture
def served():
    world = Served()
    yield world
    world.close()


def start(served, model=None, fronts=2, **changes):
    version = served.publish(model or linear())
    served.gateway(fronts=fronts, **changes)
    served.ready(served.replica(version)).route(version)
    names = [served.front() for _ in range(fronts)]
    until(lambda: served.ask("GET", "/v2/health/ready")[0] == 200)
    return version, names


def test_an_answer_through_a_front_is_the_gateways(served):
    start(served)
    status, headers, found = served.infer(ROW)
    assert status == 200
    assert found["outputs"][0]["shape"] == [1, 3]
    assert headers["argosy-version"] == "m:1"
    assert headers["argosy-prediction"] == found["parameters"]["prediction"]
    status, _, plain = served.ask("POST", "/predict/m", {"inputs": {"x": ROW[0]}})
    assert status == 200
    assert plain["outputs"]["y"] == found["outputs"][0]["data"]


def test_every_other_page_is_the_gateways(served):
    start(served)
    assert served.ask("GET", "/")[2]["endpoints"]["m"]["version"] == "m:1"
    assert served.ask("GET", "/v2/models/m")[2]["inputs"][0]["name"] == "x"
    assert served.ask("GET", "/v2/models/m/ready")[0] == 200
    assert served.ask("POST", "/v2/repository/index", {})[2][0]["name"] == "m"
    assert served.ask("GET", "/nowhere")[0] == 404
    assert served.ask("HEAD", "/")[2] == b""
    assert served.ask("GET", "/openapi.json")[0] == 200


def test_clients_are_spread_over_the_fronts_and_the_metrics_are_of_all_of_them(served):
    start(served)
    for _ in range(40):  # a connection each
        assert served.infer(ROW)[0] == 200
    for _ in range(8):
        assert served.ask("POST", "/v2/models/unknown/infer", {"inputs": []})[0] == 404
    text = served.ask("GET", "/metrics")[2].decode()
    assert 'argosy_requests_total{code="ok",endpoint="m",version="m:1"} 40.0' in text
    assert "argosy_fronts 2.0" in text
    pids = [info.pid for info in served.launcher.list("front")]
    spent = [sum(int(t) for t in Path(f"/proc/{pid}/stat").read_text().split()[13:15]) for pid in pids]
    assert len(pids) == 2
    assert all(spent)


def test_malformed_requests_meet_the_same_answers_at_a_front(served):
    start(served, fronts=1)
    for name, data, statuses in CORPUS:
        if len(data) > 200_000:
            continue  # what is large is about the connection, which is the same code
        with served.raw(data) as client:
            client.settimeout(12)
            client.shutdown(socket.SHUT_WR) if statuses == {0} else None
            first = b""
            try:
                while b"\r\n" not in first and (piece := client.recv(4096)):
                    first += piece
            except (ConnectionResetError, TimeoutError):
                pass
        got = int(first.split(b" ")[1]) if first.startswith(b"HTTP/1.1 ") else 0
        assert got in statuses or (0 in statuses and not got), (name, first[:200])
    assert served.infer(ROW)[0] == 200


def test_routes_reach_the_fronts(served):
    start(served, constant(1.0))
    second = served.publish(constant(2.0))
    served.ready(served.replica(second)).route(second)
    until(lambda: served.infer([[0.0]])[2]["outputs"][0]["data"] == [2.0])
    served.client.set_routes([])
    until(lambda: served.infer([[0.0]])[0] == 404)


def test_keys_reach_the_fronts_and_what_is_revoked_ends_within_a_second(served):
    start(served)
    made = make_key()
    key = made.text
    rules = AccessRules(is_on=True, keys=(AccessKey(id=made.id, name="ann", digest=made.digest, endpoints=("m",)),))
    served.client.set_access(rules)
    until(lambda: served.infer(ROW)[0] == 401, 1.0)
    assert served.infer(ROW, headers={"Authorization": f"Bearer {key}"})[0] == 200
    served.client.set_access(AccessRules(is_on=True))
    until(lambda: served.infer(ROW, headers={"Authorization": f"Bearer {key}"})[0] == 401, 1.0)


def test_a_restart_of_the_gateway_loses_no_request(served):
    version, _ = start(served, constant(5.0))
    answers, stop = [], threading.Event()

    def ask():
        while not stop.is_set():
            status, _, found = served.infer([[0.0]], timeout=20)
            answers.append((status, found if status != 200 else found["outputs"][0]["data"]))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) > 20)
    for number in (signal.SIGKILL, signal.SIGTERM):
        restart(served, number, answers)
    stop.set()
    for thread in threads:
        thread.join()
    assert {status for status, _ in answers} == {200}
    assert {tuple(data) for _, data in answers} == {(5.0,)}
    assert version


def restart(served, number, answers):
    before = len(answers)
    former = served.client.status().pid
    os.kill(former, number)
    until(lambda: not _lives(former))
    served.gateway(fronts=2)
    until(lambda: len(served.client.status().fronts) == 2)
    until(lambda: len(answers) > before + 20)


def _lives(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_killed_front_takes_only_its_own_connections_along(served):
    start(served)
    first = next(info for info in served.launcher.list("front") if info.alive)
    os.kill(first.pid, signal.SIGKILL)
    until(lambda: len(served.client.status().fronts) == 1)
    for _ in range(10):
        assert served.infer(ROW)[0] == 200


def test_a_client_that_hangs_up_is_forgotten_at_the_gateway(served):
    start(served, fronts=1)
    body = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}).encode()
    pid = served.pid(next(info.name for info in served.launcher.list("replica")))
    os.kill(pid, signal.SIGSTOP)
    try:
        client = served.raw(
            b"POST /v2/models/m/infer HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        )
        until(lambda: served.client.status().replicas[0].in_flight or served.client.status().endpoints[0].waiting)
        client.close()
        until(lambda: b'code="cancelled"' in served.ask("GET", "/metrics")[2])
    finally:
        os.kill(pid, signal.SIGCONT)
    until(lambda: served.infer(ROW)[0] == 200)
