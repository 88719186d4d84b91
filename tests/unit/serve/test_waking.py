"""How a held request wakes the controller, and how another one is started where none listens."""

import threading
import time

import pytest

from argosy.core.clock import FakeClock
from argosy.serve.waking import AGAIN_S, START_AGAIN_S, Bell, Waker, ring

pytestmark = pytest.mark.capability("R6")


def test_a_bell_wakes_at_once_and_only_when_it_is_rung(tmp_path):
    bell = Bell(tmp_path / "b")
    assert not bell.wait(0.0)
    timer = threading.Timer(0.01, ring, [tmp_path / "b"])
    timer.start()
    began = time.monotonic()
    assert bell.wait(30.0)
    assert time.monotonic() - began < 20.0
    timer.join()
    assert not bell.wait(0.0)
    bell.close()


def test_nobody_listens_where_there_is_no_bell_or_its_owner_was_killed(tmp_path):
    assert not ring(tmp_path / "none")
    bell = Bell(tmp_path / "b")
    bell.close()
    assert (tmp_path / "b").exists()
    assert not ring(tmp_path / "b")
    again = Bell(tmp_path / "b")
    assert ring(tmp_path / "b")
    again.close()


def test_a_bell_that_is_never_heard_does_not_block_who_rings_it(tmp_path):
    bell = Bell(tmp_path / "b")
    assert all(ring(tmp_path / "b") for _ in range(2000))
    assert bell.wait(0.0)
    assert not bell.wait(0.0)
    bell.close()


def test_a_controller_is_started_when_none_listens_and_not_again_at_once(tmp_path):
    clock, started = FakeClock(), []
    waker = Waker(tmp_path / "b", clock, lambda: started.append(clock.monotonic()))
    waker()
    waker()
    clock.advance(1.0)
    waker()
    assert len(started) == 1
    clock.advance(START_AGAIN_S)
    waker()
    assert len(started) == 2
    bell = Bell(tmp_path / "b")
    clock.advance(2 * START_AGAIN_S)
    waker()
    assert len(started) == 2
    assert bell.wait(0.0)
    bell.close()


def test_it_is_rung_no_more_often_than_it_can_be_heard(tmp_path):
    clock = FakeClock()
    bell = Bell(tmp_path / "b")
    waker = Waker(tmp_path / "b", clock)
    waker()
    assert bell.wait(0.0)
    waker()
    assert not bell.wait(0.0)
    clock.advance(2 * AGAIN_S)
    waker()
    assert bell.wait(0.0)
    bell.close()
