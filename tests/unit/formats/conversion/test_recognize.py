"""What a path holds, and hostile files that are refused before any library sees them."""

import io
import json
import pickle
import resource
import struct
import subprocess
import sys
import zipfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from argosy.core.errors import ArgosyError, InvalidInput, NotFound
from argosy.formats.conversion.archives import check_gguf, check_safetensors, check_zip
from argosy.formats.conversion.recognize import recognize, target_of


def zipped(path, files, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def onnx_model(weight=None):
    weight = np.ones((2, 2), np.float32) if weight is None else weight
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 2])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])


def external(path, location, data=b"", length=None):
    model = onnx_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    entries = {"location": location} | ({"length": str(length)} if length else {})
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=value)
    path.write_bytes(model.SerializeToString())
    if data:
        (path.parent / location).write_bytes(data)
    return path


def safetensors(path, header, data=b"", length=None):
    text = json.dumps(header).encode() if isinstance(header, dict) else header
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def gguf(path, tensors=0, keys=0, rest=b""):
    path.write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, tensors, keys) + rest)
    return path


def test_formats_are_told_by_contents_not_by_names(tmp_path):
    files = {
        "keras": {"config.json": "{}", "metadata.json": "{}", "model.weights.h5": b"x"},
        "torchscript": {"m/data.pkl": b"x", "m/constants.pkl": b"x", "m/code/a.py": b"x"},
        "torch-export": {"m/archive_format": b"pt2", "m/models/model.json": b"{}"},
    }
    for wanted, content in files.items():
        assert recognize(str(zipped(tmp_path / f"{wanted}.bin", content))).format == wanted
    (tmp_path / "old").write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64))
    (tmp_path / "lite").write_bytes(b"\x1c\0\0\0TFL3" + bytes(64))
    (tmp_path / "model.onnx").write_bytes(onnx_model().SerializeToString())
    assert recognize(str(tmp_path / "old")).format == "keras"
    assert recognize(str(tmp_path / "lite")).format == "litert"
    assert recognize(str(tmp_path / "model.onnx")).format == "onnx"


def test_folders_and_code_are_recognized(tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "saved_model.pb").write_bytes(b"x")
    (tmp_path / "hub").mkdir()
    (tmp_path / "hub" / "config.json").write_text("{}")
    (tmp_path / "net.py").write_text("")
    assert recognize(str(tmp_path / "saved")).format == "savedmodel"
    assert recognize(str(tmp_path / "hub")).format == "huggingface"
    found = recognize(f"{tmp_path}/net.py:make")
    assert (found.format, found.entry) == ("pytorch", "make")
    assert recognize(f"{tmp_path}/net.py").entry == "build"


def test_a_pickled_checkpoint_is_never_loaded(tmp_path):
    path = zipped(tmp_path / "weights.pt", {"weights/data.pkl": b"x", "weights/data/0": b"x"})
    with pytest.raises(InvalidInput, match="pickle runs whatever code") as found:
        recognize(str(path))
    assert found.value.code == "pickled_weights"
    (tmp_path / "old.pth").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(InvalidInput, match="pickled checkpoint"):
        recognize(str(tmp_path / "old.pth"))


