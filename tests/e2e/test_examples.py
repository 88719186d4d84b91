"""The small example projects: they are what they say, and run as their first lines tell."""

import importlib.util
import shutil
import sqlite3
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def copied(installed):
    """Return what copies an example beside nothing else, as a stranger has it."""

    def copy(name):
        shutil.copytree(EXAMPLES / name, installed.folder / name, ignore=shutil.ignore_patterns("data", "__pycache__"))
        return installed.folder / name

    return copy


@pytest.mark.slow
@pytest.mark.capability("T1", "B1")
@pytest.mark.parametrize("workers", ["1", "2"])
def test_the_mlp_learns_its_digits(installed, copied, workers):
    copied("mlp")
    told = installed.json("train", "mlp", "--workers", workers)
    assert told["values"]["train"]["test_accuracy"] > 0.95


def load(path):
    spec = importlib.util.spec_from_file_location(f"example_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_text_of_the_gpt_is_read_out_of_the_database_without_the_verses_numbers(installed, copied, tmp_path):
    folder = copied("gpt")
    with sqlite3.connect(tmp_path / "Bible.db") as database:
        database.execute("CREATE TABLE Bible(TestamentID, BookID, ChapterID, VerseID, Passage1 TEXT, Passage2 TEXT)")
        verses = [
            (1, 1, 1, 2, "1:2 And the  earth was without form.", ""),
            (1, 1, 1, 1, "1:1 In the beginning", "God created it."),
            (1, 1, 2, 1, "2:1 Thus they were finished.", ""),
        ]
        database.executemany("INSERT INTO Bible VALUES (?, ?, ?, ?, ?, ?)", verses)
    database.close()
    text = load(folder / "get_text.py").text_of(tmp_path / "Bible.db")
    assert text == "In the beginning God created it.\nAnd the earth was without form.\n\nThus they were finished.\n"

    (folder / "data").mkdir()
    (folder / "data" / "bible.txt").write_text(text)
    planned = installed.json("plan", "--file", "gpt")
    assert [step["stage"] for step in planned["steps"]] == ["data", "train", "convert", "evaluate", "publish"]
