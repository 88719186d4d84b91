"""The judge's arithmetic, to the digits of its specification (docs/decisions/0003-judge.md)."""

import math
import subprocess
import sys

import msgspec
import pytest

from argosy.core.errors import InvalidInput
from argosy.evaluate.evidence import EXCLUDABLE, MAX_EPOCHS, NotWorse, Worse, log_gain, odds
from argosy.evaluate.foresight import foresee
from argosy.evaluate.judge import Judge, JudgeConfig, JudgeState, Verdict, WindowCounts, median_bucket

MIXED = [(1, 1), (0, 1), (2, 3), (0, 0), (1, 2), (0, 4)]


def values(counts, share, ratio=1.0):
    evidence, found = Worse(), []
    for i, (bad_canary, bad_all) in enumerate(counts):
        evidence.window(odds(share, ratio), bad_canary, bad_all, i // 60)
        found.append(round(evidence.value(), 4))
    return found


def window(index, bad=None, share=0.1, seconds=10.0, **more):
    return WindowCounts(index=index, start_s=index * seconds, seconds=seconds, share=share, bad=bad or {}, **more)


ERRORS_ONLY = JudgeConfig(metrics=("errors",))


@pytest.mark.parametrize(
    ("counts", "share", "ratio", "expected"),
    [
        ([(1, 1)] * 4, 0.1, 1, [3.4763, 17.1662, 101.4216, 649.748]),
        (MIXED, 0.1, 1, [3.4763, 1.9552, 5.6381, 5.6381, 15.7493, 7.4862]),
        (MIXED, 0.1, 1.25, [3.1794, 1.7108, 4.3110, 4.3110, 10.3564, 4.8677]),
        ([(200, 200)], 0.05, 1, [4.5541]),
    ],
)
def test_evidence_grows_as_specified(counts, share, ratio, expected):
    assert values(counts, share, ratio) == expected


def test_evidence_at_even_shares_reaches_100_at_the_ninth_window():
    found = values([(1, 1)] * 12, 0.5)
    assert next(i for i, value in enumerate(found, 1) if value >= 100) == 9
    assert round(found[-1], 3) == 739.338


def test_evidence_of_disagreement_ends_as_specified():
    assert values([(1, 10)] * 12, 0.02)[-1] == 1984.7242


def test_money_kept_for_later_finds_a_fault_that_appears_in_the_eleventh_minute():
    evidence = Worse()
    for i in range(66):
        evidence.window(0.05 if i < 60 else 0.25, 0 if i < 60 else 1, 1, i // 60)
    assert round(evidence.value(), 4) == 68.0651


def test_a_window_without_anything_bad_changes_nothing():
    evidence = Worse()
    evidence.window(0.3, 0, 0, 0)
    assert evidence.value() == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("bad_all", [0.2, 1, 2, 7, 1000])
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
def test_the_expected_gain_of_a_fair_draw_is_one(share, bad_all):
    """The whole promise: whatever bet, the mean over the draw of a single bad unit is 1."""
    for bet in (odds(share, 2), odds(share, 20), odds(share, 0.5)):
        canary, stable = (math.exp(log_gain(bet, share, s * bad_all, bad_all)) for s in (1, 0))
        assert share * canary + (1 - share) * stable == pytest.approx(1.0, abs=1e-12)


def test_evidence_stays_finite_and_bounded_in_size():
    evidence = Worse()
    for i in range(3000):
        evidence.window(0.5, 1, 1, i)
    assert math.isfinite(evidence.value())
    assert len(evidence.bets) == MAX_EPOCHS


def test_four_bad_windows_roll_back_and_the_reason_has_the_numbers():
    judge = Judge(ERRORS_ONLY)
    verdicts = [judge.observe(window(i, {"errors": (1, 1)})) for i in range(4)]
    assert [v.verdict for v in verdicts] == ["wait", "wait", "rollback", "rollback"]
    assert [round(v.total, 4) for v in verdicts] == [3.4763, 17.1662, 101.4216, 649.748]
    assert verdicts[2].threshold == 100
    assert verdicts[2].metric == "errors"
    assert verdicts[2].reason == (
        "errors: 3 of 3 failed requests were the new version's where about 0.3 were tolerated "
        "(evidence 101.4, needed 100)"
    )


def test_a_rollback_is_never_taken_back():
    judge = Judge.replay(ERRORS_ONLY, [window(i, {"errors": (1, 1)}) for i in range(4)])
    for i in range(4, 40):
        verdict = judge.observe(window(i, {"errors": (0, 5)}))
    assert verdict.total < 100
    assert verdict.verdict == "rollback"


@pytest.mark.parametrize(
    ("metrics", "weights"),
    [
        (("errors",), {"errors": 1.0}),
        (("errors", "latency"), {"errors": 0.5, "latency": 0.5}),
        (("errors", "latency", "agreement"), {"errors": 0.5, "latency": 0.25, "agreement": 0.25}),
        (("latency", "agreement"), {"latency": 0.5, "agreement": 0.5}),
    ],
)
def test_weights_add_up_to_one_and_errors_have_half(metrics, weights):
    assert JudgeConfig(metrics=metrics).weights() == weights


def test_metrics_are_added_with_their_weights():
    config = JudgeConfig(metrics=("errors", "agreement", "mirrored_errors"))
    verdict = Judge(config).observe(
        window(0, {"errors": (1, 1), "agreement": (1, 10), "mirrored_errors": (1, 1), "unknown": (9, 9)})
    )
    assert verdict.metrics["errors"].evidence == pytest.approx(3.4763, abs=5e-5)
    assert verdict.metrics["agreement"].evidence == pytest.approx(1.3936, abs=5e-5)
    assert verdict.metrics["mirrored_errors"].evidence == pytest.approx(1.5079, abs=5e-5)  # q0 = 1/2
    assert verdict.total == pytest.approx(0.5 * 3.4763 + 0.25 * 1.3936 + 0.25 * 1.5079, abs=1e-4)


def test_tolerated_errors_shift_the_fair_share_of_errors_and_mirrored_errors():
    config = JudgeConfig(metrics=("errors", "mirrored_errors"), tolerate={"errors": 1.25})
    judge = Judge(config)
    for i, counts in enumerate(MIXED):
        verdict = judge.observe(window(i, {"errors": counts, "mirrored_errors": (1, 1)}))
    assert round(verdict.metrics["errors"].evidence, 4) == 4.8677
    assert verdict.metrics["mirrored_errors"].bad_expected == pytest.approx(6 * 1.25 / 2.25)


def test_evidence_is_carried_on_when_the_share_changes():
    judge = Judge(ERRORS_ONLY)
    first = judge.observe(window(0, {"errors": (1, 1)}, share=0.1))
    second = judge.observe(window(1, {"errors": (1, 1)}, share=0.5))
    assert second.total > first.total > 1


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_windows_in_which_nobody_was_drawn_prove_nothing_but_mirrored_pairs_do(share):
    config = JudgeConfig(metrics=("errors", "agreement"))
    verdict = Judge(config).observe(window(0, {"errors": (0, 7), "agreement": (5, 10)}, share=share))
    assert verdict.metrics["errors"].evidence == pytest.approx(1.0)
    assert verdict.metrics["agreement"].evidence > 2


def test_a_window_that_was_seen_already_changes_nothing():
    judge = Judge(ERRORS_ONLY)
    judge.observe(window(0, {"errors": (1, 1)}))
    judge.observe(window(5, {"errors": (1, 1)}))
    for index in (0, 3, 5):
        again = judge.observe(window(index, {"errors": (1, 1)}))
    assert round(again.total, 4) == 17.1662
    assert again.windows == 2


def test_the_judge_is_the_same_when_replayed_or_restored_in_the_middle():
    config = JudgeConfig(warm_up_block_s=20)
    windows = [
        window(
            i,
            {"errors": (i % 3 == 0, i % 2 + 1), "latency": (0.5, 3.0), "agreement": (i % 2, 20)},
            share=(0.05, 0.25)[i > 20],
            requests_canary=50,
            failed_canary=int(i % 3 == 0),
            latency_stable={300: 60, 310: 3},
            latency_canary={300 + i: 60},
        )
        for i in range(80)
    ]
    whole = Judge.replay(config, windows)
    half = Judge.replay(config, windows[:33])
    stored = msgspec.json.encode(half.state)
    other = Judge(config, msgspec.json.decode(stored, type=JudgeState))
    for found in windows[33:]:
        verdict = other.observe(found)
    assert verdict == whole.verdict()
    assert msgspec.json.decode(msgspec.json.encode(verdict), type=Verdict) == verdict


def test_epochs_follow_minutes_whatever_the_window():
    judge = Judge(ERRORS_ONLY)
    judge.observe(window(599, {"errors": (1, 1)}, seconds=1.0))
    assert len(judge.state.metrics["errors"].worse.bets) == 1
    judge.observe(window(600, {"errors": (1, 1)}, seconds=1.0))
    assert len(judge.state.metrics["errors"].worse.bets) == 2


def test_a_clock_that_jumps_back_does_no_harm():
    judge = Judge(ERRORS_ONLY)
    judge.observe(WindowCounts(index=0, start_s=700, seconds=10, share=0.1, bad={"errors": (1, 1)}))
    judge.observe(WindowCounts(index=1, start_s=-50, seconds=10, share=0.1, bad={"errors": (1, 1)}))
    assert len(judge.state.metrics["errors"].worse.bets) == 2


# --- promotion ---


def test_about_800_clean_requests_promote_a_service_that_never_fails():
    judge, requests = Judge(ERRORS_ONLY), 0
    while judge.observe(window(requests // 10, requests_canary=10)).verdict != "promote":
        requests += 10
    assert requests + 10 == pytest.approx(811, abs=10)


def test_failures_of_every_hundredth_request_do_not_look_clean():
    judge = Judge(ERRORS_ONLY)
    for i in range(100):
        verdict = judge.observe(window(i, requests_canary=100, failed_canary=1))
    assert verdict.verdict == "wait"


def test_a_version_as_good_as_stable_is_promoted_and_the_excluded_ratio_falls():
    judge, excluded = Judge(ERRORS_ONLY), []
    verdict = judge.verdict()
    while verdict.verdict != "promote" and verdict.windows < 500:
        i = verdict.windows
        verdict = judge.observe(window(i, {"errors": (1, 2)}, share=0.5, requests_canary=10, failed_canary=1))
        excluded.append(verdict.excluded)
    assert verdict.verdict == "promote"
    assert verdict.excluded == 2.0
    seen = [ratio for ratio in excluded if ratio is not None]
    assert seen == sorted(seen, reverse=True)
    assert excluded[0] is None
    assert set(seen) <= set(EXCLUDABLE)
    assert "no metric can be twice as bad" in verdict.reason


def test_promotion_waits_for_every_metric_but_mirrored_errors():
    config = JudgeConfig(metrics=("errors", "agreement", "mirrored_errors"))
    judge = Judge(config)
    waiting = judge.observe(window(0, {"agreement": (0, 5)}, requests_canary=2000))
    assert (waiting.verdict, waiting.metric) == ("wait", "agreement")
    assert "waiting for agreement" in waiting.reason
    assert judge.observe(window(1, {"agreement": (0, 400)}, requests_canary=10)).verdict == "promote"


def test_disagreement_at_twice_the_tolerated_odds_is_not_evidence_for_promotion():
    evidence = NotWorse.new(2)
    for _ in range(50):
        evidence.window(0.02, 40, 1000)
        evidence.pairs(0.02, 40, 1000)
    assert evidence.value() < 1


def test_before_the_first_window_the_judge_waits():
    verdict = Judge(JudgeConfig()).verdict()
    assert (verdict.verdict, verdict.metric, verdict.total) == ("wait", "", pytest.approx(1.0))


# --- latency's warm-up ---


def answers(median, count=60):
    return {round(math.log(median) / math.log(1.02)) + shift: count // 3 for shift in (-1, 0, 1)}


def latency_window(index, canary, seconds=60.0, count=60):
    return window(
        index,
        {"latency": (1.0, 1.0)},
        seconds=seconds,
        latency_stable=answers(1.0),
        latency_canary=answers(canary, count),
    )


def test_latency_counts_only_when_the_canary_stops_getting_faster():
    judge = Judge(JudgeConfig(metrics=("latency",)))
    totals = [judge.observe(latency_window(i, m)).total for i, m in enumerate([3.0, 2.0, 1.2, 1.15, 1.15])]
    # The fourth block is within 5 % of the third, so the fifth is the first that counts.
    assert totals[:4] == [pytest.approx(1.0)] * 4
    assert totals[4] > 3
    assert not judge.verdict().warming


def test_a_verdict_says_that_it_waits_for_the_warm_up():
    verdict = Judge(JudgeConfig(metrics=("latency",))).observe(latency_window(0, 3.0))
    assert verdict.warming
    assert "warm up" in verdict.reason


def test_a_block_needs_fifty_answers_of_each_version():
    judge = Judge(JudgeConfig(metrics=("latency",)))
    for i in range(4):
        judge.observe(latency_window(i, 1.0, count=9))  # 9 a minute: no block is full before the sixth
    assert judge.state.warm_up.former is None


def test_after_ten_minutes_latency_counts_anyway():
    judge = Judge(JudgeConfig(metrics=("latency",)))
    for i in range(9):
        assert judge.observe(latency_window(i, 1.0, count=3)).warming
    assert not judge.observe(latency_window(9, 1.0, count=3)).warming


def test_shorter_blocks_are_possible_where_traffic_is_dense():
    judge = Judge(JudgeConfig(metrics=("latency",), warm_up_block_s=10))
    for i in range(20):
        judge.observe(latency_window(i, 1.0, seconds=1.0))
    assert not judge.verdict().warming


def test_medians_are_interpolated_in_their_bucket():
    assert median_bucket({5: 10}) == 5.5
    assert median_bucket({5: 1, 7: 3}) == pytest.approx(7 + 1 / 3)
    with pytest.raises(InvalidInput, match="empty"):
        median_bucket({})


# --- wrong input ---


@pytest.mark.parametrize("counts", [(2, 1), (-1, 3), (float("nan"), 1), (1, float("inf")), (0, float("nan"))])
def test_counts_that_cannot_be_are_refused(counts):
    judge = Judge(ERRORS_ONLY)
    with pytest.raises(InvalidInput, match="bad for 'errors'"):
        judge.observe(window(0, {"errors": counts}))
    assert judge.state.windows == 0


@pytest.mark.parametrize(
    "wrong", [{"share": 1.5}, {"share": float("nan")}, {"requests_canary": 1, "failed_canary": 2}, {"seconds": -1.0}]
)
def test_windows_that_cannot_be_are_refused(wrong):
    with pytest.raises(InvalidInput, match="window 0"):
        Judge(ERRORS_ONLY).observe(window(0, **wrong))


@pytest.mark.parametrize(
    "wrong",
    [
        {"metrics": ()},
        {"metrics": ("errors", "errors")},
        {"false_alarm": 0.0},
        {"false_alarm": 0.9},
        {"tolerate": {"errors": 0.5}},
        {"tolerate_disagreement": 0.0},
        {"tolerate_disagreement": 1.0},
        {"warm_up_block_s": 0.0},
    ],
)
def test_impossible_configs_are_refused(wrong):
    with pytest.raises(InvalidInput):
        Judge(JudgeConfig(**wrong))


# --- foresight ---


@pytest.mark.parametrize(
    ("rate", "base", "ratio", "simulated"),
    [(600, 0.005, 5, 5.3), (6000, 0.005, 5, 1.3), (6000, 0.005, 2, 5.8), (6000, 0.02, 2, 3.2), (600, 0.02, 5, 2.2)],
)
def test_foreseen_times_are_near_the_simulated_medians(rate, base, ratio, simulated):
    found = foresee(JudgeConfig(), requests_per_min=rate, base_rate=base, share=0.1, ratio=ratio)
    assert 0.6 < found.rollback_min / simulated < 1.6


def test_foresight_says_when_there_is_too_little_to_judge_by():
    found = foresee(JudgeConfig(), requests_per_min=60, base_rate=0.001, share=0.1, minutes=30)
    assert found.is_blind
    assert "mirror" in found.advice
    assert not foresee(JudgeConfig(), requests_per_min=6000, base_rate=0.01, share=0.1).is_blind


def test_foresight_of_a_service_without_errors_counts_on_clean_requests():
    found = foresee(JudgeConfig(), requests_per_min=600, base_rate=0.0, share=0.5)
    assert found.rollback_min is None
    assert found.promote_min == pytest.approx(811 / 300, rel=0.02)


def test_foresight_of_no_traffic_foresees_nothing():
    found = foresee(JudgeConfig(metrics=("latency",)), requests_per_min=0, base_rate=0.05, share=0.1, metric="latency")
    assert (found.rollback_min, found.promote_min) == (None, None)


def test_the_judge_needs_no_numpy():
    code = "import argosy.evaluate.judge, argosy.evaluate.foresight, sys; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def shadowed(metrics, windows, **bad):
    judge = Judge(JudgeConfig(metrics=metrics, tolerate_disagreement=0.05))
    for n in range(windows):
        judge.take(WindowCounts(index=n, start_s=10.0 * n, seconds=10.0, share=0.0, bad=bad))
    return judge.verdict()


IN_SHADOW = ("agreement", "mirrored_errors", "constant")


@pytest.mark.capability("R2")
def test_a_version_that_gets_copies_only_is_promoted_by_about_800_clean_pairs():
    assert shadowed(IN_SHADOW, 40, agreement=(0.0, 20.0)).verdict == "wait"
    assert shadowed(IN_SHADOW, 41, agreement=(0.0, 20.0)).verdict == "promote"


def test_a_version_that_says_one_thing_is_rolled_back_though_it_agrees_often_enough():
    found = shadowed(IN_SHADOW, 15, agreement=(0.5, 20.0), constant=(18.0, 18.0))
    assert (found.verdict, found.metric) == ("rollback", "constant")
    assert "did not change with the input" in found.reason


def test_versions_that_are_equally_often_constant_are_not_told_apart():
    assert shadowed(IN_SHADOW, 500, agreement=(0.0, 20.0), constant=(4.0, 8.0)).verdict == "promote"
