"""The promise, simulated in small; benchmarks/rollouts.py does it in large."""

import dataclasses
import importlib
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from argosy.evaluate.judge import Judge, JudgeConfig, WindowCounts
from argosy.serve.control import EndpointRoute, latency_bucket
from argosy.serve.ejection import Conduct
from argosy.serve.router import CANARY, choose, resolve

sys.path.insert(0, str(Path(__file__).parents[3] / "benchmarks"))
rollouts = importlib.import_module("rollouts")
simulation = importlib.import_module("rollout_simulation")
controller = importlib.import_module("rollout_controller")
sys.path.pop(0)

pytestmark = pytest.mark.capability("R2")

REPEATS = 400


def named(cells, word):
    found = [cell for cell in cells if word in cell.name]
    assert found, word
    return found


def at_most(share, alpha, repeats):
    return share <= alpha + 3 * math.sqrt(alpha * (1 - alpha) / repeats)


FAST = [
    *named(rollouts.good_cells(), "0.5%, 600/min, 30 min"),
    *named(rollouts.dense_cells(), "1.0%, 300/s"),
    *named(rollouts.dense_cells(), "hot caller"),
]
SLOW = [cell for cell in rollouts.good_cells() + rollouts.dense_cells() if cell not in FAST]


@pytest.mark.parametrize(
    "cell", [*FAST, *(pytest.param(cell, marks=pytest.mark.slow) for cell in SLOW)], ids=lambda cell: cell.name
)
def test_good_versions_are_hardly_ever_rolled_back(cell):
    found = simulation.run(cell, REPEATS)
    assert at_most(found["rolled_back_1pct"], 0.01, REPEATS)
    assert at_most(found["rolled_back_5pct"], 0.05, REPEATS)


@pytest.mark.parametrize("cell", [c for c in rollouts.bad_cells() if c.expect], ids=lambda cell: cell.name)
def test_bad_versions_are_found_as_often_and_as_soon_as_specified(cell):
    found = simulation.run(cell, REPEATS)
    share = cell.expect["rolled_back_1pct"]
    # Both sides are simulated, the specification with 2,000 repeats, and printed to the last digit shown.
    error = math.sqrt(max(share * (1 - share), 0.001) * (1 / REPEATS + 1 / 2000))
    assert abs(found["rolled_back_1pct"] - share) <= 3 * error + 0.005
    if "median_min" in cell.expect:
        assert found["median_min"] == pytest.approx(cell.expect["median_min"], rel=0.15, abs=0.2)
        assert found["failed_canary_median"] == pytest.approx(cell.expect["failed_canary_median"], rel=0.15, abs=1.5)


SICK = named(rollouts.sick_cells(), "one of 3")
WITH_BOTH = [dataclasses.replace(cell, minutes=15) for cell in SICK if cell.name.endswith("both")]


@pytest.mark.parametrize(
    "cell",
    [*WITH_BOTH[1:2], *(pytest.param(cell, marks=pytest.mark.slow) for cell in WITH_BOTH[:1] + WITH_BOTH[2:])],
    ids=lambda cell: cell.name,
)
def test_one_sick_replica_of_three_is_not_taken_for_the_version(cell):
    repeats = 200
    found = simulation.run(cell, repeats)
    assert found["checked_against_the_real_judge"] == simulation.CHECKED
    assert at_most(found["rolled_back_1pct"], 0.02, repeats)


def test_without_names_and_ejection_a_sick_replica_would_be_taken_for_the_version():
    cell = next(cell for cell in SICK if cell.requests_per_min == 600 and "told nothing" in cell.name)
    assert simulation.run(dataclasses.replace(cell, minutes=15), 200)["rolled_back_1pct"] > 0.1


def test_a_version_all_of_whose_replicas_are_bad_is_found_nearly_as_soon():
    alone, *_, four = named(rollouts.witnessed_cells(), "2.0%, 5x")
    found = [simulation.run(cell, 200) for cell in (alone, four)]
    assert min(row["rolled_back_1pct"] for row in found) >= 0.95
    assert found[1]["median_min"] <= found[0]["median_min"] + 1


def test_the_scores_in_the_simulation_are_the_gateways():
    rng = np.random.default_rng(5)
    for _ in range(100):
        ward = simulation.Ward(1, 3)
        ward.score, ward.failed, ward.answered = (
            rng.random((1, 3)) * 10,
            rng.random((1, 3)) * 5,
            rng.random((1, 3)) * 80,
        )
        healths = [Conduct(s, f, a) for s, f, a in zip(ward.score[0], ward.failed[0], ward.answered[0], strict=True)]
        failed, answered = rng.integers(0, 4, (2, 3))
        ward.note(failed[None], answered[None], 0.0)
        # There all report at once, in the gateway one after the other: so each is told the others' news first.
        others = [Conduct(0, f, a) for f, a in zip(ward.failed[0], ward.answered[0], strict=True)]
        for i, health in enumerate(healths):
            health.note(int(failed[i]), int(answered[i]), [other for j, other in enumerate(others) if j != i])
        assert ward.failed[0] == pytest.approx([health.failed for health in healths])
        assert ward.score[0] == pytest.approx([health.score for health in healths])
        assert (ward.out[0] == [health.is_sick for health in healths]).all() or all(h.is_sick for h in healths)


