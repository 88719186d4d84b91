"""What a client asks, how often, and when: against a transport that answers as it is told, on a clock that is told."""

import json
import subprocess
import sys
from random import Random

import numpy as np
import pytest

import argosy
from argosy.client.attempts import Budget
from argosy.client.http1 import Answer
from argosy.core.clock import FakeClock
from argosy.core.errors import (
    ArgosyError,
    Conflict,
    DeadlineExceeded,
    Denied,
    IntegrityError,
    Internal,
    InvalidInput,
    NotFound,
    PluginError,
    Unavailable,
)

GOOD = {"endpoint": "m", "version": "m:1", "prediction": "p", "outputs": {"y": 1.0}}


def answer(status=200, body=None, **headers):
    data = json.dumps(GOOD if body is None else body).encode() if not isinstance(body, bytes) else body
    return Answer(status, {key.replace("_", "-"): value for key, value in headers.items()}, bytearray(data), True)


def refused(status=503, code="overloaded", **headers):
    return answer(status, {"error": "no", "code": code, "hint": "later"}, **headers)


class Script:
    """Answers in turn; each an Answer, an error to raise, or seconds that pass before the deadline is looked at."""

    def __init__(self, clock, *answers, took_s=0.0):
        self.clock = clock
        self.answers = list(answers)
        self.requests = []
        self.times = []
        self.took_s = took_s

    def exchange(self, request, deadline):
        self.requests.append(request)
        self.times.append(self.clock.monotonic())
        self.clock.advance(self.took_s)
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if self.clock.monotonic() >= deadline:
            raise TimeoutError
        if isinstance(found, Exception):
            raise found
        return found

    def close(self):
        pass


def client(*answers, took_s=0.0, **options):
    clock = FakeClock()
    script = Script(clock, *answers, took_s=took_s)
    made = argosy.Client("http://127.0.0.1:1", clock=clock, randomness=Random(3), transport=script, **options)
    return made, script


def lost():
    return Unavailable("lost", code="connection_lost", retry_after_s=0.0)


# Retries --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "trouble",
    [
        lost(),
        Unavailable("refused", code="not_reachable", retry_after_s=0.0),
        refused(503),
        refused(502),
        refused(429),
    ],
    ids=["lost", "not reachable", "503", "502", "429"],
)
def test_what_may_pass_is_asked_again(trouble):
    asking, script = client(trouble, trouble, answer())
    assert asking.predict("m", {"x": 1}).outputs == {"y": 1.0}
    assert len(script.requests) == 3


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidInput),
        (401, Denied),
        (403, Denied),
        (404, NotFound),
        (409, Conflict),
        (413, InvalidInput),
        (415, InvalidInput),
        (421, InvalidInput),
        (500, Internal),
        (501, PluginError),
        (504, DeadlineExceeded),
    ],
)
def test_what_fails_again_is_asked_once_and_keeps_the_servers_words(status, kind):
    body = {"error": "what was wrong", "code": "its_code", "hint": "do this", "path": "$.inputs.x"}
    asking, script = client(answer(status, body))
    with pytest.raises(kind, match="what was wrong") as caught:
        asking.predict("m", {"x": 1})
    error = caught.value
    assert (error.code, error.hint, error.context["path"], error.context["status"]) == (
        "its_code",
        "do this",
        "$.inputs.x",
        status,
    )
    assert len(script.requests) == 1


def test_a_wrong_signature_is_told_from_other_faults_of_the_server():
    asking, _ = client(answer(500, {"error": "e", "code": "integrity"}))
    with pytest.raises(IntegrityError):
        asking.predict("m", {})


def test_pauses_grow_are_partly_random_and_stay_within_the_bound():
    asking, script = client(lost(), retries=5)
    with pytest.raises(Unavailable) as caught:
        asking.predict("m", {"x": 1})
    pauses = np.diff(script.times)
    most = [0.1, 0.3, 0.9, 2.0, 2.0]
    assert all(m / 2 <= p <= m for p, m in zip(pauses, most, strict=True))
    assert len(set(pauses / most)) == 5
    assert caught.value.context["attempts"] == 6


def test_retry_after_is_honoured():
    asking, script = client(refused(503, retry_after="3"), answer())
    asking.predict("m", {"x": 1})
    assert 3.0 <= script.times[1] <= 3.1


def test_a_retry_that_would_come_too_late_is_not_waited_for():
    asking, script = client(refused(503, retry_after="3"), timeout_s=2.0)
    with pytest.raises(Unavailable) as caught:
        asking.predict("m", {"x": 1})
    assert caught.value.code == "overloaded"
    assert asking._calls._clock.monotonic() == 0.0
    assert len(script.requests) == 1


