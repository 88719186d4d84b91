import os
import sys
import zipfile

import numpy as np
import pytest

from argosy.core.errors import InvalidInput, NotFound, PluginError
from argosy.data import csv_source
from argosy.data.sources import SOURCES, read
from argosy.registry.backends.memory import MemoryStore

pytestmark = pytest.mark.capability("D1")


def csv(folder, text, name="data.csv"):
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return read(name, folder)


def test_numbers_texts_truth_values_and_dates_get_columns_of_their_kind(tmp_path):
    table = csv(tmp_path, 'a,b,c,d,e\n1,1.5,true,2024-05-01,"x, ""y"""\n2,-3e4,false,2024-05-02,z\n')
    assert [column.dtype.kind for column in table.columns.values()] == ["i", "f", "b", "M", "O"]
    assert table.columns["e"].tolist() == ['x, "y"', "z"]
    assert table.rows == 2


@pytest.mark.parametrize("missing", ["", "?", "NA", "NaN", "nan", "null", "None", "N/A", "-"])
def test_a_missing_number_does_not_make_its_column_text(tmp_path, missing):
    a = csv(tmp_path, f"a,b\n1,x\n{missing},y\n").columns["a"]
    assert a[0] == 1.0
    assert np.isnan(a[1])


def test_a_missing_word_of_a_text_column_stays_a_word(tmp_path):
    assert csv(tmp_path, "a,b\nNone,1\nyes,2\n").columns["a"].tolist() == ["None", "yes"]


def test_an_infinite_number_is_read(tmp_path):
    assert csv(tmp_path, "a,b\ninf,1\n-inf,2\n").columns["a"].tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_seen_from_the_header(tmp_path, delimiter):
    text = f'"fixed, or not"{delimiter}b\n1{delimiter}2\n'
    assert list(csv(tmp_path, text).columns) == ["fixed, or not", "b"]


@pytest.mark.parametrize(
    ("text", "kind"),
    [("a;b\n1,5;x\n-0,25;y\n", "f"), ("a;b\n1.5;x, y\n0.25;1,2\n", "f"), ("a;b\n1,5,2;x\n1;y\n", "O")],
)
def test_a_decimal_comma_is_seen_from_the_numbers(tmp_path, text, kind):
    assert csv(tmp_path, text).columns["a"].dtype.kind == kind


def test_byte_order_mark_windows_lines_blank_lines_and_spaces_in_names_do_no_harm(tmp_path):
    table = csv(tmp_path, "\ufeffa , b\r\n1, 2\r\n\r\n3, 4\r\n")
    assert list(table.columns) == ["a", "b"]
    assert table.columns["b"].tolist() == [2, 4]
    assert csv(tmp_path, "\n\na,b\n1,2\n").columns["a"].tolist() == [1]


def test_a_line_break_inside_quotes_is_part_of_the_value(tmp_path):
    table = csv(tmp_path, 'a,"b\nc"\n"x\ny",1\n')
    assert list(table.columns) == ["a", "b\nc"]
    assert table.columns["a"].tolist() == ["x\ny"]


def test_the_index_of_pandas_and_an_empty_last_column_are_named_or_left_out(tmp_path):
    table = csv(tmp_path, ",a,\n0,1.5,\n1,2.5,\n")
    assert list(table.columns) == ["Unnamed: 0", "a"]


def test_a_whole_number_column_may_hold_a_fraction_far_down(tmp_path, monkeypatch):
    monkeypatch.setattr(csv_source, "_BLOCK_BYTES", 64)
    table = csv(tmp_path, "a,b\n" + "1,2\n" * 100 + "3.5,x\n")
    assert table.columns["a"][-1] == 3.5
    assert table.columns["b"][-1] == "x"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\n \n", "nothing but white space"),
        (b"a,b\n", "has columns but no rows: 'a', 'b'"),
        (b"a,b,a\n1,2,3\n", "more than one column called 'a'"),
        (b"a,b\n1,2\n1,2,3\n", "Expected 2 columns, got 3"),
        (b"a,b\n1,\xe9\n", "not UTF-8 at byte 6"),
        (b"a,b\n1,\x00\n", "is not text"),
    ],
)
def test_a_broken_csv_file_is_refused_with_what_was_found(tmp_path, content, message):
    with pytest.raises(InvalidInput, match=message):
        csv(tmp_path, content)


def test_a_file_without_header_gets_a_hint_that_says_so(tmp_path):
    with pytest.raises(InvalidInput) as caught:
        csv(tmp_path, "5.1,3.5,5.1,0\n4.9,3.0,1.4,0\n")
    assert "the first line looks like data" in caught.value.hint


