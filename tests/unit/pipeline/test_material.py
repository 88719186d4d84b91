"""What a version is compressed with: rows of a file as its model takes them, and answers it can give."""

import msgspec
import numpy as np
import pytest

from argosy.core.errors import InvalidInput
from argosy.core.tensors import Signature, TensorSpec
from argosy.pipeline.material import generated, of_file
from argosy.registry.versions import Evaluation, Lineage, Manifest

pytestmark = pytest.mark.capability("C6")

Y = np.arange(60) % 3


def manifest(*outputs, **changes):
    made = Manifest(
        name="m",
        created=0.0,
        role="imported",
        task="tensor",
        evaluation=Evaluation(kind="self-check", passed=True),
        format="onnx",
        files={},
        signature=Signature(inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 4)),), outputs=outputs),
        lineage=Lineage(),
    )
    return msgspec.structs.replace(made, **changes)


def scores(width):
    return TensorSpec(name="logits", datatype="FP32", shape=(-1, width))


@pytest.fixture
def material(tmp_path):
    def read(output, label="", seed=0, **columns):
        x = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
        np.savez(tmp_path / "data.npz", **{"x": x, **columns})
        return of_file(manifest(output), {}, "data.npz", tmp_path, label=label, seed=seed)

    return read


def test_three_parts_share_nothing_and_hold_everything(material):
    found = material(scores(3), y=Y)
    parts = [found.prepared(name) for name in ("train", "validation", "test")]
    assert [len(y) for _, y in parts] == [36, 12, 12]
    rows = np.concatenate([inputs["x"] for inputs, _ in parts])
    assert len(np.unique(rows, axis=0)) == 60
    assert all(np.bincount(y).min() >= 3 for _, y in parts), "each part has each class"
    assert found.task == "classification"


def test_the_seed_decides_who_is_where_and_the_digest_says_so(material):
    first, again, other = (material(scores(3), seed=seed, y=Y) for seed in (0, 0, 1))
    assert first.digest == again.digest != other.digest
    assert np.array_equal(first.prepared("test")[0]["x"], again.prepared("test")[0]["x"])
    assert not np.array_equal(first.prepared("test")[0]["x"], other.prepared("test")[0]["x"])
    assert first.digest != material(scores(3), y=(Y + 1) % 3).digest


def test_without_answers_the_original_is_all_there_is_to_go_by(material):
    found = material(scores(3))
    assert found.task == "embedding"
    assert found.prepared("train")[1] is None


@pytest.mark.parametrize(
    ("width", "y", "task"),
    [
        (3, Y, "classification"),
        (3, Y.astype(float), "classification"),
        (-1, Y, "classification"),
        (1, Y % 2, "classification"),
        (1, Y * 100, "regression"),
        (1, Y + 0.5, "regression"),
    ],
)
def test_the_task_is_what_answers_and_outputs_say(material, width, y, task):
    assert material(scores(width), y=y).task == task


@pytest.mark.parametrize(
    ("width", "y", "said"),
    [
        (3, Y + 1000, "'y' of 'data.npz' says class 1002; the model has 3, from 0 to 2"),
        (3, Y + 1, "says class 3; the model has 3"),
        (3, Y - 1, "says class -1"),
        (-1, Y - 1, "says class -1"),
        (3, Y + 0.5, "holds one number for each row; the model gives 3"),
        (3, np.array(["a", "b", "c"])[Y], "are no numbers"),
    ],
)
def test_answers_the_model_cannot_give_are_refused_before_anything_is_tried(material, width, y, said):
    with pytest.raises(InvalidInput, match=said):
        material(scores(width), y=y)


def test_a_label_that_is_not_there_is_named_with_those_that_are(material):
    with pytest.raises(InvalidInput, match="no column 'answer'; it has: 'x', 'y'"):
        material(scores(3), "answer", y=Y)


def test_answers_of_another_number_are_refused(material):
    with pytest.raises(InvalidInput):
        material(scores(3), y=Y[:50])


def test_made_up_inputs_fit_the_signature_and_repeat():
    first, again = generated(manifest(scores(3)), seed=0), generated(manifest(scores(3)), seed=0)
    parts = [first.prepared(name)[0]["x"] for name in ("train", "validation", "test")]
    assert all(part.shape[1:] == (4,) and part.dtype == np.float32 for part in parts)
    assert not np.array_equal(parts[0], parts[1])
    assert np.array_equal(parts[2], again.prepared("test")[0]["x"])
    assert first.digest == again.digest != generated(manifest(scores(3)), seed=1).digest


def test_what_a_version_prepares_cannot_be_made_up():
    with pytest.raises(InvalidInput) as caught:
        generated(manifest(scores(3), prepare=[{"kind": "scale"}]), seed=0)
    assert caught.value.code == "no_data"
