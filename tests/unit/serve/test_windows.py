import pytest

from argosy.core.clock import FakeClock
from argosy.serve import windows
from argosy.serve.control import EndpointRoute, latency_bucket, median_latency, merge_latency
from argosy.serve.router import CANARY, STABLE
from argosy.serve.windows import Windows, recent_answers, thresholds


class Trial:
    """One rollout, counted by hand."""

    def __init__(self, share=0.1, window_s=10.0, answers=(), **changes):
        self.clock = FakeClock()
        self.windows = Windows(self.clock)
        self.answers = recent_answers()
        self.answers.extend(answers)
        self.route = EndpointRoute(
            name="m",
            stable="a",
            stable_ref="m:1",
            canary="b",
            canary_ref="m:2",
            rollout="r",
            window_s=window_s,
            **changes,
        )
        self.rollout = self.windows.follow(self.route, share, self.answers)

    def one(self, arm, *, failed=False, latency=0.01, batch=0, caller="", segment=None):
        segment = segment or self.rollout.drawn()
        self.rollout.finished(segment, arm, None if failed else latency, failed=failed, batch=batch, caller=caller)

    def share(self, share):
        self.rollout = self.windows.follow(self.route, share, self.answers)

    def close(self, seconds=10.0):
        self.clock.advance(seconds)
        self.windows.tick()
        return self.windows.closed({})


def test_a_window_counts_requests_and_first_failures_of_both_versions():
    trial = Trial()
    for arm, failed in ((STABLE, False), (STABLE, True), (CANARY, False), (CANARY, True), (CANARY, True)):
        trial.one(arm, failed=failed)
    (window,) = trial.close()
    assert (window.requests_stable, window.requests_canary) == (2, 3)
    assert (window.failed_stable, window.failed_canary) == (1, 2)
    assert window.bad == {"errors": (2.0, 3.0)}
    assert (window.share, window.rollout) == (0.1, "r")
    assert window.seconds == pytest.approx(10.0)
    assert window.start == 1_800_000_000.0


def test_the_canarys_replicas_are_told_apart_and_stables_are_not():
    trial = Trial(answers=[0.01] * 300)
    for arm, failed, latency, replica in (
        (STABLE, True, 0.01, "s"),
        (CANARY, True, 0.01, "one"),
        (CANARY, False, 1.0, "two"),
        (CANARY, False, 0.001, "two"),
        (CANARY, True, 0.01, ""),
    ):
        segment = trial.rollout.drawn()
        found = None if failed else latency
        trial.rollout.finished(segment, arm, found, failed=failed, batch=0, caller="", replica=replica)
    trial.rollout.pair(stable_failed=False, canary_failed=False, agree=False, replica="one")
    trial.rollout.pair(stable_failed=False, canary_failed=True, agree=False, replica="three", is_copy=True)
    (window,) = trial.close()
    assert window.bad["errors"] == (2.0, 3.0)
    assert {name: (part.handled, part.bad) for name, part in window.replicas.items()} == {
        "one": (1, {"errors": (1.0, 1.0), "agreement": (1.0, 1.0)}),
        "two": (2, {"latency": (1.0, 1.0)}),
        "three": (1, {"mirrored_errors": (1.0, 1.0)}),
    }


def test_what_counts_once_counts_once_for_its_replica_too():
    trial = Trial()
    for _ in range(3):
        segment = trial.rollout.drawn()
        trial.rollout.finished(segment, CANARY, None, failed=True, batch=7, caller="ada", replica="one")
    (window,) = trial.close()
    assert (window.bad["errors"], window.replicas["one"].handled) == ((1.0, 1.0), 3)
    assert window.replicas["one"].bad == {"errors": (1.0, 1.0)}


def test_only_so_many_replicas_are_told_apart():
    trial = Trial()
    for number in range(100):
        segment = trial.rollout.drawn()
        trial.rollout.finished(segment, CANARY, None, failed=True, batch=0, caller="", replica=f"r{number}")
    (window,) = trial.close()
    assert len(window.replicas) == 64
    assert window.bad["errors"] == (100.0, 100.0)


def test_nothing_is_kept_of_a_window_without_requests():
    assert Trial().close() == []