def test_what_is_no_model_says_what_is_known(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    zipped(tmp_path / "letters.zip", {"a.txt": "hello"})
    for name, code in (("notes.txt", "format_unknown"), ("empty", "model_damaged"), ("folder", "format_unknown"),
                       ("letters.zip", "format_unknown")):  # fmt: skip
        with pytest.raises(InvalidInput) as found:
            recognize(str(tmp_path / name))
        assert found.value.code == code, name
        assert found.value.hint
    with pytest.raises(NotFound):
        recognize(str(tmp_path / "nothing.onnx"))


def test_weights_alone_ask_for_the_code_that_builds_their_model(tmp_path):
    header = {"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
    with pytest.raises(InvalidInput, match="without the model") as found:
        recognize(str(safetensors(tmp_path / "w.safetensors", header, bytes(8))))
    assert "--weights" in found.value.hint


def test_a_format_that_is_claimed_but_not_there_is_refused(tmp_path):
    (tmp_path / "model.onnx").write_bytes(onnx_model().SerializeToString())
    with pytest.raises(InvalidInput, match="by its contents it is 'onnx'"):
        recognize(str(tmp_path / "model.onnx"), "keras")
    with pytest.raises(NotFound, match="known formats"):
        recognize(str(tmp_path / "model.onnx"), "caffe")


def test_the_name_of_the_output_says_its_format(tmp_path):
    assert target_of(tmp_path / "model.TFLITE") == "litert"
    assert target_of(tmp_path / "anything", "pytorch") == "pytorch"
    with pytest.raises(InvalidInput, match="doesn't say what"):
        target_of(tmp_path / "model.bin")


def test_weights_in_other_files_must_lie_in_the_models_folder(tmp_path):
    assert recognize(str(external(tmp_path / "ok.onnx", "ok.data", bytes(16)))).format == "onnx"
    (tmp_path / "inner").mkdir()
    (tmp_path / "secret").write_bytes(bytes(16))
    (tmp_path / "inner" / "link").symlink_to(tmp_path / "secret")
    for location in ("../secret", "/etc/passwd", "link", "", "a/../../secret"):
        with pytest.raises(InvalidInput) as found:
            recognize(str(external(tmp_path / "inner" / "bad.onnx", location)))
        assert found.value.code == "external_data", location
    with pytest.raises(InvalidInput, match="not in the folder"):
        recognize(str(external(tmp_path / "inner" / "bad.onnx", "missing")))
    with pytest.raises(InvalidInput, match="which has 16"):
        recognize(str(external(tmp_path / "bad.onnx", "short", bytes(16), length=2**40)))


def test_an_empty_graph_and_absurd_sizes_are_refused(tmp_path):
    (tmp_path / "empty.onnx").write_bytes(helper.make_model(onnx.GraphProto()).SerializeToString()[:2])
    huge = onnx_model()
    huge.graph.initializer[0].dims[0] = 2**40
    (tmp_path / "huge.onnx").write_bytes(huge.SerializeToString())
    for name in ("empty.onnx", "huge.onnx"):
        with pytest.raises(InvalidInput):
            recognize(str(tmp_path / name))


def test_archives_that_are_cut_off_lead_elsewhere_or_never_end_are_refused(tmp_path):
    good = zipped(tmp_path / "good.keras", {"config.json": "{}", "model.weights.h5": bytes(1000)})
    assert check_zip(good) == ["config.json", "model.weights.h5"]
    cut = tmp_path / "cut.keras"
    cut.write_bytes(good.read_bytes()[:-40])
    leads = zipped(tmp_path / "leads.keras", {"../../etc/cron.d/x": "x", "config.json": "{}"})
    link = zipfile.ZipInfo("link")
    link.external_attr = 0o120777 << 16
    linked = tmp_path / "linked.keras"
    with zipfile.ZipFile(linked, "w") as archive:
        archive.writestr(link, "/etc/passwd")
    bomb = tmp_path / "bomb.keras"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("model.weights.h5", "w") as stream:
        for _ in range(80):
            stream.write(bytes(2**20))
    codes = {cut: "model_damaged", leads: "leads_outside", linked: "leads_outside", bomb: "archive_bomb"}
    for path, code in codes.items():
        with pytest.raises(InvalidInput) as found:
            check_zip(path)
        assert found.value.code == code, path.name


def tensor(shape, offsets, dtype="F32"):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    ("header", "data", "length"),
    [
        ({}, b"", 2**60),
        ({}, b"", 0),
        (b"[1, 2", b"", None),
        (b"[" * 100_000, b"", None),
        (tensor([2**40], [0, 8]), bytes(8), None),
        (tensor([2**33, 2**33], [0, 8]), bytes(8), None),
        (tensor([2], [0, 2**40]), bytes(8), None),
        (tensor([2], [8, 0]), bytes(8), None),
        (tensor([-2], [0, 8]), bytes(8), None),
        ({"w": {"shape": [2]}}, b"", None),
    ],
)
def test_a_safetensors_header_that_can_not_be_is_refused(tmp_path, header, data, length):
    with pytest.raises(InvalidInput) as found:
        check_safetensors(safetensors(tmp_path / "w.safetensors", header, data, length))
    assert found.value.code == "model_damaged"


def test_a_sound_safetensors_file_passes(tmp_path):
    header = tensor([2], [0, 8]) | {"__metadata__": {"format": "pt"}}
    header["q"] = {"dtype": "F4", "shape": [4], "data_offsets": [8, 10]}
    check_safetensors(safetensors(tmp_path / "w.safetensors", header, bytes(10)))


def text(value):
    return struct.pack("<Q", len(value)) + value


@pytest.mark.parametrize(
    ("tensors", "keys", "rest"),
    [
        (2**40, 0, b""),
        (0, 2**40, b""),
        (0, 1, struct.pack("<Q", 2**40)),
        (0, 1, text(b"a") + struct.pack("<IQ", 8, 2**50)),
        (0, 1, text(b"a") + struct.pack("<IIQ", 9, 0, 2**40) + bytes(16)),
        (0, 1, text(b"a") + struct.pack("<IIQ", 9, 8, 2**40) + bytes(16)),
        (0, 1, text(b"a") + struct.pack("<IIQ", 9, 9, 2**40) + bytes(16)),
        (0, 1, text(b"a") + struct.pack("<I", 99) + bytes(16)),
        (1, 0, text(b"t") + struct.pack("<IQQ", 2, 2**40, 2**40) + bytes(12)),
        (1, 0, text(b"t") + struct.pack("<I", 2**31) + bytes(12)),
        (1, 0, bytes([255] * 8)),
    ],
)
def test_a_gguf_header_that_promises_too_much_is_refused(tmp_path, tensors, keys, rest):
    with pytest.raises(InvalidInput) as found:
        recognize(str(gguf(tmp_path / "m.gguf", tensors, keys, rest + bytes(100))))
    assert found.value.code == "model_damaged"


def test_a_sound_gguf_file_says_that_no_converter_leads_from_it(tmp_path):
    rest = text(b"general.name") + struct.pack("<I", 8) + text(b"tiny") + text(b"t") + struct.pack("<IQIQ", 1, 4, 0, 0)
    path = gguf(tmp_path / "m.gguf", 1, 1, rest + bytes(16))
    check_gguf(path)
    with pytest.raises(InvalidInput) as found:
        recognize(str(path))
    assert found.value.code == "no_conversion"


def test_links_out_of_a_folder_are_refused_but_those_of_a_hubs_cache_are_not(tmp_path):
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "vocab.txt").symlink_to("/etc/passwd")
    with pytest.raises(InvalidInput) as found:
        recognize(str(folder))
    assert found.value.code == "leads_outside"
    cached = tmp_path / "models--x" / "snapshots" / "abc"
    cached.mkdir(parents=True)
    (tmp_path / "models--x" / "blobs").mkdir()
    (tmp_path / "models--x" / "blobs" / "d1").write_text("{}")
    (cached / "config.json").symlink_to("../../blobs/d1")
    assert recognize(str(cached)).format == "huggingface"


