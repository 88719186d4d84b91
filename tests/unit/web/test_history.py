"""What a live page remembers: bounded, gaps as gaps, and evidence as the judge has it."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from argosy.core.clock import FakeClock
from argosy.operate import desired as d
from argosy.operate.config import RolloutConfig, to_plain
from argosy.operate.desired import Rollout, Target
from argosy.operate.judging import WindowJudge
from argosy.operate.memory import FakeLog
from argosy.operate.replay import entries_of
from argosy.operate.view import EndpointView, SystemView, VersionView
from argosy.serve.control import Window
from argosy.web.history import KEPT, MOST_EVIDENCE, MOST_LINES, EvidenceHistory, History, Line, Point, thinned


def version(ref="m:1", requests=0, failed=0, p95=2.0, role="current"):
    return VersionView(
        ref=ref, digest=ref, role=role, share=1.0, wanted=1, ready=1, requests=requests, failed=failed,
        p50_ms=1.0, p95_ms=p95
    )  # fmt: skip


def system(time, *versions, gateway="running"):
    endpoint = EndpointView(
        name="m", state="ready", url="", note="", versions=versions, rollout=None, last=None,
        requests=0, failed=0, waiting=0, p50_ms=0.0, p95_ms=0.0, events=(),
    )  # fmt: skip
    return SystemView(
        time=time, url="", grpc="", gateway=gateway, gateway_error="", controller="running", controller_error="",
        endpoints=(endpoint,),
    )  # fmt: skip


@pytest.mark.capability("M3")
def test_counters_become_rates_and_shares():
    history = History()
    for time, requests, failed in ((10.0, 100, 0), (12.0, 120, 5), (13.0, 120, 5)):
        history.take(system(time, version(requests=requests, failed=failed)))
    first, second, third = history.line("m", "m:1").points
    assert (first.per_s, first.failed, first.p95_ms) == (None, None, 2.0)
    assert (second.per_s, second.failed) == (10.0, 0.25)
    assert (third.per_s, third.failed) == (0.0, None)  # nothing was asked: there is no share of nothing
    assert history.line("m", "m:1").recent(60) == (5.0, 0.25)


def test_a_gateway_that_was_restarted_or_is_away_leaves_a_gap_and_no_negative_rate():
    history = History()
    history.take(system(1.0, version(requests=100)))
    history.take(system(2.0, version(requests=3)))
    history.take(system(3.0, version(requests=0), gateway="down"))
    history.take(system(4.0, version(requests=9)))
    history.take(system(5.0, version(requests=12)))
    assert [p.per_s for p in history.line("m", "m:1").points] == [None, None, None, None, 3.0]
    assert history.line("m", "m:1").points[2].p95_ms is None


def test_what_is_remembered_is_bounded():
    line = Line()
    for second in range(KEPT + 100):
        line.take(float(second), version(requests=second))
    assert len(line.points) == KEPT
    history = History()
    for n in range(40):
        history.take(system(float(n), version(ref=f"m:{n}", requests=1)))
    assert len(history.lines["m"]) <= MOST_LINES
    assert "m:39" in history.lines["m"]
    history.take(msgspec.structs.replace(system(50.0), endpoints=()))
    assert history.lines == {}


@given(
    values=st.lists(st.one_of(st.none(), st.floats(0, 1e6)), max_size=300), most=st.integers(1, 50)
)  # fmt: skip
def test_thinning_keeps_the_bound_the_worst_and_what_was_asked_in_all(values, most):
    points = [Point(float(n), value, value, value, value) for n, value in enumerate(values)]
    found = thinned(points, 0.0, most)
    assert len(found) <= most
    known = [v for v in values if v is not None]
    assert max((p.p95_ms for p in found if p.p95_ms is not None), default=None) == max(known, default=None)
    if len(points) <= most:
        assert found == points
    assert [p.time for p in found] == sorted(p.time for p in found)


def rollout(windows=()):
    config = RolloutConfig(steps=(50,), dwell="1s", window="1s", judge=("errors",), mirror=0)
    return Rollout(
        id="r7", endpoint="m", kind=d.STEPWISE, base=Target("a", "m:1"), to=Target("b", "m:2"), config=config,
        actor="ada", asked=0.0, since=0.0, phase=d.CANARY,
        windows=[msgspec.to_builtins(w, str_keys=True) for w in windows],
    )  # fmt: skip


def window(index, bad_canary=0.0, bad_all=0.0):
    return Window(
        rollout="r7", index=index, start=100.0 + index, seconds=1.0, share=0.5, requests_stable=50, requests_canary=50,
        failed_canary=int(bad_canary), bad={"errors": (bad_canary, bad_all)},
    )  # fmt: skip


@pytest.mark.capability("M3")
def test_evidence_is_what_the_judge_says_whether_it_was_written_or_is_waiting_and_each_window_counts_once():
    windows = [window(n, 3.0, 3.0) for n in range(6)]
    asked = rollout(windows[:3])
    history = EvidenceHistory(asked)
    history.follow(asked, windows[2:4])  # the log has the third already
    history.follow(rollout(windows[:4]), windows[3:])
    judge = WindowJudge(asked)
    expected = []
    for one in windows:
        judge.take(one)
        expected.append(judge.verdict()["total"])
    assert [point.total for point in history.points] == expected
    assert [point.seconds for point in history.points] == [1, 2, 3, 4, 5, 6]
    assert history.points[-1].total > history.points[0].total > 1
    assert history.threshold == 100


def test_a_rollout_that_has_ended_shows_what_it_showed_while_it_ran_and_its_last_windows():
    clock = FakeClock()
    log = FakeLog([], clock)
    windows = [msgspec.structs.replace(window(n, 3.0, 3.0), rollout="r1") for n in range(6)]
    plain = [msgspec.to_builtins(w, str_keys=True) for w in windows]
    config = to_plain(rollout().config)
    log.append(d.ENDPOINT, "m", {"action": "deploy", "version": {"digest": "b", "ref": "m:2"}, "rollout": config})
    log.append(d.OBSERVED, "m", {"rollout": "r1", "windows": plain[:4]})
    log.append(d.ENDED, "m", {"rollout": "r1", "outcome": d.ROLLED_BACK, "windows": plain[4:]})
    past = EvidenceHistory.of_ended(entries_of(log, "r1"))
    live = EvidenceHistory(msgspec.structs.replace(rollout(), id="r1"))
    live.follow(msgspec.structs.replace(rollout(), id="r1"), windows)
    assert (past.rollout, past.is_over, live.is_over, len(past.points)) == ("r1", True, False, 6)
    assert past.points == live.points


def test_a_long_rollout_is_thinned_to_the_bound_and_keeps_its_beginning_and_its_end():
    asked = rollout()
    history = EvidenceHistory(asked)
    history.follow(asked, [window(n) for n in range(3 * MOST_EVIDENCE)])
    assert MOST_EVIDENCE / 4 <= len(history.points) <= MOST_EVIDENCE
    seconds = [point.seconds for point in history.points]
    assert seconds == sorted(seconds)
    assert seconds[0] <= 8
    assert seconds[-1] >= 3 * MOST_EVIDENCE - 8