def test_the_server_is_told_what_is_left_of_the_time():
    asking, script = client(refused(503, retry_after="3"), answer(), timeout_s=10.0)
    asking.predict("m", {"x": 1})
    address = asking._calls.address
    left = [10.0 - at for at in script.times]
    heads = [r.head(address, (), left_s).decode() for r, left_s in zip(script.requests, left, strict=True)]
    assert "argosy-timeout: 10\r\n" in heads[0]
    assert "argosy-timeout: 6.9\r\n" in heads[1]


def test_equal_calls_send_equal_heads_although_time_passes():
    asking, script = client(answer())
    asking.predict("m", {"x": 1})
    asking.predict("m", {"x": 2})
    address = asking._calls.address
    first, second = (r.head(address, (), left_s) for r, left_s in zip(script.requests, (29.9996, 29.87), strict=True))
    assert first == second


@pytest.mark.parametrize(
    ("left_s", "said"), [(1e-9, "0.001"), (0.0123456, "0.012"), (0.987, "0.99"), (123.4, "120"), (1e9, "600")]
)
def test_the_time_is_said_as_the_gateway_reads_it(left_s, said):
    asking, script = client(answer())
    asking.predict("m", {"x": 1})
    head = script.requests[0].head(asking._calls.address, (), left_s)
    assert f"argosy-timeout: {said}\r\n".encode() in head


def test_one_deadline_covers_all_attempts():
    asking, script = client(lost(), took_s=0.4, timeout_s=1.0, retries=100)
    with pytest.raises((Unavailable, DeadlineExceeded)):
        asking.predict("m", {"x": 1})
    assert len(script.requests) == 2
    assert asking._calls._clock.monotonic() <= 1.0


def test_a_call_that_is_not_answered_in_time_says_so():
    asking, _ = client(answer(), took_s=2.0)
    with pytest.raises(DeadlineExceeded, match=r"'m' did not answer within 1.5 s") as caught:
        asking.predict("m", {"x": 1}, timeout_s=1.5)
    assert caught.value.code == "deadline_exceeded"


def test_a_failing_service_is_not_asked_much_more_than_a_tenth_more_often():
    asking, script = client(refused(503), retries=5)
    for _ in range(500):
        with pytest.raises(Unavailable):
            asking.predict("m", {"x": 1})
    assert 500 <= len(script.requests) <= 500 * 1.1 + 64


def test_a_budget_is_earned_back():
    budget = Budget(share=0.1, burst=2.0)
    assert [budget.spend() for _ in range(3)] == [True, True, False]
    for _ in range(11):
        budget.earn()
    assert budget.spend()
    assert not budget.spend()


@pytest.mark.parametrize("timeout_s", [0.0, -1.0, 601.0, float("nan"), float("inf")])
def test_a_time_that_can_not_be_kept_is_refused(timeout_s):
    asking, script = client(answer())
    with pytest.raises(InvalidInput, match="timeout_s"):
        asking.predict("m", {"x": 1}, timeout_s=timeout_s)
    assert not script.requests
    with pytest.raises(InvalidInput, match="timeout_s"):
        argosy.Client("http://127.0.0.1:1", timeout_s=timeout_s)


# What comes back ------------------------------------------------------------------------------------------------------


def test_a_redirect_is_not_followed():
    asking, script = client(answer(307, b"", location="http://evil.example/"))
    with pytest.raises(InvalidInput, match=r"redirects to 'http://evil.example/'") as caught:
        asking.predict("m", {"x": 1})
    assert caught.value.code == "redirected"
    assert len(script.requests) == 1


