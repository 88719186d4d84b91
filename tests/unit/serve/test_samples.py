"""Made-up rows fit the signature, are of realistic size, and follow what the preparation was fitted on."""

import numpy as np
import pytest

from argosy.core.tensors import Signature, TensorSpec
from argosy.serve.samples import TEXT_BYTES, Samples


def signature(*inputs):
    return Signature(
        inputs=tuple(TensorSpec(**spec) for spec in inputs),
        outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
    )


def one(samples, name="x", rows=3):
    return samples.batch(samples.lengths[:1] * rows)[name]


@pytest.mark.parametrize(
    "datatype",
    ["BOOL", "UINT8", "INT8", "INT32", "INT64", "UINT64", "FP16", "FP32", "FP64"],
)
def test_numbers_have_the_datatype_and_shape_and_are_finite_and_of_magnitude_one(datatype):
    found = one(Samples(signature({"name": "x", "datatype": datatype, "shape": (-1, 3, 7)})))
    assert found.shape == (3, 3, 7)
    assert np.isfinite(found.astype("float64")).all()
    assert 0 < np.abs(found.astype("float64")).mean() <= 130


def test_equal_arguments_give_equal_rows():
    spec = {"name": "x", "datatype": "FP32", "shape": (-1, 5)}
    np.testing.assert_array_equal(one(Samples(signature(spec))), one(Samples(signature(spec))))


def test_numbers_follow_what_the_preparation_was_fitted_on():
    steps = [{"step": "standardize", "input": "x", "mean": [1000.0, -5.0], "scale": [10.0, 0.1]}]
    found = one(Samples(signature({"name": "x", "datatype": "FP32", "shape": (-1, 2)}), steps), rows=200)
    np.testing.assert_allclose(found.mean(axis=0), [1000, -5], rtol=0.01)
    np.testing.assert_allclose(found.std(axis=0), [10, 0.1], rtol=0.2)


def test_pictures_that_are_brought_to_one_are_bytes_in_size():
    steps = [{"step": "scale", "input": "x", "factor": 1 / 255}]
    found = one(Samples(signature({"name": "x", "datatype": "FP32", "shape": (-1, 8, 8)}), steps))
    assert 0 <= found.min() < found.max() <= 255
    assert found.max() > 100


def test_categories_and_dates_are_known_ones_and_the_preparation_takes_them():
    from argosy.data.prepare import preparation, steps_from_plain

    plain = [
        {"step": "take", "input": "t", "datatype": "BYTES", "shape": [-1, 3]},
        {"step": "dates", "input": "t", "columns": [0], "names": ["day"], "output": "d"},
        {"step": "one-hot", "input": "t", "columns": [1, 2], "categories": [["a", "b"], ["c"]], "output": "o"},
        {"step": "join", "inputs": ["d", "o"]},
    ]
    samples = Samples(signature({"name": "t", "datatype": "BYTES", "shape": (-1, 3)}), plain)
    prepared = preparation(steps_from_plain(plain), {})(one_batch := samples.batch((0,) * 20))
    assert one_batch["t"].shape == (20, 3)
    assert (prepared["x"][:, 1:3].sum(axis=1) == 1).all()
    assert (prepared["x"][:, 3] == 1).all()


def test_texts_have_the_lengths_that_were_asked_for_each_its_own():
    samples = Samples(signature({"name": "x", "datatype": "BYTES", "shape": (-1,), "content": "text"}))
    assert samples.takes_texts
    assert samples.lengths == TEXT_BYTES
    found = samples.batch((48, 720, 51))["x"]
    assert [len(text) for text in found] == [48, 720, 51]
    assert all(text.decode().replace(" ", "").isalpha() for text in found)
    assert len(set(found)) == 3


def test_texts_of_several_inputs_and_several_per_row_belong_to_their_row():
    samples = Samples(signature({"name": "x", "datatype": "BYTES", "shape": (-1, 2), "content": "text"}))
    assert [[len(text) for text in row] for row in samples.batch((48, 200))["x"]] == [[48, 48], [200, 200]]


def test_a_picture_is_one_that_decoders_take():
    image = pytest.importorskip("PIL.Image")
    import io

    found = one(Samples(signature({"name": "x", "datatype": "BYTES", "shape": (-1,), "content": "image"})))
    opened = image.open(io.BytesIO(found[0]))
    opened.load()
    assert (opened.format, opened.mode, opened.size) == ("PNG", "RGB", (224, 224))


def test_free_dimensions_are_tried_at_several_sizes_named_by_a_rows_bytes():
    ids = {"datatype": "INT64", "shape": (-1, -1)}
    samples = Samples(signature({"name": "ids", **ids}, {"name": "mask", **ids}))
    assert samples.lengths == (8 * 16, 32 * 16, 128 * 16)
    found = samples.batch(samples.lengths[1:2] * 4)
    assert (found["ids"].shape, found["mask"].shape) == ((4, 32), (4, 32))
    assert (found["mask"] == 1).all()
    assert not samples.takes_texts


def test_pictures_of_any_size_get_sizes_that_convolutions_survive():
    samples = Samples(signature({"name": "x", "datatype": "FP32", "shape": (-1, 3, -1, -1)}))
    assert [samples.batch((length,))["x"].shape[2:] for length in samples.lengths] == [(32, 32), (96, 96), (224, 224)]


def test_rows_that_the_author_gave_come_first():
    spec = {"name": "x", "datatype": "BYTES", "shape": (-1,), "content": "text"}
    given = {"x": np.array([b"one", b"two"], dtype=object)}
    samples = Samples(signature(spec), (), given)
    assert (samples.lengths, samples.takes_texts) == ((0,), False)
    assert samples.batch((0,) * 5)["x"].tolist() == [b"one", b"two", b"one", b"two", b"one"]


def test_a_version_without_a_batch_dimension_gets_what_its_signature_says():
    fixed = Signature(inputs=(TensorSpec(name="x", datatype="FP32", shape=(2, 2)),), outputs=())
    assert Samples(fixed).batch((0,))["x"].shape == (2, 2)
