"""The first layer that differs, found by the values inside two runs."""

import numpy as np
import pytest

from argosy.formats.conversion.jobs import shared
from argosy.formats.conversion.locate import Step, first_difference, read_trace

DRAW = np.random.default_rng(0)


def chain(*layers):
    """Steps in a row, and a value for each."""
    steps = [Step(layer, "op", ["x"] if at == 0 else [layers[at - 1]], layer) for at, layer in enumerate(layers)]
    values = {str(at): DRAW.standard_normal((1, 4, 3)).astype(np.float32) for at, _ in enumerate(layers)}
    return steps, values


def test_nothing_differs_where_every_value_is_found_under_any_name():
    steps, values = chain("a", "b", "c")
    others = {"node_9": values["2"], "node_1": values["0"] + 1e-6, "node_4": values["1"]}
    assert first_difference(steps, values, others, tolerance=1e-3) is None


def test_the_layer_from_which_on_nothing_agrees_is_named():
    steps, values = chain("stem", "conv", "norm", "head")
    others = {"p": values["0"], "q": values["1"] * 1.5, "r": values["2"] + 1, "s": values["3"] - 2}
    found = first_difference(steps, values, others, tolerance=1e-3)
    assert (found.layer, found.number, found.steps) == ("conv", 1, 4)


def test_a_layer_that_was_fused_with_the_next_is_no_difference():
    steps, values = chain("conv", "norm", "head")
    others = {"fused": values["1"], "head": values["2"] + 1}
    assert first_difference(steps, values, others, tolerance=1e-3).layer == "head"


def test_branches_are_told_apart():
    steps = [
        Step("left", "op", ["x"], "l"), Step("right", "op", ["x"], "r"), Step("join", "op", ["l", "r"], "j"),
    ]  # fmt: skip
    values = {str(at): DRAW.standard_normal((2, 5)) for at in range(3)}
    others = {"a": values["0"], "b": values["1"] + 1, "c": values["2"] + 1}
    assert first_difference(steps, values, others, tolerance=1e-3).layer == "right"


def test_another_layout_is_the_same_value_and_another_order_is_not():
    steps, values = chain("conv", "head")
    values["0"] = DRAW.standard_normal((2, 3, 4, 5))
    others = {"nhwc": values["0"].transpose(0, 2, 3, 1), "flat": values["1"].reshape(-1)}
    assert first_difference(steps, values, others, tolerance=1e-3) is None
    others = {"nhwc": others["nhwc"][:, ::-1], "flat": values["1"] + 1}
    assert first_difference(steps, values, others, tolerance=1e-3).layer == "conv"


@pytest.mark.parametrize("value", [np.zeros((1, 4)), np.arange(4), np.array([1.0]), np.array([np.nan, 1.0])])
def test_values_that_tell_nothing_are_passed_over(value):
    steps, values = chain("a", "b")
    values["0"] = value
    assert first_difference(steps, values, {"b": values["1"]}, tolerance=1e-3) is None


def test_a_trace_is_read_as_it_was_written(tmp_path):
    trace = shared.Trace()
    trace.add("layer.0", "conv", ["x"], "t1", np.ones((1, 2), np.float32))
    trace.add("layer.1", "shape", ["t1"], "t2", None)
    trace.write(tmp_path / "trace")
    steps, values = read_trace(tmp_path / "trace")
    assert steps == [Step("layer.0", "conv", ["x"], "t1"), Step("layer.1", "shape", ["t1"], "t2")]
    assert list(values) == ["0"]
