"""Runs, charts, rules typed into a form, and the feed: everything of the page that needs no browser."""

import math
from types import SimpleNamespace

import msgspec
import pytest

from argosy.core.clock import FakeClock
from argosy.core.config import load_settings
from argosy.core.errors import InvalidInput, Unavailable
from argosy.core.progress import Progress
from argosy.operate.desired import Desired
from argosy.registry.registry import Registry
from argosy.web import runs as r
from argosy.web.feed import Feed
from argosy.web.history import EvidencePoint, Point
from argosy.web.page import charts, look


@pytest.fixture
def registry(tmp_path):
    return Registry(load_settings({"ARGOSY_HOME": str(tmp_path / "home")}), clock=FakeClock())


def finish(registry, stage, outputs=None, **values):
    data = {"stage": stage, "project": "p", "run": "run-1", "config": {}, "inputs": {}, "seconds": 2.5}
    registry.log.append("stage.finished", f"sha256:{stage}", data | {"outputs": outputs or {}, "values": values})


@pytest.mark.capability("M3")
def test_a_run_has_its_stages_its_versions_and_its_curves(registry):
    history = [{"epoch": 1.0, "loss": 0.9, "accuracy": 0.5}, {"epoch": 2.0, "loss": math.inf, "accuracy": 0.75}]
    digest = registry.blobs.put(msgspec.json.encode(history))
    registry.log.append("run.started", "run-1", {"project": "p"})
    finish(registry, "data", train=10)
    finish(registry, "train", {"history.json": digest}, accuracy=0.75)
    assert r.read_runs(registry.log)[0].state == "open"
    finish(registry, "publish", versions=["p:1"])
    registry.log.append("run.finished", "run-1", {"executed": []})
    registry.log.append("run.started", "run-2", {"project": "q"})
    newest = {run.id: run for run in r.read_runs(registry.log)}
    run = newest["run-1"]
    assert (run.state, run.versions, [stage.name for stage in run.stages]) == (
        "finished",
        ("p:1",),
        ["data", "train", "publish"],
    )
    curves = {curve.name: curve for curve in r.curves_of(run, registry.blobs)}
    assert curves["accuracy"].points == ((1.0, 0.5), (2.0, 0.75))
    assert curves["loss"].points == ((1.0, 0.9),)  # what is not finite is no place on a chart
    assert r.curves_of(newest["run-2"], registry.blobs) == ()
    assert r.curves_of(msgspec.structs.replace(run, history="sha256:" + "0" * 64), registry.blobs) == ()


def test_a_stage_that_runs_tells_how_far_it_is_even_while_a_line_is_being_written(tmp_path):
    folder = tmp_path / "work" / "train-abc"
    folder.mkdir(parents=True)
    told = [
        Progress(stage="train", done=float(n), total=10.0, unit="steps", left_s=5.0, values={"loss": 1.0 / n})
        for n in (1, 2)
    ]
    lines = [msgspec.json.encode(news) for news in (*told, Progress(stage="train", message="measuring"))]
    (folder / "events.jsonl").write_bytes(b"\n".join(lines) + b'\n{"stage": "tra')
    alive = [SimpleNamespace(name="stage-train-00ff", role="stage", alive=True)]
    (live,) = r.running_stages(SimpleNamespace(list=lambda: alive), tmp_path)
    assert (live.stage, live.message, live.done, live.total, live.left_s) == ("train", "measuring", 2.0, 10.0, 5.0)
    assert live.curves[0].points == ((1.0, 1.0), (2.0, 0.5))
    assert r.running_stages(SimpleNamespace(list=list), tmp_path) == []


def test_a_curve_of_very_many_points_is_thinned_and_keeps_its_end():
    (curve,) = r.curves([(float(n), {"loss": 1.0}) for n in range(50_000)], "steps")
    assert len(curve.points) <= r.MOST_POINTS + 1
    assert curve.points[-1][0] == 49_999


