"""One replica's trouble is not the version's: the judge asks its siblings."""

import math
from itertools import product

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.evaluate.evidence import Worse, log_gain, odds
from argosy.evaluate.judge import AGREEMENT, ERRORS, Judge, JudgeConfig, JudgeState, WindowCounts
from argosy.evaluate.siblings import SPELL_S, WITNESSED, Part, Spared, stands_out

pytestmark = pytest.mark.capability("R2")

CONFIG = JudgeConfig(metrics=(ERRORS,))


def window(index, by, *, bad_stable=0, share=0.1, seconds=10.0, handled=10):
    """`by`: how many requests failed at each of the canary's replicas."""
    bad = sum(by)
    parts = {f"r{i}": Part(handled, {ERRORS: (n, n)} if n else {}) for i, n in enumerate(by)}
    return WindowCounts(
        index=index,
        start_s=index * seconds,
        seconds=seconds,
        share=share,
        bad={ERRORS: (bad, bad + bad_stable)},
        requests_canary=handled * len(by),
        failed_canary=bad,
        replicas=parts,
    )


def judged(rows, **more):
    judge = Judge(CONFIG)
    return [judge.observe(window(i, by, **more)) for i, by in enumerate(rows)]


def test_what_one_replica_does_alone_does_not_roll_back():
    said = judged([(4, 0, 0)] * 12)[-1]
    assert said.verdict == "wait"
    assert said.total > 1e6
    assert said.spared < 2
    assert said.witnessed < WITNESSED
    assert said.spells == {"r0": 48.0}
    assert "one replica may be all there is to it" in said.reason
    assert "48 bad in spells of 'r0'" in said.reason


def test_what_all_do_alike_rolls_back_as_soon_as_without_their_names():
    alike = [(1, 1, 1)] * 12
    named = [v.verdict for v in judged(alike)]
    judge = Judge(CONFIG)
    unnamed = [judge.observe(msgspec.structs.replace(window(i, by), replicas={})).verdict for i, by in enumerate(alike)]
    assert named.index("rollback") == unnamed.index("rollback") == 2


def test_an_only_replica_has_no_witnesses_and_is_judged_as_ever():
    said = judged([(1,)] * 4)[-1]
    assert said.verdict == "rollback"
    assert said.witnessed is None


def test_a_replacement_that_fails_like_the_one_before_is_the_witness():
    judge = Judge(CONFIG)
    for i in range(3):
        judge.take(window(i, (1,)))
    found = []
    for i in range(3, 8):
        parts = {"second": Part(10, {ERRORS: (1, 1)})}
        found.append(judge.observe(msgspec.structs.replace(window(i, (1,)), replicas=parts)))
    assert found[-1].verdict == "rollback"


def test_a_version_that_is_bad_besides_a_sick_replica_is_found():
    assert judged([(8, 1, 1)] * 12)[-1].verdict == "rollback"


def test_a_spell_that_is_over_is_still_left_out_and_later_trouble_counts():
    judge = Judge(CONFIG)
    for i in range(6):
        said = judge.observe(window(i, (8, 0, 0)))
    assert said.verdict == "wait"
    for i in range(6, 30):
        said = judge.observe(window(i, (0, 0, 0), bad_stable=1))
    assert said.verdict == "wait"
    spared = said.spared
    for i in range(30, 40):
        said = judge.observe(window(i, (1, 1, 1)))
    assert said.verdict == "rollback"
    assert spared < 1 < said.spared


def test_differing_answers_of_one_replica_are_its_own():
    judge = Judge(JudgeConfig(metrics=(AGREEMENT,)))
    for i in range(12):
        parts = {
            "sick": Part(20, {AGREEMENT: (15, 20)}),
            "well": Part(20, {AGREEMENT: (0, 20)}),
            "too": Part(20, {AGREEMENT: (0, 20)}),
        }
        said = judge.observe(
            WindowCounts(index=i, start_s=10 * i, seconds=10, share=0.1, bad={AGREEMENT: (15, 60)}, replicas=parts)
        )
    assert said.verdict == "wait"
    assert said.total > 1e4


