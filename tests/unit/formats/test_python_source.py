"""Sources are imported from memory: the verified bytes, and nothing else by their names."""

import sys
import traceback

import pytest

from argosy.core.errors import InvalidInput, PluginError
from argosy.formats.python_source import Sources, import_model
from argosy.formats.python_spec import Entry, check_module_name, check_requires
from models_of_own import DOUBLE, load, source

PLAIN = "class M(argosy.Model):\n    def predict(self, x: argosy.FP32) -> argosy.FP32:\n        return x\n"


def imported(entry="model.py", **files):
    named = {name.replace("__dot__", ".").replace("__in__", "/"): data for name, data in files.items()}
    return import_model(Sources(named), Entry.parse(entry))


def test_modules_and_packages_beside_the_model_are_imported_from_its_files():
    kind = imported(
        model__dot__py=source("import helper\nfrom parts.deep.inner import NUMBER\n" + PLAIN),
        helper__dot__py=b"from parts import NAME\n",
        parts__in____init____dot__py=b"NAME = 'parts'\nfrom . import other\n",
        parts__in__other__dot__py=b"",
        parts__in__deep__in__inner__dot__py=b"NUMBER = 7\n",
    )
    module = sys.modules[kind.__module__]
    assert module.NUMBER == 7
    assert module.helper.NAME == "parts"
    assert sys.modules["parts.other"].__name__ == "parts.other"


def test_files_in_the_folder_where_the_process_stands_are_never_imported(tmp_path, monkeypatch):
    (tmp_path / "model.py").write_text("raise RuntimeError('from the disk')")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "evil.py").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    assert imported(model__dot__py=source(PLAIN), parts__in__good__dot__py=b"").__name__ == "M"
    with pytest.raises(PluginError, match=r"parts\.evil"):
        imported(model__dot__py=source("import parts.evil\n" + PLAIN), parts__in__good__dot__py=b"")


def test_another_version_in_the_same_process_forgets_the_former():
    first = imported(model__dot__py=source("import helper\n" + PLAIN), helper__dot__py=b"WHO = 1\n")
    second = imported(model__dot__py=source("import helper\n" + PLAIN), helper__dot__py=b"WHO = 2\n")
    assert (sys.modules[second.__module__].helper.WHO, first is second) == (2, False)
    third = imported(model__dot__py=source(PLAIN))
    assert third.__name__ == "M"
    assert "helper" not in sys.modules


def test_a_stack_shows_the_lines_of_the_source():
    kind = imported(
        model__dot__py=source("class M(argosy.Model):\n    def predict(self, x):\n        return x.nothing\n")
    )
    with pytest.raises(AttributeError) as caught:
        kind().predict(1)
    shown = "".join(traceback.format_exception(caught.value))
    assert 'File "model.py", line ' in shown
    assert "return x.nothing" in shown


def test_a_source_may_declare_its_encoding():
    text = "# -*- coding: latin-1 -*-\nimport argosy\nNAME = 'é'\n" + PLAIN
    assert sys.modules[imported(model__dot__py=text.encode("latin-1")).__module__].NAME == "é"


@pytest.mark.parametrize("name", ["json.py", "numbers/x.py", "argosy.py", "argosy/x.py"])
def test_a_file_that_would_take_the_place_of_a_module_of_python_is_refused(name):
    with pytest.raises(InvalidInput, match="would take the place of"):
        check_module_name(name)


def test_a_file_called_like_a_library_that_is_in_use_is_refused_and_the_library_stays():
    import msgspec

    with pytest.raises(InvalidInput, match=r"'msgspec\.py' would take the place of the module 'msgspec'"):
        imported(model__dot__py=source("import msgspec\n" + PLAIN), msgspec__dot__py=b"")
    assert sys.modules["msgspec"] is msgspec


@pytest.mark.parametrize("name", ["json.txt", "data/json.py", "my_json.py"])
def test_other_names_are_no_trouble(name):
    check_module_name(name)


