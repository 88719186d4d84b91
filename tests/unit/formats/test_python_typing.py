import importlib.util
import inspect
import subprocess
import sys
from pathlib import Path

import argosy
from argosy.formats.python_signature import read_form

SAMPLE = Path(__file__).parents[2] / "typing" / "typed_models.py"


def test_a_type_checker_agrees_with_models_that_are_right_and_finds_those_that_are_wrong():
    # An `ignore` that nothing needs is an error, so the wrong lines are known to be found.
    command = [sys.executable, "-m", "mypy", "--strict", "--warn-unused-ignores", SAMPLE]
    done = subprocess.run(command, cwd=SAMPLE.parents[2], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_type_checker_takes_is_a_signature():
    spec = importlib.util.spec_from_file_location("typed_models", SAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    models = [k for _, k in inspect.getmembers(module, inspect.isclass) if issubclass(k, argosy.Model)]
    forms = {k.__name__: read_form(k) for k in models}
    assert sorted(forms) == ["Boxes", "Sentiment", "Upper", "Wrong"]
    assert [f.spec.name for f in forms["Boxes"].inputs] == ["image", "row"]
    assert forms["Boxes"].outputs[0].spec.shape == (-1, -1, 4)
    assert forms["Upper"].by_row
