"""The verbs of the command line from Python."""

import subprocess
import sys

import pytest

import argosy
from argosy.core.errors import Conflict, NotFound

VERBS = ("abort", "deploy", "pause", "plan", "predict", "promote", "resume", "rollback", "run", "watch", "why")


def test_importing_argosy_brings_nothing_heavy_along():
    code = (
        "import sys, argosy; argosy.deploy; print([m for m in ('torch', 'numpy', 'rich', 'typer') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_there_with_its_meaning(name):
    assert getattr(argosy, name).__doc__
    assert name in argosy.__all__


def test_a_verb_returns_plain_values_prints_nothing_and_raises_what_the_command_says(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ARGOSY_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ARGOSY_RUNTIME", str(tmp_path / "run"))
    assert argosy.watch()["endpoints"] == []
    with pytest.raises(NotFound):
        argosy.watch("m")
    for verb in (argosy.pause, argosy.resume, argosy.abort, argosy.promote, argosy.rollback):
        with pytest.raises((NotFound, Conflict), match="no endpoint is called 'm'"):
            verb("m")
    assert capsys.readouterr().out == ""
