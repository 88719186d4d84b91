"""A rollout's verdicts follow from the windows in the log, and a changed number is noticed."""

from types import SimpleNamespace

import msgspec
import pytest

from argosy.core.clock import FakeClock
from argosy.core.errors import NotFound
from argosy.operate import commands
from argosy.operate import desired as d
from argosy.operate.config import RolloutConfig
from argosy.operate.desired import Desired
from argosy.operate.evidence import Evidence
from argosy.operate.judging import WindowJudge
from argosy.operate.memory import FakeLog
from argosy.operate.replay import entries_of, replay
from argosy.serve.control import Window
from controller_world import FakeVersions, make_version


@pytest.fixture
def log():
    """Return the log of a rollout whose windows were written in two batches."""
    registry = SimpleNamespace(log=FakeLog([], FakeClock()), versions=FakeVersions(make_version(1), make_version(2)))
    commands.deploy(registry, "m:1")
    registry.log.append(d.ENDED, "m", {"rollout": "r1", "outcome": d.PROMOTED, "reason": ""})
    commands.deploy(registry, "m:2", rollout=RolloutConfig(judge=("errors",), mirror=0))
    state = Desired()
    state.catch_up(registry.log)
    rollout = state.endpoints["m"].rollout
    evidence = Evidence(rollout, WindowJudge(rollout), 0.0)
    for batch in (range(3), range(3, 6)):
        windows = [
            Window(rollout=rollout.id, index=n, start=10.0 * n, seconds=10.0, share=0.1, bad={"errors": (1.0, 1.0)})
            for n in batch
        ]
        evidence.take(windows)
        registry.log.append(d.OBSERVED, "m", {"rollout": rollout.id, **msgspec.to_builtins(evidence.plain())})
        evidence.unwritten.clear()
    return registry.log


@pytest.mark.capability("R2")
def test_a_rollout_is_judged_again_to_the_same_verdict(log):
    found = replay(entries_of(log, "r3"))
    assert found.is_same
    assert [verdict.replayed for verdict in found.compared] == ["rollback", "rollback"]
    assert len(found.moments) == 6
    assert found.moments[0].minutes == pytest.approx(1 / 6)
    assert found.verdict["total"] >= found.threshold == 100


def test_a_changed_window_gives_another_verdict_and_names_the_entry(log):
    entries = entries_of(log, "r3")
    entries[1].data["windows"][0]["bad"]["errors"] = [0.0, 1.0]
    found = replay(entries)
    assert [verdict.is_same for verdict in found.compared] == [False, False]
    assert found.compared[0].seq == entries[1].seq


@pytest.mark.parametrize("name", ["r9", "r2", "rollout", "r"])
def test_an_unknown_rollout_is_not_found(log, name):
    with pytest.raises(NotFound):
        entries_of(log, name)
