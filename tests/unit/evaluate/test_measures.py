import math

import numpy as np
import pytest
from sklearn import metrics as sk

from argosy.core.errors import InvalidInput
from argosy.data.prepare import softmax
from argosy.evaluate.calibration import calibration_error, fit_temperature, reliability
from argosy.evaluate.config import GATES, EvaluateConfig
from argosy.evaluate.gates import check_gates
from argosy.evaluate.intervals import mean_interval, paired_drop, wilson
from argosy.evaluate.metrics import METRICS, OF_TASK, Prediction
from argosy.evaluate.report import evaluate_predictions, measure, read_prediction

pytestmark = pytest.mark.capability("E1")


def classified(n=300, classes=4, seed=0, skill=1.0):
    random = np.random.default_rng(seed)
    y = random.integers(0, classes, n)
    logits = random.normal(0, 1, (n, classes))
    logits[np.arange(n), y] += skill
    return {"probabilities": softmax(logits).astype(np.float32)}, y.astype(np.int64)


def valued(n=200, seed=0):
    random = np.random.default_rng(seed)
    y = random.normal(50, 10, n).astype(np.float32)
    return {"value": (y + random.normal(0, 3, n)).astype(np.float32)}, y


def test_classification_metrics_are_those_of_scikit_learn():
    outputs, y = classified()
    found = measure(read_prediction("classification", outputs, y))
    probabilities = outputs["probabilities"].astype(np.float64)
    chosen = probabilities.argmax(axis=1)
    assert found["accuracy"] == pytest.approx(sk.accuracy_score(y, chosen), abs=1e-12)
    assert found["f1"] == pytest.approx(sk.f1_score(y, chosen, average="macro"), abs=1e-12)
    assert found["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(y, chosen), abs=1e-12)
    # scikit-learn brings float32 probabilities to a sum of one first.
    normal = probabilities / probabilities.sum(axis=1, keepdims=True)
    assert found["log_loss"] == pytest.approx(sk.log_loss(y, normal), abs=1e-6)


def test_regression_metrics_are_those_of_scikit_learn():
    outputs, y = valued()
    found = measure(read_prediction("regression", outputs, y))
    truth, value = y.astype(np.float64), outputs["value"].astype(np.float64)
    assert found["mae"] == pytest.approx(sk.mean_absolute_error(truth, value), rel=1e-12)
    assert found["rmse"] == pytest.approx(sk.root_mean_squared_error(truth, value), rel=1e-12)
    assert found["r2"] == pytest.approx(sk.r2_score(truth, value), rel=1e-12)


def test_classes_that_never_occur_do_not_count():
    y = np.array([0, 0, 1, 1])
    outputs = {"probabilities": np.eye(5)[[0, 1, 1, 1]]}
    found = measure(read_prediction("classification", outputs, y))
    chosen = [0, 1, 1, 1]
    assert found["f1"] == pytest.approx(sk.f1_score(y, chosen, average="macro"))
    assert found["balanced_accuracy"] == 0.75


def test_metrics_are_finite_at_the_edges():
    sure_and_wrong = {"probabilities": np.array([[1.0, 0.0]])}
    found = measure(read_prediction("classification", sure_and_wrong, np.array([1])))
    assert all(math.isfinite(value) for value in found.values())
    assert found["log_loss"] == pytest.approx(15.94, abs=0.01)
    constant = np.full(3, 2.0, dtype=np.float32)
    assert measure(read_prediction("regression", {"value": constant}, constant))["r2"] == 1.0
    assert measure(read_prediction("regression", {"value": constant + 1}, constant))["r2"] == 0.0


def test_the_tables_of_metrics_and_gates_name_the_same():
    assert {name for names in OF_TASK.values() for name in names} <= set(METRICS.names())
    assert {*METRICS.names(), "parity"} == set(GATES) == set(EvaluateConfig.__struct_fields__)
    for task, names in OF_TASK.items():
        assert all(task in GATES[name].tasks for name in names)


def test_the_calibration_error_of_a_known_case():
    # Ten answers at 0.8, seven of them right; ten at 0.6, all right: (0.1 + 0.4) / 2.
    probabilities = np.array([[0.8, 0.2]] * 10 + [[0.6, 0.4]] * 10)
    truth = np.array([0] * 7 + [1] * 3 + [0] * 10)
    found = read_prediction("classification", {"probabilities": probabilities}, truth)
    assert calibration_error(found) == pytest.approx(0.25)
    bins = reliability(found)
    assert [(b.samples, round(b.confidence, 6), b.accuracy) for b in bins] == [(10, 0.6, 1.0), (10, 0.8, 0.7)]
    assert all(b.low < b.confidence <= b.high for b in bins)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_the_temperature_that_was_used_is_found_again(temperature):
    random = np.random.default_rng(3)
    scores = random.normal(0, 2, (20000, 5))
    draws = softmax(scores).cumsum(axis=1) > random.random((20000, 1))
    truth = draws.argmax(axis=1)
    # 20,000 samples fix it to some 2 %; four deviations.
    assert fit_temperature(scores * temperature, truth) == pytest.approx(temperature, rel=0.08)


def test_the_fitted_temperature_mends_calibration_and_changes_no_answer():
    outputs, y = classified(n=3000, skill=1.5)
    scores = np.log(outputs["probabilities"].astype(np.float64)) * 4
    before = read_prediction("classification", {"probabilities": softmax(scores)}, y)
    mended = softmax(scores / fit_temperature(scores, y))
    after = read_prediction("classification", {"probabilities": mended}, y)
    assert calibration_error(after) < calibration_error(before) / 3
    assert np.array_equal(after.chosen, before.chosen)


def test_a_perfect_separation_gives_the_coldest_temperature_and_no_overflow():
    scores = np.array([[5.0, -5.0], [-5.0, 5.0]])
    assert fit_temperature(scores, np.array([0, 1])) == pytest.approx(0.05)
    assert fit_temperature(scores, np.array([1, 0])) == pytest.approx(20.0)
    assert 0.05 <= fit_temperature(scores * 1e6, np.array([0, 1])) <= 20.0


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_wilson_intervals_hold_the_truth_as_often_as_they_say(share):
    random = np.random.default_rng(1)
    held = [low <= share <= high for low, high in (wilson(int(k), 200) for k in random.binomial(200, share, 2000))]
    assert np.mean(held) == pytest.approx(0.95, abs=0.025)


def test_wilson_intervals_stay_between_zero_and_one():
    assert wilson(0, 10)[0] == 0.0
    assert wilson(10, 10)[1] == 1.0
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_interval_of_a_drop_holds_the_truth_as_often_as_it_says():
    random = np.random.default_rng(2)
    held = []
    for _ in range(2000):
        draw = random.random(300)
        reference = draw > 0.05
        candidate = reference & (random.random(300) > 0.02) | (draw < 0.01)
        _, low, high = paired_drop(reference, candidate)
        held.append(low <= 0.95 * 0.02 - 0.01 <= high)
    assert np.mean(held) > 0.94  # Bonett and Price found it to be on the safe side for few changes


def test_equal_answers_have_no_drop_and_a_narrow_interval():
    right = np.ones(1000, dtype=bool)
    drop, low, high = paired_drop(right, right)
    assert drop == 0.0
    assert -0.004 < low < 0 < high < 0.004


def test_a_drop_is_positive_when_the_candidate_is_worse():
    reference = np.ones(100, dtype=bool)
    candidate = reference.copy()
    candidate[:10] = False
    drop, low, high = paired_drop(reference, candidate)
    assert drop == pytest.approx(0.1)
    assert 0.03 < low < 0.1 < high < 0.2
    assert paired_drop(candidate, reference)[0] == pytest.approx(-0.1)


def test_the_interval_of_a_mean_shrinks_with_the_root_of_the_samples():
    values = np.tile([0.0, 2.0], 50)
    low, high = mean_interval(values)
    assert (low + high) / 2 == pytest.approx(1.0)
    assert high - low == pytest.approx(2 * 1.96 * 1.005 / 10, rel=1e-3)
    assert mean_interval(np.array([3.0])) == (3.0, 3.0)


def test_a_gate_says_by_how_much_it_was_missed():
    (gate,) = check_gates({"accuracy": 0.955}, EvaluateConfig(accuracy=">= 0.97"))
    assert (gate.name, gate.bound, gate.value, gate.passed) == ("accuracy", ">= 0.97", 0.955, False)
    assert gate.missed_by == pytest.approx(0.015)
    (gate,) = check_gates({"accuracy": 0.97}, EvaluateConfig(accuracy=">= 97%"))
    assert (gate.passed, gate.missed_by) == (True, 0.0)


def test_a_gate_on_what_was_not_measured_fails_but_parity_needs_an_original():
    (gate,) = check_gates({}, EvaluateConfig(accuracy=">= 0.9", parity=">= 0.98"))
    assert (gate.name, gate.passed) == ("accuracy", False)
    (gate,) = check_gates({}, EvaluateConfig(log_loss="<= 0.9"))
    assert not gate.passed


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"accuracy": ">= 1.5"}, "accuracy >= 1.5 can never be kept"),
        ({"accuracy": ">= 97"}, "can never be kept"),
        ({"accuracy": "> 1"}, "can never be kept"),
        ({"log_loss": "< 0"}, "can never be kept"),
        ({"mae": "<= -1"}, "can never be kept"),
        ({"f1": "0.9"}, r"\[evaluate\] f1: '0.9' is not a bound"),
        ({"r2": ">= high"}, r"\[evaluate\] r2"),
    ],
)
def test_impossible_gates_are_refused_before_anything_runs(wrong, message):
    with pytest.raises(InvalidInput, match=message):
        EvaluateConfig(**wrong).check()


