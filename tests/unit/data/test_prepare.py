import subprocess
import sys

import numpy as np
import pytest

from argosy.core.errors import InvalidInput
from argosy.data.prepare import (
    Dates,
    Impute,
    Join,
    Label,
    OneHot,
    Scale,
    Softmax,
    Standardize,
    Take,
    Value,
    apply,
    apply_finish,
    finish_from_plain,
    finish_signature,
    finish_steps,
    steps_from_plain,
    steps_to_plain,
)

TABLE = [
    Take(input="features", datatype="FP32", shape=(-1, 2)),
    Take(input="categories", datatype="BYTES", shape=(-1, 2)),
    Impute(input="features", fill=(5.0, 6.0)),
    Standardize(input="features", mean=(1.0, 2.0), scale=(2.0, 0.0)),
    Dates(input="categories", columns=(1,), names=("when",), output="dates"),
    Impute(input="dates", fill=(10.0,)),
    OneHot(input="categories", columns=(0,), categories=(("blue", "red"),), output="one_hot"),
    Join(inputs=("features", "dates", "one_hot")),
]


def texts(*rows):
    return np.array(rows, dtype=object)


def test_a_table_row_becomes_one_float32_vector():
    x = apply(TABLE, {"features": np.array([[3, 9]]), "categories": texts(("red", "1970-01-03"))})["x"]
    assert x.dtype == np.float32
    assert x.tolist() == [[1.0, 0.0, 2.0, 0.0, 1.0]]


def test_missing_and_infinite_numbers_get_the_fill_value_of_their_column():
    features = np.array([[np.nan, 1.0], [np.inf, 1.0]], dtype=np.float32)
    x = apply(TABLE, {"features": features, "categories": texts(("red", ""), ("blue", ""))})["x"]
    assert x[:, 0].tolist() == [2.0, 2.0]
    assert x[:, 2].tolist() == [10.0, 10.0]


def test_a_constant_column_says_nothing_whatever_is_sent():
    step = Standardize(input="x", mean=(2.0,), scale=(0.0,))
    assert apply([step], {"x": np.array([[2.0], [1e30], [-7.0]])})["x"].tolist() == [[0.0], [0.0], [0.0]]


def test_a_category_never_seen_in_training_is_all_zeros():
    x = apply(TABLE, {"features": np.zeros((1, 2)), "categories": texts(("green", ""))})["x"]
    assert x[0, 3:].tolist() == [0.0, 0.0]


def test_categories_are_the_same_as_bytes_as_texts_and_with_spaces_around():
    given = [texts(("red", "2024-05-01")), texts((b"red", b"2024-05-01")), texts((" red ", " 2024-05-01 "))]
    given += [np.array([["red", "2024-05-01"]]), np.array([[b"red", b"2024-05-01"]])]
    found = [apply(TABLE, {"features": np.zeros((1, 2)), "categories": g})["x"].tobytes() for g in given]
    assert len(set(found)) == 1


def test_a_date_with_a_zone_is_the_same_moment_in_utc():
    step = Dates(input="c", columns=(0,), names=("when",), output="d")
    given = texts(("1970-01-02T01:00:00+01:00",), ("1970-01-02T00:00:00Z",), ("1970-01-02",))
    assert apply([step], {"c": given})["d"].tolist() == [[1.0], [1.0], [1.0]]


def test_a_wrong_date_is_named_with_row_and_column():
    with pytest.raises(InvalidInput, match="'yesterday' in row 1 is not a date for the column 'when'"):
        apply(TABLE, {"features": np.zeros((2, 2)), "categories": texts(("red", ""), ("red", "yesterday"))})


@pytest.mark.parametrize("wrong", [None, 3, 2.5, ["red"]])
def test_what_is_no_text_is_refused_as_a_category(wrong):
    categories = np.empty((1, 2), dtype=object)
    categories[0, 0], categories[0, 1] = wrong, ""
    with pytest.raises(InvalidInput, match="is not a text"):
        apply(TABLE, {"features": np.zeros((1, 2)), "categories": categories})


def test_a_missing_input_is_named_with_what_was_found():
    with pytest.raises(InvalidInput, match=r"'features' \(FP32 \[-1, 2\]\) is missing; found: other"):
        apply(TABLE, {"other": np.zeros((1, 2))})


@pytest.mark.parametrize("shape", [(2,), (1, 3), (1, 2, 1), ()])
def test_a_wrong_shape_is_refused_with_both_shapes(shape):
    with pytest.raises(InvalidInput, match=r"has shape .*, expected \[-1, 2\]"):
        apply(TABLE, {"features": np.zeros(shape)})


@pytest.mark.parametrize(
    ("datatype", "given"),
    [
        ("UINT8", np.array([256])),
        ("UINT8", np.array([-1])),
        ("UINT8", np.array([0.5])),
        ("FP32", np.array(["1"], dtype=object)),
        ("FP32", np.array([1j])),
        ("BYTES", np.array([1])),
        ("INT64", np.array([2**63], dtype=np.uint64)),
    ],
)
def test_values_that_do_not_fit_the_datatype_are_refused_and_never_cut(datatype, given):
    with pytest.raises(InvalidInput, match="don't fit"):
        apply([Take(input="v", datatype=datatype, shape=(-1,))], {"v": given})


def test_numbers_are_rounded_to_float32_before_anything_is_computed():
    steps = [
        Take(input="f", datatype="FP32", shape=(-1, 1)),
        Standardize(input="f", mean=(0.1,), scale=(1e-9,)),
        Join(inputs=("f",)),
    ]
    exact = np.array([[0.1]])
    assert apply(steps, {"f": exact})["x"] == apply(steps, {"f": exact.astype(np.float32)})["x"]
    assert apply(steps, {"f": exact})["x"][0, 0] == np.float32((float(np.float32(0.1)) - 0.1) / 1e-9)


