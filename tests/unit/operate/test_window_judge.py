"""From the gateway's windows to the judge: time counts from the first window, whoever replays them."""

import pytest

from argosy.operate import desired as d
from argosy.operate.config import RolloutConfig
from argosy.operate.desired import Rollout, Target
from argosy.operate.judging import WindowJudge, judge_config
from argosy.serve.control import Window


def rollout(first_step: float) -> Rollout:
    return Rollout(
        id="r1",
        endpoint="m",
        kind=d.STEPWISE,
        base=Target("sha256:a", "m:1"),
        to=Target("sha256:b", "m:2"),
        config=RolloutConfig(),
        actor="ada",
        asked=0.0,
        since=0.0,
        first_step=first_step,
    )


WINDOWS = [
    Window(
        rollout="r1",
        index=n,
        start=5_000.0 + 10 * n,
        seconds=10.0,
        share=0.1,
        requests_stable=90,
        requests_canary=10,
        failed_canary=n % 2,
        bad={"errors": (n % 2, 1)},
    )
    for n in range(70)
]


def judged(first_step: float):
    judge = WindowJudge(rollout(first_step))
    for window in WINDOWS:
        judge.take(window)
    return judge.verdict()


def test_a_judge_made_before_the_first_step_says_what_one_made_after_a_crash_says():
    assert judged(first_step=0.0) == judged(first_step=4_999.0)


def test_time_counts_from_the_first_window():
    assert judged(first_step=0.0)["seconds"] == 700.0


def test_a_window_that_cannot_be_proves_nothing_and_stops_nothing():
    judge = WindowJudge(rollout(0.0))
    judge.take(Window(rollout="r1", index=0, start=0.0, seconds=1.0, share=0.1, bad={"errors": (3.0, 1.0)}))
    assert judge.skipped == 1
    judge.take(WINDOWS[1])
    assert judge.verdict()["windows"] == 1


@pytest.mark.parametrize(("window", "block_s"), [("10s", 60.0), ("2s", 12.0), ("500ms", 10.0), ("60s", 60.0)])
def test_the_warm_up_has_six_windows_but_is_never_so_short_that_it_mistakes_a_slow_start(window, block_s):
    assert judge_config(RolloutConfig(window=window)).warm_up_block_s == block_s


def test_mirrored_errors_are_judged_where_requests_are_mirrored():
    assert "mirrored_errors" in judge_config(RolloutConfig()).metrics
    assert "mirrored_errors" not in judge_config(RolloutConfig(mirror=0)).metrics
    assert "mirrored_errors" not in judge_config(RolloutConfig(judge=("latency",))).metrics
