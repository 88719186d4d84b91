"""Large batches reach a replica through shared memory, bit for bit, and nothing of it is left behind."""

import os
import signal
import threading
from pathlib import Path

import numpy as np
import pytest

from served import Served, graph, until

WIDTH = 40_000


def twice():
    """y = 2 x over rows of 160 kB, and x itself: an output that is the very input."""
    nodes = [("Add", ["x", "x"], ["y"], {}), ("Identity", ["x"], ["same"], {})]
    shape = ["n", WIDTH]
    return graph(nodes, [("x", "FLOAT", shape)], [("y", "FLOAT", shape), ("same", "FLOAT", shape)])


@pytest.fixture
def served():
    world = Served()
    yield world
    world.close()


def spread_out():
    """y: 40,000 copies of each row's one number, so that small requests have large answers."""
    ones = [("ones", np.ones((1, WIDTH), "f4"))]
    nodes = [("Mul", ["x", "ones"], ["y"], {})]
    return graph(nodes, [("x", "FLOAT", ["n", 1])], [("y", "FLOAT", ["n", WIDTH])], ones)


def infer(served, x):
    head = (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[%d,%d],"parameters":{"binary_data_size":%d}}],'
        b'"parameters":{"binary_data_output":true}}' % (*x.shape, x.nbytes)
    )
    status, headers, body = served.ask(
        "POST",
        "/v2/models/m/infer",
        head + x.tobytes(),
        {"Inference-Header-Content-Length": str(len(head)), "Content-Type": "application/octet-stream"},
    )
    assert status == 200, body
    data = body[int(headers["inference-header-content-length"]) :]
    return np.frombuffer(data, "f4").reshape(-1, len(x), WIDTH)


def mapped(pid):
    return [line for line in Path(f"/proc/{pid}/maps").read_text().splitlines() if "argosy-batch" in line]


def test_large_tensors_come_back_bit_for_bit_while_arenas_grow(served):
    version = served.publish(twice())
    served.gateway()
    name = served.replica(version)
    served.ready(name).route(version)
    rng = np.random.default_rng(5)
    for rows in (1, 1, 8, 2, 32, 1):
        x = rng.normal(size=(rows, WIDTH)).astype("f4")
        y, same = infer(served, x)
        assert np.array_equal(y, x + x)
        assert np.array_equal(same, x)
    assert len(mapped(served.pid(name))) == 1
    assert len(mapped(served.client.status().pid)) == 1


def test_large_answers_to_small_requests_come_that_way_too_as_soon_as_their_size_is_known(served):
    version = served.publish(spread_out())
    served.gateway()
    name = served.replica(version)
    served.ready(name).route(version)
    for turn, rows in enumerate((1, 1, 8, 2)):
        x = np.arange(rows, dtype="f4")[:, None] + turn
        (y,) = infer(served, x)
        assert np.array_equal(y, np.repeat(x, WIDTH, axis=1))
        assert len(mapped(served.pid(name))) == (1 if turn else 0)


def test_callers_of_large_tensors_at_once_never_see_each_others_bytes(served):
    version = served.publish(twice())
    served.gateway()
    served.ready(served.replica(version), served.replica(version)).route(version)
    wrong = []

    def ask(number):
        for turn in range(10):
            x = np.full((1 + turn % 3, WIDTH), number * 100.0 + turn, "f4")
            y, same = infer(served, x)
            if not (np.array_equal(y, x + x) and np.array_equal(same, x)):
                wrong.append((number, turn))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_the_arena_of_a_killed_replica_is_given_back(served):
    version = served.publish(twice())
    served.gateway()
    first = served.replica(version)
    served.ready(first).route(version)
    x = np.ones((4, WIDTH), "f4")
    infer(served, x)
    gateway = served.client.status().pid
    assert len(mapped(gateway)) == 1
    os.kill(served.pid(first), signal.SIGKILL)
    until(lambda: not mapped(gateway))
    served.ready(served.replica(version))
    assert np.array_equal(infer(served, x)[0], x + x)


def test_a_restarted_gateway_shares_memory_anew(served):
    version = served.publish(twice())
    served.gateway()
    name = served.replica(version)
    served.ready(name).route(version)
    x = np.ones((4, WIDTH), "f4")
    infer(served, x)
    former = served.client.status().pid
    os.kill(former, signal.SIGKILL)
    until(lambda: not Path(f"/proc/{former}").exists() or "Z" in Path(f"/proc/{former}/stat").read_text())
    served.gateway()
    served.ready(name)
    assert np.array_equal(infer(served, x)[0], x + x)
    assert len(mapped(served.pid(name))) == 1
