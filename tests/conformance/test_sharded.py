"""What every strategy keeps, for `sharded`, whose ranks have to be processes: one group of them makes all checks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from argosy.train.shared_memory import Segment

TESTS = Path(__file__).parents[1]
RANKS = 3
FAMILIES = ("mlp", "resnet", "lstm", "transformer", "gpt")
EQUAL = ("gd", "adamw", "clip", "empty_ranks", "odd_model", "few_validation_rows")
ALONE = ("totals", "means", "resumes", "from_one", "not_finite", "sizes", "sparse")


def run_checks(folder, workers, *checks, seconds=240.0):
    """Return what each check found, by check and rank; a rank that a check lets end finds nothing."""
    folder.mkdir(exist_ok=True)
    segment = Segment.create(workers)
    started = [
        subprocess.Popen(
            [sys.executable, str(TESTS / "sharded_rank.py"), segment.path, str(rank), str(folder), *checks],
            env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        )
        for rank in range(workers)
    ]
    try:
        for process in started:
            if "lost:SIGSTOP" in checks and process is started[1]:
                continue
            process.wait(seconds)
    finally:
        for process in started:
            process.kill()
            process.wait()
        segment.close()
    files = [folder / f"rank-{rank}.json" for rank in range(workers)]
    found = [json.loads(file.read_text()) if file.exists() else {} for file in files]
    return {check: [ranks.get(check) for ranks in found] for check in checks}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    checks = [*ALONE, *EQUAL, *(f"family:{name}" for name in FAMILIES)]
    results = run_checks(tmp_path_factory.mktemp("checks"), RANKS, *checks)
    errors = [rank["error"] for ranks in results.values() for rank in ranks if isinstance(rank, dict)]
    assert not errors, "\n".join(errors)
    return results


def test_totals_are_sums_over_all_ranks(found):
    assert found["totals"] == [[1.5 * RANKS, 3.0]] * RANKS


def test_a_step_is_made_of_the_mean_over_the_samples_of_all_ranks_from_the_weights_of_rank_0(found):
    mean = -14 / 6
    assert found["means"] == [[12.0, 6.0, pytest.approx(mean), pytest.approx(mean)]] * RANKS


@pytest.mark.capability("T4")
@pytest.mark.parametrize("name", EQUAL)
def test_a_training_equals_that_of_one_process(found, name):
    """In float64, the bound of all strategies that make every step together."""
    assert max(found[name]) < 1e-6


@pytest.mark.capability("T4")
@pytest.mark.parametrize("name", FAMILIES)
def test_the_built_in_families_can_be_divided(found, name):
    assert max(found[f"family:{name}"]) < 1e-6


@pytest.mark.capability("T7")
def test_a_training_goes_on_from_its_checkpoint_to_the_same_bits(found):
    assert found["resumes"] == [[6, 0.0]] * RANKS


def test_a_checkpoint_of_one_process_is_taken_up(found):
    assert max(found["from_one"]) < 1e-6


def test_a_gradient_that_is_not_finite_on_one_rank_stops_all_and_is_named(found):
    assert found["not_finite"] == [["0.weight", True]] * RANKS


def test_sparse_gradients_are_refused_with_the_way_out(found):
    assert all("'0' gives sparse gradients" in error for error in found["sparse"])


@pytest.mark.capability("T4")
def test_each_rank_holds_its_share_of_parameters_gradients_and_state(found):
    """AdamW keeps two numbers per parameter, so all is four times the parameters; a hundredth more is for rounding."""
    for held, whole in found["sizes"]:
        assert held <= 4 * whole / RANKS * 1.02


@pytest.mark.slow
@pytest.mark.capability("T7")
@pytest.mark.parametrize("how", ["SIGKILL", "SIGSTOP"])
def test_ranks_end_within_15_seconds_when_one_is_killed_or_frozen(tmp_path, how):
    check = f"lost:{how}"
    first, gone, last = run_checks(tmp_path, RANKS, check)[check]
    assert gone is None
    for kind, code, rank, waited in (first, last):
        assert (kind, code) == ("Unavailable", "rank_lost")
        assert rank in range(RANKS)
        assert waited < 15.0
