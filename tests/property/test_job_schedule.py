"""What holds of the schedule of jobs, whatever they need and whenever they come."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from argosy.operate.jobs.schedule import PRIORITY_S, Resources, Running, Start, Stop, Waiting, place_in_line, schedule

needs = st.builds(Resources, st.integers(1, 4), st.integers(1, 8), st.integers(0, 2))
capacities = st.builds(Resources, st.integers(1, 6), st.integers(1, 12), st.integers(0, 2))
moments = st.integers(0, 20_000).map(float)
priorities = st.integers(-3, 3)
waiting_jobs = st.builds(
    lambda n, p, s, e, h: {"needs": n, "priority": p, "submitted": s, "estimate_s": e, "is_held": h},
    needs,
    priorities,
    moments,
    st.sampled_from([0.0, 0.0, 5.0, 60.0, 500.0]),
    st.sampled_from([False, False, False, True]),
)
running_jobs = st.builds(
    lambda n, p, s, left, stops: {"needs": n, "priority": p, "submitted": s, "left_s": left, "is_stopping": stops},
    needs,
    priorities,
    moments,
    st.sampled_from([0.0, 5.0, 60.0, 500.0]),
    st.sampled_from([False, False, True]),
)


def total(jobs):
    found = Resources()
    for job in jobs:
        found += job.needs
    return found


@st.composite
def states(draw):
    capacity = draw(capacities)
    waiting = [Waiting(id=f"w{i}", **job) for i, job in enumerate(draw(st.lists(waiting_jobs, max_size=7)))]
    running = [Running(id=f"r{i}", **job) for i, job in enumerate(draw(st.lists(running_jobs, max_size=5)))]
    if draw(st.booleans()):  # often a set that was admitted here; else one that no longer fits
        while not total(running).fits(capacity):
            running.pop()
    return capacity, waiting, running


@pytest.mark.capability("H1")
@given(states(), st.sampled_from([0, 3, 100]))
def test_nothing_is_ever_committed_twice_and_each_job_gets_all_or_nothing(state, available):
    capacity, waiting, running = state
    actions = schedule(capacity, waiting, running, available_bytes=available)
    started = [job for job in waiting for action in actions if isinstance(action, Start) and action.id == job.id]
    assert len({action.id for action in actions}) == len(actions)
    assert not any(job.is_held for job in started)
    if started:
        # What is being stopped still has what it has; a job that starts never counts on it.
        for part, (has, used) in enumerate(zip(capacity.parts, total([*running, *started]).parts, strict=True)):
            assert used <= has or not any(job.needs.parts[part] for job in started)
    assert total(started).memory_bytes <= available


@given(states())
def test_what_no_longer_fits_is_stopped_and_what_stays_fits(state):
    capacity, waiting, running = state
    actions = schedule(capacity, waiting, running)
    stopped = {action.id for action in actions if isinstance(action, Stop)}
    staying = [job for job in running if job.id not in stopped and not job.is_stopping]
    assert total(staying).fits(capacity)
    urgent = [job for job in running for a in actions if isinstance(a, Stop) and a.is_urgent and a.id == job.id]
    if total([job for job in running if not job.is_stopping]).fits(capacity):
        assert urgent == []
    for victim in urgent:  # the lowest, and of those the youngest, that has any of what is short
        for other in staying:
            if all(n > 0 for n in other.needs.parts) or other.needs.gpus >= victim.needs.gpus:
                assert (victim.priority, -victim.submitted) <= (other.priority, -other.submitted)


@given(states())
def test_a_job_is_preempted_only_for_one_of_strictly_higher_priority_that_then_fits(state):
    capacity, waiting, running = state
    actions = schedule(capacity, waiting, running)
    preempted = [j for j in running for a in actions if isinstance(a, Stop) and not a.is_urgent and a.id == j.id]
    if not preempted:
        return
    started = {action.id for action in actions if isinstance(action, Start)}
    line = sorted((j for j in waiting if not j.is_held and j.needs.fits(capacity)), key=place_in_line)
    head = next(job for job in line if job.id not in started)
    stopped = {action.id for action in actions if isinstance(action, Stop)}
    for victim in preempted:
        assert victim.priority < head.priority
        assert place_in_line(victim) > place_in_line(head), "it would start again before the one it was stopped for"
    staying = [j for j in running if j.id not in stopped and not j.is_stopping]
    begun = [j for j in waiting if j.id in started]
    room = capacity - total(staying) - total(begun)
    assert head.needs.fits(room)
    for spared in preempted:  # none more than is needed
        assert not head.needs.fits(room - spared.needs)


@given(states())
def test_the_same_state_gives_the_same_actions_in_any_order(state):
    capacity, waiting, running = state
    assert schedule(capacity, waiting, running) == schedule(capacity, waiting[::-1], running[::-1])


def simulate(capacity, jobs, *, may_pass=True, until=10**7):
    """Run jobs whose estimates are exact; return when each started. Stopped jobs begin anew with what is left."""
    now, waiting, running, started = 0.0, [], {}, {}
    arrivals = sorted(jobs, key=lambda job: job.submitted)
    left = {job.id: job.estimate_s for job in jobs}
    by_id = {job.id: job for job in jobs}
    while arrivals or waiting or running:
        while arrivals and arrivals[0].submitted <= now:
            waiting.append(arrivals.pop(0))
        while True:
            seen = [
                Running(
                    id=i, needs=by_id[i].needs, priority=by_id[i].priority, submitted=by_id[i].submitted, left_s=e - now
                )
                for i, e in running.items()
            ]
            actions = schedule(capacity, waiting, seen)
            if not may_pass:
                actions = [a for a in actions if isinstance(a, Stop) or a.why == "first in line"]
            if not actions:
                break
            for action in actions:
                job = by_id[action.id]
                if isinstance(action, Start):
                    waiting.remove(job)
                    running[job.id] = now + left[job.id]
                    started.setdefault(job.id, now)
                else:
                    left[job.id] = max(1.0, running.pop(job.id) - now)
                    waiting.append(job)
            assert total([by_id[i] for i in running]).fits(capacity)
        coming = list(running.values()) + [job.submitted for job in arrivals[:1]]
        assert coming, f"{[job.id for job in waiting]} wait for ever on an idle machine"
        now = min(coming)
        assert now < until
        running = {i: end for i, end in running.items() if end > now}
    return started


jobs_to_simulate = st.lists(
    st.tuples(needs, st.integers(-1, 1), st.integers(0, 300), st.integers(1, 200)), min_size=1, max_size=9
)
BIG = Resources(4, 8, 2)


def made(drawn, *, priority=None):
    return [
        Waiting(
            id=f"j{i}", needs=n, priority=p if priority is None else priority, submitted=float(s), estimate_s=float(e)
        )
        for i, (n, p, s, e) in enumerate(drawn)
    ]


@pytest.mark.capability("H1")
@given(jobs_to_simulate)
def test_every_job_runs_in_the_end_and_the_machine_never_stands_idle_beside_a_waiting_one(drawn):
    jobs = made(drawn)
    assert simulate(BIG, jobs).keys() == {job.id for job in jobs}


@pytest.mark.capability("H1")
@given(jobs_to_simulate)
def test_who_passes_never_delays_the_head(drawn):
    """The first of the line that has to wait starts as early as in a strict line, where nobody passes anybody."""
    same = [msgspec.structs.replace(job, submitted=0.0) for job in made(drawn, priority=0)]
    line = sorted(same, key=place_in_line)
    room, head = BIG, None
    for job in line:
        if not job.needs.fits(room):
            head = job
            break
        room -= job.needs
    if head is None:
        return
    upto = line[: line.index(head) + 1]
    alone = simulate(BIG, upto, may_pass=False)
    together = simulate(BIG, same)
    assert together[head.id] <= alone[head.id]


@settings(max_examples=20)
@given(st.integers(1, 2), st.lists(st.integers(1, 100), min_size=20, max_size=26))
def test_a_stream_of_more_urgent_jobs_holds_a_lower_one_up_only_for_so_long(higher, lengths):
    """Each step of priority is worth half an hour: jobs that come later than that stand behind."""
    low = Waiting(id="low", needs=BIG, priority=0, submitted=0.0, estimate_s=10.0)
    stream = [
        Waiting(id=f"h{i}", needs=BIG, priority=higher, submitted=i * 200.0, estimate_s=float(length) + 200.0)
        for i, length in enumerate(lengths)
    ]
    started = simulate(BIG, [*stream, low])
    before = [job for job in stream if started[job.id] < started["low"]]
    assert all(job.submitted <= higher * PRIORITY_S for job in before)


def test_a_small_job_passes_where_the_head_is_not_delayed_and_waits_where_it_would_be():
    head = Waiting(id="head", needs=Resources(4, 4), submitted=1.0, estimate_s=100.0)
    running = [Running(id="r", needs=Resources(2, 2), submitted=0.0, left_s=50.0)]
    short = Waiting(id="short", needs=Resources(1, 1), submitted=2.0, estimate_s=40.0)
    long = Waiting(id="long", needs=Resources(1, 1), submitted=2.0, estimate_s=60.0)
    unknown = Waiting(id="unknown", needs=Resources(1, 1), submitted=2.0)
    room = Resources(4, 8)
    assert [a.id for a in schedule(room, [head, short], running)] == ["short"]
    assert schedule(room, [head, long], running) == []
    assert schedule(room, [head, unknown], running) == []
    small_head = Waiting(id="head", needs=Resources(3, 4), submitted=1.0, estimate_s=100.0)
    assert [a.id for a in schedule(room, [small_head, long], running)] == ["long"], "one core stays free beside it"


def test_where_an_end_is_not_known_only_what_the_head_does_not_wait_for_may_pass():
    running = [Running(id="r", needs=Resources(1, 1, 1), submitted=0.0)]
    head = Waiting(id="head", needs=Resources(1, 1, 1), submitted=1.0)
    beside = Waiting(id="beside", needs=Resources(1, 1), submitted=2.0)
    assert [a.id for a in schedule(Resources(4, 8, 1), [head, beside], running)] == ["beside"]
    assert schedule(Resources(2, 8, 1), [head, beside], running) == []


def test_a_job_that_endpoints_leave_no_room_for_holds_up_nobody():
    big = Waiting(id="big", needs=Resources(1, 10), submitted=0.0)
    small = Waiting(id="small", needs=Resources(1, 2), submitted=1.0)
    assert [a.id for a in schedule(Resources(2, 8), [big, small], [])] == ["small"]


def test_who_is_no_more_urgent_stops_nobody_and_who_came_long_before_is_not_stopped():
    head = Waiting(id="head", needs=Resources(2, 2), priority=1, submitted=10_000.0)

    def stopped(**job):
        return [a.id for a in schedule(Resources(2, 2), [head], [Running(id="r", needs=Resources(2, 2), **job)])]

    assert stopped(priority=0, submitted=9_000.0) == ["r"]
    assert stopped(priority=1, submitted=11_000.0) == [], "it passed the head, and is no less urgent"
    assert stopped(priority=0, submitted=1_000.0) == [], "it would start again before the head, and be stopped again"
