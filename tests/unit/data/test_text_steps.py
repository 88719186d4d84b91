import json
import subprocess
import sys

import numpy as np
import pytest

import encoders
from argosy.core.errors import InvalidInput, PluginError
from argosy.data.prepare import apply, finish_from_plain, finishing, preparation, steps_from_plain, steps_to_plain
from argosy.data.text import L2Normalize, Pool, Tokenize, tokenize

FILES = {"tokenizer.json": encoders.tokenizer()}


def texts(*items):
    found = np.empty(len(items), dtype=object)
    found[:] = items
    return {"text": found}


def prepared(*items, files=FILES, **changes):
    return preparation([Tokenize(**{"max_length": 8} | changes)], files)(texts(*items))


def test_a_text_alone_is_its_tokens_and_nothing_else():
    found = prepared(b"a b C.")
    assert found["input_ids"].tolist() == [[2, 4, 5, 6, 40, 3]]
    assert found["attention_mask"].tolist() == [[1] * 6]
    assert found["token_type_ids"].tolist() == [[0] * 6]
    assert {array.dtype.name for array in found.values()} == {"int64"}
    assert "text" not in found


def test_a_batch_is_padded_to_its_own_longest_text_and_the_mask_says_where():
    found = prepared(b"a", b"a b c", pad_id=1)
    assert found["input_ids"].tolist() == [[2, 4, 3, 1, 1], [2, 4, 5, 6, 3]]
    assert found["attention_mask"].tolist() == [[1, 1, 1, 0, 0], [1] * 5]


def test_a_long_text_is_cut_after_max_length_with_its_end_mark():
    found = prepared(b"a b c d e f g h i j")["input_ids"]
    assert found.tolist() == [[2, 4, 5, 6, 7, 8, 9, 3]]


def test_the_padding_and_truncation_in_the_file_do_not_count():
    settings = json.loads(FILES["tokenizer.json"])
    assert settings["padding"]["strategy"] == {"Fixed": 7}
    assert prepared(b"a b c d")["input_ids"].shape == (1, 6)


def test_only_what_the_model_takes_is_made_in_its_datatype():
    found = prepared(b"a", outputs=("input_ids", "attention_mask"), datatype="INT32")
    assert sorted(found) == ["attention_mask", "input_ids"]
    assert {array.dtype.name for array in found.values()} == {"int32"}


def test_a_prefix_stands_before_every_text():
    assert prepared(b"b", prefix="a: ", max_length=9)["input_ids"][0, 1] == 4


def test_texts_may_come_as_str_and_the_input_stays_as_it_is():
    given = texts("a", b"b")
    found = preparation([Tokenize(max_length=8)], FILES)(given)
    assert found["input_ids"].tolist() == [[2, 4, 3], [2, 5, 3]]
    assert given["text"].tolist() == ["a", b"b"]


@pytest.mark.parametrize(
    ("item", "words"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b"\xed\xa0\x80", "not UTF-8"),  # a lone surrogate
        ("\ud800", "not UTF-8"),
        (b"a" * 70_000, "70000 bytes"),
        (7, "not UTF-8"),
    ],
)
def test_what_is_no_text_is_refused_with_its_row(item, words):
    with pytest.raises(InvalidInput, match=words) as caught:
        prepared(b"a", item)
    assert "row 1" in caught.value.message


@pytest.mark.parametrize("item", [b"", b" ", b"\0", b"\0\0a", "🙂🙂".encode(), "日本".encode(), b"x" * 500, b"\r\n\t"])
def test_odd_texts_have_tokens_all_the_same(item):
    ids = prepared(item)["input_ids"][0]
    assert ids[0] == 2
    assert ids[-1] == 3


def test_a_text_without_any_token_is_refused_alone_and_in_a_batch():
    files = {"tokenizer.json": encoders.tokenizer(marks=False)}
    assert prepared(b"a", files=files)["input_ids"].tolist() == [[4]]
    for rows in ([b""], [b"a", b" "]):
        with pytest.raises(InvalidInput, match="no tokens"):
            prepared(*rows, files=files)


def test_a_wrong_shape_or_name_is_refused():
    with pytest.raises(InvalidInput, match="shape"):
        preparation([Tokenize(max_length=8)], FILES)({"text": np.array([[b"a"]], dtype=object)})
    with pytest.raises(InvalidInput, match="missing; found: other"):
        preparation([Tokenize(max_length=8)], FILES)({"other": np.array([b"a"], dtype=object)})


