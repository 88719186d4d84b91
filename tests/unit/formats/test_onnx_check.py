import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from argosy.core.errors import InvalidInput
from argosy.formats import onnx_check
from argosy.formats.onnx_check import check_onnx, read_model_file
from argosy.formats.onnx_runtime import OnnxRunner


def test_an_empty_file_is_said_to_be_empty():
    with pytest.raises(InvalidInput, match="is empty"):
        check_onnx(b"")


@pytest.mark.parametrize(
    "data", [b"hello world", bytes(100), b"\x08\x00\x00\x00ORTM" + bytes(64), b"\xff" * 40, b"\x08\x09"]
)
def test_other_files_are_not_models(data):
    with pytest.raises(InvalidInput, match="not an ONNX model"):
        OnnxRunner.load(data)


def test_every_cut_of_a_model_is_refused_or_loads_whole(make_onnx):
    data = make_onnx()
    for length in range(len(data)):
        with pytest.raises(InvalidInput):
            OnnxRunner.load(data[:length])


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255))
def test_a_changed_byte_never_does_more_than_raise_invalid_input(position, byte):
    data = bytearray(_MODEL)
    data[position % len(data)] = byte
    try:
        runner = OnnxRunner.load(bytes(data))
        runner.run({"x": np.ones((1, 3), np.float32)})
    except InvalidInput:
        pass


def test_weights_in_another_file_are_refused_wherever_they_hide(make_onnx, weights):
    outside = onnx.TensorProto()
    outside.CopyFrom(weights)
    onnx.external_data_helper.set_external_data(outside, "../../etc/passwd")
    outside.ClearField("raw_data")
    only_location = onnx.TensorProto()
    only_location.CopyFrom(weights)
    only_location.data_location = onnx.TensorProto.EXTERNAL
    branch = helper.make_graph([], "branch", [], [helper.make_tensor_value_info("W", 1, [3, 2])], [outside])
    in_branch = helper.make_node("If", ["c"], ["y"], then_branch=branch, else_branch=branch)
    in_attribute = helper.make_node("Constant", [], ["y"], value=outside)
    for data in (
        make_onnx(constants=[outside]),
        make_onnx(constants=[only_location]),
        make_onnx([in_branch]),
        make_onnx([in_attribute]),
    ):
        with pytest.raises(InvalidInput, match="in another file") as caught:
            OnnxRunner.load(data)
        assert caught.value.code == "external_data"


def test_a_tensor_that_promises_more_than_its_bytes_hold_is_refused(make_onnx, weights):
    absurd = onnx.TensorProto()
    absurd.CopyFrom(weights)
    absurd.dims[:] = [2**40, 2**40]
    with pytest.raises(InvalidInput, match="promises"):
        check_onnx(make_onnx(constants=[absurd]))


def test_a_sparse_tensor_that_would_fill_the_memory_is_refused():
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.ones(1, np.float32), "W"),
        numpy_helper.from_array(np.zeros(1, np.int64), "i"),
        [2**40],
    )
    graph = helper.make_graph([], "graph", [], [], sparse_initializer=[sparse])
    with pytest.raises(InvalidInput, match="sparse tensor"):
        check_onnx(helper.make_model(graph).SerializeToString())


def test_graphs_nested_without_end_are_refused():
    data = b""
    for _ in range(200):
        # AttributeProto.g in NodeProto.attribute in GraphProto.node, by hand: onnx itself would recurse.
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            data = tag + _length(data) + data
    with pytest.raises(InvalidInput, match="nested"):
        check_onnx(b"\x3a" + _length(data) + data)


@pytest.mark.parametrize("part", [b"\x3a\x00", b"\x08\x01", b"\x3a\x02\x2a\x00"])
def test_a_file_of_countless_parts_is_refused_in_bounded_time(part, monkeypatch):
    monkeypatch.setattr(onnx_check, "_MAX_FIELDS", 1000)
    with pytest.raises(InvalidInput, match="more parts"):
        check_onnx(part * 10_000)


def test_a_file_beyond_the_format_is_refused_unread(tmp_path):
    path = tmp_path / "huge.onnx"
    with path.open("wb") as stream:
        os.truncate(stream.fileno(), 2**31 + 10)
    with pytest.raises(InvalidInput, match="at most"):
        read_model_file(path)


@pytest.mark.capability("F1")
def test_the_runner_needs_neither_torch_nor_onnx(make_onnx, tmp_path):
    (tmp_path / "model.onnx").write_bytes(make_onnx())
    code = (
        "import sys, pathlib; from argosy.formats.runner import load_runner;"
        "load_runner('onnx', pathlib.Path(sys.argv[1]));"
        "print(sorted({'torch', 'onnx', 'matplotlib'} & set(sys.modules)))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model.onnx")], capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == "[]"


def test_folders_and_unreadable_names_are_no_model_files(tmp_path: Path):
    with pytest.raises(Exception, match="no model file"):
        read_model_file(tmp_path)


def _length(data: bytes) -> bytes:
    size, found = len(data), bytearray()
    while size > 0x7F:
        found.append(size & 0x7F | 0x80)
        size >>= 7
    return bytes([*found, size])


_MODEL = helper.make_model(
    helper.make_graph(
        [helper.make_node("MatMul", ["x", "W"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", 1, ["batch", 3])],
        [helper.make_tensor_value_info("y", 1, ["batch", 2])],
        [numpy_helper.from_array(np.ones((3, 2), np.float32), "W")],
    ),
    opset_imports=[helper.make_opsetid("", 18)],
    ir_version=9,
).SerializeToString()