def test_versions_twice_as_bad_are_promoted_at_most_once_in_twenty():
    for cell in named(rollouts.promotion_cells(), "twice as bad"):
        found = simulation.run(dataclasses.replace(cell, minutes=20), REPEATS)
        assert at_most(found["promoted"], 0.05, REPEATS), cell.name


def test_the_simulation_would_show_a_broken_promise(monkeypatch):
    """De-duplicating per version saturates stable and not the canary: the specification's example of what not to do."""

    def saturated(cell, rng, repeats):
        for found in simulation.errors(cell, rng, repeats):
            canary, both = found.bad["errors"]
            per_second = 10
            kept = np.minimum(canary, per_second), np.minimum(both - canary, per_second)
            yield dataclasses.replace(found, bad={"errors": (kept[0], kept[0] + kept[1])})

    monkeypatch.setattr(simulation, "simulator", lambda cell: saturated)
    cell = simulation.Cell("saturated", 12000, 0.02, minutes=10)
    assert simulation.run(cell, 100)["rolled_back_1pct"] > 0.9


@pytest.mark.parametrize("sticky", [False, True])
def test_the_routers_own_draw_keeps_the_promise(sticky):
    """Real router, real judge: 40 callers, three of them failing often, one second a window."""
    repeats, rolled_back, rng = 100, 0, np.random.default_rng(7)
    for number in range(repeats):
        judge, counted = Judge(JudgeConfig(metrics=("errors",), false_alarm=0.05)), set()
        for i in range(20):
            share = 0.1 if i < 10 else 0.25
            route = EndpointRoute(
                name="e",
                stable="s",
                stable_ref="s",
                canary="c",
                canary_ref="c",
                share=share,
                rollout=f"r{number}",
                sticky=sticky,
            )
            plan = resolve(route, {"s", "c"}, ("", ""))
            bad = [0, 0]
            for draw, mirror, who, luck in zip(
                rng.random(60), rng.random(60), rng.integers(0, 40, 60), rng.random(60), strict=True
            ):
                if luck >= (0.4 if who < 3 else 0.01) or (sticky and who in counted):
                    continue
                counted.add(who)
                bad[0] += choose(plan, float(draw), float(mirror), str(who)).arm == CANARY
                bad[1] += 1
            said = judge.observe(
                WindowCounts(index=i, start_s=float(i), seconds=1.0, share=share, bad={"errors": (bad[0], bad[1])})
            )
        rolled_back += said.verdict == "rollback"
    assert at_most(rolled_back / repeats, 0.05, repeats)


def test_the_gateways_latency_buckets_are_the_judges():
    for seconds in (0.001, 0.03, 2.0):
        assert latency_bucket(seconds * 1.02**10 * 1.0001) - latency_bucket(seconds * 1.0001) == 10


JOURNEYS = {journey.name: journey for journey in controller.journeys()}


@pytest.mark.parametrize(("word", "outcome"), [("5x, 1%, 60", "rolled_back"), ("bad minutes", "promoted")])
def test_the_real_controller_ends_rollouts_by_the_evidence_and_alike_when_it_is_killed(word, outcome):
    journey = next(journey for name, journey in JOURNEYS.items() if word in name)
    found = [controller.once(journey, (number,)) for number in range(8)]
    killed = [controller.once(dataclasses.replace(journey, kills=3), (number,)) for number in range(8)]
    assert sum(ended[0] == outcome for ended in found) >= 7
    assert [ended[0] for ended in killed] == [ended[0] for ended in found]
    # Windows that were under way when it was killed may be judged one later.
    assert all(abs(a[2] - b[2]) <= 1.0 for a, b in zip(found, killed, strict=True))


def test_a_slow_rollout_that_stays_undecided_ends_by_its_time_limit_in_the_real_controller():
    cell = dataclasses.replace(JOURNEYS["good, 0.5%, 60/min, 30 min, false_alarm 1%"].cell, requests_per_min=6.0)
    for undecided, outcome in (("promote", "promoted"), ("rollback", "rolled_back")):
        ended = controller.once(controller.Journey(cell, undecided=undecided), (1,))
        assert (ended[0], round(ended[2])) == (outcome, 30)
