"""Environments of other frameworks' tools: found, installed whole or not at all, and named when they are missing."""

import subprocess
import sys
from importlib import util

import pytest

from argosy.core.errors import Conflict, NotFound, PluginError, Unavailable
from argosy.core.files import FileLock
from argosy.formats.conversion import tools
from argosy.formats.conversion.edges import KERAS_ONNX
from argosy.formats.conversion.graph import FORMATS, all_converters


@pytest.fixture
def pip(monkeypatch):
    """Stand for venv and pip; `pip.fails` lets pip fail."""

    class Pip:
        def __init__(self):
            self.commands = []
            self.fails = False

        def __call__(self, command, **_):
            self.commands = [*self.commands, command]
            if "venv" in command:
                place = tools.Path(command[-1])
                (place / "bin").mkdir(parents=True)
                (place / "bin" / "python").write_text("")
            code = 1 if self.fails and "pip" in command else 0
            return subprocess.CompletedProcess(command, code, "", "WARNING: x\nERROR: No matching distribution")

    found = Pip()
    monkeypatch.setattr(tools.subprocess, "run", found)
    return found


def test_every_tool_that_an_edge_or_a_format_names_exists():
    named = {edge.tool for edge in all_converters()} | {FORMATS.load(name).tool for name in FORMATS.names()}
    assert named - {""} == set(tools.TOOLS)


def test_a_missing_tool_is_an_error_that_names_the_command(tmp_path):
    with pytest.raises(PluginError, match="needs the tool 'mindspore'") as found:
        tools.python_for("mindspore", tmp_path)
    assert found.value.code == "missing_tool"
    assert found.value.hint.endswith("argosy tools install mindspore")


def test_no_tool_is_this_python_and_one_that_is_here_is_used():
    assert tools.python_for(KERAS_ONNX.tool and "") == sys.executable
    if util.find_spec("skl2onnx") is None:
        pytest.skip("skl2onnx is not installed here")
    assert tools.locate("scikit-learn").where == "environment"


def test_an_unknown_tool_lists_the_known_ones(tmp_path):
    with pytest.raises(NotFound, match="tensorflow, litert, tvm"):
        tools.install("caffe", tmp_path)


def test_what_is_installed_is_pinned_and_found_again(tmp_path, pip):
    said = []
    found = tools.install("tvm", tmp_path, say=said.append)
    assert found.where == "own"
    assert tools.python_for("tvm", tmp_path) == found.python
    assert all("==" in requirement for requirement in pip.commands[1][-3:])
    assert "apache-tvm" in said[-1]
    assert tools.install("tvm", tmp_path).python == found.python
    assert len(pip.commands) == 2  # the second time there was nothing to do


def test_a_failed_installation_leaves_nothing_and_says_why(tmp_path, pip):
    pip.fails = True
    with pytest.raises(Unavailable, match="ERROR: No matching distribution") as found:
        tools.install("tvm", tmp_path)
    assert "argosy tools install tvm" in found.value.hint
    assert not tools.locate("tvm", tmp_path).where
    assert [path.suffix for path in (tmp_path / "tools").iterdir()] == [".lock"]


def test_a_killed_installation_is_not_taken_for_one_and_begins_again(tmp_path, pip):
    place = tools._place(tools.tool("tvm"), tmp_path)
    (place / "bin").mkdir(parents=True)
    (place / "half").write_text("x")
    assert not tools.locate("tvm", tmp_path).where
    said = []
    tools.install("tvm", tmp_path, say=said.append)
    assert "interrupted" in said[0]
    assert not (place / "half").exists()
    assert tools.locate("tvm", tmp_path).where == "own"


def test_two_installations_of_one_tool_do_not_meet(tmp_path, pip):
    place = tools._place(tools.tool("tvm"), tmp_path)
    with FileLock(place.parent / f"{place.name}.lock"), pytest.raises(Conflict, match="another process"):
        tools.install("tvm", tmp_path)


def test_other_pins_are_another_environment(tmp_path):
    one = tools.tool("tvm")
    other = tools.Tool(name="tvm", requires=("apache-tvm==0.28.0",))
    assert tools._place(one, tmp_path) != tools._place(other, tmp_path)