def test_a_number_far_outside_of_training_stays_finite():
    steps = [Take(input="f", datatype="FP32", shape=(-1, 1)), Standardize(input="f", mean=(0.0,), scale=(1e-30,))]
    assert np.isfinite(apply(steps, {"f": np.array([[3e38], [-3e38]])})["f"]).all()


def test_bytes_of_an_image_are_scaled_to_one():
    steps = [Take(input="image", datatype="UINT8", shape=(-1, 1, 2, 2)), Scale(input="image", factor=1 / 255)]
    image = np.array([[[[0, 255], [51, 102]]]], dtype=np.uint8)
    x = apply([*steps, Join(inputs=("image",))], {"image": image})["x"]
    assert x.dtype == np.float32
    assert np.array_equal(x, np.array([[[[0, 1], [0.2, 0.4]]]], dtype=np.float32))


def test_the_inputs_given_are_left_unchanged():
    features = np.array([[np.nan, 1.0]], dtype=np.float32)
    given = {"features": features, "categories": texts(("red", ""))}
    apply(TABLE, given)
    assert set(given) == {"features", "categories"}
    assert np.isnan(features[0, 0])


def test_no_rows_give_an_empty_tensor():
    assert apply(TABLE, {"features": np.empty((0, 2)), "categories": texts().reshape(0, 2)})["x"].shape == (0, 5)


def test_a_classifier_answers_probabilities_and_labels():
    steps = finish_steps("classification", ["no", "yes"])
    found = apply_finish(steps, {"logits": np.array([[0.0, np.log(3)], [1000.0, -1000.0]], dtype=np.float32)})
    assert set(found) == {"probabilities", "label"}
    assert found["probabilities"].dtype == np.float32
    assert found["probabilities"].tolist() == [[0.25, 0.75], [1.0, 0.0]]
    assert found["label"].tolist() == ["yes", "no"]


def test_an_output_of_any_name_is_taken_when_it_is_the_only_one():
    assert apply_finish(finish_steps("regression", []), {"output_0": np.array([[2.0]])})["value"].tolist() == [2.0]
    with pytest.raises(InvalidInput, match="no output 'logits'; its outputs are: a, b"):
        apply_finish([Softmax()], {"a": np.zeros((1, 2)), "b": np.zeros((1, 2))})


@pytest.mark.parametrize("shape", [(3,), (3, 1)])
def test_a_regression_answers_in_the_unit_of_the_label(shape):
    found = apply_finish([Value(scale=10.0, offset=5.0)], {"logits": np.array([0.0, 1.0, 2.0]).reshape(shape)})
    assert found["value"].dtype == np.float32
    assert found["value"].tolist() == [5.0, 15.0, 25.0]


def test_answers_that_are_not_finite_stay_so_and_can_be_refused():
    value = apply_finish([Value(scale=1e30)], {"logits": np.array([np.nan, np.inf, 1e30])})["value"]
    assert not np.isfinite(value).any()
    probabilities = apply_finish([Softmax()], {"logits": np.array([[np.nan, 1.0], [np.inf, 1.0]])})["probabilities"]
    assert np.isnan(probabilities).any(axis=1).all()


def test_a_model_with_the_wrong_number_of_outputs_is_refused():
    with pytest.raises(InvalidInput, match="3 outputs for 2 labels"):
        apply_finish([Softmax(), Label(labels=("a", "b"))], {"logits": np.zeros((1, 3))})
    with pytest.raises(InvalidInput, match="one number per row"):
        apply_finish([Value()], {"logits": np.zeros((2, 2))})


def test_the_signature_of_answers_names_the_classes():
    probabilities, label = finish_signature("classification", ["a", "b"])
    assert (probabilities.shape, probabilities.columns, label.datatype) == ((-1, 2), ("a", "b"), "BYTES")
    assert [spec.name for spec in finish_signature("regression", [])] == ["value"]


def test_steps_read_back_from_plain_values_are_the_same():
    assert steps_from_plain(steps_to_plain(TABLE)) == TABLE
    finish = [*finish_steps("classification", ["x"]), Value(scale=0.1, offset=1 / 3)]
    assert finish_from_plain(steps_to_plain(finish)) == finish


@pytest.mark.parametrize(
    "plain",
    [
        {"step": "pickle", "input": "x"},
        {"step": "impute", "input": "x", "fill": [1.0], "more": 1},
        {"step": "impute", "input": "x", "fill": ["a"]},
        {"step": "standardize", "input": "x", "mean": [1.0], "scale": []},
        {"step": "take", "input": "x", "datatype": "OBJECT", "shape": [-1]},
        {"step": "one-hot", "input": "c", "columns": [0], "categories": [], "output": "o"},
        {"step": "softmax"},
        {"input": "x"},
        "import os",
    ],
)
def test_steps_that_are_not_understood_are_refused(plain):
    with pytest.raises(InvalidInput, match="prepare steps are not understood"):
        steps_from_plain([plain])


@pytest.mark.parametrize(
    "module",
    ["argosy.data.prepare", "argosy.data.config", "argosy.evaluate.config", "argosy.evaluate.agreement"],
)
def test_serving_modules_import_nothing_but_numpy_and_the_core(module):
    code = (
        f"import sys; import {module}; heavy = {{'torch', 'pyarrow', 'PIL', 'onnxruntime', 'obstore', 'sklearn', "
        "'cryptography', 'sqlite3', 'asyncio'}; print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