def test_windows_of_one_rollout_have_growing_numbers_also_after_a_restart():
    trial = Trial(window_s=0.001)
    for _ in range(3):
        trial.one(STABLE)
        trial.close(0.001)
    first = [window.index for window in trial.windows.closed({})]
    again = Trial(window_s=0.001)
    again.clock.advance(1.0)
    again.one(STABLE)
    (later,) = again.close()
    assert first == sorted(set(first))
    assert later.index > first[-1]


def test_requests_of_a_batch_that_failed_together_count_once_but_all_are_said():
    trial = Trial()
    for _ in range(8):
        trial.one(CANARY, failed=True, batch=17)
    trial.one(CANARY, failed=True, batch=18)
    (window,) = trial.close()
    assert window.bad["errors"] == (2.0, 2.0)
    assert window.failed_canary == 9


def test_a_caller_counts_once_per_metric_and_rollout():
    trial = Trial(answers=[0.01] * 300)
    for caller in ("ann", "ann", "bob"):
        trial.one(CANARY, failed=True, caller=caller)
        trial.one(CANARY, latency=9.0, caller=caller)
    (first,) = trial.close()
    trial.one(CANARY, failed=True, caller="ann")
    trial.one(STABLE, failed=True, caller="eve")
    second = trial.close()[-1]
    assert first.bad == {"errors": (2.0, 2.0), "latency": (2.0, 2.0)}
    assert second.bad["errors"] == (0.0, 1.0)
    assert second.failed_canary == 1


def test_a_change_of_the_share_closes_the_window():
    trial = Trial(share=0.05)
    trial.one(STABLE)
    trial.clock.advance(3.0)
    trial.share(0.25)
    trial.one(STABLE)
    closed = trial.close()
    assert [(w.share, w.requests_stable) for w in closed] == [(0.05, 1), (0.25, 1)]
    assert closed[0].seconds == pytest.approx(3.0)


def test_a_request_is_counted_with_the_share_it_was_drawn_with():
    trial = Trial(share=0.05)
    segment = trial.rollout.drawn()
    trial.share(0.25)
    trial.one(STABLE)
    trial.clock.advance(5.0)
    trial.one(CANARY, failed=True, segment=segment)
    closed = trial.close()
    assert {w.share: (w.requests_stable, w.bad["errors"]) for w in closed} == {
        0.05: (0, (1.0, 1.0)),
        0.25: (1, (0.0, 0.0)),
    }


def test_a_window_of_a_former_share_does_not_wait_for_ever():
    trial = Trial(share=0.05)
    trial.one(STABLE)
    trial.rollout.drawn()
    trial.share(0.25)
    assert [w.share for w in trial.close(50.0)] == []
    assert [w.share for w in trial.close(11.0)] == [0.05]


def test_a_long_request_is_counted_in_the_window_in_which_it_ends():
    trial = Trial()
    segment = trial.rollout.drawn()
    trial.one(STABLE)
    trial.close()
    trial.one(CANARY, failed=True, segment=segment)
    closed = trial.close()
    assert [w.bad["errors"] for w in closed] == [(0.0, 0.0), (1.0, 1.0)]


def test_latency_has_no_say_before_stable_has_given_200_answers():
    assert thresholds(recent_answers()) is None
    trial = Trial(answers=[0.01] * 199)
    trial.one(CANARY, latency=9.0)
    assert "latency" not in trial.close()[0].bad


def test_slow_answers_count_in_two_halves_and_the_canarys_are_tolerated():
    # p50 is 0.051, p95 is 0.096; the canary is allowed 1.25 times.
    trial = Trial(answers=[i / 1000 for i in range(1, 101)] * 3)
    for arm, latency in (
        (STABLE, 0.051), (STABLE, 0.06), (STABLE, 0.2), (CANARY, 0.06), (CANARY, 0.07), (CANARY, 0.119), (CANARY, 0.13),
    ):  # fmt: skip
        trial.one(arm, latency=latency)
    (window,) = trial.close()
    assert window.bad["latency"] == (0.5 + 0.5 + 1.0, 0.5 + 1.0 + 2.0)


