"""Keys depend on everything that decides a result, and on nothing else."""

import pytest

from argosy.compress.config import CompressConfig
from argosy.core.config import from_plain
from argosy.core.errors import InvalidInput
from argosy.pipeline.config import Recipe, check_name
from argosy.pipeline.graph import Sources, difference, stages_of, steps_of

PLAIN = {
    "project": {"name": "flowers"},
    "data": {"train": "flowers.csv", "label": "kind"},
    "model": {"family": "mlp"},
    "train": {"learning_rate": 0.01},
}
SOURCES = Sources(data="sha256:aa", test="", code="sha256:cc")


def keys(changes: dict | None = None, sources: Sources = SOURCES) -> dict[str, str]:
    plain = {section: dict(fields) for section, fields in PLAIN.items()}
    for name, value in (changes or {}).items():
        section, field = name.split(".")
        plain.setdefault(section, {})[field] = value
    recipe = from_plain(plain, Recipe, where="test")
    return {step.stage.name: step.key for step in steps_of(recipe, sources)}


def changed(**given) -> set[str]:
    former, now = keys(), keys(**given)
    return {name for name in former if former[name] != now.get(name)}


def test_the_same_recipe_gives_the_same_keys():
    assert keys() == keys()


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({"train.learning_rate": 0.02}, {"train", "convert", "evaluate", "publish"}),
        ({"evaluate.accuracy": ">= 0.5"}, {"evaluate", "publish"}),
        ({"data.label": "colour"}, {"data", "train", "convert", "evaluate", "publish"}),
        ({"project.name": "trees"}, {"publish"}),
        ({"data.train": "renamed.csv"}, set()),
    ],
)
def test_a_change_runs_again_only_what_depends_on_it(change, again):
    assert changed(changes=change) == again


def test_other_bytes_in_the_data_run_everything_again():
    assert len(changed(sources=Sources(data="sha256:bb", test="", code="sha256:cc"))) == 5


def test_other_code_of_the_model_runs_training_again_but_not_the_data():
    assert changed(sources=Sources(data="sha256:aa", test="", code="sha256:dd")) == {
        "train",
        "convert",
        "evaluate",
        "publish",
    }


def test_compress_is_a_stage_only_when_a_budget_is_given():
    recipe = from_plain(PLAIN, Recipe, where="test")
    assert "compress" not in [stage.name for stage in stages_of(recipe)]
    with_budget = Recipe(project=recipe.project, data=recipe.data, compress=CompressConfig())
    assert [stage.name for stage in stages_of(with_budget)] == [
        "data",
        "train",
        "convert",
        "compress",
        "evaluate",
        "publish",
    ]


def test_until_ends_the_graph_there_and_an_unknown_stage_is_refused():
    recipe = from_plain(PLAIN, Recipe, where="test")
    assert [stage.name for stage in stages_of(recipe, "train")] == ["data", "train"]
    with pytest.raises(InvalidInput, match="the stages are data, train"):
        stages_of(recipe, "trian")
    with pytest.raises(InvalidInput, match="nothing to compress"):
        stages_of(recipe, "compress")


def test_the_difference_names_each_changed_value_once():
    assert difference({"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 5}, "e": 3}) == ["a.c", "d", "e"]


@pytest.mark.parametrize("name", ["", "Digits", "a b", "../x", "-a", "a" * 64, "a\n", "ä"])
def test_a_name_that_could_harm_a_path_or_url_is_refused(name):
    with pytest.raises(InvalidInput):
        check_name(name)


def test_where_a_training_is_logged_runs_nothing_again():
    assert changed(changes={"train.log": {"tensorboard": "runs", "mlflow": "http://127.0.0.1:5000"}}) == set()


def test_a_language_model_with_a_budget_is_refused_before_it_is_trained():
    plain = {**PLAIN, "data": {"train": "book.txt", "task": "language-model"}, "compress": {"size": "1MB"}}
    with pytest.raises(InvalidInput, match="a language model can't be compressed yet"):
        from_plain(plain, Recipe, where="test").check()
