"""What a path is taken for, and what is said when a library is missing."""

import importlib.util

import pytest

import encoders
from argosy.cli.verbs import import_model
from argosy.cli.verbs.import_folder import usable
from argosy.core.errors import InvalidInput, PluginError
from argosy.formats.hf_folder import read_folder


@pytest.fixture
def without(monkeypatch):
    """Pretend that libraries are not installed."""
    real = importlib.util.find_spec

    def hide(*names):
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *rest: None if name in names else real(name, *rest)
        )

    return hide


@pytest.fixture
def folder(tmp_path):
    encoders.write(tmp_path, config_json=encoders.BERT)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    return tmp_path


def test_a_folder_of_weights_without_transformers_names_the_extra(folder, without):
    without("transformers")
    with pytest.raises(PluginError, match=r"pip install 'argosy\[hf\]'") as caught:
        usable(read_folder(folder))
    assert caught.value.code == "missing_extra"


def test_a_folder_that_has_an_onnx_file_too_needs_no_transformers(folder, without):
    (folder / "onnx").mkdir()
    (folder / "onnx" / "model.onnx").write_bytes(b"graph")
    assert usable(read_folder(folder)).weights == ("model.safetensors",)
    without("torch")
    found = usable(read_folder(folder))
    assert (found.weights, found.onnx) == ((), "onnx/model.onnx")
    assert "as it is" in found.notes[-1]


def test_without_a_tokenizer_library_the_error_names_the_extra(folder, without):
    without("tokenizers")
    with pytest.raises(PluginError, match=r"pip install 'argosy\[text\]'"):
        usable(read_folder(folder))


@pytest.fixture
def taken(monkeypatch):
    """Tell which import a path is for."""
    for name in ("import_folder", "import_onnx", "import_python"):
        monkeypatch.setattr(import_model, name, lambda *_, _name=name, **__: _name)

    def ask(what, **changes):
        return import_model.import_model(None, None, str(what), "", **changes)

    return ask


def test_files_and_folders_go_to_their_imports_and_names_to_none(folder, taken, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (folder.parent / "plain").mkdir()
    (folder.parent / "model.bin").write_bytes(b"")
    assert taken(folder) == "import_folder"
    assert taken(folder.name) == "import_folder"
    assert taken("./plain") == "import_folder"  # which says what is missing in it
    assert taken("plain") is None
    assert taken("digits:3") is None
    assert taken("") is None
    assert taken("absent.onnx") == "import_onnx"
    assert taken("model.bin") == "import_onnx"
    assert taken("model.py:Class") == "import_python"


def test_flags_of_one_import_are_refused_for_the_others(folder, taken):
    for what in (folder, "model.py", "digits:3", ""):
        with pytest.raises(InvalidInput, match="--prepare is for ONNX files"):
            taken(what, prepare=folder / "prepare.toml")
    for what in (folder, "model.onnx", "digits:3"):
        with pytest.raises(InvalidInput, match="--with and --requires are for Python files"):
            taken(what, requires=["nltk"])
