"""The router's draw is what the judge's promise rests on."""

import math
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from argosy.serve.control import EndpointRoute
from argosy.serve.router import CANARY, STABLE, UNCOUNTED, choose, position, resolve

shares = st.floats(0, 1)


def plan(*ready, previous=("", ""), fits=None, **changes):
    route = EndpointRoute(
        **{"name": "m", "stable": "a", "stable_ref": "m:1", "canary": "b", "canary_ref": "m:2", "rollout": "r"}
        | changes
    )
    return resolve(route, set(ready), previous, fits)


@given(shares, st.floats(0, 1, exclude_max=True), st.text())
def test_without_sticky_routing_only_the_drawn_number_decides(share, number, caller):
    chosen = choose(plan("a", "b", share=share), number, 1.0, caller)
    assert (chosen.arm == CANARY) == (number < share)
    assert chosen.digest == ("b" if number < share else "a")


@given(st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_the_canary_gets_its_share(share, seed):
    random = Random(seed)
    one = plan("a", "b", share=share)
    n = 2000
    hits = sum(choose(one, random.random(), 1.0, "").arm == CANARY for _ in range(n))
    # Six standard errors: hypothesis tries many seeds.
    assert abs(hits - n * share) <= 6 * math.sqrt(n * share * (1 - share))


@given(st.text(min_size=1), shares, shares, st.floats(0, 1, exclude_max=True))
def test_a_callers_side_only_changes_towards_the_canary_as_the_share_grows(caller, one, other, number):
    low, high = sorted((one, other))
    before = choose(plan("a", "b", share=low, sticky=True), number, 1.0, caller)
    after = choose(plan("a", "b", share=high, sticky=True), number, 1.0, caller)
    assert not (before.arm == CANARY and after.arm == STABLE)


@given(st.text(min_size=1), shares, st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_a_caller_stays_with_one_version(caller, share, first, second):
    one = plan("a", "b", share=share, sticky=True)
    assert choose(one, first, 1.0, caller) == choose(one, second, 1.0, caller)


def test_callers_spread_evenly_and_independently_of_other_rollouts():
    callers = [f"caller-{i}" for i in range(4000)]
    spots = [position("r", caller) for caller in callers]
    assert all(0 <= spot < 1 for spot in spots)
    for edge in (0.05, 0.25, 0.5):
        assert abs(sum(s < edge for s in spots) - 4000 * edge) < 6 * math.sqrt(4000 * edge * (1 - edge))
    both = sum(position("r", c) < 0.5 and position("other", c) < 0.5 for c in callers)
    assert abs(both - 1000) < 6 * math.sqrt(4000 * 0.25 * 0.75)


@given(st.floats(0, 1), st.floats(0, 1, exclude_max=True), st.floats(0, 1, exclude_max=True))
def test_a_copy_goes_to_the_version_that_was_not_drawn(mirror, number, copy):
    chosen = choose(plan("a", "b", share=0.3, mirror=mirror), number, copy, "")
    assert chosen.mirror == ({"a": "b", "b": "a"}[chosen.digest] if copy < mirror else "")


@given(
    st.sets(st.sampled_from(["a", "b", "p", "k"])),
    shares,
    st.floats(0, 1, exclude_max=True),
    st.sampled_from(["", "p"]),
)
def test_no_request_goes_to_a_version_without_a_replica_while_another_has_one(ready, share, number, previous):
    one = plan(*ready, share=share, backup="k", backup_ref="m:0", previous=(previous, "m:p" if previous else ""))
    chosen = choose(one, number, 1.0, "")
    reachable = ready & {"a", "b", "k", previous}
    if reachable:
        assert chosen.digest in ready
        assert not one.is_held
    else:
        assert chosen.digest == "a"
        assert one.is_held
    # The judge may only use draws between the rollout's own two versions.
    assert chosen.arm == UNCOUNTED or chosen.digest == {CANARY: "b", STABLE: "a"}[chosen.arm]
    assert bool(one.note) or (one.serving == "a" and ("b" in ready or not share))


@given(st.floats(0, 1, exclude_max=True))
def test_the_draw_goes_on_while_the_canary_is_away_and_its_share_is_answered_by_stable_uncounted(number):
    one = plan("a", share=0.5)
    assert one.share == 0.5
    assert "m:2 has no ready replica; its share goes to m:1" in one.note
    chosen = choose(one, number, 0.0, "")
    assert (chosen.digest, chosen.arm, chosen.mirror) == ("a", UNCOUNTED if number < 0.5 else STABLE, "")


def test_a_canary_that_takes_other_inputs_is_not_drawn():
    one = plan("a", "b", share=0.5, fits={"a"})
    assert (one.share, choose(one, 0.0, 1.0, "").digest) == (0.0, "a")


def test_without_a_rollout_nothing_is_counted():
    assert choose(plan("a", canary="", rollout=""), 0.1, 1.0, "").arm == UNCOUNTED
