"""Short versions of what `benchmarks/faults.py` measures: storms that callers must not notice, and hostile clients."""

import contextlib
import os
import signal
import socket
import struct
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from argosy.operate import commands
from argosy.operate.config import EndpointConfig
from controlled import Controlled, Traffic
from malformed import infer
from served import Served, constant, graph, slow, until

BACK_S = 3.0
"""Within so long, and the time its model takes to load, a lost replica has a successor."""
LOAD_S = 3.0
"""What starting one may take on a machine that runs other tests too; 0.5 s on a quiet one."""


@pytest.fixture
def home():
    found = Controlled()
    yield found
    found.close()


@pytest.fixture
def served():
    found = Served()
    yield found
    found.close()


def echo(value=0.0, width=1):
    """y = x + value, so that an answer says whose it is and which version gave it."""
    return graph(
        [("Add", ["x", "v"], ["y"], {})],
        [("x", "FLOAT", ["n", 1])],
        [("y", "FLOAT", ["n", width])],
        [("v", np.full(width, value, "float32"))],
    )


def deploy(home, version, replicas=1):
    accepted = commands.deploy(home.registry, str(version), endpoint=EndpointConfig(replicas=replicas))
    home.start()
    return accepted


def ready(home, version):
    return {r.id: r for r in home.client.status().replicas if r.version == version.digest and r.state == "ready"}


# ---- replicas killed and frozen ------------------------------------------------------------------------------------


@pytest.mark.capability("R4")
@pytest.mark.parametrize(("number", "times"), [(signal.SIGKILL, 4), (signal.SIGSTOP, 2)])
def test_a_lost_replica_has_a_successor_soon_each_time(home, number, times):
    version = home.publish(slow(layers=2))
    deploy(home, version, replicas=2)
    home.serving("m:1")
    until(lambda: len(ready(home, version)) == 2)
    with Traffic(home, threads=2, value=1.0) as traffic:
        for _ in range(times):
            victim = max(ready(home, version).values(), key=lambda replica: replica.answered)
            os.kill(victim.pid, number)
            until(lambda: len(set(ready(home, version)) - {victim.id}) == 2, seconds=BACK_S + LOAD_S)  # noqa: B023
    assert traffic.failed == []
    assert len(traffic.answers) > 20


# ---- version changes -----------------------------------------------------------------------------------------------


def damaged(home):
    """A version whose file lost a bit after it was signed."""
    model = constant(2.0)
    version = home.publish(model)
    path = next(p for p in home.settings.home.rglob("*") if p.is_file() and p.read_bytes() == model)
    path.chmod(0o600)
    path.write_bytes(model[:-1] + bytes([model[-1] ^ 1]))
    return version, "is damaged"


def no_model(home):
    """A version that was signed without being looked at."""
    right = home.publish(constant(3.0)).manifest.signature
    return home.publish(b"this is no model", signature=right), "not an ONNX model"


@pytest.mark.capability("R7")
@pytest.mark.parametrize("broken", [damaged, no_model])
def test_a_version_that_cannot_start_is_told_of_soon_and_nobody_notices(home, broken):
    first = home.publish(constant(1.0))
    deploy(home, first)
    home.serving("m:1")
    version, reason = broken(home)
    with Traffic(home, value=0.0) as traffic:
        begun = time.monotonic()
        ended = home.ended(deploy(home, version).rollout)
        took = time.monotonic() - begun
        until(lambda: traffic.since(begun + took))
    assert ended.outcome == "rolled_back"
    assert reason in ended.reason
    assert took < 10.0
    assert traffic.failed == []
    assert {found for _, _, found in traffic.answers} == {1.0}
    assert home.endpoint().state == "ready"


