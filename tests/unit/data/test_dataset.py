import json

import msgspec
import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer

from argosy.core.errors import IntegrityError, InvalidInput, NotFound
from argosy.data.config import DataConfig
from argosy.data.dataset import PARTS, Dataset, batches, build_dataset
from argosy.data.prepare import Impute, OneHot, Standardize, apply, apply_finish

pytestmark = pytest.mark.capability("D2")

WORDS = ("red", "green", "blue")


def lines(rows, header):
    return "\n".join([header, *(",".join(map(str, row)) for row in rows)]) + "\n"


@pytest.fixture
def mixed(tmp_path):
    """A file as people have them: an index, gaps, a constant, a truth value, a date, a category, labels as text."""
    rows = [
        (i, i * 1.5 if i % 7 else "", 3, i % 2 == 0, f"2024-{i % 12 + 1:02d}-01", WORDS[i % 3], "MB"[i % 2])
        for i in range(100)
    ]
    (tmp_path / "mixed.csv").write_text(lines(rows, ",size,always,flag,day,colour,diagnosis"))
    return tmp_path


def build(folder, train="mixed.csv", label="diagnosis", **options):
    return build_dataset(DataConfig(train=train, label=label, **options), folder)


def write(folder, text, name="data.csv"):
    (folder / name).write_text(text)
    return folder


@pytest.mark.capability("D1")
@pytest.mark.parametrize("kind", ["csv", "parquet", "npz"])
def test_breast_cancer_becomes_the_same_data_set_from_every_kind_of_file(tmp_path, kind):
    found = load_breast_cancer()
    names = [str(name) for name in found.feature_names]
    if kind == "csv":
        rows = [
            (i, *map(repr, row.tolist()), y) for i, (row, y) in enumerate(zip(found.data, found.target, strict=True))
        ]
        (tmp_path / "cancer.csv").write_text(lines(rows, "," + ",".join(names) + ",target"))
    elif kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        columns = {name: found.data[:, place] for place, name in enumerate(names)}
        parquet.write_table(pa.table({**columns, "target": found.target}), tmp_path / "cancer.parquet")
    else:
        np.savez(tmp_path / "cancer.npz", x=found.data, target=found.target)
    dataset = build(tmp_path, f"cancer.{kind}", "target")
    assert (dataset.task, dataset.labels, dataset.outputs) == ("classification", ["0", "1"], 2)
    assert {name: len(part) for name, part in dataset.splits.items()} == {"train": 398, "validation": 57, "test": 114}
    x, y = dataset.prepared("train")
    assert x["x"].shape == (398, 30)
    np.testing.assert_allclose(x["x"].mean(axis=0), 0, atol=1e-5)  # float32 sums of 398 values
    np.testing.assert_allclose(x["x"].std(axis=0), 1, atol=1e-5)
    assert y.dtype == np.int64
    if kind != "npz":
        assert dataset.signature_inputs[0].columns == tuple(names)
    # Every kind holds the same numbers, so rows, rounding and statistics are the same to the last bit.
    first_row = np.flatnonzero((found.data.astype(np.float32) == _raw(dataset)[0]).all(axis=1))
    assert len(first_row) == 1
    assert x["x"].astype(np.float64).sum() == pytest.approx(0, abs=0.01)


def _raw(dataset):
    return next(iter(dataset.splits["train"].inputs.values()))


def test_a_mixed_table_is_understood_and_what_is_left_out_is_said(mixed):
    dataset = build(mixed)
    numbers, words = dataset.signature_inputs
    assert (numbers.name, numbers.datatype, numbers.columns) == ("features", "FP32", ("size", "always", "flag"))
    assert (words.name, words.datatype, words.columns) == ("categories", "BYTES", ("colour", "day"))
    assert dataset.labels == ["B", "M"]
    assert "column 'Unnamed: 0' is left out: it numbers the rows" in dataset.notes
    assert dataset.prepared("train")[0]["x"].shape[1] == 3 + 1 + 3
    assert dataset.signature.outputs[0].columns == ("B", "M")


def test_statistics_come_from_the_training_part_alone(mixed):
    dataset = build(mixed)
    raw = dataset.splits["train"].inputs["features"]
    impute, standardize = (next(s for s in dataset.steps if isinstance(s, kind)) for kind in (Impute, Standardize))
    known = raw[:, 0][np.isfinite(raw[:, 0])].astype(np.float64)
    assert impute.fill[0] == np.float32(np.median(known))
    assert standardize.mean[0] == known.mean()
    assert standardize.scale[0] == known.std()
    assert standardize.scale[1] == 0.0
    whole = np.concatenate([part.inputs["features"][:, 0] for part in dataset.splits.values()])
    assert standardize.mean[0] != whole[np.isfinite(whole)].astype(np.float64).mean()