def test_a_proxys_page_is_an_error_with_its_words():
    asking, _ = client(answer(502, b"<h1>Bad gateway</h1>"), retries=0)
    with pytest.raises(Unavailable, match="answered 502: <h1>Bad gateway"):
        asking.predict("m", {"x": 1})


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"outputs": 3}', b"\xff\xfe", b'{"outputs": {"y": '])
def test_an_answer_that_is_none_is_an_error(body):
    asking, _ = client(answer(200, body))
    with pytest.raises(Internal) as caught:
        asking.predict("m", {"x": 1})
    assert caught.value.code == "bad_answer"


def test_a_stand_in_is_named():
    asking, _ = client(answer(argosy_failover="m:1"))
    assert asking.predict("m", {"x": 1}).failover == "m:1"


METADATA = {
    "name": "m",
    "platform": "p",
    "inputs": [{"name": "x", "datatype": "FP32", "shape": [-1, 2], "unknown": 1}],
    "outputs": [],
}
TEXT = {"name": "t", "platform": "p", "inputs": [{"name": "s", "datatype": "BYTES", "shape": [-1], "content": "text"}]}


def body_of(request):
    return json.loads(b"".join(bytes(piece) for piece in request.body))


@pytest.mark.parametrize("value", ["a sentence", ["one", "two"]])
def test_a_text_alone_is_sent_under_the_name_of_the_one_text_input(value):
    asking, script = client(answer(200, TEXT), answer())
    asking.predict("t", value)
    asking.predict("t", value)
    assert [r.path for r in script.requests] == ["/v2/models/t", "/predict/t", "/predict/t"]
    assert body_of(script.requests[1]) == {"inputs": {"s": value}}


def test_bytes_are_refused_where_no_image_is_taken():
    asking, _ = client(answer(200, TEXT))
    with pytest.raises(InvalidInput, match="does not take an image alone; its inputs are: 's' \\(text\\)"):
        asking.predict("t", b"\x89PNG")


def test_bytes_travel_as_base64_and_arrays_as_lists():
    asking, script = client(answer())
    asking.predict("m", {"image": b"\x00\x01", "x": np.array([[1.5, np.nan]]), "n": np.int64(7)})
    assert body_of(script.requests[0]) == {"inputs": {"image": "AAE=", "x": [[1.5, None]], "n": 7}}


@pytest.mark.parametrize("value", [float("inf"), [1.0, float("-inf")], np.array([np.inf]), {"a": [np.float32(np.inf)]}])
def test_an_infinity_is_not_sent_as_a_missing_value(value):
    asking, script = client(answer())
    with pytest.raises(InvalidInput, match="infinity"):
        asking.predict("m", {"x": value, "y": None})
    assert not script.requests


def test_what_json_has_no_form_for_is_refused_before_it_is_sent():
    asking, script = client(answer())
    with pytest.raises(InvalidInput, match="neither a number"):
        asking.predict("m", {"x": object()})
    loop = []
    loop.append(loop)
    with pytest.raises(InvalidInput):
        asking.predict("m", {"x": loop})
    assert not script.requests


def test_lists_are_sent_with_the_datatype_the_endpoint_has_and_come_back_as_lists():
    given = {"model_name": "m", "model_version": "3", "outputs": [
        {"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]},
        {"name": "z", "datatype": "INT64", "shape": [], "data": [5]},
    ]}  # fmt: skip
    asking, script = client(answer(200, METADATA), answer(200, given))
    found = asking.infer("m", {"x": [[1, 2]]}, outputs=["y", "z"])
    assert body_of(script.requests[1]) == {
        "inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "data": [[1, 2]]}],
        "outputs": [{"name": n, "parameters": {"binary_data": False}} for n in "yz"],
    }
    assert found.outputs == {"y": [[1.0, 2.0]], "z": 5}
    assert found.version == "m:3"


def test_a_list_for_an_unknown_input_is_refused_with_the_known_ones():
    asking, _ = client(answer(200, METADATA))
    with pytest.raises(InvalidInput, match="has no input 'q'; its inputs are: x"):
        asking.infer("m", {"q": [[1]]})


def test_an_array_without_a_datatype_is_refused():
    asking, script = client(answer())
    for array in (np.zeros(2, "complex64"), np.zeros(2, "datetime64[s]"), np.array([1, object()], dtype=object)):
        with pytest.raises(InvalidInput):
            asking.infer("m", {"x": array})
    assert not script.requests


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({"shape": [3]}, None),
        ({"datatype": "FP31"}, None),
        ({"parameters": {"binary_data_size": 9}}, None),
        ({"parameters": {"binary_data_size": -1}}, None),
        ({"parameters": {"binary_data_size": "8"}}, None),
        ({"datatype": "BYTES", "shape": [1]}, None),
        ({"parameters": {}}, None),
        ({}, "99999"),
        ({}, "x"),
    ],
)
def test_a_spoilt_binary_answer_is_an_error_and_nothing_else(changes, length):
    entry = {"name": "y", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}} | changes
    head = json.dumps({"model_name": "m", "outputs": [entry]}).encode()
    size = str(len(head)) if length is None else length
    asking, _ = client(answer(200, head + b"\xff" * 8, inference_header_content_length=size))
    with pytest.raises(Internal) as caught:
        asking.infer("m", {"x": np.zeros(1, "float32")})
    assert caught.value.code == "bad_answer"


# Readiness ------------------------------------------------------------------------------------------------------------


def test_waiting_for_an_endpoint_outlasts_a_gateway_that_is_not_there_yet():
    asking, script = client(
        Unavailable("refused", retry_after_s=0.0), refused(404), refused(503), TimeoutError(), answer()
    )
    asking.wait_ready("m", 10.0)
    assert len(script.requests) == 5


