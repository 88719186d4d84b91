"""A version that fails everywhere: another answers within two seconds, says so, and gives the place back."""

import http.client
import json
import threading
import time

import pytest

from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import EndpointConfig
from argosy.registry.versions import Evaluation, FileRef, Lineage, Manifest
from controlled import Controlled
from served import Served, constant, logarithm, until


@pytest.fixture
def served():
    found = Served()
    try:
        yield found.gateway()
    finally:
        found.close()


class Caller:
    """Asks again and again with one value, twenty times a second; keeps status, value and who answered."""

    def __init__(self, served, value):
        self.value = value
        self.answers = []
        self._served = served
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, daemon=True)

    def _ask(self):
        connection = http.client.HTTPConnection("127.0.0.1", self._served.port, timeout=20)
        while not self._stop.wait(0.05):
            body = json.dumps({"inputs": [{"name": "x", "shape": [1, 1], "datatype": "FP32", "data": [self.value]}]})
            connection.request("POST", "/v2/models/m/infer", body)
            answer = connection.getresponse()
            answer.read()
            headers = answer.headers
            self.answers.append(
                (time.monotonic(), answer.status, headers["argosy-version"], headers["argosy-failover"])
            )
        connection.close()

    def until(self, condition):
        seen = len(self.answers)
        return until(lambda: next((a for a in self.answers[seen:] if condition(a)), None), 30)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join(20)


def read_metrics(served):
    connection = http.client.HTTPConnection("127.0.0.1", served.port, timeout=20)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    return text


def metric(served, line):
    return float(next(x for x in read_metrics(served).splitlines() if x.startswith(line)).split()[-1])


@pytest.mark.capability("R4")
def test_a_version_whose_answers_are_no_numbers_is_stood_in_for_and_comes_back(served):
    broken, former = served.publish(logarithm()), served.publish(constant(7.0))
    served.ready(served.replica(broken), served.replica(former)).route(broken, backup=former)
    with Caller(served, 1.0) as caller:
        caller.until(lambda a: a[1] == 200 and a[2] == str(broken) and a[3] is None)
        began, caller.value = time.monotonic(), -1.0
        # From the first failure on the former version answers: at first as a second attempt, then by itself.
        stood_in = caller.until(lambda a: a[2] == str(former))
        until(lambda: served.client.status().endpoints[0].failing)
        assert time.monotonic() - began < 2.0
        assert stood_in[3] == str(former)
        (endpoint,) = served.client.status().endpoints
        assert endpoint.serving == former.digest
        assert "requests in a row failed" in endpoint.note or "requests failed within" in endpoint.note
        assert metric(served, "argosy_failover_active") == 1.0
        caller.value = 1.0
        caller.until(lambda a: a[2] == str(broken) and a[3] is None)
        assert metric(served, "argosy_failover_active") == 0.0
        assert metric(served, "argosy_failovers_total") == 1.0
    assert {status for _, status, *_ in caller.answers} == {200}, "not one caller saw a failure"
    assert served.client.status().endpoints[0].failed == 0


def test_an_input_that_no_version_takes_moves_nobody_elses_requests(served):
    one, other = served.publish(logarithm()), served.publish(logarithm(), name="n")
    served.ready(served.replica(one), served.replica(other)).route(one, backup=other)
    with Caller(served, -1.0) as caller:
        until(lambda: len(caller.answers) > 30, 30)
    assert {status for _, status, *_ in caller.answers} == {500}
    assert served.client.status().endpoints[0].failing == ""


def test_without_another_version_it_says_so_and_goes_on_with_what_it_has(served):
    only = served.publish(logarithm())
    served.ready(served.replica(only)).route(only)
    with Caller(served, -1.0) as caller:
        until(lambda: served.client.status().endpoints[0].failing, 30)
        caller.value = 1.0
        caller.until(lambda a: a[1] == 200 and a[2] == str(only) and a[3] is None)


@pytest.fixture
def home():
    found = Controlled()
    try:
        yield found
    finally:
        found.close()


def publish_sibling(home, parent, model):
    digest = home.registry.blobs.put(model)
    manifest = parent.manifest
    return home.registry.versions.publish(
        Manifest(
            name=manifest.name,
            created=1.0,
            role="compressed",
            task=manifest.task,
            signature=manifest.signature,
            files={"model.onnx": FileRef(digest=digest, size_bytes=len(model))},
            evaluation=Evaluation(kind="self-check", passed=True),
            lineage=Lineage(parent=parent.digest),
        )
    )


@pytest.mark.capability("R4")
def test_the_smaller_sibling_answers_and_the_log_says_from_when_to_when(home):
    original = home.publish(logarithm())
    sibling = publish_sibling(home, original, constant(7.0))
    config = EndpointConfig(replicas=1, threads=1, backup="sibling")
    commands.deploy(home.registry, str(original), endpoint=config)
    home.start()
    home.serving(str(original))
    until(lambda: {r.ref for r in home.client.status().replicas if r.state == "ready"} == {str(original), str(sibling)})
    home.look()
    with Caller(home, -1.0) as caller:
        caller.until(lambda a: a[1] == 200 and a[2] == a[3] == str(sibling))
        (failing,) = until(lambda: list(log_entries(home, d.FAILING)), 10)
        assert failing.data["version"] == str(original)
        assert "failed" in failing.data["reason"]
        # The controller may be killed meanwhile: what it wrote down holds for the next one.
        home.kill("controller")
        until(lambda: not home.is_controlled())
        home.start()
        assert "fails" in until(lambda: home.endpoint().note, 10)
        caller.value = 2.0
        caller.until(lambda a: a[2] == str(original) and a[3] is None)
        until(lambda: list(log_entries(home, d.HEALED)), 20)
    assert {status for _, status, *_ in caller.answers} == {200}
    assert len(list(log_entries(home, d.FAILING))) == 1


def log_entries(home, kind):
    home.registry.log.refresh()
    return home.registry.log.entries(kind=kind)
