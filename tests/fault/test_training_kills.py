"""Real rank processes: they equal one process, and survive kill -9 of a rank and of the whole job."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import msgspec
import pytest
from safetensors.numpy import load

from argosy.cluster.local import LocalLauncher
from argosy.core.digest import sha256_file
from argosy.core.errors import Conflict, InvalidInput
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.job import run_training
from ranks import save_table

MODEL = ModelConfig(family="mlp", options={"hidden": [16, 8], "batch_norm": True, "dropout": 0.1})
# 84 samples are 6 steps per epoch, the last one of 4 samples. Long enough to be killed in the midst of it.
TRAIN = TrainConfig(workers=2, epochs=60, batch_size=16, dtype="float64", schedule="cosine", checkpoint_s=0.05)
SECONDS = 60.0


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    save_table(folder)
    return folder


def train(place, work, *, model=MODEL, report=lambda _: None, settings=TRAIN):
    return run_training(place / "dataset", model, settings, place, place / work, report, threads=1)


@pytest.fixture(scope="module")
def undisturbed(place):
    return sha256_file(train(place, "undisturbed").weights)


def until(condition, what):
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        assert time.monotonic() < deadline, f"never: {what}"
        time.sleep(0.002)
    return found


def living_ranks(work):
    found = [info for info in LocalLauncher(work / "processes").list(role="rank") if info.alive and info.pid]
    return [info.pid for info in sorted(found, key=lambda info: info.name.rpartition("-")[2])]


def checkpoints(work):
    return sorted((work / "checkpoints").glob("step-*.json"))


def is_gone(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


@pytest.mark.capability("T7")
@pytest.mark.parametrize("rank", [0, 1])
def test_a_training_whose_rank_is_killed_loses_no_step_and_ends_with_the_same_bits(place, undisturbed, rank):
    work, killed, news = place / f"rank-{rank}", [], []

    def listen(found):
        news.append((time.monotonic(), found))
        if not killed and checkpoints(work):
            killed.append(time.monotonic())
            os.kill(living_ranks(work)[rank], signal.SIGKILL)

    result = train(place, f"rank-{rank}", report=listen)
    assert killed
    assert (result.restarts, result.replaced) == (0, 1)
    assert sha256_file(result.weights) == undisturbed
    noticed = next(at for at, found in news if f"rank {rank} was ended by signal 9" in found.message)
    assert noticed - killed[0] < 2.0 + 1.0  # the promise, and a second for a busy machine
    assert not any("goes on from the checkpoint" in found.message for _, found in news)
    assert living_ranks(work) == []


@pytest.mark.capability("T3")
@pytest.mark.parametrize("staleness", [2, "none"])
def test_a_lost_worker_of_a_parameter_server_is_replaced_while_the_others_go_on(place, staleness):
    settings = msgspec.structs.replace(
        TRAIN, strategy="parameter-server", workers=3, max_staleness=staleness, learning_rate=0.02
    )
    work, killed, news = place / f"served-{staleness}", [], []

    def listen(found):
        news.append(found.message)
        if not killed and checkpoints(work):
            killed.append(living_ranks(work)[1])
            os.kill(killed[0], signal.SIGKILL)

    model = ModelConfig(family="mlp", options={"hidden": [16, 8]})
    result = train(place, work.name, model=model, settings=settings, report=listen)
    assert killed
    assert (result.restarts, result.replaced, result.epochs) == (0, 1, TRAIN.epochs)
    assert any("rank 1 was ended by signal 9; another takes its place" in message for message in news)
    assert result.history[-1]["loss"] < 0.5 * result.history[0]["loss"]
    assert result.steps == 6 * TRAIN.epochs
    assert living_ranks(work) == []


SLOW_LINES = """
import time
from torch import nn

class Slow(nn.Linear):
    def forward(self, x):
        time.sleep(0.01)
        return super().forward(x)

def build(outputs):
    return Slow(5, outputs)
"""


@pytest.mark.capability("T7")
def test_a_rank_that_would_run_other_code_than_the_rest_ends_the_training_and_says_so(place):
    (place / "slow.py").write_text(SLOW_LINES)
    work, killed = place / "other-code", []

    def listen(_):
        if not killed and checkpoints(work):
            (place / "slow.py").write_text(SLOW_LINES.replace("nn.Linear", "nn.Linear ") + "# edited\n")
            killed.append(living_ranks(work)[1])
            os.kill(killed[0], signal.SIGKILL)

    with pytest.raises(Conflict, match=r"rank 1 would run other code than the rest: 'slow\.py' was edited") as caught:
        train(place, work.name, model=ModelConfig(build="slow:build"), report=listen)
    assert caught.value.code == "other_code"
    assert living_ranks(work) == []


@pytest.mark.capability("T7")
def test_when_all_ranks_are_killed_the_training_goes_on_from_its_checkpoint(place, undisturbed):
    work, killed, news = place / "all", [], []

    def listen(found):
        news.append(found)
        if not killed and checkpoints(work):
            killed.extend(living_ranks(work))
            for pid in killed:
                os.kill(pid, signal.SIGKILL)

    result = train(place, "all", report=listen)
    assert len(killed) == 2
    assert result.restarts == 1
    assert any("goes on from the checkpoint of step" in found.message for found in news)
    assert sha256_file(result.weights) == undisturbed


@pytest.mark.capability("T7")
def test_when_the_last_rank_that_knows_the_state_is_killed_too_the_checkpoint_is_taken(place, undisturbed):
    """The second kill comes before the process in place of the first is there."""
    work, news, killed = place / "one-by-one", [], []

    def listen(found):
        news.append(found.message)
        if not killed and checkpoints(work):
            killed.append(living_ranks(work)[1])
            os.kill(killed[0], signal.SIGKILL)
        elif len(killed) == 1 and "another takes its place" in found.message:
            killed.append(next(pid for pid in living_ranks(work) if pid not in killed))
            os.kill(killed[1], signal.SIGKILL)

    result = train(place, work.name, report=listen)
    assert len(killed) == 2
    assert result.restarts == 1
    assert any("goes on from the checkpoint of step" in message for message in news)
    assert sha256_file(result.weights) == undisturbed
    assert living_ranks(work) == []


def start_job(place, work, settings=TRAIN):
    code = """
