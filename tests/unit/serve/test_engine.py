import numpy as np

from argosy.core.errors import InvalidInput
from argosy.core.tensors import Signature, TensorSpec
from argosy.serve import wire
from argosy.serve.engine import Engine

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1,)), TensorSpec(name="t", datatype="BYTES", shape=(-1,))),
)


def model(inputs):
    x = inputs["x"]
    if (x == 13).any():
        raise RuntimeError("thirteen\nwith a second line in /usr/lib/python")
    return {"y": 1 / x[:, 0], "t": np.array([f"<{v:g}>" for v in x[:, 0]], dtype=object), "extra": x}


def refuse_negative(inputs):
    if (inputs["x"] < 0).any():
        raise InvalidInput("the input 'x' may not be negative", input="x")
    return inputs


ENGINE = Engine(SIGNATURE, refuse_negative, model, None)


def run(*requests, engine=ENGINE):
    """Run a batch of requests, each a list of rows; return its outcome per request: values, or a failure's code."""
    arrays = [np.array(rows, "float32").reshape(-1, 2) for rows in requests]
    rows = tuple(len(array) for array in arrays)
    order = wire.Run(5, (("x", "FP32", (sum(rows), 2)),), rows)
    with np.errstate(divide="ignore"):
        done, pieces, _ = engine.run(order, memoryview(bytearray(b"".join(a.tobytes() for a in arrays))))
    assert done.batch == 5
    failures = {failure.index: failure for failure in done.failures}
    answered = [n for i, n in enumerate(rows) if i not in failures]
    y = np.frombuffer(bytes(pieces[0]), "float32") if pieces else np.empty(0)
    texts = [bytes(pieces[1])] if pieces else []
    found, at, cut = [], 0, 0
    parts = list(answered)
    for index in range(len(rows)):
        if index in failures:
            found.append(failures[index].code)
            continue
        count = parts.pop(0)
        size = done.outputs[1].cuts[len(answered) - len(parts) - 1]
        found.append((y[at : at + count].tolist(), texts[0][cut : cut + size]))
        at, cut = at + count, cut + size
    assert at == len(y)
    return found


def text(value):
    return len(value).to_bytes(4, "little") + value


def test_each_request_of_a_batch_gets_its_own_rows():
    assert run([(1, 0)], [(2, 0), (4, 0)]) == [
        ([1.0], text(b"<1>")),
        ([0.5, 0.25], text(b"<2>") + text(b"<4>")),
    ]


def test_a_number_that_is_not_finite_fails_its_request_only():
    assert run([(1, 0)], [(2, 0), (0, 0)], [(4, 0)]) == [
        ([1.0], text(b"<1>")), "non_finite_output", ([0.25], text(b"<4>")),
    ]  # fmt: skip
    assert run([(0, 0)]) == ["non_finite_output"]
    assert run([(0, 0)], [(0, 0)]) == ["non_finite_output", "non_finite_output"]


def test_a_request_that_makes_the_run_fail_fails_alone():
    assert run([(1, 0)], [(13, 0)], [(4, 0)], [(0, 0)], [(-1, 0)]) == [
        ([1.0], text(b"<1>")), "model_run_failed", ([0.25], text(b"<4>")), "non_finite_output", "input_refused",
    ]  # fmt: skip


def test_a_refused_input_is_the_callers_and_a_failed_run_is_the_versions():
    order = wire.Run(1, (("x", "FP32", (1, 2)),), (1,))
    for value, is_callers in ((-1, True), (13, False)):
        body = memoryview(bytearray(np.array([value, 0], "float32").tobytes()))
        (failure,) = ENGINE.run(order, body)[0].failures
        assert failure.is_callers == is_callers


def test_what_a_failed_run_says_has_one_line_and_no_paths():
    order = wire.Run(1, (("x", "FP32", (1, 2)),), (1,))
    (failure,) = ENGINE.run(order, memoryview(bytearray(np.array([13, 0], "float32").tobytes())))[0].failures
    assert failure.message == "RuntimeError: thirteen"


def test_a_batch_whose_bytes_do_not_fit_is_an_error_and_no_crash():
    order = wire.Run(1, (("x", "FP32", (3, 2)),), (1, 2))
    done, pieces, _ = ENGINE.run(order, memoryview(b"1234"))
    assert done.error[0] == "bad_frame"
    assert pieces == []


def test_an_output_of_another_number_of_rows_is_the_versions_failure():
    wrong = Engine(SIGNATURE, None, lambda i: {"y": np.ones(7, "float32"), "t": i["x"]}, None)
    assert run([(1, 0)], engine=wrong) == ["model_run_failed"]


def test_an_output_the_version_lacks_is_its_failure():
    wrong = Engine(SIGNATURE, None, lambda _: {"z": np.ones(1, "float32")}, None)
    assert run([(1, 0)], engine=wrong) == ["model_run_failed"]


def test_finishing_steps_come_last():
    engine = Engine(SIGNATURE, None, model, lambda found, _: {"y": found["y"] * 2, "t": found["t"]})
    assert run([(4, 0)], engine=engine) == [([0.5], text(b"<4>"))]
