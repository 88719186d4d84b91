import numpy as np
import pytest

import encoders
from argosy.core.errors import IntegrityError, InvalidInput, NotFound
from argosy.core.tensors import MAX_TEXT_BYTES
from argosy.data.config import DataConfig
from argosy.data.dataset import Dataset, build_dataset
from argosy.data.tokenizer import TextTokenizer, read_tokenizer
from sentences import LABELS, sentences, write_csv, write_folder

pytestmark = pytest.mark.capability("D1", "D2")


def build(folder, train="texts.csv", tokenizer=None, **options):
    return build_dataset(DataConfig(train=train, **options), folder, tokenizer)


@pytest.fixture
def texts(tmp_path):
    write_csv(tmp_path / "texts.csv", *sentences())
    return tmp_path


def test_a_table_of_texts_and_labels_is_learned_from_without_saying_so(texts):
    dataset = build(texts)
    (spec,) = dataset.signature.inputs
    assert (spec.name, spec.datatype, spec.shape, spec.content) == ("text", "BYTES", (-1,), "text")
    assert (dataset.task, dataset.labels) == ("classification", list(LABELS))
    x, y = dataset.prepared("train")
    assert list(x) == ["input_ids", "attention_mask"]
    assert x["input_ids"].shape == x["attention_mask"].shape == (len(y), x["attention_mask"].sum(axis=1).max())
    assert x["input_ids"].max() < dataset.vocabulary <= 8000
    assert "beyond 256 tokens" in dataset.signature.about
    assert any("wordpiece tokenizer was trained" in note for note in dataset.notes)


def test_csv_parquet_and_a_folder_of_files_hold_the_same_texts(texts):
    import pyarrow as pa
    from pyarrow import parquet

    found, labels = sentences()
    parquet.write_table(pa.table({"text": found, "label": labels}), texts / "texts.parquet")
    write_folder(texts / "texts", found, labels)
    (texts / "texts" / "apple" / ".notes.txt").write_bytes(b"\xff")
    table, other, folder = (build(texts, name) for name in ("texts.csv", "texts.parquet", "texts"))
    assert table.digest == other.digest
    assert folder.signature == table.signature
    # Rows come folder by folder, so they are split otherwise.
    parts = [
        sorted(text for part in dataset.splits.values() for text in part.inputs["text"].tolist())
        for dataset in (table, folder)
    ]
    assert parts[0] == parts[1]


def test_columns_that_only_number_rows_do_not_count_and_one_that_says_more_does(texts):
    found, labels = sentences()
    write_csv(texts / "numbered.csv", found, labels, id=range(len(found)))
    assert [spec.name for spec in build(texts, "numbered.csv").signature_inputs] == ["text"]
    write_csv(texts / "more.csv", found, labels, size=[len(t) / 7 for t in found])
    mixed = build(texts, "more.csv")
    assert [spec.columns for spec in mixed.signature_inputs] == [("size",)]
    assert any("to learn from its words say [data] text = 'text'" in note for note in mixed.notes)
    chosen = build(texts, "more.csv", text="text")
    assert [spec.content for spec in chosen.signature_inputs] == ["text"]


def test_of_two_columns_of_texts_one_must_be_named(texts):
    found, labels = sentences()
    write_csv(texts / "two.csv", found, labels, title=[f"on {t}" for t in found])
    with pytest.raises(InvalidInput, match=r"to learn from its words say \[data\] text = 'title'"):
        build(texts, "two.csv")
    assert build(texts, "two.csv", text="title").signature_inputs[0].name == "title"


def test_the_tokenizer_is_fitted_on_the_training_part_alone(texts):
    dataset = build(texts, vocabulary=200)
    held_back = {letter for name in ("validation", "test") for t in dataset.splits[name].inputs["text"] for letter in t}
    found, labels = sentences()
    rows = [text + (" 字" if text in set(dataset.splits["test"].inputs["text"].tolist()) else "") for text in found]
    write_csv(texts / "marked.csv", rows, labels)
    assert "字" not in held_back
    assert build(texts, "marked.csv", vocabulary=200).files == dataset.files


def test_equal_files_give_an_equal_data_set_and_another_tokenizer_another_one(texts):
    (texts / "tokenizer.json").write_bytes(encoders.tokenizer())

    def digest(kind):
        return build_dataset(DataConfig(train="texts.csv", tokenizer=kind), texts).digest

    assert digest("bpe") == digest("bpe")
    assert len({digest(kind) for kind in ("wordpiece", "bpe", "tokenizer.json")}) == 3


def test_a_saved_data_set_comes_back_with_its_tokenizer_and_a_damaged_one_is_refused(texts):
    dataset = build(texts)
    dataset.save(texts / "saved")
    loaded = Dataset.load(texts / "saved")
    assert loaded.files == dataset.files
    assert loaded.signature == dataset.signature
    for name in dataset.splits:
        for one, other in zip(dataset.prepared(name)[0].values(), loaded.prepared(name)[0].values(), strict=True):
            assert one.tobytes() == other.tobytes()
    file = texts / "saved" / "files" / "tokenizer.json"
    file.write_bytes(file.read_bytes() + b" ")
    with pytest.raises(IntegrityError, match="is not what was written"):
        Dataset.load(texts / "saved")
    file.unlink()
    with pytest.raises(NotFound, match=r"lacks its part 'files/tokenizer\.json'"):
        Dataset.load(texts / "saved")


