"""What a recipe points to is found, digested, and missed clearly."""

import pytest

from argosy.core.config import from_plain
from argosy.core.errors import Conflict, InvalidInput, NotFound
from argosy.pipeline.config import Recipe
from argosy.pipeline.sources import data_digest, local_modules, read_sources, refuse_changed


def recipe(build: str = "", train: str = "d.csv") -> Recipe:
    return from_plain(
        {"project": {"name": "p"}, "data": {"train": train}, "model": {"build": build}}, Recipe, where="test"
    )


def test_the_users_modules_are_followed_through_their_imports(tmp_path):
    (tmp_path / "model.py").write_text("import os\nfrom blocks import Block\n")
    (tmp_path / "blocks.py").write_text("import model\n")
    (tmp_path / "unrelated.py").write_text("")
    assert set(local_modules(recipe("model:build"), tmp_path)) == {"model", "blocks"}


def test_an_edit_of_an_imported_module_changes_the_code_digest(tmp_path):
    (tmp_path / "d.csv").write_text("a,label\n1,0\n")
    (tmp_path / "model.py").write_text("from blocks import Block\n")
    (tmp_path / "blocks.py").write_text("x = 1\n")
    before = read_sources(recipe("model:build"), tmp_path)
    (tmp_path / "unrelated.py").write_text("x = 1\n")
    assert read_sources(recipe("model:build"), tmp_path) == before
    (tmp_path / "blocks.py").write_text("x = 2\n")
    assert read_sources(recipe("model:build"), tmp_path).code != before.code


def test_a_folder_is_digested_by_names_and_bytes(tmp_path):
    folder = tmp_path / "images"
    (folder / "cat").mkdir(parents=True)
    (folder / "cat" / "1.png").write_bytes(b"x")
    before = data_digest(tmp_path, "images")
    (folder / "cat" / "1.png").rename(folder / "cat" / "2.png")
    assert data_digest(tmp_path, "images") != before


def test_missing_data_is_named_with_the_place_that_was_looked_at(tmp_path):
    with pytest.raises(NotFound, match=r"no data file 'd\.csv'"):
        read_sources(recipe(), tmp_path)


def test_a_model_file_that_is_not_python_is_refused(tmp_path):
    (tmp_path / "d.csv").write_text("a\n")
    (tmp_path / "model.py").write_text("def build(:\n")
    with pytest.raises(InvalidInput, match="is not Python"):
        read_sources(recipe("model:build"), tmp_path)


@pytest.mark.parametrize(("file", "stage"), [("d.csv", "data"), ("model.py", "train"), ("model.py", "convert")])
def test_an_edit_while_a_run_goes_on_is_refused_by_the_stage_that_reads_it(tmp_path, file, stage):
    (tmp_path / "d.csv").write_text("a,label\n1,0\n")
    (tmp_path / "model.py").write_text("x = 1\n")
    asked = recipe("model:build")
    sources = read_sources(asked, tmp_path)
    refuse_changed(stage, asked, tmp_path, sources)
    (tmp_path / file).write_text("x = 2\n")
    with pytest.raises(Conflict, match="changed while the run was going on"):
        refuse_changed(stage, asked, tmp_path, sources)
    refuse_changed("publish", asked, tmp_path, sources)