def test_a_missing_file_is_not_found_and_its_neighbours_are_shown(tmp_path):
    (tmp_path / "digits.parquet").touch()
    with pytest.raises(NotFound, match=r"there is no data file 'digit\.parquet'") as caught:
        read("digit.parquet", tmp_path)
    assert "digits.parquet" in caught.value.hint


def test_a_file_of_unknown_kind_is_refused_with_the_known_ones(tmp_path):
    (tmp_path / "data.pkl").write_bytes(b"x")
    with pytest.raises(InvalidInput, match=r"ends in none of \.csv"):
        read("data.pkl", tmp_path)


def test_a_file_url_is_read_like_a_path(tmp_path):
    csv(tmp_path, "a,b\n1,2\n", "my data.csv")
    assert read((tmp_path / "my data.csv").as_uri(), tmp_path / "elsewhere").columns["a"].tolist() == [1]


def test_a_file_in_an_object_store_is_fetched_and_read(tmp_path, monkeypatch):
    store = MemoryStore()
    store.put("data.csv", b"a,b\n1,2\n")
    asked = []
    monkeypatch.setattr("argosy.registry.store.open_store", lambda url: asked.append(url) or store)
    table = read("s3://bucket/folder/data.csv", tmp_path)
    assert (table.columns["a"].tolist(), table.where) == ([1], "s3://bucket/folder/data.csv")
    assert asked == ["s3://bucket/folder"]
    with pytest.raises(NotFound):
        read("s3://bucket/folder/other.csv", tmp_path)


def test_a_library_that_is_not_installed_is_named_with_its_extra(tmp_path, monkeypatch):
    (tmp_path / "a.csv").write_text("a\n1\n")
    (tmp_path / "a.parquet").write_text("x")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    for name in ("a.csv", "a.parquet"):
        with pytest.raises(PluginError) as caught:
            read(name, tmp_path)
        assert "argosy[train]" in caught.value.hint


def parquet(folder, **columns):
    import pyarrow as pa
    from pyarrow import parquet as pq

    pq.write_table(pa.table(columns), folder / "data.parquet")
    return read("data.parquet", folder)


def test_parquet_columns_of_every_usual_type_are_read(tmp_path):
    import datetime as dt
    import decimal

    import pyarrow as pa

    moment = dt.datetime(2024, 5, 1, 12, tzinfo=dt.UTC)
    table = parquet(
        tmp_path,
        i=pa.array([1, None], pa.int32()),
        f=pa.array([1.5, None], pa.float32()),
        b=pa.array([True, None]),
        t=pa.array(["x", None]),
        c=pa.array(["x", None]).dictionary_encode(),
        m=pa.array([moment, None]),
        d=pa.array([dt.date(2024, 5, 1), None]),
        n=pa.array([decimal.Decimal("1.25"), None]),
        s=pa.array([dt.timedelta(seconds=90), None]),
        h=pa.array([dt.time(12, 30), None]),
        e=pa.array([None, None], pa.null()),
        li=pa.array([[1, 2], None]),
    )
    kinds = {name: column.dtype.kind for name, column in table.columns.items()}
    assert kinds == {**dict.fromkeys("ifbnse", "f"), **dict.fromkeys("tch", "O"), **dict.fromkeys("md", "M")}
    assert [table.columns[name][0] for name in "ifbns"] == [1.0, 1.5, 1.0, 1.25, 90.0]
    assert table.columns["c"].tolist() == ["x", None]
    assert table.columns["m"][0] == np.datetime64("2024-05-01T12:00:00")
    assert np.isnat(table.columns["d"][1])
    assert table.unusable == {"li": "it holds list<element: int64>"}


def test_a_file_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "data.parquet").write_bytes(b"PAR1 but not really")
    with pytest.raises(InvalidInput, match="can't be read as Parquet"):
        read("data.parquet", tmp_path)


def npz(folder, **arrays):
    np.savez(folder / "data.npz", **arrays)
    return read("data.npz", folder)


def test_arrays_keep_their_shape_and_type(tmp_path):
    table = npz(tmp_path, image=np.zeros((3, 1, 2, 2), np.uint8), label=np.array(["a", "b", "a"]), note="x")
    assert table.columns["image"].shape == (3, 1, 2, 2)
    assert table.columns["image"].dtype == np.uint8
    assert table.columns["label"].tolist() == ["a", "b", "a"]
    assert "note" in table.unusable


def test_pickled_objects_are_refused_and_never_loaded(tmp_path):
    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "owned"),))

    with pytest.raises(InvalidInput, match="pickled Python objects, which are never loaded"):
        npz(tmp_path, x=np.array([Evil()], dtype=object), label=np.zeros(1))
    assert not (tmp_path / "owned").exists()


def test_arrays_of_different_lengths_are_refused_with_their_lengths(tmp_path):
    with pytest.raises(InvalidInput, match="different numbers of rows: 'x' 3, 'label' 2"):
        npz(tmp_path, x=np.zeros((3, 2)), label=np.zeros(2))


