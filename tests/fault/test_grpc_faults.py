"""Over gRPC: replicas killed and versions changed under load, and clients that mean no good."""

import contextlib
import os
import resource
import signal
import threading
import time

import pytest

from raw_http2 import DATA, END_HEADERS, END_STREAM, Raw, call, frame, message, settings
from raw_http2 import PREFACE as HELLO
from rpc import Rpc, grpc_port, infer, rows_of
from served import Served, constant, linear, until

ROW = [[0.5]]


@pytest.fixture
def served():
    found = Served()
    try:
        yield found
    finally:
        found.close()


class Load:
    """Callers that ask without pause until stopped; what is not answered is kept."""

    def __init__(self, port, callers=6):
        self.answered = 0
        self.versions = set()
        self.failovers = 0
        self.problems = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(callers)]

    def _ask(self):
        with Rpc(self._port) as rpc:
            while not self._stop.is_set():
                answer = rpc.infer(ROW, timeout=20)
                if answer.code != "OK":
                    self.problems.append((answer.code, answer.details))
                    continue
                self.answered += 1
                self.versions.add(answer.trailers["argosy-version"])
                self.failovers += "argosy-failover" in answer.trailers

    def more(self, count):
        """Wait for so many more answers."""
        goal = self.answered + count
        until(lambda: self.problems or self.answered >= goal, seconds=30)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        for thread in self._threads:
            thread.join(20)


@pytest.mark.capability("R4")
def test_replicas_killed_under_load_cost_no_call(served):
    served.gateway(grpc_port=0)
    version = served.publish(constant(1.0))
    names = [served.replica(version) for _ in range(2)]
    served.ready(*names).route(version)
    with Load(grpc_port(served)) as load:
        for turn in range(4):
            load.more(100)
            os.kill(served.pid(names[turn % 2]), signal.SIGKILL)
            load.more(50)
            names[turn % 2] = served.replica(version)
            served.ready(names[turn % 2])
        load.more(100)
    assert load.problems == []
    assert load.versions == {"m:1"}


def test_versions_changed_under_load_cost_no_call(served):
    served.gateway(grpc_port=0)
    versions = [served.publish(constant(value)) for value in (1.0, 2.0, 3.0)]
    served.ready(*(served.replica(version) for version in versions)).route(versions[0])
    with Load(grpc_port(served)) as load:
        for turn in range(9):
            load.more(60)
            served.route(versions[turn % 3])
        load.more(60)
    assert load.problems == []
    assert load.versions == {"m:1", "m:2", "m:3"}


def test_a_path_that_is_not_text_ends_nothing(served):
    served.gateway(grpc_port=0)
    version = served.publish(constant(1.0))
    served.ready(served.replica(version)).route(version)
    port = grpc_port(served)
    with Load(port, callers=2) as load:
        for _ in range(50):
            raw = Raw(port)
            with contextlib.closing(raw):
                raw.send(call(b"/inference.\xff\xfe/ModelInfer") + message(b""))
                assert any(b"unknown_method" in payload for _, _, _, payload in raw.frames())
        load.more(50)
    assert load.problems == []


# Clients that keep the gateway waiting ---------------------------------------------------------------------------


@pytest.fixture
def impatient(served):
    """A gateway that waits one second for what should come at once."""
    served.gateway(grpc_port=0, receive_s=1.0)
    version = served.publish(linear())
    served.ready(served.replica(version)).route(version)
    return served


def ends_within(raw, seconds):
    """Read until the server hangs up, or the time is over; return what was said."""
    raw.socket.settimeout(seconds)
    said = b""
    for _, _, _, payload in raw.frames():
        said += payload
    return said


@pytest.mark.parametrize("hello", [b"", HELLO[:10], HELLO, b"\x16\x03\x01"], ids=["nothing", "half", "preface", "tls"])
def test_a_client_that_does_not_finish_its_hello_is_hung_up_on(impatient, hello):
    raw = Raw(grpc_port(impatient), hello=b"")
    with contextlib.closing(raw):
        raw.socket.sendall(hello)
        ends_within(raw, 5.0)


def test_many_calls_whose_message_never_comes_are_given_up_for_others(impatient):
    raws = [Raw(grpc_port(impatient), timeout=0.05) for _ in range(20)]
    given_up = set()

    def told():
        for raw in set(raws) - given_up:
            with contextlib.suppress(TimeoutError):
                if any(b"request_timeout" in payload for _, _, _, payload in raw.frames()):
                    given_up.add(raw)
        return len(given_up) >= 12

    try:
        for raw in raws:
            raw.send(call())
        until(told)
        # The eight youngest may be large messages on slow lines.
        assert len(given_up) == 12
        with Rpc(grpc_port(impatient)) as rpc:
            assert rpc.infer([[0.0] * 4], timeout=1.0).code == "OK"
    finally:
        for raw in raws:
            raw.close()