def test_what_a_caller_sends_gives_the_tensor_that_was_trained_on_bit_for_bit(mixed):
    dataset = build(mixed)
    x, _ = dataset.prepared("train")
    part = dataset.splits["train"]
    for row in range(10):
        sent = {name: json.loads(json.dumps(_jsonable(array[row : row + 1]))) for name, array in part.inputs.items()}
        received = {
            "features": np.array([[np.nan if v is None else v for v in sent["features"][0]]], dtype=np.float32),
            "categories": np.array([[v.encode() for v in sent["categories"][0]]], dtype=object),
        }
        assert apply(dataset.steps, received)["x"].tobytes() == x["x"][row : row + 1].tobytes()


def _jsonable(array):
    return [[None if isinstance(v, float) and np.isnan(v) else v for v in row] for row in array.tolist()]


def test_the_same_files_and_settings_give_the_same_data_set_and_a_seed_another(mixed):
    first, second, other = build(mixed), build(mixed), build(mixed, seed=1)
    assert first.digest == second.digest
    assert first.digest != other.digest
    x = [d.prepared("test")[0]["x"].tobytes() for d in (first, second, other)]
    assert x[0] == x[1] != x[2]


@pytest.mark.parametrize("prepare", [["standardize"], ["minmax"], ["impute"], []])
def test_named_steps_are_the_ones_that_are_fitted(mixed, prepare):
    dataset = build(mixed, prepare=prepare)
    x = dataset.prepared("train")[0]["x"]
    assert np.isfinite(x).all()
    assert any(isinstance(step, Standardize) for step in dataset.steps) == (prepare in (["standardize"], ["minmax"]))
    if prepare == ["minmax"]:
        assert (x.min(), x.max()) == (0.0, 1.0)


def test_a_saved_data_set_is_loaded_whole(mixed, tmp_path):
    dataset = build(mixed)
    dataset.save(tmp_path / "out")
    loaded = Dataset.load(tmp_path / "out")
    plain = ("steps", "finish", "signature_inputs", "task", "labels", "digest", "notes")
    assert all(getattr(loaded, name) == getattr(dataset, name) for name in plain)
    for name in PARTS:
        for key, array in dataset.splits[name].inputs.items():
            assert np.array_equal(loaded.splits[name].inputs[key], array, equal_nan=array.dtype.kind == "f")
            assert loaded.splits[name].inputs[key].dtype == array.dtype
        assert loaded.prepared(name)[0]["x"].tobytes() == dataset.prepared(name)[0]["x"].tobytes()
    assert not list((tmp_path / "out").rglob("*.tmp"))


def test_saving_twice_gives_the_same_bytes(mixed, tmp_path):
    dataset = build(mixed)
    dataset.save(tmp_path / "a")
    dataset.save(tmp_path / "b")
    files = [path for path in (tmp_path / "a").rglob("*") if path.is_file()]
    assert len(files) > len(PARTS)
    for file in files:
        assert file.read_bytes() == (tmp_path / "b" / file.relative_to(tmp_path / "a")).read_bytes()


def test_a_changed_byte_or_a_missing_file_of_a_saved_data_set_is_told(mixed, tmp_path):
    build(mixed).save(tmp_path / "out")
    file = tmp_path / "out" / "test" / "input0.npy"
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"test/input0\.npy' is not what was written"):
        Dataset.load(tmp_path / "out")
    file.unlink()
    with pytest.raises(NotFound, match=r"lacks its part 'test/input0\.npy'"):
        Dataset.load(tmp_path / "out")
    (tmp_path / "out" / "dataset.json").write_text("{")
    with pytest.raises(IntegrityError):
        Dataset.load(tmp_path / "out")
    (tmp_path / "out" / "dataset.json").unlink()
    with pytest.raises(NotFound, match="holds no data set"):
        Dataset.load(tmp_path / "out")


