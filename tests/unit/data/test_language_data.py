"""Running text becomes blocks of tokens: nothing lost, nothing seen twice, the same tokens as an endpoint makes."""

import numpy as np
import pytest
from tokenizers import Tokenizer

from argosy.core.errors import InvalidInput, NotFound
from argosy.data.config import DataConfig
from argosy.data.dataset import Dataset, build_dataset
from argosy.data.documents import Document
from argosy.data.language import END, Piece, _by_position, _chunks
from argosy.data.prepare import preparation

WORDS = "the old man and the sea went home when the long day was over\nfor he knew the way "


def text(paragraphs=40):
    """Return a text in which every stretch can be told from the others."""
    return "".join(f"{n} {WORDS}{n * 7}\n\n{'é' * (n % 3)} tab\there, {n}.\n" for n in range(paragraphs))


def made(folder, **fields):
    return build_dataset(DataConfig(**{"train": "t.txt", "task": "language-model", "context": 16, **fields}), folder)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "t.txt").write_text(text())
    return tmp_path


def decoded(dataset, part):
    """Return the text of a part as its blocks have it."""
    tokenizer = Tokenizer.from_buffer(dataset.files["tokenizer.json"])
    ids = dataset.splits[part].inputs["input_ids"].ravel()
    return tokenizer.decode(ids.tolist(), skip_special_tokens=False)


@pytest.mark.capability("B1", "D1")
@pytest.mark.parametrize("kind", ["bpe", "bytes", "characters"])
def test_the_parts_are_the_text_in_its_order_cut_at_two_places(folder, kind):
    dataset = made(folder, tokenizer=kind, vocabulary=400, context=8)
    whole = text()
    starts = []
    for part in ("train", "validation", "test"):
        found = decoded(dataset, part).removesuffix(END)
        # The last tokens fill no block, and bytes may end in the middle of a letter.
        start = whole.find(found.rstrip("\ufffd"))
        assert start >= 0
        assert len(found) > 0
        starts.append(start / len(whole))
    assert starts == pytest.approx([0.0, 0.7, 0.8], abs=0.02)


@pytest.mark.capability("B1")
def test_what_is_learned_is_the_token_that_follows_each(folder):
    dataset = made(folder, vocabulary=300)
    inputs, following = dataset.prepared("train")
    ids = inputs["input_ids"]
    assert ids.shape == following.shape == (len(dataset.splits["train"]), 16)
    assert np.array_equal(ids.ravel()[1:], following.ravel()[:-1])
    assert inputs["attention_mask"].all()
    assert dataset.outputs == dataset.vocabulary == 300


@pytest.mark.capability("B1")
@pytest.mark.parametrize("kind", ["bpe", "bytes", "characters"])
def test_an_endpoint_makes_the_same_tokens_of_the_same_text(folder, kind):
    dataset = made(folder, tokenizer=kind, vocabulary=300)
    prepare = preparation(dataset.steps, dataset.files)
    block = dataset.splits["train"].inputs["input_ids"][0]
    tokenizer = Tokenizer.from_buffer(dataset.files["tokenizer.json"])
    given = tokenizer.decode(block.tolist())
    assert prepare({"text": np.array([given], dtype=object)})["input_ids"].tolist() == [block.tolist()]


def test_of_a_long_text_an_endpoint_keeps_the_end(folder):
    dataset = made(folder, tokenizer="bytes")
    prepare = preparation(dataset.steps, dataset.files)
    made_of = [
        prepare({"text": np.array([t], dtype=object)}) for t in ("x" * 40 + "0123456789abcdef", "0123456789abcdef")
    ]
    assert made_of[0]["input_ids"].tolist() == made_of[1]["input_ids"].tolist()


def test_equal_files_give_equal_data_and_it_comes_back_from_disk(folder, tmp_path):
    first, second = made(folder, vocabulary=300), made(folder, vocabulary=300)
    assert first.digest == second.digest
    assert first.files == second.files
    assert made(folder, vocabulary=290).digest != first.digest
    first.save(tmp_path / "saved")
    again = Dataset.load(tmp_path / "saved")
    assert (again.digest, again.files, again.task, again.steps) == (
        first.digest,
        first.files,
        "language-model",
        first.steps,
    )
    assert np.array_equal(again.splits["test"].y, first.splits["test"].y)


def test_texts_of_a_folder_follow_one_another_by_name_each_with_its_end(tmp_path):
    (tmp_path / "books" / "b").mkdir(parents=True)
    (tmp_path / "books" / "b" / "one.txt").write_text("bb " * 60)
    (tmp_path / "books" / "a.txt").write_text("aa " * 60)
    (tmp_path / "books" / "c.md").write_text("cc " * 60)
    (tmp_path / "books" / ".hidden.txt").write_text("no")
    (tmp_path / "books" / "picture.png").write_bytes(b"no")
    (tmp_path / "test.txt").write_text("dd " * 60)
    dataset = made(tmp_path, train="books", test="test.txt", tokenizer="bytes", context=8, validation=0.3)
    train = decoded(dataset, "train")
    assert train.startswith("aa ")
    assert f"aa {END}bb" in train
    assert decoded(dataset, "validation").count("c") > 30
    assert set(decoded(dataset, "test")) <= set("d " + END)