def test_possible_gates_pass_the_check():
    EvaluateConfig(accuracy=">= 1", log_loss="<= 0", r2=">= -3", mae="< 4", parity=">= 98%").check()


def test_a_gate_that_does_not_fit_the_task_is_refused_with_those_that_do():
    outputs, y = valued()
    with pytest.raises(InvalidInput, match="a gate on 'accuracy', which a regression doesn't have") as caught:
        evaluate_predictions("regression", outputs, y, EvaluateConfig(accuracy=">= 0.9"))
    assert "mae, rmse, r2, parity" in caught.value.hint


def test_an_evaluation_holds_metrics_intervals_and_gates():
    outputs, y = classified(skill=3.0)
    found = evaluate_predictions("classification", outputs, y, EvaluateConfig(accuracy=">= 0.5", f1=">= 0.999"))
    assert (found.kind, found.samples, found.passed) == ("test-set", 300, False)
    assert [gate.passed for gate in found.gates] == [True, False]
    assert found.metrics["accuracy_low"] < found.metrics["accuracy"] < found.metrics["accuracy_high"]
    assert "parity" not in found.metrics
    regression = evaluate_predictions("regression", *valued(), EvaluateConfig(mae="<= 5"))
    assert regression.passed
    assert regression.metrics["mae_low"] < regression.metrics["mae"] < regression.metrics["mae_high"]