import json, sys
from pathlib import Path
import msgspec
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.job import run_training
place, work, model, train = sys.argv[1:]
run_training(Path(place) / "dataset", msgspec.json.decode(model, type=ModelConfig),
             msgspec.json.decode(train, type=TrainConfig), Path(place), Path(place) / work, threads=1)
"""
    arguments = [str(place), work, msgspec.json.encode(MODEL).decode(), msgspec.json.encode(settings).decode()]
    return subprocess.Popen([sys.executable, "-c", code, *arguments])


def kill_job_after(place, work, condition, settings=TRAIN):
    job = start_job(place, work, settings)
    until(lambda: condition() or job.poll() is not None, "the moment to kill the job")
    ranks = living_ranks(place / work)
    job.kill()
    job.wait()
    until(lambda: all(is_gone(pid) for pid in ranks), "the ranks die with their job")
    return ranks


@pytest.mark.capability("T7")
def test_a_killed_job_takes_its_ranks_along_and_goes_on_to_the_same_bits(place, undisturbed):
    ranks = kill_job_after(place, "job", lambda: len(checkpoints(place / "job")) == 2)
    assert len(ranks) == 2
    news = []
    result = train(place, "job", report=news.append)
    assert any("goes on from the checkpoint of step" in found.message for found in news)
    assert sha256_file(result.weights) == undisturbed


@pytest.fixture(scope="module")
def undisturbed_by_workers(place, undisturbed):
    alone = train(place, "undisturbed-1", settings=msgspec.structs.replace(TRAIN, workers=1))
    return {1: sha256_file(alone.weights), 2: undisturbed}


@pytest.mark.slow
@pytest.mark.capability("T7")
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("seed", range(50))
def test_kills_at_random_moments_of_job_or_rank_never_change_the_bits(place, undisturbed_by_workers, seed, workers):
    draw, work = random.Random(f"{seed}/{workers}"), f"random-{workers}-{seed}"
    settings = msgspec.structs.replace(TRAIN, workers=workers)
    for _ in range(draw.randint(0, 2)):
        moment = time.monotonic() + draw.uniform(0.0, 6.0)
        kill_job_after(place, work, lambda moment=moment: time.monotonic() > moment, settings=settings)

    def kill_one():
        found = living_ranks(place / work)
        if found:
            os.kill(draw.choice(found), signal.SIGKILL)

    timer = threading.Timer(draw.uniform(1.5, 5.0), kill_one)
    timer.start()
    result = train(place, work, settings=settings)
    timer.cancel()
    assert sha256_file(result.weights) == undisturbed_by_workers[workers]


@pytest.mark.slow
@pytest.mark.capability("T7")
def test_a_frozen_rank_is_replaced_within_15_seconds_and_the_bits_are_the_same(place, undisturbed):
    work, frozen, news = place / "frozen", [], []

    def listen(found):
        news.append((time.monotonic(), found))
        if not frozen and checkpoints(work):
            frozen.append(time.monotonic())
            os.kill(living_ranks(work)[1], signal.SIGSTOP)

    result = train(place, "frozen", report=listen)
    noticed = next(at for at, found in news if "gave no sign of life" in found.message)
    assert noticed - frozen[0] < 15.0
    assert sha256_file(result.weights) == undisturbed
    assert living_ranks(work) == []


@pytest.mark.capability("T1")
def test_two_processes_on_half_batches_equal_one_on_the_whole_batch(place):
    """Without dropout, whose draws differ; 84 samples, so the last batch of an epoch is smaller."""
    model = ModelConfig(family="mlp", options={"hidden": [16, 8], "batch_norm": True})
    settings = msgspec.structs.replace(TRAIN, epochs=8)
    two = train(place, "two", model=model, settings=settings)
    one = train(place, "one", model=model, settings=msgspec.structs.replace(settings, workers=1))
    assert two.steps == one.steps == 48
    found, expected = (load(result.weights.read_bytes()) for result in (two, one))
    assert found.keys() == expected.keys()
    assert max(abs(found[name] - expected[name]).max() for name in found) < 1e-6
    assert [e["accuracy"] for e in two.history] == [e["accuracy"] for e in one.history]


BROKEN = """
from torch import nn

class Model(nn.Module):
    def __init__(self, outputs):
        super().__init__()
        self.layer = nn.Linear(5, outputs)
        self.steps = 0

    def forward(self, x):
        self.steps += self.training
        return self.layer(x if self.steps < 5 else x.no_such_thing)

def build(outputs):
    return Model(outputs)
"""


def test_an_error_in_the_users_model_during_training_shows_its_line_and_is_not_tried_again(place):
    (place / "broken.py").write_text(BROKEN)
    settings = msgspec.structs.replace(TRAIN, workers=1)
    with pytest.raises(InvalidInput, match=r"broken\.py, line 12 ") as caught:
        train(place, "broken", model=ModelConfig(build="broken:build"), settings=settings)
    assert "AttributeError" in str(caught.value)
    assert "no_such_thing" in str(caught.value)
    assert living_ranks(place / "broken") == []
    assert len(list((place / "broken" / "processes").iterdir())) == 1
