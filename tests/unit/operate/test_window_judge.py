"""From the gateway's windows to the judge: time counts from the first window, whoever replays them."""

import msgspec
import pytest

from argosy.operate import desired as d
from argosy.operate.config import RolloutConfig
from argosy.operate.desired import Rollout, Target
from argosy.operate.judging import WindowJudge, judge_config
from argosy.serve.control import ReplicaPart, Window


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


def test_the_names_of_replicas_reach_the_judge_also_through_the_log():
    """One of three fails all it gets: held back; the same windows without the names: rolled back."""
    parts = {name: ReplicaPart(handled=5, bad={"errors": (5.0, 5.0)} if name == "a" else {}) for name in "abc"}
    windows = [
        Window(
            rollout="r1",
            index=n,
            start=10.0 * n,
            seconds=10.0,
            share=0.1,
            requests_canary=15,
            failed_canary=5,
            bad={"errors": (5.0, 5.0)},
            replicas=parts,
        )
        for n in range(12)
    ]
    told, stored, untold = WindowJudge(rollout(0.0)), WindowJudge(rollout(0.0)), WindowJudge(rollout(0.0))
    for window in windows:
        told.take(window)
        plain = msgspec.json.decode(msgspec.json.encode(msgspec.to_builtins(window, str_keys=True)))
        stored.take(msgspec.convert(plain, Window, str_keys=True))
        untold.take(msgspec.structs.replace(window, replicas={}))
    assert told.verdict() == stored.verdict()
    assert told.verdict()["verdict"] == "wait"
    assert told.verdict()["spells"] == {"a": 60.0}
    assert untold.verdict()["verdict"] == "rollback"