def test_a_judge_restored_in_the_middle_of_a_spell_goes_on_alike():
    rows = [(0, 0, 1), (4, 0, 0), (4, 0, 0), (4, 1, 0), (0, 0, 1), (1, 1, 1), (0, 2, 1)] * 3
    whole, half = Judge(CONFIG), Judge(CONFIG)
    for i, by in enumerate(rows):
        whole.take(window(i, by))
        half.take(window(i, by))
        half = Judge(CONFIG, msgspec.json.decode(msgspec.json.encode(half.state), type=JudgeState))
    assert half.verdict() == whole.verdict()


def test_what_is_remembered_is_bounded():
    spared = Spared(Worse())
    for i in range(300):
        parts = {f"p{i}-{j}": Part(1, {ERRORS: (1.0, 1.0)}) for j in range(3)}
        spared.window(
            Worse(), parts, ERRORS, (3, 3), end_s=i * 0.1, epoch=0, q0=lambda part: 0.1 * part, is_paired=False
        )
    assert len(spared.recent) <= 256
    assert len(spared.without) <= 64
    assert len(spared.left_out) <= 64
    assert spared.recent[-1].end_s - spared.recent[0].end_s <= SPELL_S


@pytest.mark.parametrize(
    ("bad", "trials", "others_bad", "others_trials", "found"),
    [
        (3, 20, 0, 40, True),
        (3, 20, 1, 40, False),
        (30, 600, 30, 1200, True),
        (3, 20, 6, 40, False),
        (5, 20, 0, 0, False),
        (0, 20, 0, 40, False),
        (3, 2, 0, 40, True),
    ],
)
def test_who_stands_out(bad, trials, others_bad, others_trials, found):
    assert stands_out(bad, trials, others_bad, others_trials) is found


ROWS = st.lists(st.tuples(*[st.integers(0, 6)] * 3, st.integers(0, 4)), min_size=1, max_size=14)


@settings(max_examples=40, deadline=None)
@given(rows=ROWS, share=st.sampled_from([0.05, 0.25, 0.5]), alpha=st.sampled_from([0.01, 0.05, 0.5]))
def test_names_of_replicas_can_only_make_a_rollback_rarer(rows, share, alpha):
    """The promise about good versions, path by path: with names nothing is rolled back that would not be without."""
    config = JudgeConfig(metrics=(ERRORS,), false_alarm=alpha)
    named, unnamed = Judge(config), Judge(config)
    for i, (*by, stable) in enumerate(rows):
        found = window(i, by, bad_stable=stable, share=share)
        said = named.observe(found)
        plain = unnamed.observe(msgspec.structs.replace(found, replicas={}))
        assert said.total == plain.total
        assert said.verdict != "rollback" or plain.verdict == "rollback"


@settings(max_examples=20, deadline=None)
@given(
    share=st.sampled_from([0.05, 0.25, 0.5]),
    replicas=st.integers(2, 4),
    requests=st.integers(1, 4),
    bad=st.integers(1, 4),
    ratio=st.sampled_from([2.0, 5.0, 20.0]),
)
def test_the_evidence_without_a_process_expects_no_gain_whatever_that_process_does(
    share, replicas, requests, bad, ratio
):
    """All outcomes of one window are tried: where each request went, and what the process that is left out made of it.

    `bad` of the requests would fail anywhere: the version is no worse, so that who gets them is chance.
    """
    bad = min(bad, requests)
    places = ["stable", *range(replicas)]
    chance = [1 - share, *[share / replicas] * replicas]
    expected = 0.0
    for where in product(range(replicas + 1), repeat=requests):
        probability = math.prod(chance[i] for i in where)
        at = [places[i] for i in where]
        mine, canary = at.count(0), sum(place != "stable" for place in at)
        taken = mine / canary if canary else 0.0
        # Of what process 0 handled nothing is left, whatever share of it (`sick`) failed besides.
        elsewhere = [place for place in at[:bad] if place != 0]
        bad_canary = sum(place != "stable" for place in elsewhere)
        against = odds(share, 1 - min(taken, 1 / replicas))
        expected += probability * math.exp(log_gain(odds(against, ratio), against, bad_canary, len(elsewhere)))
    assert expected <= 1 + 1e-9