def test_a_test_file_of_its_own_is_the_test_part_and_may_have_more_categories(mixed):
    rows = [(7.5, 3, "true", "2025-01-01", "violet", "B", 1), ("", 3, "", "", "", "M", 2)]
    write(mixed, lines(rows, "size,always,flag,day,colour,diagnosis,more"), "test.csv")
    dataset = build(mixed, test="test.csv")
    assert {name: len(part) for name, part in dataset.splits.items()} == {"train": 90, "validation": 10, "test": 2}
    x, y = dataset.prepared("test")
    assert y.tolist() == [0, 1]
    assert x["x"][:, 4:].tolist() == [[0, 0, 0], [0, 0, 0]]
    assert np.isfinite(x["x"]).all()


@pytest.mark.parametrize(
    ("rows", "header", "message"),
    [
        ([(1, 3, "true", "2025-01-01", "red")], "size,always,flag,day,colour", "lacks 'diagnosis'"),
        ([(1, "B")], "size,diagnosis", "lacks 'always', 'flag'"),
        ([("big", 3, "true", "", "red", "B")], "size,always,flag,day,colour,diagnosis", "holds numbers for training, "),
        ([(1, 3, "true", "", "red", "X")], "size,always,flag,day,colour,diagnosis", "training never saw: 'X'"),
    ],
)
def test_a_test_file_that_does_not_fit_is_refused(mixed, rows, header, message):
    write(mixed, lines(rows, header), "test.csv")
    with pytest.raises(InvalidInput, match=message):
        build(mixed, test="test.csv")


def test_numbers_in_a_test_column_that_was_text_in_training_are_read_as_text(tmp_path):
    write(tmp_path, lines([("12"[i % 2] + "a" * (i % 3 == 0), i % 2) for i in range(40)], "code,label"))
    write(tmp_path, "code,label\n1,0\n2,1\n", "test.csv")
    dataset = build(tmp_path, "data.csv", "label", test="test.csv")
    assert dataset.splits["test"].inputs["categories"].tolist() == [["1"], ["2"]]
    assert dataset.prepared("test")[0]["x"].sum() == 2


def test_a_label_that_does_not_exist_lists_what_there_is(mixed):
    with pytest.raises(InvalidInput, match=r"no column 'target' for the label; its columns are: .*'diagnosis'"):
        build(mixed, label="target")


def test_a_file_without_a_header_gets_a_hint(tmp_path):
    write(tmp_path, lines([(5.1 + i, 3.5, 0.2, i % 2) for i in range(30)], "4.9,3.0,0.1,0"))
    with pytest.raises(InvalidInput) as caught:
        build(tmp_path, "data.csv", "label")
    assert "the first line looks like data" in caught.value.hint


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["x"] * 30, "only the class 'x' in all 30 rows"),
        ([""] * 30, "missing in every row"),
        ([f"name{i}" for i in range(30)], "30 different values in 30 rows, too many for classes"),
    ],
)
def test_labels_nothing_can_be_learned_from_are_refused(tmp_path, values, message):
    write(tmp_path, lines([(i, value) for i, value in enumerate(values)], "a,label"))
    with pytest.raises(InvalidInput, match=message):
        build(tmp_path, "data.csv", "label")


def test_classes_with_one_member_stay_in_training(tmp_path):
    write(tmp_path, lines([(i, "common" if i else "rare") for i in range(40)], "a,label"))
    for seed in range(8):
        dataset = build(tmp_path, "data.csv", "label", seed=seed)
        assert np.bincount(dataset.splits["train"].y, minlength=2)[1] == 1


def test_rows_without_a_label_are_left_out_and_counted(tmp_path):
    write(tmp_path, lines([(i, "" if i % 4 == 0 else i % 2) for i in range(40)], "a,label"))
    dataset = build(tmp_path, "data.csv", "label")
    assert sum(len(part) for part in dataset.splits.values()) == 30
    assert dataset.labels == ["0", "1"]
    assert "10 of 40 rows are left out: their label 'label' is missing" in dataset.notes


@pytest.mark.parametrize(
    ("values", "task", "labels"),
    [
        ([0, 1], "classification", ["0", "1"]),
        ([0.0, 1.0], "classification", ["0", "1"]),
        (["true", "false"], "classification", ["False", "True"]),
        ([2, 10, 9], "classification", ["2", "9", "10"]),
        ([-1, 1], "classification", ["-1", "1"]),
        (["<=50K ", " >50K"], "classification", ["<=50K", ">50K"]),
        (range(24), "classification", [str(k) for k in range(24)]),
        (range(1000, 1100), "regression", []),
        ([0.5, 1.5], "regression", []),
    ],
)
def test_the_task_is_seen_from_the_label(tmp_path, values, task, labels):
    values = list(values)
    write(tmp_path, lines([(i, values[i % len(values)]) for i in range(120)], "a,label"))
    dataset = build(tmp_path, "data.csv", "label")
    assert (dataset.task, dataset.labels) == (task, labels)