def test_a_version_without_its_file_or_with_a_spoilt_one_is_refused_when_it_is_loaded():
    with pytest.raises(InvalidInput, match=r"needs the file 'tokenizer.json', which it has not"):
        preparation([Tokenize(max_length=8)])
    with pytest.raises(InvalidInput, match="needs the file"):
        apply([Tokenize(max_length=8)], texts(b"a"))
    for spoilt in (b"", b"{}", b"\xff", FILES["tokenizer.json"][:-5], b'{"model": {"type": "Evil"}}'):
        with pytest.raises(InvalidInput, match="tokenizer can't be read"):
            preparation([Tokenize(max_length=8)], {"tokenizer.json": spoilt})


def test_a_panic_of_the_library_is_the_texts_fault_and_not_the_end_of_the_process(monkeypatch):
    class PanicException(BaseException):  # what pyo3 raises for a panic: no Exception
        pass

    class Broken:
        def no_padding(self):
            pass

        def enable_truncation(self, length):
            pass

        def encode_batch_fast(self, given):
            raise PanicException("index out of bounds")

    import tokenizers

    class Standing:
        from_buffer = staticmethod(lambda _: Broken())

    monkeypatch.setattr(tokenizers, "Tokenizer", Standing)
    kernel = tokenize(Tokenize(max_length=8), b"")
    with pytest.raises(InvalidInput, match="index out of bounds"):
        kernel(texts(b"a"))


@pytest.mark.parametrize(
    "changes",
    [
        {"max_length": 0},
        {"max_bytes": 0},
        {"datatype": "FP32"},
        {"outputs": ("attention_mask",)},
        {"outputs": ("input_ids", "secret")},
    ],
)
def test_steps_that_make_no_sense_are_refused_with_the_manifest(changes):
    plain = steps_to_plain([Tokenize(max_length=8)])
    plain[0] |= changes
    with pytest.raises(InvalidInput, match="prepare steps are not understood"):
        steps_from_plain(plain)


def test_text_steps_survive_json_and_unknown_fields_are_refused():
    steps = [Tokenize(max_length=8, prefix="q: ")]
    assert steps_from_plain(json.loads(json.dumps(steps_to_plain(steps)))) == steps
    finish = [Pool(mode="cls"), L2Normalize()]
    assert finish_from_plain(json.loads(json.dumps(steps_to_plain(finish)))) == finish
    with pytest.raises(InvalidInput, match="not understood"):
        steps_from_plain([{"step": "tokenize", "max_length": 8, "code": "evil"}])
    with pytest.raises(InvalidInput, match="not understood"):
        finish_from_plain([{"step": "pool", "mode": "lasttoken"}])


HIDDEN = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
MASK = {"attention_mask": np.array([[1, 1, 0], [1, 1, 1]])}


@pytest.mark.parametrize(
    ("mode", "first"),
    [("mean", HIDDEN[0, :2].mean(axis=0)), ("max", HIDDEN[0, :2].max(axis=0)), ("cls", HIDDEN[0, 0])],
)
def test_pooling_sees_a_texts_own_tokens_only(mode, first):
    spoilt = HIDDEN.copy()
    spoilt[0, 2] = 1e6
    found = finishing([Pool(mode=mode)])({"last_hidden_state": spoilt}, MASK)["embedding"]
    assert found.dtype == np.float32
    assert found[0].tolist() == first.tolist()


def test_a_model_with_one_output_may_call_it_otherwise_also_when_pooling():
    found = finishing([Pool()])({"token_embeddings": HIDDEN}, MASK)["embedding"]
    assert found[1].tolist() == HIDDEN[1].mean(axis=0).tolist()


def test_pooling_without_a_mask_or_with_another_shape_is_refused():
    with pytest.raises(InvalidInput, match="no 'attention_mask'"):
        finishing([Pool()])({"last_hidden_state": HIDDEN}, {})
    with pytest.raises(InvalidInput, match=r"shape \[2, 2\]"):
        finishing([Pool()])({"last_hidden_state": HIDDEN}, {"attention_mask": np.ones((2, 2))})
    with pytest.raises(InvalidInput, match="expected"):
        finishing([Pool()])({"last_hidden_state": HIDDEN[0]}, MASK)


def test_normalized_rows_have_length_one_and_a_row_of_zeros_stays():
    x = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
    found = finishing([L2Normalize()])({"embedding": x}, {})["embedding"]
    assert found.tolist() == [[np.float32(0.6), np.float32(0.8)], [0.0, 0.0]]


def test_without_the_library_the_error_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(PluginError, match=r"pip install 'argosy\[text\]'"):
        preparation([Tokenize(max_length=8)], FILES)


def test_steps_without_texts_need_neither_tokenizers_nor_pillow():
    code = (
        "import sys; sys.modules['tokenizers'] = sys.modules['PIL'] = None\n"
        "from argosy.data.prepare import Take, preparation\n"
        "import numpy as np\n"
        "print(preparation([Take(input='x', datatype='FP32', shape=(-1, 1))])({'x': np.ones((1, 1))})['x'])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[[1.]]\n"
