"""What people type after `argosy predict`, as it is sent."""

import io
import sys

import pytest

from argosy.cli.verbs.predict import as_body, read_inputs, typed_inputs
from argosy.core.errors import InvalidInput

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20


@pytest.mark.parametrize(
    ("typed", "sent"),
    [
        ('{"x": 1.5}', {"x": 1.5}),
        (' [{"x": 1}]', [{"x": 1}]),
        ('{"inputs": {"x": 1}}', {"x": 1}),
        ('{"inputs": 1, "other": 2}', {"inputs": 1, "other": 2}),
        ("a sentence, with {braces}", "a sentence, with {braces}"),
        ("x" * 10_000, "x" * 10_000),
        ("a\0b", "a\0b"),
        ("", ""),
    ],
)
def test_json_is_json_and_everything_else_a_text(typed, sent):
    assert typed_inputs(typed) == sent


@pytest.mark.parametrize(
    ("name", "data", "sent"),
    [
        ("rows.json", b'[{"x": 1}]', [{"x": 1}]),
        ("text.txt", "Zoë wrote this.\n".encode(), "Zoë wrote this."),
        ("photo.jpg", b"\xff\xd8\xff\xe0rest", b"\xff\xd8\xff\xe0rest"),
        ("photo", PNG, PNG),
    ],
)
@pytest.mark.parametrize("form", ["@{}", "{}"])
def test_a_file_is_read_for_what_it_holds(tmp_path, name, data, sent, form):
    (tmp_path / name).write_bytes(data)
    assert typed_inputs(form.format(tmp_path / name)) == sent


@pytest.mark.parametrize(("data", "sent"), [(b'{"x": 1}', {"x": 1}), (b"a text\n", "a text"), (PNG, PNG)])
def test_standard_input_is_read_the_same_way(monkeypatch, data, sent):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert typed_inputs("-") == sent


@pytest.mark.parametrize(
    ("typed", "words"),
    [("@missing.jpg", "'missing.jpg' can't be read"), ("{x: 1}", "not JSON"), ("[" * 100_000, "not JSON")],
)
def test_what_can_not_be_read_is_said(typed, words):
    with pytest.raises(InvalidInput, match=words):
        typed_inputs(typed)


def test_a_file_that_is_neither_text_nor_image_is_refused(tmp_path):
    (tmp_path / "x").write_bytes(b"\x80\x04\x95")
    with pytest.raises(InvalidInput, match="neither text nor a JPEG, PNG or WebP image"):
        typed_inputs(f"@{tmp_path / 'x'}")


def test_rows_to_explain_are_read_from_a_file_too(tmp_path):
    (tmp_path / "row.json").write_text('{"x": 1}')
    for typed in (f"@{tmp_path / 'row.json'}", str(tmp_path / "row.json"), '{"x": 1}'):
        assert as_body(read_inputs(typed)) == b'{"inputs": {"x": 1}}'