@pytest.mark.capability("R7")
def test_a_version_whose_replicas_are_killed_while_they_load_is_given_up(home):
    deploy(home, home.publish(constant(1.0)))
    home.serving("m:1")
    version = home.publish(constant(2.0))
    stop = threading.Event()

    def kill():
        while not stop.wait(0.01):
            for info in home.launcher.list("replica"):
                if info.alive and info.pid and version.digest.removeprefix("sha256:")[:12] in info.name:
                    os.kill(info.pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with Traffic(home, value=0.0) as traffic:
            ended = home.ended(deploy(home, version).rollout)
    finally:
        stop.set()
        killer.join()
    assert (ended.outcome, "signal 9" in ended.reason) == ("rolled_back", True)
    assert traffic.failed == []


# ---- requests that share runs --------------------------------------------------------------------------------------


def ask(served, value, *, name="m", number=""):
    path = f"/v2/models/{name}{f'/versions/{number}' if number else ''}/infer"
    status, headers, body = served.infer([[value]], path=path)
    return status, headers.get("argosy-version"), body["outputs"][0]["data"][0] if status == 200 else body


def test_a_request_cancelled_while_it_waits_or_runs_does_not_hang_or_shift_its_batch(served):
    served.gateway()
    version = served.publish(echo())
    name = served.replica(version)
    served.ready(name).route(version)
    os.kill(served.pid(name), signal.SIGSTOP)
    running = served.raw(infer(shape=[1, 1], data=[0.0]))
    until(lambda: any(r.in_flight for r in served.client.status().replicas))
    waiting = {value: served.raw(infer(shape=[1, 1], data=[float(value)])) for value in range(1, 9)}
    until(lambda: served.client.status().endpoints[0].waiting == 8)
    for connection in (running, waiting.pop(1), waiting.pop(4), waiting.pop(8)):
        connection.close()
    until(lambda: served.client.status().endpoints[0].waiting == 5)
    os.kill(served.pid(name), signal.SIGCONT)
    for value, connection in waiting.items():
        answer = b""
        while b'"data":[' not in answer or not answer.endswith(b"}"):
            answer += connection.recv(4096) or pytest.fail(f"no answer for {value}: {answer!r}")
        assert answer.startswith(b"HTTP/1.1 200")
        assert float(answer.partition(b'"data":[')[2].partition(b"]")[0]) == value
    (replica,) = until(lambda: [r for r in served.client.status().replicas if not r.in_flight])
    assert replica.answered == 6, "what was cancelled while it waited must not be run"
    assert ask(served, 99.0) == (200, "m:1", 99.0)


def test_clients_that_come_and_go_never_shift_the_answers_of_those_who_stay(served):
    served.gateway()
    version = served.publish(echo())
    served.ready(served.replica(version)).route(version)
    wrong = []
    stop = threading.Event()

    def stay(base):
        value = base
        while not stop.is_set():
            value += 1.0
            if (found := ask(served, value)) != (200, "m:1", value):
                wrong.append((value, found))

    threads = [threading.Thread(target=stay, args=(1000.0 * i,)) for i in range(1, 4)]
    for thread in threads:
        thread.start()
    for i in range(300):
        with socket.create_connection(("127.0.0.1", served.port)) as connection:
            connection.sendall(infer(shape=[1, 1], data=[-1.0 - i]))
            if i % 2:
                # A reset instead of an orderly end.
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    until(lambda: served.client.status().endpoints[0].waiting == 0)


@pytest.mark.capability("R2")
def test_the_same_input_sent_to_two_versions_never_shares_an_answer(served):
    served.gateway()
    one, two = served.publish(echo(0.25)), served.publish(echo(0.5))
    served.ready(served.replica(one), served.replica(two))
    served.route(one, canary=two, share=0.5, mirror=0.3, rollout="r", window_s=0.5)
    offset = {"m:1": 0.25, "m:2": 0.5}
    found = []

    def send(number):
        found.extend((value, number, *ask(served, float(value % 10), number=number)) for value in range(100))

    threads = [threading.Thread(target=send, args=(number,)) for number in ("1", "2", "", "")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 400
    for value, number, status, version, answer in found:
        assert status == 200
        assert not number or version == f"m:{number}"
        assert answer == value % 10 + offset[version]
    assert {version for *_, version, _ in found} == {"m:1", "m:2"}


# ---- overload ------------------------------------------------------------------------------------------------------


def test_what_expired_in_the_queue_is_never_run(served):
    served.gateway()
    version = served.publish(echo())
    name = served.replica(version)
    served.ready(name).route(version)
    os.kill(served.pid(name), signal.SIGSTOP)
    held = served.raw(infer(shape=[1, 1], data=[0.0]))
    until(lambda: any(r.in_flight for r in served.client.status().replicas))
    request = infer(shape=[1, 1], data=[1.0]).replace(b"\r\n", b"\r\nargosy-timeout: 0.1\r\n", 1)
    late = [served.raw(request) for _ in range(20)]
    heads = [connection.recv(100) for connection in late]
    os.kill(served.pid(name), signal.SIGCONT)
    assert held.recv(100).startswith(b"HTTP/1.1 200")
    assert all(head.startswith(b"HTTP/1.1 504") for head in heads)
    assert ask(served, 5.0) == (200, "m:1", 5.0)
    (replica,) = served.client.status().replicas
    assert replica.answered == 2


def test_a_stall_of_a_moment_refuses_nobody_who_has_time(served):
    """What one run would have answered must not be refused because nothing ran for a fifth of a second."""
    served.gateway()
    version = served.publish(echo())
    name = served.replica(version)
    served.ready(name).route(version)
    for value in range(200):
        ask(served, float(value))
    pid = served.pid(name)
    connections = []
    for _ in range(3):
        os.kill(pid, signal.SIGSTOP)
        connections += [served.raw(infer(shape=[1, 1], data=[float(value)])) for value in range(120)]
        os.kill(pid, signal.SIGCONT)
        heads = [connection.recv(100).split(b"\r\n")[0] for connection in connections[-120:]]
        assert set(heads) == {b"HTTP/1.1 200 OK"}


# ---- hostile clients -----------------------------------------------------------------------------------------------

HEAD = b"POST /v2/models/m/infer HTTP/1.1\r\nhost: 127.0.0.1\r\n"
SLOW = {
    "header trickle": (HEAD + b"x-slow: ", b"a"),
    "half request line": (b"POST /v2/mod", b""),
    "silence": (b"", b""),
    "body trickle": (HEAD + b"content-length: 100000\r\n\r\n{", b" "),
}


def test_slow_connections_of_four_kinds_are_closed_in_time_and_others_served(served):
    served.gateway(receive_s=1.0)
    version = served.publish(echo())
    served.ready(served.replica(version)).route(version)
    opened = time.monotonic()
    held = [(served.raw(begin), drip) for begin, drip in SLOW.values() for _ in range(15)]
    closed_after = []
    while held:
        assert time.monotonic() - opened < 5.0, f"{len(held)} connections are still open"
        asked = time.monotonic()
        assert ask(served, 7.0) == (200, "m:1", 7.0)
        assert time.monotonic() - asked < 1.0
        for connection, drip in list(held):
            connection.settimeout(0.001)
            try:
                if drip:
                    connection.sendall(drip)
                is_over = not connection.recv(4096)
            except TimeoutError:
                is_over = False
            except OSError:
                is_over = True
            if is_over:
                held.remove((connection, drip))
                closed_after.append(time.monotonic() - opened)
    assert len(closed_after) == 60
    assert min(closed_after) > 0.5, "a slow client gets its time"


def kept_by_kernel(port):
    """Return the connections of a port with bytes that the kernel still has to send, their process there or not."""
    lines = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [
        line for line in lines if int(line[1].rpartition(":")[2], 16) == port and int(line[4].partition(":")[0], 16)
    ]


def sockets(pid):
    """Return how many a process has open; the memory it shares with replicas has a descriptor, too."""
    found = 0
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):  # closed since
            found += str(path.readlink()).startswith("socket:")
    return found


@pytest.mark.parametrize(
    "rows",
    [
        # Beyond the 1 MiB from which on the transport tells that it has to wait.
        512,
        # Waits in the kernel.
        16,
    ],
)
def test_readers_that_never_read_are_let_go_with_what_they_asked_for(served, rows):
    served.gateway(receive_s=1.0)
    version = served.publish(echo(width=4096))
    served.ready(served.replica(version)).route(version)
    (gateway,) = served.launcher.list("gateway")
    before = sockets(gateway.pid)
    asked = infer(shape=[rows, 1], data=[1.0] * rows)
    for _ in range(8):
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(("127.0.0.1", served.port))
        served.held.append(connection)
        connection.sendall(asked)
    until(lambda: sockets(gateway.pid) >= before + 8)
    until(lambda: sockets(gateway.pid) <= before, seconds=10)
    assert not kept_by_kernel(served.port)
    with contextlib.closing(served.raw(infer(shape=[1, 1], data=[0.5]))) as good:
        assert good.recv(12) == b"HTTP/1.1 200"
