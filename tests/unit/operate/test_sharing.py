"""Who gets how many replicas of a machine that has no room for all."""

import pytest

from argosy.operate.sharing import BACKUP, CANARY, Ask, Machine, share

pytestmark = pytest.mark.capability("R6")

GB = 10**9
TEN = Machine(memory_bytes=int(10 * GB / 0.8))
"""A machine that gives 10 GB to replicas."""


def ask(ref, replicas, **changes):
    return Ask(digest=ref, ref=ref, replicas=replicas, **{"memory_bytes": GB} | changes)


def numbers(asks, machine=TEN):
    return {digest: grant.replicas for digest, grant in share(asks, machine).items()}


def test_where_all_fit_all_get_what_they_ask():
    grants = share([ask("a", 6), ask("b", 4)], TEN)
    assert [(g.replicas, g.limit) for g in grants.values()] == [(6, ""), (4, "")]


def test_higher_priority_comes_first_but_a_first_replica_before_anybodys_second():
    assert numbers([ask("low", 6), ask("high", 12, priority=5)]) == {"low": 1, "high": 9}


def test_equals_get_the_same_part_of_what_they_ask():
    assert numbers([ask("a", 12), ask("b", 8)]) == {"a": 6, "b": 4}


def test_what_an_endpoint_has_at_least_comes_before_what_others_would_like():
    assert numbers([ask("a", 3, least=3), ask("b", 20, priority=1)]) == {"a": 3, "b": 7}


def test_serving_comes_before_trials_and_these_before_what_is_kept_warm():
    asks = [ask("former", 1, purpose=BACKUP, priority=9), ask("new", 3, purpose=CANARY, priority=9), ask("now", 8)]
    assert numbers(asks) == {"now": 8, "new": 2, "former": 0}


def test_a_trial_that_runs_is_not_ended_by_a_neighbours_load():
    asks = [ask("new", 1, purpose=CANARY, running=1), ask("now", 4), ask("other", 30, priority=5)]
    assert numbers(asks)["new"] == 1


def test_what_fits_nowhere_gets_nothing_and_is_told_why():
    grant = share([ask("huge", 1, memory_bytes=12 * GB), ask("small", 1)], TEN)
    assert (grant["huge"].replicas, grant["small"].replicas) == (0, 1)
    assert "a replica of huge takes 12 GB" in grant["huge"].limit
    assert "may take 10 GB" in grant["huge"].limit


def test_cores_bound_what_follows_the_load_and_busy_neighbours_count():
    machine = Machine(cores=4)
    alone = share([ask("a", 8, is_scaled=True)], machine)["a"]
    assert (alone.replicas, alone.limit) == (4, "this machine has 4 cores")
    both = [ask("a", 8, is_scaled=True), ask("b", 8, is_scaled=True, busy=3.0)]
    assert numbers(both, machine) == {"a": 2, "b": 4}
    # One that idles keeps its replica and leaves the cores.
    assert numbers([ask("a", 8, is_scaled=True), ask("b", 1, is_scaled=True)], machine) == {"a": 4, "b": 1}
    assert numbers([ask("a", 8, is_scaled=True, threads=2)], machine) == {"a": 2}
    assert numbers([ask("fixed", 8)], machine) == {"fixed": 8}


def test_only_what_is_added_needs_memory_that_is_free_now():
    short = Machine(memory_bytes=100 * GB, free_bytes=int(2.5 * GB))
    found = share([ask("a", 8, running=3)], short)["a"]
    assert found.replicas == 5
    assert "2.5 GB of memory are free now" in found.limit
    assert numbers([ask("a", 8, running=8)], Machine(100 * GB, 1)) == {"a": 8}
    assert numbers([ask("a", 1)], Machine(100 * GB, 1)) == {"a": 1}


def test_a_version_of_which_no_size_is_known_is_not_held_back():
    assert numbers([ask("a", 30, memory_bytes=0)]) == {"a": 30}