def test_the_thresholds_are_fixed_at_the_start_of_a_window():
    trial = Trial(answers=[0.01] * 300)
    trial.answers.extend([1.0] * 500)
    trial.one(STABLE, latency=0.5)
    assert trial.close()[0].bad["latency"] == (0.0, 1.0)
    trial.one(STABLE, latency=0.5)
    assert trial.close()[-1].bad["latency"] == (0.0, 0.0)


def test_medians_can_be_taken_over_several_windows():
    trial = Trial()
    for latency in (0.010, 0.020, 0.030):
        trial.one(CANARY, latency=latency)
        trial.close()
    closed = trial.windows.closed({})
    merged = merge_latency(window.latency_canary for window in closed)
    assert sum(merged.values()) == 3
    assert median_latency(merged) == pytest.approx(0.020, rel=0.011)


@pytest.mark.parametrize("seconds", [0.0, 1e-6, 1e-5, 3.3e-4, 0.02, 1.0, 600.0])
def test_a_bucket_is_right_to_one_per_cent(seconds):
    assert median_latency({latency_bucket(seconds): 1}) == pytest.approx(max(seconds, 1e-5), rel=0.0105)


def test_the_median_of_nothing_is_nothing():
    assert median_latency({}) == 0.0


@pytest.mark.parametrize(
    ("stable_failed", "canary_failed", "agree", "bad"),
    [
        (False, False, True, {"agreement": (0.0, 1.0)}),
        (False, False, False, {"agreement": (1.0, 1.0)}),
        (True, False, False, {"mirrored_errors": (0.0, 1.0)}),
        (False, True, False, {"mirrored_errors": (1.0, 1.0)}),
    ],
)
def test_pairs_are_counted_as_the_judge_wants_them(stable_failed, canary_failed, agree, bad):
    trial = Trial()
    trial.rollout.pair(stable_failed=stable_failed, canary_failed=canary_failed, agree=agree)
    assert trial.close()[0].bad == {"errors": (0.0, 0.0)} | bad


def test_a_pair_of_which_both_failed_says_nothing():
    trial = Trial()
    trial.rollout.pair(stable_failed=True, canary_failed=True, agree=False)
    assert trial.close() == []


def test_closed_windows_are_kept_until_they_are_acknowledged():
    trial = Trial()
    for _ in range(3):
        trial.one(STABLE)
        trial.close()
    first, second, third = trial.windows.closed({})
    assert trial.windows.closed({"other": third.index}) == [first, second, third]
    assert trial.windows.closed({"r": second.index}) == [third]
    assert trial.windows.waiting == 1


def test_windows_nobody_takes_are_bounded(monkeypatch):
    monkeypatch.setattr(windows, "MAX_WINDOWS", 5)
    trial = Trial()
    for _ in range(8):
        trial.one(STABLE)
        last = trial.close()[-1]
    assert trial.windows.waiting == 5
    assert trial.windows.dropped == 3
    assert trial.windows.closed({})[-1] == last


def test_the_end_of_a_rollout_closes_its_last_window():
    trial = Trial()
    trial.one(CANARY, failed=True)
    trial.windows.forget("m")
    assert [w.bad["errors"] for w in trial.windows.closed({})] == [(1.0, 1.0)]


def test_another_rollout_of_the_endpoint_starts_afresh():
    trial = Trial()
    trial.one(CANARY, failed=True, caller="ann")
    trial.route = EndpointRoute(name="m", stable="a", stable_ref="m:1", canary="c", canary_ref="m:3", rollout="r2")
    trial.share(0.1)
    trial.one(CANARY, failed=True, caller="ann")
    closed = trial.close()
    assert [(w.rollout, w.bad["errors"]) for w in closed] == [("r", (1.0, 1.0)), ("r2", (1.0, 1.0))]


@pytest.mark.parametrize(
    ("stable", "canary", "bad"),
    [(True, False, (1.0, 1.0)), (False, True, (0.0, 1.0)), (True, True, None), (False, False, None)],
)
def test_an_answer_that_does_not_change_is_counted_where_only_one_version_gave_it(stable, canary, bad):
    trial = Trial(share=0.0)
    trial.rollout.pair(stable_failed=False, canary_failed=False, agree=False)
    trial.rollout.varied(stable=stable, canary=canary)
    (window,) = trial.close()
    assert window.bad.get("constant") == bad
