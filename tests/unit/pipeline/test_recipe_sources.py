"""What a recipe points to is found, digested, and missed clearly."""

import pytest

from argosy.core.config import from_plain
from argosy.core.errors import Conflict, InvalidInput, NotFound
from argosy.pipeline.config import Recipe
from argosy.pipeline.graph import steps_of
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


def text_recipe(**sections) -> Recipe:
    plain = {"project": {"name": "p"}, "data": {"train": "d.csv"} | sections.pop("data", {}), **sections}
    return from_plain(plain, Recipe, where="test")


@pytest.fixture
def folders(tmp_path):
    """A data file and two folders of an encoder, as far as a plan reads them."""
    (tmp_path / "d.csv").write_text("text,label\na b c,0\n")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text('{"architectures": ["BertModel"]}')
        (tmp_path / name / "tokenizer.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(name.encode())
    return tmp_path


def test_what_training_starts_from_decides_its_key_but_not_its_name(folders):
    def keys(asked):
        return {step.stage.name: step.key for step in steps_of(asked, read_sources(asked, folders))}

    plain, one, two = keys(text_recipe()), *(keys(text_recipe(model={"init": name})) for name in ("one", "two"))
    assert plain["train"] != one["train"] != two["train"]
    # The tokenizer in the folder may be what texts are prepared with.
    assert plain["data"] != one["data"]
    (folders / "two").rename(folders / "renamed")
    assert keys(text_recipe(model={"init": "renamed"})) == two
    (folders / "one" / "model.safetensors").write_bytes(b"new")
    assert keys(text_recipe(model={"init": "one"}))["train"] != one["train"]


def test_a_named_tokenizer_decides_the_data_and_one_that_is_trained_does_not(folders):
    def data(**fields):
        asked = text_recipe(data=fields, model={"init": "one"})
        return read_sources(asked, folders).tokenizer

    assert data(tokenizer="bpe") == data(tokenizer="nowhere") == ""
    before = data(tokenizer="two/tokenizer.json")
    assert before.startswith("sha256:")
    assert data(tokenizer="two").startswith("sha256:")
    (folders / "two" / "tokenizer.json").write_text("[]")
    assert data(tokenizer="two/tokenizer.json") != before


@pytest.mark.parametrize(
    ("stage", "named"), [("data", {}), ("train", {}), ("convert", {}), ("data", {"tokenizer": "two/tokenizer.json"})]
)
def test_an_edit_of_weights_or_tokenizer_while_a_run_goes_on_is_refused(folders, stage, named):
    asked = text_recipe(model={"init": "one"}, data=named)
    sources = read_sources(asked, folders)
    refuse_changed(stage, asked, folders, sources)
    edited = folders / (named.get("tokenizer") or "one/model.safetensors")
    edited.write_text("new")
    with pytest.raises(Conflict, match="changed while the run was going on"):
        refuse_changed(stage, asked, folders, sources)
