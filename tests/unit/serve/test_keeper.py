"""The gateway starts a silent controller again, at a bounded pace, and leaves a living one alone."""

import threading
from pathlib import Path

import pytest

from argosy.cluster.launcher import ProcessSpec
from argosy.cluster.local import LocalLauncher
from argosy.core.clock import FakeClock
from argosy.serve.control import Keeper
from argosy.serve.keeper import MOST_BACKOFF_S, SILENT_S, ControllerKeeper
from served import until

LAUNCHED = str(Path(__file__).parents[2] / "conformance")


class Counting(ControllerKeeper):
    def __init__(self, keeper, clock):
        super().__init__(keeper, clock)
        self.starts = threading.Semaphore(0)
        self.count = 0

    def start(self):
        self.count += 1
        self.starts.release()

    def looked(self, after_s):
        before = self.count
        self._clock.advance(after_s)
        self.look()
        if self.starts.acquire(timeout=0.3):
            return True
        assert self.count == before
        return False


def test_silence_starts_it_and_the_tries_grow_rare():
    keeper = Counting(Keeper(folder="x"), FakeClock())
    assert not keeper.looked(0.9 * SILENT_S)
    assert keeper.looked(0.2 * SILENT_S)
    assert not keeper.looked(1.5 * SILENT_S)
    assert keeper.looked(0.6 * SILENT_S)
    for _ in range(6):
        assert keeper.looked(MOST_BACKOFF_S + 1)
    keeper.heard()
    assert not keeper.looked(0.9 * SILENT_S)


def test_without_a_launcher_nobody_is_started():
    assert not Counting(Keeper(), FakeClock()).looked(100.0)


@pytest.mark.parametrize("lives", [False, True])
def test_it_is_started_by_the_launcher_unless_it_lives(tmp_path, lives):
    launcher = LocalLauncher(tmp_path)
    spec = ProcessSpec(name="controller", role="controller", entry="time:sleep", config={})
    # `sleep` of a mapping fails at once: that it was started is what counts here.
    plain = {"name": spec.name, "role": spec.role, "entry": spec.entry, "config": {}}
    if lives:
        # Any process of that name that goes on.
        launcher.start(
            ProcessSpec(name="controller", role="controller", entry="launched:wait", env={"PYTHONPATH": LAUNCHED})
        )
    before = launcher.get("controller")
    ControllerKeeper(Keeper(folder=str(tmp_path), spec=plain), FakeClock()).start()
    after = until(lambda: launcher.get("controller"))
    if lives:
        assert after.pid == before.pid
    else:
        assert before is None
    launcher.stop("controller", 0.2)
