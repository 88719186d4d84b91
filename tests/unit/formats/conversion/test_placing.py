"""Outputs appear whole with their report, or not at all."""

import os
from pathlib import Path

import pytest

from argosy.core.digest import sha256
from argosy.core.errors import InvalidInput
from argosy.formats.conversion import placing
from argosy.formats.conversion.graph import FORMATS
from argosy.formats.conversion.placing import place
from argosy.formats.conversion.report import ConversionReport


def report(digests):
    return ConversionReport(
        source="a", source_format="onnx", out="b", target_format="x", digests=digests, inputs=[], samples=1,
        samples_from="generated", steps=[], passed=True,
    )  # fmt: skip


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "made"
    folder.mkdir()
    return folder


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_file_stands_there_with_its_report_and_digest(tmp_path, made):
    (made / "made.onnx").write_bytes(b"model")
    found = place(made / "made.onnx", tmp_path / "out.onnx", FORMATS.load("onnx"), report)
    assert (tmp_path / "out.onnx").read_bytes() == b"model"
    assert found.digests == {"out.onnx": sha256(b"model")}
    assert names(tmp_path) == ["made", "out.onnx", "out.onnx.parity.json"]


def test_openvino_has_two_files_and_a_module_a_folder(tmp_path, made):
    for name in ("made.xml", "made.bin"):
        (made / name).write_text(name)
    place(made / "made.xml", tmp_path / "out.xml", FORMATS.load("openvino"), report)
    (made / "made").mkdir()
    for name in ("model.py", "graph.onnx", "weights.safetensors", "more.py"):
        (made / "made" / name).write_text(name)
    place(made / "made", tmp_path / "net", FORMATS.load("pytorch"), report)
    assert names(tmp_path) == ["made", "net", "net.parity.json", "out.bin", "out.xml", "out.xml.parity.json"]
    assert names(tmp_path / "net") == ["graph.onnx", "model.py", "weights.safetensors"]


def test_a_link_that_a_converter_left_is_not_followed(tmp_path, made):
    (made / "made.onnx").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInput, match=r"left no 'made\.onnx'"):
        place(made / "made.onnx", tmp_path / "out.onnx", FORMATS.load("onnx"), report)
    (made / "made").symlink_to("/etc")
    with pytest.raises(InvalidInput):
        place(made / "made", tmp_path / "net", FORMATS.load("pytorch"), report)
    assert names(tmp_path) == ["made"]


def test_what_fails_in_the_middle_leaves_neither_output_nor_report(tmp_path, made, monkeypatch):
    (made / "made.onnx").write_bytes(b"model")
    real = placing.write_atomic

    def full(path: Path, *rest):
        if path.suffix == ".onnx":
            raise OSError(28, os.strerror(28))
        real(path, *rest)

    monkeypatch.setattr(placing, "write_atomic", full)
    with pytest.raises(OSError, match="No space"):
        place(made / "made.onnx", tmp_path / "out.onnx", FORMATS.load("onnx"), report)
    assert names(tmp_path) == ["made"]