def test_what_is_no_npz_is_refused(tmp_path):
    (tmp_path / "data.npz").write_bytes(b"PK nothing")
    with pytest.raises(InvalidInput, match="can't be read as NPZ"):
        read("data.npz", tmp_path)
    np.save(tmp_path / "array.npy", np.zeros(3))
    (tmp_path / "array.npy").rename(tmp_path / "data.npz")
    with pytest.raises(InvalidInput, match="single array"):
        read("data.npz", tmp_path)
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00 cut")
    with pytest.raises(InvalidInput, match="can't be read as NPZ"):
        read("data.npz", tmp_path)


def picture(path, size=(4, 3), mode="RGB", **options):
    from PIL import Image

    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.arange(size[0] * size[1] * len(mode)).reshape(size[1], size[0], -1).squeeze().astype(np.uint8)
    Image.fromarray(pixels, mode=None).save(path, **options)
    return pixels


def test_a_folder_of_images_gives_bytes_and_the_folders_names(tmp_path):
    red = picture(tmp_path / "photos" / "red" / "1.png")
    picture(tmp_path / "photos" / "blue" / "deep" / "2.JPG", format="JPEG")
    picture(tmp_path / "photos" / ".cache" / "3.png")
    (tmp_path / "photos" / "red" / "notes.txt").write_text("x")
    table = read("photos", tmp_path)
    assert table.columns["label"].tolist() == ["blue", "red"]
    assert table.columns["image"].shape == (2, 3, 3, 4)
    assert np.array_equal(table.columns["image"][1], red.transpose(2, 0, 1))


def test_grey_images_have_one_channel(tmp_path):
    grey = picture(tmp_path / "p" / "a" / "1.png", mode="L")
    table = read("p", tmp_path)
    assert np.array_equal(table.columns["image"], grey[None, None])


def test_images_of_different_sizes_need_a_size(tmp_path):
    picture(tmp_path / "p" / "a" / "1.png")
    picture(tmp_path / "p" / "a" / "2.png", size=(8, 8))
    with pytest.raises(InvalidInput, match=r"'a/1.png' has 4x3 pixels, 'a/2.png' 8x8") as caught:
        read("p", tmp_path)
    assert "image_size" in caught.value.hint
    assert read("p", tmp_path, image_size=5).columns["image"].shape == (2, 3, 5, 5)


def test_an_image_that_lies_on_its_side_is_put_upright(tmp_path):
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    picture(tmp_path / "p" / "a" / "1.jpg", size=(6, 2), exif=exif)
    assert read("p", tmp_path).columns["image"].shape == (1, 3, 6, 2)


def bomb(width, height):
    """A PNG file of some hundred bytes that says it is huge."""
    import struct
    import zlib

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [9000, 12000, 60000])
def test_an_image_that_would_unfold_to_gigabytes_is_refused_unopened(tmp_path, side):
    (tmp_path / "p" / "a").mkdir(parents=True)
    (tmp_path / "p" / "a" / "1.png").write_bytes(bomb(side, side))
    with pytest.raises(InvalidInput, match=r"1.png'? (says it has|can't be read)"):
        read("p", tmp_path)


def test_more_image_bytes_than_fit_in_memory_are_refused(tmp_path, monkeypatch):
    from argosy.data import image_source

    monkeypatch.setattr(image_source, "_MOST_BYTES", 35)
    picture(tmp_path / "p" / "a" / "1.png")
    with pytest.raises(InvalidInput, match=r"take 0\.0 GB, more than"):
        read("p", tmp_path)


def test_broken_and_misplaced_images_are_named(tmp_path):
    (tmp_path / "p" / "a").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="no images and no texts in folders of classes"):
        read("p", tmp_path)
    picture(tmp_path / "p" / "loose.png")
    with pytest.raises(InvalidInput, match="1 images lie in it directly"):
        read("p", tmp_path)
    whole = picture(tmp_path / "p" / "a" / "1.png", size=(64, 64))
    data = (tmp_path / "p" / "a" / "1.png").read_bytes()
    (tmp_path / "p" / "a" / "1.png").write_bytes(data[: len(data) // 2])
    assert whole.shape == (64, 64, 3)
    with pytest.raises(InvalidInput, match=r"'a/1.png' can't be read as an image"):
        read("p", tmp_path)
    (tmp_path / "p" / "a" / "1.png").write_bytes(b"GIF89a")
    with pytest.raises(InvalidInput, match=r"'a/1.png' can't be read as an image"):
        read("p", tmp_path)


def test_every_built_in_source_can_be_loaded():
    assert {"csv", "parquet", "npz", "images"} <= set(SOURCES.names())
    assert all(callable(SOURCES.load(name)) for name in SOURCES.names())