def test_a_compressed_version_is_compared_with_its_original():
    original, y = classified(skill=3.0)
    changed = {"probabilities": original["probabilities"].copy()}
    changed["probabilities"][:6] = changed["probabilities"][:6, ::-1]
    config = EvaluateConfig(parity=">= 0.99")
    found = evaluate_predictions("classification", changed, y, config, reference_outputs=original)
    assert found.metrics["parity"] == pytest.approx(0.98)
    assert found.gates[0].missed_by == pytest.approx(0.01)
    assert found.metrics["accuracy_drop_low"] < found.metrics["accuracy_drop"] < found.metrics["accuracy_drop_high"]
    same = evaluate_predictions("classification", original, y, config, reference_outputs=original)
    assert (same.metrics["parity"], same.metrics["accuracy_drop"], same.passed) == (1.0, 0.0, True)


@pytest.mark.parametrize(
    ("task", "outputs", "y", "message"),
    [
        ("classification", {"probabilities": np.array([[np.nan, 1.0]])}, [0], "1 of 1 answers are not finite"),
        ("regression", {"value": np.array([1.0, np.inf])}, [0.0, 1.0], "1 of 2 answers are not finite"),
        ("classification", {"value": np.zeros(1)}, [0], "lack the output 'probabilities'; they have: value"),
        ("classification", {"probabilities": np.zeros((0, 2))}, [], "no samples"),
        ("classification", {"probabilities": np.zeros((2, 2))}, [0], "2 answers for 1 samples"),
        ("classification", {"probabilities": np.zeros((1, 2))}, [2], "class 2, the model only 2 classes"),
        ("ranking", {"value": np.zeros(1)}, [0], "task 'ranking' has no metrics"),
    ],
)
def test_answers_that_cannot_be_judged_are_refused(task, outputs, y, message):
    with pytest.raises(InvalidInput, match=message):
        evaluate_predictions(task, outputs, np.array(y), EvaluateConfig())


def test_predictions_can_be_made_by_hand_for_own_metrics():
    found = Prediction(task="regression", truth=np.zeros(2), value=np.array([1.0, -1.0]))
    assert METRICS.load("rmse")(found) == 1.0