def test_gaps_stay_gaps_and_no_chart_ends_where_it_begins():
    points = [Point(float(n), None if n == 5 else 10.0, 0.0, 1.0, 2.0) for n in range(10)]
    drawn = charts.over_time([("m:1", "current", points)], "per_s", now=9.0, seconds=300.0, is_dark=False)
    assert [y for _, y in drawn["series"][0]["data"]].count(None) == 1
    assert drawn["xAxis"]["max"] - drawn["xAxis"]["min"] == 60_000
    calm = charts.over_time([("m:1", "current", points)], "failed", now=9.0, seconds=300.0, is_dark=True)
    assert calm["yAxis"]["max"] == 4
    assert charts.over_time([], "per_s", now=9.0, seconds=300.0, is_dark=False)["series"] == []


def test_evidence_is_drawn_on_a_log_axis_with_what_decides_and_stays_inside():
    points = [EvidencePoint(1.0, 1e-9, {"errors": 1e-9, "own": 2.0}, {"errors": 1.0, "own": 30.0}),
              EvidencePoint(2.0, 1e9, {"errors": 1e9, "own": 2.0}, {"errors": 1e9, "own": 30.0})]  # fmt: skip
    drawn = charts.growing(points, "against", threshold=100.0, is_dark=False)
    assert drawn["yAxis"]["type"] == "log"
    assert [s["name"] for s in drawn["series"]] == ["errors", "own", "sum", ""]
    assert drawn["series"][-1]["markLine"]["data"] == [{"yAxis": 100.0}]
    values = [y for s in drawn["series"] for _, y in s["data"]]
    assert drawn["yAxis"]["min"] <= min(values) <= max(values) <= drawn["yAxis"]["max"]
    good = charts.growing(points, "good", threshold=100.0, is_dark=True)
    assert good["series"][-1]["markLine"]["data"] == [{"yAxis": 20.0}]


def contrast(one, other):
    """Return the contrast of two colours (WCAG 2.1, 1.4.3)."""

    def luminance(color):
        parts = [int(color[n : n + 2], 16) / 255 for n in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("table", [look.ROLES, look.METRICS])
def test_lines_are_seen_on_their_background_and_told_apart_without_colour(table):
    for day, night, _ in table.values():
        assert contrast(day, "#ffffff") >= 2.9
        assert contrast(night, "#181d23") >= 3
    assert len({str(dash) for _, _, dash in table.values()}) == len(table)


def test_the_feed_says_what_it_could_not_see_and_goes_on(registry):
    view = SimpleNamespace(endpoints=(), time=1.0, gateway="running")
    troubles = [Unavailable("the disk is gone"), RuntimeError("oops"), None]

    class Observer:
        desired, windows = Desired(), []

        def look(self):
            trouble = troubles.pop(0)
            if trouble is not None:
                raise trouble
            return view

    feed = Feed(registry, Observer(), FakeClock(), list)
    found = []
    for _ in range(3):
        feed.take(feed.look())
        found.append((feed.scene.trouble, feed.scene.view))
    assert found == [("the disk is gone", None), ("RuntimeError: oops", None), ("", view)]


@pytest.mark.parametrize(
    ("steps", "alarm", "says"),
    [
        ("5, x", "0.01", "must be numbers"),
        ("50, 10", "0.01", "greater"),
        ("5", "2", "between"),
        ("5", "", "must be numbers"),
    ],
)
def test_rules_that_cannot_be_are_refused_in_words(steps, alarm, says):
    dialogs = pytest.importorskip("argosy.web.page.dialogs")
    with pytest.raises(InvalidInput, match=says):
        dialogs.rollout_rules(steps, "60s", alarm, "30min")
    rules = dialogs.rollout_rules(" 5 %, 25", "10s", "5 %", "30min")
    assert (rules.steps, rules.false_alarm) == ((5.0, 25.0), 0.05)
