import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.core.errors import InvalidInput
from argosy.evaluate.agreement import answers_agree


def agree(a, b, tolerance=0.01):
    return answers_agree(a, b, tolerance=tolerance).tolist()


def labelled(*labels, probabilities=None):
    found = {"label": np.array(labels, dtype=object)}
    return found if probabilities is None else {**found, "probabilities": np.array(probabilities)}


def test_labels_decide_where_both_have_them():
    a = labelled("x", "y", probabilities=[[0.9, 0.1], [0.4, 0.6]])
    b = labelled("x", "x", probabilities=[[0.6, 0.4], [0.4, 0.6]])
    assert agree(a, b) == [True, False]


def test_labels_are_the_same_as_bytes_from_the_wire():
    assert agree(labelled("ä", "y"), labelled("ä".encode(), b"z")) == [True, False]
    assert agree(labelled(b"\xff"), labelled("x")) == [False]


def test_numbered_labels_are_compared_as_numbers():
    assert agree({"label": np.array([1, 2])}, {"label": np.array([1, 3])}) == [True, False]


def test_the_largest_probability_decides_without_labels():
    a = {"logits": np.array([[1.0, 3.0], [5.0, 2.0]], dtype=np.float32)}
    b = {"logits": np.array([[-9.0, 0.1], [1.0, 2.0]], dtype=np.float32)}
    assert agree(a, b) == [True, False]


def test_every_position_of_a_sequence_has_to_agree():
    a = np.zeros((2, 3, 4))
    b = a.copy()
    b[1, 2, 3] = 1.0
    assert agree({"logits": a}, {"logits": b}) == [True, False]


@pytest.mark.parametrize("shape", [(4,), (4, 1)])
def test_values_agree_within_a_share_of_the_larger_one(shape):
    a = {"value": np.array([100.0, 100.0, 0.0, -5.0]).reshape(shape)}
    b = {"value": np.array([100.9, 102.0, 0.0, 5.0]).reshape(shape)}
    assert agree(a, b) == [True, False, True, False]


def test_all_outputs_count_when_values_are_compared():
    a = {"low": np.array([1.0, 1.0]), "high": np.array([2.0, 2.0]), "count": np.array([3, 3])}
    b = {"low": np.array([1.0, 1.0]), "high": np.array([2.0, 9.0]), "count": np.array([3, 3])}
    assert agree(a, b) == [True, False]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_number_that_is_not_finite_never_agrees_not_even_with_itself(wrong):
    for outputs in (
        {"value": np.array([wrong, 1.0])},
        {"logits": np.array([[0.0, wrong], [0.0, 1.0]])},
        labelled("x", "y", probabilities=[[wrong, 1.0], [0.0, 1.0]]),
    ):
        assert agree(outputs, outputs) == [False, True]


def test_answers_that_cannot_be_compared_are_refused():
    with pytest.raises(InvalidInput, match="no output in common: a and b"):
        agree({"a": np.zeros(1)}, {"b": np.zeros(1)})
    with pytest.raises(InvalidInput, match=r"shape \[1\] in one answer and \[2\] in the other"):
        agree({"a": np.zeros(1)}, {"a": np.zeros(2)})
    with pytest.raises(InvalidInput, match="'b' has 2 rows, others 1"):
        agree({"a": np.zeros(1), "b": np.zeros(2)}, {"a": np.zeros(1), "b": np.zeros(2)})


def test_no_rows_give_no_verdicts():
    assert agree({"logits": np.zeros((0, 3))}, {"logits": np.zeros((0, 3))}) == []


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=20), st.floats(1e-6, 0.5), st.integers(0, 1000))
def test_agreement_is_symmetric_and_rows_do_not_depend_on_each_other(values, tolerance, seed):
    a = np.array(values)
    b = a * np.random.default_rng(seed).uniform(0.5, 1.5, len(a))
    found = answers_agree({"v": a}, {"v": b}, tolerance=tolerance)
    assert found.tolist() == answers_agree({"v": b}, {"v": a}, tolerance=tolerance).tolist()
    alone = [bool(answers_agree({"v": a[[i]]}, {"v": b[[i]]}, tolerance=tolerance)[0]) for i in range(len(a))]
    assert found.tolist() == alone
