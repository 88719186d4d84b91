"""Data that is read in pieces, held in files and prepared batch by batch is the same data."""

import errno
import json
import os

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from argosy.core.errors import IntegrityError, InvalidInput, Unavailable
from argosy.data import arrange, csv_source, documents, jsonl_source, language, parquet_source, storage
from argosy.data.config import DataConfig
from argosy.data.dataset import Dataset, build_dataset
from argosy.data.scratch import Scratch, SpooledColumn
from argosy.data.sources import read
from argosy.data.steps import Array
from argosy.train import samples as samples_module
from argosy.train.samples import StreamedSamples, samples_of

pytestmark = pytest.mark.capability("D1", "T6")
ROWS = 300
WORDS = ["red", "green", None, "blue", "ärger"]


@pytest.fixture
def scratch(tmp_path, monkeypatch):
    """Room in which everything is large, and pieces are small."""
    monkeypatch.setattr(arrange, "_PIECE_BYTES", 700)
    monkeypatch.setattr(storage, "_PIECE_BYTES", 500)
    monkeypatch.setattr(storage, "_HELD_BYTES", 0)
    monkeypatch.setattr(parquet_source, "_BATCH_BYTES", 500)
    monkeypatch.setattr(csv_source, "_BLOCK_BYTES", 2000)
    monkeypatch.setattr(jsonl_source, "_BLOCK_BYTES", 2000)
    monkeypatch.setattr(language, "_BLOCKS_AT_ONCE", 3)
    monkeypatch.setattr(documents, "_STRETCH_BYTES", 11)
    (tmp_path / "scratch").mkdir()
    return Scratch(tmp_path / "scratch", held_bytes=100)


def records():
    draw = np.random.default_rng(0)
    return [
        {
            "size": float(draw.normal()) if i % 9 else None,
            "count": int(draw.integers(100)),
            "flag": bool(i % 2),
            "word": WORDS[i % 5],
            "day": f"2024-{i % 12 + 1:02d}-03",
            "label": "ab"[int(draw.integers(2))],
        }
        for i in range(ROWS)
    ]


def write_csv(folder):
    rows = [["" if value is None else str(value).lower() for value in row.values()] for row in records()]
    (folder / "d.csv").write_text("\n".join(",".join(row) for row in [list(records()[0]), *rows]) + "\n")
    return "d.csv"


def write_parquet(folder):
    import pyarrow as pa
    from pyarrow import parquet

    parquet.write_table(pa.Table.from_pylist(records()), folder / "d.parquet", row_group_size=50)
    return "d.parquet"


def write_jsonl(folder):
    (folder / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in records()))
    return "d.jsonl"


def write_npz(folder):
    draw = np.random.default_rng(1)
    np.savez_compressed(folder / "d.npz", x=draw.normal(size=(ROWS, 3, 4)), label=draw.integers(0, 3, ROWS))
    return "d.npz"