def test_waiting_ends_with_the_last_reason():
    asking, script = client(refused(404))
    with pytest.raises(DeadlineExceeded, match=r"'m' was not ready within 3 s: no"):
        asking.wait_ready("m", 3.0)
    assert asking._calls._clock.monotonic() == pytest.approx(3.0)
    assert 25 <= len(script.requests) <= 31


@pytest.mark.parametrize(("said", "expected"), [(answer(), True), (refused(503), False), (refused(404), False)])
def test_ready_is_yes_or_no(said, expected):
    assert client(said)[0].ready("m") is expected


def test_ready_does_not_take_silence_for_no():
    with pytest.raises(Unavailable):
        client(lost())[0].ready("m")


# Where to, and with what ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url", ["ftp://x", "127.0.0.1:8700", "http://", "http://h:99999", "http://h?q=1", "http://h/#a", "http://[::1"]
)
def test_what_is_no_url_of_a_gateway_is_refused(url):
    with pytest.raises(InvalidInput) as caught:
        argosy.Client(url)
    assert caught.value.code == "bad_url"


def test_a_password_in_a_url_is_refused_and_not_repeated():
    with pytest.raises(InvalidInput) as caught:
        argosy.Client("http://me:secret@h")
    assert "secret" not in str(caught.value.as_dict())


@pytest.mark.parametrize("url", ["http://example.org", "http://192.168.1.5:8700"])
def test_a_key_is_not_sent_unencrypted_to_another_machine(url):
    with pytest.raises(InvalidInput) as caught:
        argosy.Client(url, api_key="tops3cret")
    assert caught.value.code == "key_in_the_clear"
    assert "tops3cret" not in str(caught.value.as_dict())


@pytest.mark.parametrize("key", ["a b", "a\r\nx: y", "schlüssel", "a\x7f"])
def test_a_key_that_would_break_a_header_is_refused_and_not_repeated(key):
    with pytest.raises(InvalidInput) as caught:
        argosy.Client("http://127.0.0.1:1", api_key=key)
    assert caught.value.code == "bad_header"
    assert key not in str(caught.value.as_dict())


@pytest.mark.parametrize("caller", ["a\r\nargosy-timeout: 9", "x" * 257, "a\0"])
def test_a_caller_that_would_break_a_header_is_refused(caller):
    asking, script = client(answer())
    with pytest.raises(InvalidInput):
        asking.predict("m", {"x": 1}, caller=caller)
    assert not script.requests


def test_names_are_quoted():
    asking, script = client(answer())
    asking.predict("a/b c?", {"x": 1}, caller="Zoë")
    assert script.requests[0].path == "/predict/a%2Fb%20c%3F"
    assert "argosy-caller: Zoë".encode() in script.requests[0].head(asking._calls.address, (), 1.0)


def test_a_missing_certificate_file_and_one_without_tls_are_said(tmp_path):
    with pytest.raises(InvalidInput, match="no TLS"):
        argosy.Client("http://127.0.0.1:1", ca_file=tmp_path)
    with pytest.raises(InvalidInput, match="no certificates that can be read"):
        argosy.Client("https://127.0.0.1:1", ca_file=tmp_path / "none.pem")
    (tmp_path / "bad.pem").write_text("no certificate")
    with pytest.raises(InvalidInput, match="no certificates that can be read"):
        argosy.Client("https://127.0.0.1:1", ca_file=tmp_path / "bad.pem")


def test_without_a_url_the_gateway_of_this_home_is_asked(tmp_path, monkeypatch):
    monkeypatch.setenv("ARGOSY_RUNTIME", str(tmp_path))
    assert argosy.Client().url == "http://127.0.0.1:8700"
    (tmp_path / "gateway.url").write_text("http://127.0.0.1:4711\n")
    assert argosy.Client().url == "http://127.0.0.1:4711"
    assert argosy.AsyncClient().url == "http://127.0.0.1:4711"


def test_every_error_of_a_client_is_argosys_own():
    for status in range(201, 600):
        asking, _ = client(answer(status, b"?"), retries=0)
        with pytest.raises(ArgosyError):
            asking.predict("m", {})


@pytest.mark.parametrize(
    ("code", "absent"),
    [("argosy.__version__", "argosy.client"), ("argosy.Client('http://h')", "numpy"), ("argosy.Client", "torch")],
)
def test_nothing_is_imported_before_it_is_needed(code, absent):
    program = f"import sys, argosy; {code}; sys.exit({absent!r} in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
