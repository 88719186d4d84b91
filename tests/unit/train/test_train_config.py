import subprocess
import sys

import pytest

from argosy.core.config import from_plain
from argosy.core.errors import InvalidInput
from argosy.train.config import (
    DTYPE_NAMES,
    FAMILY_NAMES,
    LOSS_NAMES,
    OPTIMIZER_NAMES,
    SCHEDULE_NAMES,
    STRATEGY_NAMES,
    ModelConfig,
    TrainConfig,
)
from argosy.train.families import FAMILIES
from argosy.train.optimizers import RULES
from argosy.train.strategy import STRATEGIES


def test_the_config_imports_neither_torch_nor_numpy():
    code = "import sys, argosy.train.config; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_job_does_not_import_torch():
    code = "import sys, argosy.train.job; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_the_names_in_the_config_are_those_of_the_tables():
    assert sorted(RULES) == list(OPTIMIZER_NAMES)
    assert sorted(FAMILIES) == list(FAMILY_NAMES)
    assert sorted({"auto", *STRATEGIES.names()}) == list(STRATEGY_NAMES)


@pytest.mark.parametrize(
    ("field", "known"),
    [
        ("optimizer", OPTIMIZER_NAMES),
        ("schedule", SCHEDULE_NAMES),
        ("loss", LOSS_NAMES),
        ("strategy", STRATEGY_NAMES),
        ("dtype", DTYPE_NAMES),
    ],
)
def test_an_unknown_name_is_refused_with_the_known_ones(field, known):
    with pytest.raises(InvalidInput) as caught:
        TrainConfig(**{field: "sgdd"}).check()
    assert str(caught.value) == f"[train] {field} = 'sgdd' is not known; known are: {', '.join(known)}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("learning_rate", 0.0),
        ("learning_rate", -0.1),
        ("learning_rate", float("nan")),
        ("learning_rate", float("inf")),
        ("workers", 0),
        ("epochs", -1),
        ("batch_size", 0),
        ("momentum", 1.0),
        ("warmup", 1.0),
        ("weight_decay", -1e-3),
        ("weight_decay", float("nan")),
        ("l1", -1.0),
        ("clip", -1.0),
        ("patience", -1),
        ("seed", -1),
        ("checkpoint_s", 0.0),
    ],
)
def test_an_impossible_value_is_refused_by_name_before_anything_starts(field, value):
    with pytest.raises(InvalidInput, match=rf"\[train\] {field} = .* is impossible; it must be"):
        TrainConfig(**{field: value}).check()


def test_more_workers_than_samples_in_a_batch_are_refused():
    with pytest.raises(InvalidInput, match="batch_size = 2 has too few samples for 4 workers"):
        TrainConfig(workers=4, batch_size=2).check()
    TrainConfig(workers=4, batch_size=2, optimizer="gd").check()


def test_one_process_with_two_workers_is_refused():
    with pytest.raises(InvalidInput, match="'single' is one process, but workers = 2"):
        TrainConfig(strategy="single", workers=2).check()


@pytest.mark.parametrize(("workers", "expected"), [(1, "single"), (2, "data-parallel")])
def test_auto_is_data_parallel_when_there_is_more_than_one_worker(workers, expected):
    assert TrainConfig(workers=workers).strategy_name == expected


def test_a_wrong_field_is_named_with_the_known_ones():
    with pytest.raises(InvalidInput, match=r"unknown field `lr`.*learning_rate"):
        from_plain({"lr": 0.1}, TrainConfig, where="argosy.toml")


def test_a_model_is_either_built_or_of_a_family():
    with pytest.raises(InvalidInput, match="has both build = 'model:build' and family = 'mlp'"):
        ModelConfig(build="model:build", family="mlp").check()
    with pytest.raises(InvalidInput, match="known are: gpt, graph, lstm, mlp, resnet, transformer"):
        ModelConfig(family="vgg").check()
    with pytest.raises(InvalidInput, match="not of the form 'module:function'"):
        ModelConfig(build="model.py").check()