def hostile(folder):
    big = io.BytesIO()
    with zipfile.ZipFile(big, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", "{}")
        with archive.open("model.weights.h5", "w") as stream:
            for _ in range(80):
                stream.write(bytes(2**20))
    (folder / "bomb.keras").write_bytes(big.getvalue())
    gguf(folder / "m.gguf", 2**40, 2**40)
    safetensors(folder / "w.safetensors", {}, length=2**62)
    huge = onnx_model()
    huge.graph.initializer[0].dims[0] = 2**40
    (folder / "huge.onnx").write_bytes(huge.SerializeToString())
    external(folder / "leads.onnx", "../../../etc/shadow")
    (folder / "cut.pt2").write_bytes(b"PK\x03\x04" + bytes(100))
    return ["bomb.keras", "m.gguf", "w.safetensors", "huge.onnx", "leads.onnx", "cut.pt2"]


CODE = """
import resource, sys
from argosy.formats.conversion.recognize import recognize
from argosy.core.errors import ArgosyError
try:
    recognize(sys.argv[1])
except ArgosyError as error:
    used = resource.getrusage(resource.RUSAGE_SELF)
    # Not ru_maxrss, which begins with the size of whoever forked this process.
    lines = open("/proc/self/status").read().splitlines()
    peak = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
    print(error.code, used.ru_utime + used.ru_stime, peak)
"""


@pytest.mark.capability("F4")
def test_hostile_files_are_refused_in_a_second_of_work_and_256_megabytes(tmp_path):
    for name in hostile(tmp_path):
        before = (tmp_path / name).read_bytes()
        limit = (256 * 2**20, 256 * 2**20)
        done = subprocess.run(
            [sys.executable, "-c", CODE, tmp_path / name],
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_DATA, limit),
        )
        code, seconds, kilobytes = done.stdout.split()
        assert code in ("archive_bomb", "model_damaged", "invalid_input", "external_data"), name
        # CPU time, because what the clock says depends on who else uses the machine.
        assert float(seconds) < 1.0, name
        assert int(kilobytes) < 256 * 1024, name
        assert (tmp_path / name).read_bytes() == before


def test_every_refusal_is_an_error_of_ours_with_something_to_do(tmp_path):
    for name in hostile(tmp_path):
        with pytest.raises(ArgosyError) as found:
            recognize(str(tmp_path / name))
        assert found.value.code


class Evil:
    def __reduce__(self):
        return print, ("it ran",)


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_pickle_is_refused_by_the_names_in_it_without_being_loaded(tmp_path, capsys, protocol):
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps([1, Evil()], protocol))
    with pytest.raises(InvalidInput, match=r"asks for '(__builtin__|builtins)\.print'") as found:
        recognize(str(tmp_path / "evil.pkl"))
    assert found.value.code == "pickle_refused"
    assert capsys.readouterr().out == ""


def test_a_pickle_of_plain_values_and_one_that_is_cut_off_are_left_to_the_child(tmp_path):
    content = pickle.dumps({"a": [1, 2.0, "x"], "b": np.arange(3)})
    (tmp_path / "plain.pkl").write_bytes(content)
    (tmp_path / "cut.pkl").write_bytes(content[:-20])
    for name in ("plain.pkl", "cut.pkl"):
        assert recognize(str(tmp_path / name)).format == "scikit-learn"