def write_images(folder):
    draw = np.random.default_rng(2)
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(20):
            pixels = draw.integers(0, 255, (6, 5, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")
    return "images"


KINDS = [write_csv, write_parquet, write_jsonl, write_npz, write_images]


def config(name, **fields):
    return DataConfig(train=name, label="label", **fields)


@pytest.mark.parametrize("write", KINDS)
def test_a_data_set_made_in_pieces_is_the_one_made_in_memory(tmp_path, scratch, write):
    name = write(tmp_path)
    whole = build_dataset(config(name), tmp_path)
    pieces = build_dataset(config(name), tmp_path, scratch=scratch)
    assert pieces.digest == whole.digest
    assert pieces.notes == whole.notes
    whole.save(tmp_path / "whole")
    pieces.save(tmp_path / "pieces")
    loaded = Dataset.load(tmp_path / "pieces")
    for file in sorted(path for path in (tmp_path / "whole").rglob("*") if path.is_file()):
        assert file.read_bytes() == (tmp_path / "pieces" / file.relative_to(tmp_path / "whole")).read_bytes()
    for part in ("train", "validation", "test"):
        for key, array in whole.prepared(part)[0].items():
            assert loaded.prepared(part)[0][key].tobytes() == array.tobytes()
    assert not list((tmp_path / "scratch").iterdir()), "scratch files have no names"


def test_a_test_file_is_read_in_pieces_too(tmp_path, scratch):
    name = write_parquet(tmp_path)
    (tmp_path / "t.csv").write_bytes((tmp_path / write_csv(tmp_path)).read_bytes())
    asked = config(name, test="t.csv", drop=["flag"])
    assert build_dataset(asked, tmp_path, scratch=scratch).digest == build_dataset(asked, tmp_path).digest


def test_a_running_text_read_as_a_stream_has_the_tokens_of_the_whole(tmp_path, scratch):
    text = "".join(f"{n} the old män and the sea {n * 7}\r\n\r\n" for n in range(200))
    (tmp_path / "t.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    asked = DataConfig(train="t.txt", task="language-model", context=8, vocabulary=300)
    whole = build_dataset(asked, tmp_path)
    pieces = build_dataset(asked, tmp_path, scratch=scratch)
    assert pieces.digest == whole.digest
    pieces.save(tmp_path / "out")
    samples = samples_of(Dataset.load(tmp_path / "out"), torch.float32)
    first = samples_of(whole, torch.float32)
    rows = torch.tensor([4, 0, 9])
    assert torch.equal(samples.batch(rows)[0], first.batch(rows)[0])
    assert torch.equal(samples.y[rows], first.y[rows])


@pytest.mark.parametrize("write", KINDS)
def test_samples_prepared_batch_by_batch_are_those_prepared_at_once(tmp_path, scratch, write, monkeypatch):
    build_dataset(config(write(tmp_path)), tmp_path, scratch=scratch).save(tmp_path / "out")
    dataset = Dataset.load(tmp_path / "out")
    held = samples_of(dataset, torch.float64)
    monkeypatch.setattr(samples_module, "HELD_BYTES", 0)
    streamed = samples_of(dataset, torch.float64)
    assert isinstance(streamed, StreamedSamples)
    assert not isinstance(held, StreamedSamples)
    rows = torch.tensor([5, 0, 17, 3])
    assert all(torch.equal(a, b) for a, b in zip(streamed.batch(rows), held.batch(rows), strict=True))
    few = rows[:2] % len(held.validation_y)
    assert torch.equal(streamed.validation_batch(few)[0], held.validation_batch(few)[0])
    assert torch.equal(streamed.y, held.y)
    assert torch.equal(streamed.validation_y, held.validation_y)
    assert (streamed.given, len(streamed), streamed.labels) == (held.given, len(held), held.labels)


def test_of_more_rows_than_can_be_held_statistics_are_those_of_some_evenly_spread(tmp_path, scratch, monkeypatch):
    name = write_parquet(tmp_path)
    monkeypatch.setattr(arrange, "MOST_FITTED_BYTES", 1)
    monkeypatch.setattr(arrange, "_LEAST_FITTED", 50)
    dataset = build_dataset(config(name), tmp_path, scratch=scratch)
    assert "statistics and categories are those of 50 of the 210 training rows, evenly spread" in dataset.notes
    assert {name: len(part) for name, part in dataset.splits.items()} == {"train": 210, "validation": 30, "test": 60}


def test_a_reduced_data_set_has_evenly_spread_rows_of_each_part(tmp_path):
    dataset = build_dataset(config(write_npz(tmp_path)), tmp_path)
    assert dataset.reduced().splits["train"] is dataset.splits["train"]
    arrange_least = arrange._LEAST_FITTED
    try:
        arrange._LEAST_FITTED = 10
        reduced = dataset.reduced(most_bytes=1)
    finally:
        arrange._LEAST_FITTED = arrange_least
    train, few = dataset.splits["train"], reduced.splits["train"]
    assert len(few) == 10
    assert np.array_equal(few.inputs["x"][[0, -1]], train.inputs["x"][[0, -1]])
    assert few.y[-1] == train.y[-1]


@pytest.mark.parametrize(
    ("above", "below", "kind"),
    [("1", "2.5", "f"), ("1", "x", "O"), ("2024-01-01", "2024-01-01T10:00:00", "M"), ("2024-01-01", "soon", "O")],
)
def test_a_guess_at_a_type_that_fails_further_down_gives_the_column_of_the_whole_file(
    tmp_path, scratch, above, below, kind
):
    lines = [f"{above},{n}" for n in range(400)] + [f"{below},7"] + [f"{above},8"]
    (tmp_path / "d.csv").write_text("a,b\n" + "\n".join(lines) + "\n")
    found = read("d.csv", tmp_path, scratch=scratch).columns
    column = np.asarray(found["a"])
    assert column.dtype.kind == kind
    assert len(column) == 402
    assert str(column[400]).startswith(below.replace("T", "T"))
    assert np.asarray(found["b"])[[0, 401]].tolist() == [0, 8]


def test_a_line_with_too_many_fields_far_down_is_told(tmp_path, scratch):
    (tmp_path / "d.csv").write_text("a,b\n" + "1,2\n" * 900 + "1,2,3\n")
    with pytest.raises(InvalidInput, match=r"'d\.csv' can't be read as CSV"):
        read("d.csv", tmp_path, scratch=scratch)


@pytest.mark.parametrize("lines", ['{"a": 1}\nno\n', '{"a": 1}\n' * 900 + '{"a": "x"}\n', "[1, 2]\n"])
def test_what_is_no_json_lines_or_changes_its_types_is_told(tmp_path, scratch, lines):
    (tmp_path / "d.jsonl").write_text(lines)
    for room in (Scratch(), scratch):
        with pytest.raises(InvalidInput, match=r"'d\.jsonl' can't be read as JSON Lines"):
            read("d.jsonl", tmp_path, scratch=room)


def test_a_full_disk_is_told_before_anything_is_written_into_a_map(scratch, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(Unavailable) as caught:
        scratch.empty((100, 100), np.float32)
    assert caught.value.code == "disk_full"
    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Unavailable):
        scratch.column().append(np.arange(5))


def test_a_flipped_bit_of_a_mapped_file_is_found(tmp_path, scratch):
    build_dataset(config(write_parquet(tmp_path)), tmp_path, scratch=scratch).save(tmp_path / "out")
    file = next((tmp_path / "out" / "train").glob("*.ends.npy"))
    data = bytearray(file.read_bytes())
    data[-3] ^= 1
    file.write_bytes(data)
    with pytest.raises(IntegrityError, match=r"ends\.npy' is not what was written"):
        Dataset.load(tmp_path / "out")


VALUES = st.one_of(
    st.lists(st.integers(-(2**40), 2**40), max_size=9).map(lambda v: np.array(v, dtype=np.int64)),
    st.lists(st.floats(width=32), max_size=9).map(lambda v: np.array(v, dtype=np.float32)),
    st.lists(st.booleans(), max_size=9).map(lambda v: np.array(v, dtype=bool)),
)
TEXTS = st.lists(st.one_of(st.none(), st.text(max_size=5)), max_size=9)


def as_texts(values) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


@given(st.one_of(st.lists(VALUES, max_size=6), st.lists(TEXTS.map(as_texts), max_size=6)), st.data())
def test_a_column_in_a_file_gives_what_an_array_gives(tmp_path_factory, pieces, data):
    column: SpooledColumn = Scratch(tmp_path_factory.getbasetemp()).column()
    for piece in pieces:
        column.append(piece)
    pieces = [piece for piece in pieces if len(piece)]
    array = np.concatenate(pieces) if pieces else np.empty(0)
    assert (len(column), column.shape, column.ndim) == (len(array), array.shape, 1)
    assert column.dtype == array.dtype
    rows = np.array(data.draw(st.lists(st.integers(0, max(0, len(array) - 1)), max_size=12)), dtype=np.int64)
    rows = rows[: len(rows) if len(array) else 0]
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(array), max_size=len(array))), dtype=bool)
    a, b = sorted(data.draw(st.tuples(st.integers(0, 40), st.integers(0, 40))))
    for chosen in (rows, mask, slice(a, b), slice(None)):
        found = column[chosen]
        assert found.dtype == array.dtype
        np.testing.assert_array_equal(found, array[chosen])
    assert column.tolist() == array.tolist() or array.dtype.kind == "f"
    with pytest.raises(IndexError):
        column[np.array([len(array)])]


@given(st.lists(st.lists(st.text(max_size=4), min_size=2, max_size=2), min_size=1, max_size=20), st.data())
def test_texts_in_mapped_files_are_those_that_were_stored(tmp_path_factory, rows, data):
    folder = tmp_path_factory.mktemp("texts")
    array = np.empty((len(rows), 2), dtype=object)
    array[:] = rows
    stored = storage.store(array, folder, "a")
    texts = storage.MappedTexts(np.load(folder / stored.file), np.load(folder / stored.ends))
    assert (texts.shape, texts.dtype, len(texts)) == (array.shape, array.dtype, len(array))
    chosen = np.array(data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=9)), dtype=np.int64)
    np.testing.assert_array_equal(texts[chosen], array[chosen])
    np.testing.assert_array_equal(texts[1:], array[1:])
    np.testing.assert_array_equal(np.asarray(texts), array)
    np.testing.assert_array_equal(storage.mapped(folder, stored), array)
