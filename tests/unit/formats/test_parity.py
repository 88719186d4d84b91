import numpy as np
import pytest

from argosy.core.errors import InvalidInput
from argosy.formats.parity import check_arrays, check_parity, compare_answers, cuts, tolerance_for

SAMPLES = {"x": np.random.default_rng(0).normal(size=(10, 4)).astype(np.float32)}


def double(inputs):
    return {"y": inputs["x"] * 2}


def test_equal_answers_pass_with_no_difference():
    report = check_parity(double, double, SAMPLES)
    assert report.passed
    assert (report.max_abs, report.max_rel, report.agreement, report.samples) == (0.0, 0.0, 1.0, 10)
    assert report.batch_sizes == (10, 1, 3)


@pytest.mark.capability("F4")
def test_one_wrong_sample_is_found_and_named():
    def wrong(inputs):
        y = double(inputs)["y"].copy()
        if len(y) == 10:
            y[7] = -y[7]
        return {"y": y}

    report = check_parity(double, wrong, SAMPLES)
    assert not report.passed
    assert report.worst_sample == 7
    assert report.agreement == pytest.approx(0.9)
    with pytest.raises(InvalidInput, match="sample 7 is off by") as caught:
        report.require("the exported model")
    assert caught.value.code == "parity"


def test_a_batch_size_frozen_during_conversion_is_found():
    def frozen(inputs):
        return {"y": inputs["x"] * (len(inputs["x"]) / 5)}

    assert not check_parity(double, frozen, SAMPLES).passed


def test_differences_are_measured_against_the_scale_of_the_output():
    def near(inputs):
        return {"y": inputs["x"] * 2 + 0.005}

    large = {"x": SAMPLES["x"] * 1000}
    assert not check_parity(double, near, SAMPLES).passed
    assert check_parity(double, near, large).passed
    assert check_parity(double, near, SAMPLES, tolerance=0.01).passed


def test_nan_on_one_side_only_fails_and_on_both_passes():
    def broken(inputs):
        y = double(inputs)["y"].copy()
        y[y > 0] = np.nan
        return {"y": y}

    assert not check_parity(double, broken, SAMPLES).passed
    assert check_parity(broken, broken, SAMPLES).passed


def test_other_shapes_and_outputs_are_refused():
    with pytest.raises(InvalidInput, match="shape"):
        check_parity(double, lambda i: {"y": i["x"][:, :2]}, SAMPLES)
    with pytest.raises(InvalidInput, match="outputs"):
        check_parity(double, lambda i: {"z": i["x"]}, SAMPLES)


def test_no_samples_are_no_proof():
    with pytest.raises(InvalidInput, match="at least one sample"):
        check_parity(double, double, {"x": np.zeros((0, 4), np.float32)})


def test_bare_arrays_are_compared_too():
    assert check_arrays(np.exp, np.exp, SAMPLES["x"]).passed
    assert not check_arrays(np.exp, np.abs, SAMPLES["x"]).passed


def test_classes_that_differ_within_the_tolerance_lower_the_agreement():
    x = np.zeros((4, 2), np.float32)
    x[:, 0] = 1e-5

    def swapped(array):
        return array[:, ::-1].copy()

    report = check_arrays(lambda a: a, swapped, x)
    assert report.passed
    assert report.agreement == 0.0


def test_each_output_has_its_own_tolerance():
    wanted = {"score": np.ones((4, 2), np.float32), "label": np.arange(4)}
    got = {"score": wanted["score"] * 1.0005, "label": wanted["label"]}
    limits = {"score": 1e-3, "label": 0.0}
    assert compare_answers(wanted, [(slice(0, 4), got)], 4, tolerance=limits).passed
    got["label"] = got["label"] + np.array([0, 0, 1, 0])
    found = compare_answers(wanted, [(slice(0, 4), got)], 4, tolerance=limits)
    assert not found.passed
    assert (found.worst_output, found.worst_sample, found.tolerance) == ("label", 2, 0.0)


def test_the_coarser_datatype_sets_the_tolerance_and_counts_must_be_equal():
    assert tolerance_for("float64") < tolerance_for("float32") < tolerance_for("float16") < tolerance_for("bfloat16")
    assert tolerance_for("float64", "float32") == tolerance_for("float32")
    assert tolerance_for("int64", "int32") == tolerance_for("bool") == tolerance_for("str12") == 0
    assert 0 < tolerance_for("int8") < 0.01


def test_the_cuts_are_the_whole_single_rows_and_uneven_batches():
    assert cuts(1) == [slice(0, 1)]
    found = [(one.start, one.stop) for one in cuts(8)]
    assert found == [(0, 8), (0, 1), (1, 2), (2, 3), (3, 4), (0, 3), (3, 6), (6, 8)]
