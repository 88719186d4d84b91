"""Ranks that are killed, frozen or cut off while they exchange: noticed in time, and named."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from argosy.train.network.rendezvous import Rendezvous
from network_ranks import TOKEN

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from netlab.lab import Lab, why_not

RANK = Path(__file__).parents[1] / "network_rank.py"
NO_LAB = why_not()


def start(arguments, launch=subprocess.Popen):
    command = [sys.executable, str(RANK), json.dumps(arguments)]
    source = str(Path(__file__).parents[2] / "src")
    return launch(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": source})


def line_of(process):
    """Return the next thing that a rank says."""
    line = process.stdout.readline()
    assert line, "the rank ended without a word"
    return json.loads(line)


def until_exchanging(process):
    return [line_of(process)["event"], line_of(process)["event"]] == ["joining", "exchanging"]


@pytest.fixture
def ranks():
    """Three processes that sum without end."""
    rendezvous = Rendezvous(3, token=TOKEN)
    found = [
        start({"address": rendezvous.address, "rank": rank, "size": 3, "token": TOKEN, "silence_s": 2.0})
        for rank in range(3)
    ]
    for process in found:
        assert until_exchanging(process)
    yield found
    for process in found:
        process.kill()
        process.wait()
        process.stdout.close()
    rendezvous.close()


@pytest.mark.capability("T7")
def test_a_killed_rank_is_noticed_at_once_by_all_others(ranks):
    killed = time.time()
    ranks[1].kill()
    for rank in (0, 2):
        told = line_of(ranks[rank])
        assert (told["event"], told["code"], told["lost"]) == ("lost", "rank_lost", 1)
        assert told["at"] - killed < 2.0


@pytest.mark.capability("T7")
def test_a_frozen_rank_is_noticed_and_may_not_go_on_when_it_wakes(ranks):
    frozen = time.time()
    ranks[0].send_signal(signal.SIGSTOP)
    for rank in (1, 2):
        told = line_of(ranks[rank])
        assert (told["event"], told["lost"]) == ("lost", 0)
        assert "gave no sign of life" in told["message"]
        assert 1.5 < told["at"] - frozen < 7.0
    ranks[0].send_signal(signal.SIGCONT)
    told = line_of(ranks[0])
    assert told["event"] == "lost"
    assert told["code"] == "rank_lost"


@pytest.mark.capability("T7")
@pytest.mark.skipif(bool(NO_LAB), reason=NO_LAB or "emulated hosts work here")
@pytest.mark.parametrize(
    ("more", "within_s"), [({"silence_s": 3.0}, 6.0), pytest.param({}, 15.0, marks=pytest.mark.slow, id="by default")]
)
def test_a_host_that_is_cut_off_is_noticed_within_15_seconds(more, within_s):
    with Lab(2, rate_mbit=100, round_trip_ms=5) as lab:
        arguments = {"address": f"{lab.addresses[0]}:7000", "size": 2, "token": TOKEN, **more}
        found = [
            start(arguments | {"rank": rank}, lambda command, rank=rank, **o: lab.start(rank, command, **o))
            for rank in range(2)
        ]
        for process in found:
            assert until_exchanging(process)
        cut = time.time()
        lab.cut(1)
        for rank, other in ((0, 1), (1, 0)):
            told = line_of(found[rank])
            assert (told["event"], told["code"], told["lost"]) == ("lost", "rank_lost", other)
            assert 2.0 < told["at"] - cut < within_s


@pytest.mark.slow
@pytest.mark.capability("T7")
@pytest.mark.parametrize("seed", range(8))
def test_whenever_a_rank_is_killed_no_other_one_hangs(seed):
    """While they join, between exchanges, in the middle of one in front or in the background."""
    draw = random.Random(seed)
    rendezvous = Rendezvous(3, token=TOKEN)
    arguments = {
        "address": rendezvous.address,
        "size": 3,
        "token": TOKEN,
        "silence_s": 3.0,
        "join_s": 8.0,
        "behind": True,
    }
    found = [start(arguments | {"rank": rank, "behind": True}) for rank in range(3)]
    for process in found:
        assert line_of(process)["event"] == "joining"
    victim = draw.randrange(3)
    threading.Event().wait(draw.choice([0.0, 0.02, 0.05, 0.5]) * draw.random())
    found[victim].kill()
    for rank, process in enumerate(found):
        # What a rank still says ends with its own end, and that comes within the time for joining.
        said = [json.loads(line) for line in process.communicate(timeout=30.0)[0].splitlines()]
        if rank != victim:
            assert said[-1]["event"] == "lost"
            assert said[-1]["code"] in {"rank_lost", "ranks_missing"}
            assert said[-1]["code"] == "ranks_missing" or said[-1]["lost"] == victim
            assert process.returncode == 0
    rendezvous.close()