def written(folder, texts):
    """Return documents of these texts."""
    found = []
    for number, content in enumerate(texts):
        path = folder / f"{number}.txt"
        path.write_text(content)
        found.append(Document(path=path, name=path.name, letters=len(content)))
    return found


def shown(piece):
    return "".join(piece.document.between(piece.start, piece.end))


def test_cutting_leaves_out_no_letter_and_repeats_none(tmp_path):
    texts = [text(5), "\n", text(3), "one", text(9)]
    documents = written(tmp_path, texts)
    for validation, test in ((0.1, 0.2), (0.3, 0.0), (0.45, 0.45), (0.01, 0.01)):
        parts = _by_position(documents, validation, test)
        pieces = [piece for part in parts.values() for piece in part]
        assert "".join(shown(piece) for piece in pieces) == "".join(texts)
        assert sum(piece.ends for piece in pieces) == len(documents)


def test_a_part_may_begin_and_end_in_one_document(tmp_path):
    documents = written(tmp_path, ["a" * 10 + " " + "b" * 10 + " " + "c" * 10])
    parts = _by_position(documents, 0.35, 0.35)
    assert parts["validation"] == [Piece(documents[0], 10, 21)]
    assert shown(parts["validation"][0]) == " bbbbbbbbbb"
    assert not parts["validation"][0].ends


def test_chunks_have_the_tokens_of_the_whole_text(folder, monkeypatch):
    dataset = made(folder, vocabulary=400)
    tokenizer = Tokenizer.from_buffer(dataset.files["tokenizer.json"])
    monkeypatch.setattr("argosy.data.language._CHUNK", 50)
    whole = text()
    chunks = list(_chunks([whole]))
    assert "".join(chunks) == whole
    assert list(_chunks(whole[place : place + 37] for place in range(0, len(whole), 37))) == chunks
    assert len(chunks) > 20
    assert [i for chunk in chunks for i in tokenizer.encode(chunk).ids] == tokenizer.encode(whole).ids


def test_a_tokenizer_of_ones_own_puts_no_marks_into_the_text(folder):
    from tokenizers import processors

    first = made(folder, vocabulary=300)
    tokenizer = Tokenizer.from_buffer(first.files["tokenizer.json"])
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{END} $A {END}", special_tokens=[(END, 0)])
    tokenizer.save(str(folder / "tokenizer.json"))
    second = made(folder, tokenizer="tokenizer.json")
    assert np.array_equal(first.splits["train"].y, second.splits["train"].y)


def test_notes_say_what_became_of_the_text(folder):
    (note,) = made(folder, vocabulary=300).notes
    assert note.startswith(f"1 text of {len(text()):,} characters became ")
    assert "of 300 kinds (bpe)" in note


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"context": 5000}, r"the train part of the text has \d+ tokens, fewer than the 5001"),
        ({"context": 1}, "between 2 and 8,192"),
        ({"prepare": ["standardize"]}, "prepare = .* is for tables"),
        ({"columns": ["a"]}, "columns = .* is for tables"),
        ({"tokenizer": "wordpiece"}, "loses letters and spaces"),
        ({"train": "none.txt"}, "there is no data file 'none.txt'"),
        ({"train": "empty"}, "has no texts; files that end in .txt"),
        ({"train": "blank.txt"}, "'blank.txt' holds no text"),
        ({"train": "latin.txt"}, "'latin.txt' is not UTF-8 text at byte 3"),
    ],
)
def test_what_can_not_be_learned_from_is_refused(folder, fields, told):
    (folder / "empty").mkdir()
    (folder / "blank.txt").write_text(" \n ")
    (folder / "latin.txt").write_bytes("caf\xe9 ol\xe9".encode("latin-1"))
    with pytest.raises((InvalidInput, NotFound), match=told):
        made(folder, **{"tokenizer": "bytes", **fields})


def test_samples_hold_each_token_in_four_bytes_and_hand_it_out_with_a_mask(folder):
    import torch

    from argosy.train.samples import samples_of

    dataset = made(folder, vocabulary=300)
    samples = samples_of(dataset, torch.float32)
    assert samples.x.dtype == samples.y.dtype == samples.validation_y.dtype == torch.int32
    ids, mask = samples.batch(torch.tensor([2, 0]))
    assert ids.dtype == mask.dtype == torch.int64
    assert ids.tolist() == dataset.splits["train"].inputs["input_ids"][[2, 0]].tolist()
    assert samples.y[0, :-1].tolist() == samples.x[0, 1:].tolist()
    assert bool(mask.all())
    assert (samples.given.vocabulary, samples.outputs, samples.given.shape) == (300, 300, (16,))