def test_a_regression_learns_a_standardized_target_and_answers_in_its_own_unit(tmp_path):
    write(tmp_path, lines([(i, 1e5 + 250.5 * i) for i in range(100)], "a,price"))
    dataset = build(tmp_path, "data.csv", "price")
    _, learned = dataset.prepared("train")
    assert learned.dtype == np.float32
    assert (abs(learned.mean()) < 1e-6, learned.std()) == (True, pytest.approx(1.0, abs=1e-6))
    truth = dataset.splits["test"].y
    answers = apply_finish(dataset.finish, {"logits": dataset.prepared("test")[1][:, None]})["value"]
    np.testing.assert_allclose(answers, truth, rtol=1e-6)  # float32 twice


def test_texts_cannot_be_a_quantity(mixed):
    with pytest.raises(InvalidInput, match="holds texts such as 'M', but a regression needs numbers"):
        build(mixed, task="regression")


def test_names_and_free_text_are_left_out_unless_asked_for(tmp_path):
    write(tmp_path, lines([(i, f"person {i}", i, i % 2) for i in range(200)], "id,name,a,label"))
    dataset = build(tmp_path, "data.csv", "label")
    assert [spec.columns for spec in dataset.signature_inputs] == [("a",)]
    assert len(dataset.notes) == 2
    asked = build(tmp_path, "data.csv", "label", columns=["name", "id"])
    assert [spec.columns for spec in asked.signature_inputs] == [("id",), ("name",)]
    step = next(step for step in asked.steps if isinstance(step, OneHot))
    assert len(step.categories[0]) == 64


@pytest.mark.parametrize("name", ["id", "ID", "PassengerId", "customer_id", "index", "Unnamed: 0"])
def test_a_column_that_numbers_the_rows_is_left_out(tmp_path, name):
    write(tmp_path, lines([(1000 + 3 * i, i % 5, i % 2) for i in range(60)], f"{name},acid,label"))
    assert build(tmp_path, "data.csv", "label").signature_inputs[0].columns == ("acid",)


@pytest.mark.parametrize("name", ["acid", "grid", "index of refraction", "idle", "brow"])
def test_a_column_that_only_sounds_like_a_number_of_rows_stays(tmp_path, name):
    write(tmp_path, lines([(1000 + 3 * i, i % 5, i % 2) for i in range(60)], f"{name},b,label"))
    assert build(tmp_path, "data.csv", "label").signature_inputs[0].columns == (name, "b")


def test_columns_and_drop_choose_and_unknown_names_are_refused(mixed):
    assert build(mixed, columns=["size"]).signature_inputs[0].columns == ("size",)
    assert build(mixed, drop=["day", "colour"]).signature_inputs[0].columns == ("size", "always", "flag")
    for field in ("columns", "drop"):
        with pytest.raises(InvalidInput, match=rf"{field} names 'weight', which 'mixed.csv' doesn't have; it has: "):
            build(mixed, **{field: ["weight"]})