def test_a_message_that_trickles_in_is_answered_while_there_is_room(impatient):
    data = infer([[0.0] * 4])
    whole = b"\0" + len(data).to_bytes(4, "big") + data
    raw = Raw(grpc_port(impatient))
    with contextlib.closing(raw):
        raw.send(call())
        slowly = threading.Event()
        for at in range(0, len(whole), 16):
            raw.send(frame(DATA, END_STREAM if at + 16 >= len(whole) else 0, 1, whole[at : at + 16]))
            slowly.wait(2.0 / (len(whole) / 16))
        assert any(b"argosy-prediction" in payload for _, _, _, payload in raw.frames())


def test_a_client_that_never_takes_its_answer_is_let_go(impatient):
    raw = Raw(grpc_port(impatient), hello=HELLO + settings((4, 0)))  # a window of no bytes at all
    with contextlib.closing(raw):
        raw.send(call() + message(infer([[0.0] * 4] * 500)))
        raw.socket.settimeout(6.0)
        assert any(b"CANCELLED" in payload for _, _, _, payload in raw.frames())
    assert impatient.ask("GET", "/v2/health/ready")[0] == 200


def test_five_hundred_slow_clients_of_every_kind_do_not_slow_others(impatient):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    port = grpc_port(impatient)
    openings = (
        b"",
        HELLO[:10],
        HELLO + settings() + call(),
        HELLO + settings() + call() + message(b"a", size=9, flags=0),
    )
    raws = []
    try:
        with Rpc(port) as rpc:
            rpc.infer([[0.0] * 4])
            raws += [Raw(port, hello=openings[index % 4]) for index in range(500)]
            began = time.monotonic()
            times = []
            while time.monotonic() < began + 2.5:
                start = time.monotonic()
                assert rpc.infer([[0.0] * 4], timeout=2.0).code == "OK"
                times.append(time.monotonic() - start)
        assert sorted(times)[len(times) // 2] < 0.1
        for raw in raws[::4] + raws[1::4]:  # those that never said hello are gone
            ends_within(raw, 5.0)
    finally:
        for raw in raws:
            raw.close()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


# Bounds ----------------------------------------------------------------------------------------------------------


def test_more_calls_than_allowed_are_refused_and_the_others_answered(served):
    served.gateway(grpc_port=0, max_connections=8)
    version = served.publish(constant(1.0))
    served.ready(served.replica(version)).route(version)
    raws = []

    def refused():
        # Anew each time: on a busy machine those before may have been given up already. Not beside them: more
        # connections than 8 are hung up on.
        while raws:
            raws.pop().close()
        raws.extend(Raw(grpc_port(served)) for _ in range(4))
        for raw in raws[-4:]:
            raw.send(call(stream=1) + call(stream=3) + call(stream=5))
        return _refusal(grpc_port(served)) == "too_many_calls"

    try:
        until(refused)
    finally:
        for raw in raws:
            raw.close()
    with Rpc(grpc_port(served)) as rpc:
        until(lambda: rpc.infer(ROW).code == "OK")
        assert rows_of(rpc.infer(ROW)) == [[1.0]]


def _refusal(port):
    with Rpc(port) as rpc:
        return rpc.infer(ROW, timeout=2.0).trailers.get("argosy-code", "")


def test_more_connections_than_allowed_are_hung_up_on(served):
    served.gateway(grpc_port=0, max_connections=8)
    version = served.publish(constant(1.0))
    served.ready(served.replica(version)).route(version)
    raws = []
    try:
        for _ in range(30):
            with contextlib.suppress(OSError):
                raws.append(Raw(grpc_port(served), timeout=1.0))
        assert sum(_is_open(raw) for raw in raws) <= 8
    finally:
        for raw in raws:
            raw.close()
    with Rpc(grpc_port(served)) as rpc:
        until(lambda: rpc.infer(ROW, timeout=2.0).code == "OK")


def _is_open(raw):
    raw.socket.settimeout(0.3)
    try:
        for _ in raw.frames():
            pass
    except TimeoutError:
        return True
    except OSError:
        pass
    return False


def test_a_call_that_ends_early_is_forgotten(served):
    served.gateway(grpc_port=0)
    version = served.publish(constant(1.0))
    served.ready(served.replica(version)).route(version)
    port = grpc_port(served)
    for flags in (END_HEADERS, END_HEADERS | END_STREAM):
        for _ in range(50):
            with contextlib.closing(Raw(port)) as raw:
                raw.send(call(flags=flags))
    with Rpc(port, options=[("grpc.max_send_message_length", -1)]) as rpc:
        for _ in range(50):
            rpc.start(ROW).cancel()
        assert rpc.infer(ROW).code == "OK"
        before = served.rss_bytes("gateway")
        for _ in range(300):
            rpc.start(ROW).cancel()
        assert rpc.infer(ROW).code == "OK"
    assert served.rss_bytes("gateway") < before + (8 << 20)


def test_a_frozen_replica_costs_no_call(served):
    served.gateway(grpc_port=0)
    version = served.publish(constant(1.0))
    names = [served.replica(version) for _ in range(2)]
    served.ready(*names).route(version)
    with Load(grpc_port(served), callers=4) as load:
        load.more(50)
        os.kill(served.pid(names[0]), signal.SIGSTOP)
        load.more(200)
        until(lambda: any(r.state == "frozen" for r in served.client.status().replicas))
        os.kill(served.pid(names[0]), signal.SIGCONT)
        load.more(50)
    assert load.problems == []
