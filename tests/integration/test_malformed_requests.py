"""Every malformed request has its exact status, and nobody else notices it."""

import contextlib
import json
import time

import numpy as np
import pytest

from argosy.core.tensors import Signature, TensorSpec
from malformed import CORPUS, CORPUS_OF_KINDS
from served import Served, graph, linear

ALL = CORPUS + CORPUS_OF_KINDS


def same(name, kind, shape=("n",)):
    """y = the input, whatever it is."""
    return graph([("Identity", [name], ["y"], {})], [(name, kind, list(shape))], [("y", kind, list(shape))])


def of_content(name, content):
    return Signature(
        inputs=(TensorSpec(name=name, datatype="BYTES", shape=(-1,), content=content),),
        outputs=(TensorSpec(name="y", datatype="BYTES", shape=(-1,)),),
    )


@pytest.fixture(scope="module")
def served():
    found = Served()
    with contextlib.closing(found):
        found.gateway()
        versions = {
            "m": found.publish(linear(), "m"),
            "small": found.publish(same("n", "INT8", ("n", 2)), "small"),
            "words": found.publish(same("text", "STRING"), "words", signature=of_content("text", "text")),
            "photo": found.publish(same("image", "STRING"), "photo", signature=of_content("image", "image")),
        }
        found.ready(*(found.replica(version) for version in versions.values()))
        found.route_all([(name, version, f"{name}:1") for name, version in versions.items()])
        found.first = found.client.status().pid
        yield found


def test_names_of_cases_are_unique_and_each_has_one_status():
    assert len({name for name, _, _ in ALL}) == len(ALL)
    assert all(len(statuses) == 1 for _, _, statuses in ALL)


@pytest.mark.parametrize(("raw", "statuses"), [case[1:] for case in ALL], ids=[case[0] for case in ALL])
def test_a_malformed_request_gets_its_status_and_others_are_served_at_once(served, raw, statuses):
    connection = served.raw()
    # The answer may come, and the connection end, before all was sent.
    with contextlib.suppress(ConnectionError):
        connection.sendall(raw)
    answer = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n\r\n" not in answer:
            piece = connection.recv(65536)
            if not piece:
                break
            answer += piece
    connection.close()
    assert answer.startswith(b"HTTP/1.1 "), answer[:100]
    assert {int(answer.split()[1])} == statuses, answer[:600]
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert body["error"]
    assert body["code"]
    assert not any(word in answer.lower() for word in (b"traceback", b"site-packages", b".py", b"/tmp/", b"/src/"))
    began = time.monotonic()
    assert served.infer(np.ones((1, 4)), timeout=1.0)[0] == 200
    assert time.monotonic() - began < 1.0
    assert served.client.status().pid == served.first


def test_afterwards_the_gateway_is_small_and_knows_no_new_names(served):
    assert served.rss_bytes("gateway") < 100e6
    text = served.ask("GET", "/metrics")[2].decode()
    assert not any(name in text for name in ("nobody", "etc", "aaaa", "versions"))