def test_a_column_of_lists_is_refused_until_it_is_dropped(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(
        pa.table({"a": list(range(30)), "b": [[1]] * 30, "label": [0, 1] * 15}), tmp_path / "data.parquet"
    )
    with pytest.raises(InvalidInput, match=r"the column 'b' of 'data\.parquet' can't be used: it holds list"):
        build(tmp_path, "data.parquet", "label")
    assert build(tmp_path, "data.parquet", "label", drop=["b"]).signature_inputs[0].columns == ("a",)


def test_a_column_without_any_value_adds_nothing(tmp_path):
    write(tmp_path, lines([(i, "", i % 2) for i in range(40)], "a,empty,label"))
    dataset = build(tmp_path, "data.csv", "label")
    assert dataset.prepared("train")[0]["x"][:, 1].tolist() == [0.0] * 28


def test_images_come_as_bytes_and_are_scaled_for_the_model(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (60, 1, 4, 4), dtype=np.uint8)
    np.savez(tmp_path / "digits.npz", image=pixels, label=np.arange(60) % 3)
    dataset = build(tmp_path, "digits.npz", "label")
    (spec,) = dataset.signature_inputs
    assert (spec.name, spec.datatype, spec.shape) == ("image", "UINT8", (-1, 1, 4, 4))
    x = dataset.prepared("train")[0]["x"]
    assert np.array_equal(x, (dataset.splits["train"].inputs["image"] / 255.0).astype(np.float32))


@pytest.mark.capability("D1")
def test_a_folder_of_images_is_a_data_set_and_its_test_folder_gets_the_same_size(tmp_path):
    from PIL import Image

    for folder, count, side in (("train", 10, 6), ("test", 2, 9)):
        for k, name in enumerate(("cat", "dog")):
            (tmp_path / folder / name).mkdir(parents=True)
            for i in range(count):
                Image.new("RGB", (side, side), (100 * k + i, 0, 0)).save(tmp_path / folder / name / f"{i}.png")
    dataset = build(tmp_path, "train", "label", test="test", validation=0.2)
    assert dataset.labels == ["cat", "dog"]
    assert dataset.splits["test"].inputs["image"].shape == (4, 3, 6, 6)
    assert dataset.splits["train"].y.tolist().count(0) == 8


def test_several_arrays_need_a_choice(tmp_path):
    np.savez(tmp_path / "d.npz", a=np.zeros((40, 2)), b=np.ones((40, 3)), label=np.arange(40) % 2)
    with pytest.raises(InvalidInput, match="more than one array to learn from: 'a', 'b'"):
        build(tmp_path, "d.npz", "label")
    assert build(tmp_path, "d.npz", "label", columns=["b"]).signature_inputs[0].name == "b"


def test_one_hot_labels_are_refused_with_what_to_do(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 2)), label=np.eye(4))
    with pytest.raises(InvalidInput, match=r"shape \[4, 4\], expected one value per row") as caught:
        build(tmp_path, "d.npz", "label")
    assert "argmax" in caught.value.hint
    np.savez(tmp_path / "d.npz", x=np.zeros((40, 2)), label=np.arange(40).reshape(40, 1) % 2)
    assert build(tmp_path, "d.npz", "label").labels == ["0", "1"]


def test_too_few_rows_to_split_are_told(tmp_path):
    write(tmp_path, lines([(i, i % 2) for i in range(4)], "a,label"))
    with pytest.raises(InvalidInput, match="4 rows are too few"):
        build(tmp_path, "data.csv", "label")


def test_repeated_rows_in_the_test_part_are_told(tmp_path):
    write(tmp_path, lines([(i % 4, i % 2) for i in range(50)], "a,label"))
    notes = build(tmp_path, "data.csv", "label").notes
    assert any("10 test rows (100.0%) also stand in the training part" in note for note in notes)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"validation": 0.0}, "validation is 0"),
        ({"validation": 1.5}, "validation is 1.5"),
        ({"test_share": 0.0}, "test_share is 0"),
        ({"test_share": -0.1}, "test_share is -0.1"),
        ({"validation": 0.5, "test_share": 0.5}, "leave no rows to train on"),
        ({"validation": float("nan")}, "validation is nan"),
        ({"seed": -1}, "seed is -1"),
        ({"image_size": -4}, "image_size is -4"),
        ({"train": ""}, "train is empty"),
        ({"test": "mixed.csv"}, "test and train are the same file"),
        ({"prepare": ["whiten"]}, "'whiten'; known are: impute"),
        ({"prepare": ["minmax", "standardize"]}, "both"),
        ({"prepare": ["scale"]}, "'scale' is for bytes"),
        ({"columns": ["diagnosis"]}, "label 'diagnosis' also stands in columns or drop"),
    ],
)
def test_impossible_settings_are_refused(mixed, wrong, message):
    with pytest.raises(InvalidInput, match=message):
        build_dataset(msgspec.structs.replace(DataConfig(train="mixed.csv", label="diagnosis"), **wrong), mixed)


@pytest.mark.parametrize("wrong", [{"batch_size": 0}, {"rank": 2}, {"rank": -1}, {"world_size": 0}])
def test_impossible_batches_are_refused(wrong):
    with pytest.raises(InvalidInput, match="don't go together"):
        next(batches(10, **{"batch_size": 4, "rank": 0, "world_size": 2, **wrong}, seed=0, epoch=0))


def test_an_unknown_part_is_not_found(mixed):
    with pytest.raises(NotFound, match="no part 'dev'; it has: train, validation, test"):
        build(mixed).prepared("dev")