def test_the_tokenizer_of_the_first_weights_is_taken_unless_another_is_named(texts):
    (texts / "tokenizer.json").write_bytes(encoders.tokenizer())
    given = TextTokenizer(content=read_tokenizer(texts).content, pad_id=0, max_length=12, most_tokens=20, prefix="a ")
    dataset = build(texts, tokenizer=given)
    assert dataset.vocabulary == len(encoders.WORDS)
    step = dataset.tokenize
    assert (step.max_length, step.prefix) == (12, "a ")
    for length in (8, 20):
        assert (
            build_dataset(DataConfig(train="texts.csv", max_length=length), texts, given).tokenize.max_length == length
        )
    with pytest.raises(InvalidInput, match="max_length = 21 is more than the 20 tokens") as caught:
        build_dataset(DataConfig(train="texts.csv", max_length=21), texts, given)
    assert "20 or less" in caught.value.hint
    named = build_dataset(DataConfig(train="texts.csv", tokenizer="bpe"), texts, given)
    assert named.vocabulary > 256


def test_texts_are_cut_at_max_length(texts):
    x, _ = build_dataset(DataConfig(train="texts.csv", max_length=5), texts).prepared("train")
    assert x["input_ids"].shape[1] == 5


def test_rows_without_a_text_are_left_out_and_said(texts):
    found, labels = sentences()
    found[3], found[7] = "", "  "
    write_csv(texts / "gaps.csv", found, labels)
    dataset = build(texts, "gaps.csv")
    assert sum(len(part) for part in dataset.splits.values()) == len(found) - 2
    assert "2 rows are left out: their text 'text' is empty" in dataset.notes
    write_csv(texts / "none.csv", ["  "] * 20, labels[:20])
    with pytest.raises(InvalidInput, match="'text' is empty in every row"):
        build(texts, "none.csv", text="text")


def test_a_text_too_long_for_an_endpoint_is_cut_for_training_too(texts):
    found, labels = sentences()
    found[0] = "é" * MAX_TEXT_BYTES
    write_csv(texts / "long.csv", found, labels)
    dataset = build(texts, "long.csv")
    longest = max((t for part in dataset.splits.values() for t in part.inputs["text"].tolist()), key=len)
    assert len(longest.encode()) == MAX_TEXT_BYTES
    assert all("\ufffd" not in text for part in dataset.splits.values() for text in part.inputs["text"].tolist())


def test_a_test_file_of_texts_is_prepared_alike(texts):
    write_csv(texts / "held.csv", *sentences(n=30, seed=1))
    dataset = build(texts, test="held.csv")
    assert len(dataset.splits["test"]) == 30
    assert dataset.prepared("test")[0]["input_ids"].max() < dataset.vocabulary


def test_texts_for_a_quantity_are_a_regression(texts):
    found, _ = sentences()
    write_csv(texts / "counts.csv", found, [len(t) + 0.5 for t in found])
    dataset = build(texts, "counts.csv")
    assert dataset.task == "regression"
    assert dataset.outputs == 1


def test_files_that_are_no_utf_8_are_named(texts):
    write_folder(texts / "texts", *sentences(n=30))
    (texts / "texts" / "apple" / "bad.txt").write_bytes(b"caf\xe9")
    with pytest.raises(InvalidInput, match=r"'apple/bad\.txt' is not UTF-8 at byte 3") as caught:
        build(texts, "texts")
    assert "iconv" in caught.value.hint


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"text": "review"}, r"\[data\] text names 'review', which 'texts.csv' doesn't have; it has: 'text', 'label'"),
        ({"text": "label"}, "text and label both name the column 'label'"),
        ({"text": "text", "columns": ["text"]}, "so columns says too much"),
        ({"text": "text", "drop": ["text"]}, "so drop says too much"),
        ({"text": "text", "prepare": ["standardize"]}, "prepare is for numbers"),
        ({"vocabulary": 5}, "vocabulary is 5; it must be between 100 and"),
        ({"max_length": 2}, "max_length is 2; it must be between 4 and"),
        ({"tokenizer": "nowhere"}, "there is no tokenizer at"),
    ],
)
def test_what_can_not_be_learned_from_is_refused_with_the_reason(texts, options, said):
    with pytest.raises((InvalidInput, NotFound), match=said):
        build_dataset(DataConfig(train="texts.csv", **options), texts)


def test_a_column_of_numbers_is_no_text(texts):
    found, labels = sentences()
    write_csv(texts / "numbers.csv", np.arange(len(found)) / 3, labels)
    with pytest.raises(InvalidInput, match="names 'text', which holds float64"):
        build(texts, "numbers.csv", text="text")
