import pytest

from argosy.core.errors import Unavailable
from argosy.serve.batcher import OVER, VersionQueue, Work
from argosy.serve.lanes import WAITING
from argosy.serve.requests import Inputs
from plane import SIGNATURE


class Hand:
    """A replica that keeps the batches it is handed."""

    def __init__(self, max_batch=4, padding=1.0):
        self.max_batch = max_batch
        self.padding = padding
        self.batches = []

    def run(self, works, now):
        self.batches.append(works)


class Note(Work):
    __slots__ = ("name",)

    def __init__(self, name, rows=1, key=(), size=8):
        super().__init__(Inputs((), rows, key, size))
        self.name = name

    def __repr__(self):
        return self.name


def queue(**changes):
    return VersionQueue("d", SIGNATURE, **{"max_requests": 100, "max_bytes": 10_000} | changes)


def names(hand):
    return [[w.name for w in batch] for batch in hand.batches]


def fill(target, *works):
    for work in works:
        target.submit(work, 0.0)
    return works


def dispatch(target, *hands):
    target.idle.extend(hands)
    target.dispatch(0.0)


def test_what_has_queued_goes_together_up_to_the_useful_batch():
    q, hand = queue(), Hand(max_batch=3)
    fill(q, *(Note(str(i)) for i in range(5)))
    dispatch(q, hand)
    assert names(hand) == [["0", "1", "2"]]
    assert q.requests == 2


def test_two_idle_replicas_share_what_waits():
    q, left, right = queue(), Hand(max_batch=8), Hand(max_batch=8)
    fill(q, *(Note(str(i)) for i in range(5)))
    dispatch(q, left, right)
    assert names(left) + names(right) == [["0", "1", "2"], ["3", "4"]]


def test_a_request_of_many_rows_counts_its_rows():
    q, hand = queue(), Hand(max_batch=4)
    fill(q, Note("a", rows=3), Note("b", rows=2), Note("c", rows=1))
    dispatch(q, hand)
    assert names(hand) == [["a", "c"]]


def test_a_request_larger_than_a_batch_runs_alone():
    q, hand = queue(), Hand(max_batch=4)
    fill(q, Note("a", rows=100), Note("b"))
    dispatch(q, hand)
    assert names(hand) == [["a"]]


def test_only_equal_shapes_share_a_run_and_the_others_keep_their_place():
    q, hand = queue(), Hand()
    fill(q, Note("a", key=((8,),)), Note("b", key=((9,),)), Note("c", key=((8,),)), Note("d", key=((9,),)))
    dispatch(q, hand)
    dispatch(q, hand)
    assert names(hand) == [["a", "c"], ["b", "d"]]


def test_a_version_that_cannot_be_batched_gets_one_request_at_a_time():
    q, hand = queue(), Hand()
    fill(q, Note("a", key=None), Note("b", key=None))
    dispatch(q, hand)
    dispatch(q, hand)
    assert names(hand) == [["a"], ["b"]]


def test_a_suspect_runs_alone_and_nobody_runs_with_it():
    q, hand = queue(), Hand()
    a, b, c = fill(q, Note("a"), Note("b"), Note("c"))
    b.is_alone = True
    for _ in range(3):
        dispatch(q, hand)
    assert names(hand) == [["a", "c"], ["b"]]
    assert a.state == c.state


def test_a_withdrawn_request_never_runs_and_frees_its_room():
    q, hand = queue(max_requests=2), Hand()
    a, b = fill(q, Note("a"), Note("b"))
    q.withdraw(a)
    fill(q, Note("c"))
    dispatch(q, hand)
    assert names(hand) == [["b", "c"]]
    assert (a.state, b.state) == (OVER, "running")


def test_withdrawn_requests_do_not_pile_up_while_no_replica_is_there():
    q = queue()
    for i in range(10_000):
        work = Note(str(i))
        q.submit(work, 0.0)
        q.withdraw(work)
    assert sum(len(lane.waiting) for lane in q._lanes.values()) < 200
    assert (q.requests, q.size_bytes) == (0, 0)


def test_a_full_queue_refuses_and_says_when_to_come_again():
    q = queue(max_requests=2)
    fill(q, Note("a"), Note("b"))
    with pytest.raises(Unavailable) as caught:
        q.submit(Note("c"), 0.0)
    assert caught.value.code == "queue_full"
    assert caught.value.retry_after_s == 1.0


def test_the_queue_is_bounded_in_bytes_too():
    q = queue(max_bytes=100)
    fill(q, Note("a", size=90))
    with pytest.raises(Unavailable):
        q.submit(Note("b", size=20), 0.0)


def test_a_request_taken_back_can_go_into_another_queue_without_running_twice():
    old, new, hand = queue(), queue(), Hand()
    (a,) = fill(old, Note("a"))
    old.take_back(a)
    new.resubmit(a, 0.0)
    dispatch(old, hand)
    assert names(hand) == []
    dispatch(new, hand)
    assert names(hand) == [["a"]]


def test_a_request_put_back_comes_first_and_is_not_refused_for_room():
    q, hand = queue(max_requests=1), Hand(max_batch=1)
    fill(q, Note("a"))
    q.resubmit(Note("b"), 0.0)
    dispatch(q, hand)
    assert names(hand) == [["b"]]


def test_everything_can_be_taken_out_in_order():
    q = queue()
    works = fill(q, Note("a"), Note("b"), Note("c"))
    q.withdraw(works[1])
    taken = q.take_all()
    assert [w.name for w in taken] == ["a", "c"]
    assert all(w.state == WAITING for w in taken)
    assert q.requests == 0