def test_a_package_that_is_not_installed_is_named_with_the_place_that_needs_it():
    with pytest.raises(PluginError) as caught:
        imported(model__dot__py=source("import helper\n" + PLAIN), helper__dot__py=b"\nimport no_such_library.part\n")
    assert caught.value.message == "helper.py:2 imports 'no_such_library', which is not installed"
    assert caught.value.code == "missing_package"
    assert "--requires" in caught.value.hint
    assert "--with no_such_library.py" in caught.value.hint


def test_a_part_of_python_that_does_not_exist_is_the_sources_fault():
    with pytest.raises(InvalidInput, match=r"No module named 'json\.nothing'"):
        imported(model__dot__py=source("import json.nothing\n" + PLAIN))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("def broken(:\n", "SyntaxError: invalid syntax (model.py:9)"),
        ("1 / 0\n", "ZeroDivisionError: division by zero (model.py:9 in <module>)"),
        ("raise SystemExit('bye')\n", "SystemExit: bye (model.py:9 in <module>)"),
        ("from . import x\n", "attempted relative import with no known parent package"),
    ],
)
def test_a_source_that_fails_says_where(text, said):
    with pytest.raises(InvalidInput) as caught:
        imported(model__dot__py=source(text))
    assert said in caught.value.message
    assert caught.value.code == "model_code_failed"


def test_bytes_that_are_no_text_are_no_source():
    with pytest.raises(InvalidInput, match="can't be imported"):
        imported(model__dot__py=b"\xff\xfe\x00")


TWO = PLAIN + PLAIN.replace("class M(", "class N(")


@pytest.mark.parametrize(
    ("entry", "text", "found"),
    [
        ("model.py", PLAIN, "M"),
        ("model.py:N", TWO, "N"),
        ("model.py", PLAIN.replace("class M(", "class Base(") + "class Leaf(Base):\n    pass\n", "Leaf"),
        ("model.py", "from helper import Other\n" + PLAIN, "M"),
    ],
)
def test_the_model_is_the_class_named_or_the_only_one(entry, text, found):
    helper = source(PLAIN.replace("class M(", "class Other("))
    assert imported(entry, model__dot__py=source(text), helper__dot__py=helper).__name__ == found


@pytest.mark.parametrize(
    ("entry", "text", "said", "hint"),
    [
        ("model.py", TWO, "several models: M, N", "model.py:M"),
        ("model.py", "x = 1\n", "no class that derives from argosy.Model", "class Scorer(argosy.Model)"),
        ("model.py:Nope", TWO, "no class 'Nope'", "it has: M, N"),
        ("model.py:np", TWO, "no class 'np'", "it has: M, N"),
        ("other.py", TWO, "no file 'other.py'", ""),
    ],
)
def test_a_class_that_is_not_there_lists_those_that_are(entry, text, said, hint):
    with pytest.raises(InvalidInput) as caught:
        imported(entry, model__dot__py=source(text))
    assert said in caught.value.message
    assert hint in caught.value.hint


@pytest.mark.parametrize("entry", ["my-model.py", "model.txt", "../model.py", "model.py:a.b", "folder/model.py", ""])
def test_an_entry_that_is_no_module_is_refused(entry):
    with pytest.raises(InvalidInput):
        Entry.parse(entry)


def test_required_packages_are_checked_before_anything_runs():
    assert list(check_requires(["numpy>=1.20", "msgspec"])) == ["numpy", "msgspec"]
    assert check_requires(["no-such-library; python_version < '3'"]) == {}
    with pytest.raises(PluginError) as caught:
        load("raise RuntimeError('ran')\n" + DOUBLE, requires=["no-such-library>=2"])
    assert caught.value.message == "the model needs the package 'no-such-library>=2', but it is not installed"
    with pytest.raises(PluginError, match=r"'numpy<1', but \d.* is installed"):
        check_requires(["numpy<1"])


@pytest.mark.parametrize("text", ["numpy>=", "x @ https://example.org/x.whl", "--index-url=http://x", ""])
def test_what_is_no_package_is_refused(text):
    with pytest.raises(InvalidInput):
        check_requires([text])
