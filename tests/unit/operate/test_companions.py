"""What is wished beside the controller runs again when it was killed, and not when the wish is gone."""

import pytest

from argosy.cluster.launcher import ProcessSpec
from argosy.cluster.memory import MemoryLauncher
from argosy.core.clock import FakeClock
from argosy.core.config import load_settings
from argosy.operate.companions import EVERY_S, MOST_BACKOFF_S, Companions, folder_of, keep_running, let_go

SPEC = ProcessSpec(name="monitor", role="monitor", entry="a:b", config={"port": 1})


@pytest.fixture
def world(tmp_path):
    class World:
        clock = FakeClock()
        launcher = MemoryLauncher(clock)
        settings = load_settings({"ARGOSY_HOME": str(tmp_path / "home"), "ARGOSY_RUNTIME": str(tmp_path / "run")})

        def __init__(self):
            self.said = []
            self.companions = Companions(
                self.settings, self.launcher, self.clock, lambda event, **_: self.said.append(event)
            )

        def look(self, after_s=EVERY_S):
            self.clock.advance(after_s)
            self.companions.keep()
            info = self.launcher.get("monitor")
            return info is not None and info.alive

    return World()


def test_without_a_wish_nothing_is_started(world):
    assert not world.look()


def test_what_was_killed_is_started_again_and_more_rarely_if_it_does_not_stay(world):
    keep_running(world.settings, SPEC)
    assert world.look()
    starts = 1
    for _ in range(200):
        world.launcher.stop("monitor")
        starts += world.look()
    assert starts < 200 * EVERY_S / MOST_BACKOFF_S + 8
    assert world.look(MOST_BACKOFF_S + 1)
    # It stayed, so the next time it is replaced at once.
    world.look(2 * MOST_BACKOFF_S)
    world.launcher.stop("monitor")
    assert world.look()


def test_a_wish_that_was_taken_back_starts_nothing(world):
    keep_running(world.settings, SPEC)
    let_go(world.settings, "monitor")
    let_go(world.settings, "monitor")
    assert not world.look()


def test_a_spoilt_wish_is_told_of_and_harms_nobody(world):
    keep_running(world.settings, SPEC)
    (folder_of(world.settings) / "a.json").write_text("{")
    world.look()
    assert world.said == ["companion_not_started"]
