import math
import subprocess
import sys

import pytest

from argosy.compress.config import PASS_NAMES, CompressConfig
from argosy.compress.table import PASSES
from argosy.core.config import from_plain
from argosy.core.errors import InvalidInput


def test_a_budget_is_read_into_base_units():
    budget = CompressConfig(max_drop="1pt", size="1MB", latency_p95="2ms", time_limit="5min").budget()
    assert (budget.max_drop, budget.size_bytes, budget.latency_p95_s, budget.time_limit_s) == (0.01, 1e6, 0.002, 300)
    assert str(budget) == "at most 1 point lost, at most 1 MB, p95 at most 2 ms"


def test_what_is_not_asked_is_not_bounded():
    budget = CompressConfig().budget()
    assert math.isinf(budget.size_bytes)
    assert math.isinf(budget.latency_p95_s)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"size": "0MB"}, "size = '0MB' is impossible"),
        ({"size": "-1MB"}, "size"),
        ({"size": "small"}, "size such as"),
        ({"size": "1e400MB"}, "beyond all measure"),
        ({"size": "5ms"}, "units are B"),
        ({"latency_p95": "0ms"}, "latency_p95 = '0ms' is impossible"),
        ({"latency_p95": "2"}, "units are us"),
        ({"max_drop": "101pt"}, "more than 100 points"),
        ({"max_drop": "-1pt"}, "drop such as"),
        ({"max_drop": "1"}, "percentage points"),
        ({"max_drop": ""}, "drop such as"),
        ({"time_limit": "0s"}, "time_limit = '0s' is impossible"),
        ({"passes": ["shrink"]}, "'shrink'; known are: distill, factorize, optimize, prune, quantize, slim"),
        ({"passes": []}, "passes is empty"),
        ({"passes": ["slim", "slim"]}, "twice"),
        ({"epochs": -1}, "epochs = -1"),
        ({"seed": -1}, "seed = -1"),
    ],
)
def test_an_impossible_budget_is_refused_before_anything_runs(wrong, said):
    with pytest.raises(InvalidInput, match=said) as caught:
        CompressConfig(**wrong).check()
    assert caught.value.message.startswith("[compress]")


def test_unknown_fields_and_wrong_types_name_their_place():
    with pytest.raises(InvalidInput, match=r"unknown field `speed`.*latency_p95"):
        from_plain({"speed": "2ms"}, CompressConfig, where="argosy.toml")
    with pytest.raises(InvalidInput, match=r"Expected `str`, got `int` - at `\$.size`"):
        from_plain({"size": 1}, CompressConfig, where="argosy.toml")


def test_no_loss_and_any_loss_can_be_asked_for():
    for drop in ("0pt", "100pt"):
        CompressConfig(max_drop=drop).check()


def test_the_names_in_the_config_are_those_in_the_table():
    assert sorted(PASS_NAMES) == PASSES.names()


def test_reading_the_section_imports_nothing_heavy():
    code = (
        "import sys; from argosy.compress.config import CompressConfig; CompressConfig().check();"
        "print(sorted({'numpy', 'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
