import json

import numpy as np
import pytest

import encoders
from argosy.core.errors import InvalidInput, NotFound
from argosy.data.prepare import preparation
from argosy.data.text import Tokenize
from argosy.data.tokenizer import KINDS, MARKS, read_tokenizer, train_tokenizer, vocabulary_size

pytestmark = pytest.mark.capability("D2")

TEXTS = [
    "The ship sails at dawn, and the crew sings.",
    "Ships sail by night too; the crews sing louder!",
    "Nobody on the ship had seen the sun at midnight.",
    "Ein Schiff fährt früh — und die Mannschaft singt: 船。",
] * 5


def tokens(tokenizer, *texts, **options):
    column = np.empty(len(texts), dtype=object)
    column[:] = texts
    step = Tokenize(max_length=32, outputs=("input_ids", "attention_mask"), pad_id=tokenizer.pad_id, **options)
    return preparation([step], {"tokenizer.json": tokenizer.content})({"text": column})


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_texts_give_the_same_tokenizer_to_the_byte(kind):
    one, same = (train_tokenizer(iter(TEXTS), kind, 400) for _ in range(2))
    assert one == same
    assert one.content != train_tokenizer(TEXTS[:3] * 5, kind, 400).content


@pytest.mark.parametrize("kind", KINDS)
def test_texts_stand_between_marks_and_batches_are_padded_with_the_tokenizers_own_padding(kind):
    tokenizer = train_tokenizer(TEXTS, kind, 400)
    known = json.loads(tokenizer.content)["model"]["vocab"]
    pad, _, begin, end = (known[mark] for mark in MARKS)
    assert tokenizer.pad_id == pad
    made = tokens(tokenizer, "the ship", "the crew sings at night, and the ship sails")
    assert (made["input_ids"][:, 0] == begin).all()
    lengths = made["attention_mask"].sum(axis=1)
    assert lengths[0] < lengths[1] == made["input_ids"].shape[1]
    assert made["input_ids"][0, lengths[0] - 1] == end
    assert (made["input_ids"][0, lengths[0] :] == pad).all()
    assert made["input_ids"].max() < vocabulary_size(tokenizer.content)


@pytest.mark.parametrize("kind", KINDS)
def test_the_vocabulary_is_no_larger_than_asked_and_no_larger_than_the_texts_give(kind):
    assert vocabulary_size(train_tokenizer(TEXTS, kind, 300).content) <= 300
    enough = [vocabulary_size(train_tokenizer(TEXTS, kind, size).content) for size in (5000, 50000)]
    assert enough[0] == enough[1] < 5000


def test_wordpiece_ignores_case_and_knows_no_new_letter_and_bpe_loses_nothing():
    wordpiece, bpe = (train_tokenizer(TEXTS, kind, 400) for kind in KINDS)
    ids = tokens(wordpiece, "THE Ship", "the ship")["input_ids"]
    assert (ids[0] == ids[1]).all()
    unknown = json.loads(wordpiece.content)["model"]["vocab"]["[UNK]"]
    assert unknown in tokens(wordpiece, "字")["input_ids"]
    from tokenizers import Tokenizer

    text = "never SEEN\t字 before\n"
    tokenizer = Tokenizer.from_buffer(bpe.content)
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_file_is_read_without_its_limits_and_a_folder_by_its_file(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(encoders.tokenizer())
    found = read_tokenizer(tmp_path)
    assert found == read_tokenizer(tmp_path / "tokenizer.json")
    assert found.pad_id == encoders.WORDS.index("[PAD]")
    assert tokens(found, "a b c d e f g")["input_ids"].shape == (1, 9)
    assert vocabulary_size(found.content) == len(encoders.WORDS)


def test_what_asks_for_lower_case_gets_it(tmp_path):
    (tmp_path / "tokenizer.json").write_bytes(encoders.tokenizer().replace(b'"lowercase":true', b'"lowercase":false'))
    plain, lower = read_tokenizer(tmp_path), read_tokenizer(tmp_path, lowercase=True)
    assert (tokens(plain, "A")["input_ids"] != tokens(plain, "a")["input_ids"]).any()
    assert (tokens(lower, "A")["input_ids"] == tokens(lower, "a")["input_ids"]).all()


def test_a_missing_or_damaged_tokenizer_is_told_with_the_way_out(tmp_path):
    with pytest.raises(NotFound, match="there is no tokenizer at") as caught:
        read_tokenizer(tmp_path)
    assert "save_pretrained" in caught.value.hint
    with pytest.raises(NotFound) as caught:
        read_tokenizer(tmp_path / "words.json")
    assert 'tokenizer = "wordpiece"' in caught.value.hint
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(InvalidInput, match=r"tokenizer\.json' can't be read as a tokenizer"):
        read_tokenizer(tmp_path)
