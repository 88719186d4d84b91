"""`argosy.toml`: what is wrong is said with its place; the command line wins over the file."""

import pytest

from argosy.cli.project import load_project
from argosy.cli.verbs import run
from argosy.core.errors import InvalidInput, NotFound

GOOD = '[project]\nname = "p"\n[data]\ntrain = "d.csv"\n[train]\nepochs = 3\n'


def write(folder, text):
    (folder / "argosy.toml").write_text(text)
    return folder


def test_a_file_or_its_folder_can_be_named(tmp_path):
    write(tmp_path, GOOD)
    assert load_project(tmp_path) == load_project(tmp_path / "argosy.toml")
    project, base = load_project(tmp_path)
    assert (project.train.epochs, base) == (3, tmp_path)


def test_the_command_line_wins_over_the_file(tmp_path):
    project, _ = load_project(
        write(tmp_path, GOOD), ["train.epochs=7", "train.optimizer=sgd", "model.options.width=32", "compress.size=1MB"]
    )
    assert (project.train.epochs, project.train.optimizer) == (7, "sgd")
    assert project.model.options == {"width": 32}
    assert project.compress is not None
    assert project.compress.size == "1MB"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[project]\nname = 3\n", r"Expected `str`, got `int` - at `\$\.project\.name`"),
        ('[project]\nname = "p"\n[train]\nepoch = 3\n', r"unknown field `epoch` - at `\$\.train`; known .*epochs"),
        ('[project]\nname = "p"\n[trian]\n', r"unknown field `trian`; known fields are: compress, data"),
        ("[project]\nname = 'A B'\n", "can't be a name"),
        ("[project\n", "is not TOML"),
        ("\xff", "is not TOML"),
        ("[train]\nepochs = 3\n", "missing required field `project`"),
        ('[project]\nname = "p"\n[train]\noptimizer = "adamm"\n', "adamm"),
        ('[project]\nname = "p"\n[compress]\nsize = "0MB"\n', "size"),
        ('[project]\nname = "p"\n[compress]\nmax_drop = "200pt"\n', "drop"),
        ('[project]\nname = "p"\n[evaluate]\naccuracy = "0.9"\n', "bound"),
        ('[project]\nname = "p"\n[rollout]\nsteps = [50, 25]\n', "greater than the one before"),
        ('[project]\nname = "p"\n[endpoint]\nreplicas = "4..1"\n', "replicas"),
    ],
)
def test_a_wrong_file_says_what_and_where(tmp_path, text, says):
    (tmp_path / "argosy.toml").write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidInput, match=says):
        load_project(tmp_path)


@pytest.mark.parametrize("change", ["epochs=3", "train.epochs", "train.epochs.x=3", "train.epoch=3"])
def test_a_wrong_change_on_the_command_line_is_refused(tmp_path, change):
    with pytest.raises(InvalidInput):
        load_project(write(tmp_path, GOOD), [change])


def test_a_missing_file_says_how_to_make_one(tmp_path):
    with pytest.raises(NotFound, match=r"no 'argosy\.toml'") as caught:
        load_project(tmp_path)
    assert "argosy init" in caught.value.hint


PROSE = "It was a dark night, and the rain fell.\nThe sea was loud.\nNobody, nothing, nowhere.\n"


@pytest.mark.parametrize(
    ("name", "content", "is_prose"),
    [
        ("book.txt", PROSE, True),
        ("notes.md", PROSE, True),
        ("table.txt", "a,b,label\n1,2,x\n3,4,y\n", False),
        ("table.txt", "a\tb\n1\t2\n", False),
        ("table.csv", PROSE, False),
    ],
)
def test_init_tells_running_text_from_a_table(tmp_path, name, content, is_prose):
    path = tmp_path / name
    path.write_text(content)
    assert run._is_prose(path) == is_prose


def test_the_file_that_init_writes_for_a_text_is_a_project(tmp_path):
    (tmp_path / "book.txt").write_text(PROSE)
    (tmp_path / "argosy.toml").write_text(run._template("book", tmp_path / "book.txt", ""))
    project, _ = load_project(tmp_path)
    assert project.data.task == "language-model"
    assert project.model.family == "gpt"
