"""What every launcher keeps, checked against each of them."""

import threading
import time
from pathlib import Path

import pytest

from argosy.cluster.launcher import LAUNCHERS, ProcessSpec, stop_all
from argosy.cluster.local import LocalLauncher
from argosy.cluster.memory import MemoryLauncher
from argosy.core.errors import Conflict, InvalidInput, NotFound

HERE = str(Path(__file__).parent)


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)
    return found


class Local:
    """Drives real processes."""

    def __init__(self, folder):
        self.folder = folder
        self.launcher = LocalLauncher(folder)

    def spec(self, name="one", entry="wait", config=None, role="replica", **more):
        return ProcessSpec(
            name=name, role=role, entry=f"launched:{entry}", config=config or {}, env={"PYTHONPATH": HERE}, **more
        )

    def ended(self, name):
        return until(lambda: (info := self.launcher.get(name)) and not info.alive and info)

    def end(self, name, error=None, code=0, text=""):
        pass  # real ones end by themselves

    def again(self):
        return LocalLauncher(self.folder)


class Memory(Local):
    """Drives the fake, ending its processes as real ones would."""

    def __init__(self, folder):
        self.launcher = MemoryLauncher()

    def ended(self, name):
        return self.launcher.get(name)

    def end(self, name, error=None, code=0, text=""):
        self.launcher.write(name, text)
        self.launcher.end(name, code, error)

    def again(self):
        return self.launcher


@pytest.fixture(params=[Local, Memory], ids=["local", "memory"])
def drive(request, tmp_path):
    drive = request.param(tmp_path / "processes")
    yield drive
    stop_all(drive.launcher, [info.name for info in drive.launcher.list()], grace_s=0)


def test_a_started_process_is_listed_with_what_was_asked(drive):
    before = drive.launcher.list()
    info = drive.launcher.start(drive.spec(role="gateway"))
    found = drive.again().list()
    assert before == []
    assert [(p.name, p.role, p.alive, p.exit_code) for p in found] == [("one", "gateway", True, None)]
    assert found[0].pid == info.pid > 0
    assert found[0].started == info.started
    assert drive.launcher.list(role="replica") == []
    assert [p.name for p in drive.launcher.list(role="gateway")] == ["one"]


def test_a_name_lives_only_once(drive):
    drive.launcher.start(drive.spec())
    with pytest.raises(Conflict, match="'one' is running already"):
        drive.again().start(drive.spec())


def test_of_eight_who_start_one_name_together_exactly_one_succeeds(drive):
    gate = threading.Barrier(8)
    outcomes = []

    def start():
        launcher = drive.again()
        gate.wait()
        try:
            outcomes.append(launcher.start(drive.spec()).pid)
        except Conflict:
            outcomes.append(None)

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winners = [pid for pid in outcomes if pid is not None]
    assert len(outcomes) == 8
    assert len(winners) == 1
    assert drive.launcher.get("one").pid == winners[0]


def test_a_stopped_process_is_dead_and_its_name_is_free_again(drive):
    first = drive.launcher.start(drive.spec())
    drive.launcher.stop("one")
    assert drive.launcher.get("one").alive is False
    assert drive.launcher.get("one").exit_code == -15
    second = drive.launcher.start(drive.spec())
    assert second.pid != first.pid
    assert drive.launcher.get("one").alive is True
    assert drive.launcher.get("one").exit_code is None


def test_stopping_what_has_ended_or_is_unknown_is_harmless(drive):
    drive.launcher.stop("nobody")
    drive.launcher.start(drive.spec(entry="finish"))
    drive.end("one")
    drive.ended("one")
    drive.launcher.stop("one")
    assert drive.launcher.get("one").exit_code == 0


def test_the_exit_code_is_what_the_entry_returned(drive):
    drive.launcher.start(drive.spec(entry="finish", config={"code": 7}))
    drive.end("one", code=7)
    assert drive.ended("one").exit_code == 7
    assert drive.launcher.error("one") is None


def test_an_error_comes_back_whole(drive):
    raised = InvalidInput("the pipe is 3 m, the ship is 2 m", hint="cut it", code="too_long", length_m=3)
    drive.launcher.start(drive.spec(entry="refuse"))
    drive.end("one", raised, 2)
    info = drive.ended("one")
    error = drive.again().error("one")
    assert info.exit_code == 2
    assert isinstance(error, InvalidInput)
    assert (error.code, error.message, error.hint) == (raised.code, raised.message, raised.hint)


def test_an_error_is_forgotten_by_the_next_start(drive):
    drive.launcher.start(drive.spec(entry="refuse"))
    drive.end("one", InvalidInput("no"), 2)
    drive.ended("one")
    drive.launcher.start(drive.spec())
    assert drive.launcher.error("one") is None


def test_the_log_holds_what_the_process_wrote(drive):
    drive.launcher.start(drive.spec(config={"say": "first\nsecond\nthird"}))
    if isinstance(drive, Memory):
        drive.launcher.write("one", "first\nsecond\nthird\n")
    until(lambda: "third" in drive.launcher.log_tail("one"))
    assert drive.launcher.log_tail("one", 2) == "second\nthird\n"
    assert drive.launcher.log_tail("one", 0) == ""


def test_a_forgotten_process_is_unknown(drive):
    drive.launcher.start(drive.spec(entry="finish"))
    drive.end("one")
    drive.ended("one")
    drive.launcher.forget("one")
    drive.launcher.forget("one")
    assert drive.launcher.get("one") is None
    assert drive.launcher.list() == []
    with pytest.raises(NotFound, match="'one'"):
        drive.launcher.log_tail("one")
    drive.launcher.start(drive.spec())
    assert drive.launcher.get("one").alive


def test_a_living_process_is_not_forgotten(drive):
    drive.launcher.start(drive.spec())
    with pytest.raises(Conflict):
        drive.launcher.forget("one")
    assert drive.launcher.get("one").alive


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "a b", "x" * 121, "a..b", "nul\0"])
def test_names_that_could_leave_the_folder_are_refused(drive, name):
    with pytest.raises(InvalidInput, match="cannot name a process"):
        drive.launcher.start(drive.spec(name=name))
    with pytest.raises(InvalidInput, match="cannot name a process"):
        drive.launcher.get(name)


def test_entries_and_configs_that_no_process_could_take_are_refused(drive):
    with pytest.raises(InvalidInput, match="not an entry"):
        drive.launcher.start(ProcessSpec(name="one", role="rank", entry="no_function"))
    with pytest.raises(InvalidInput, match="not plain JSON"):
        drive.launcher.start(drive.spec(config={"function": print}))
    with pytest.raises(InvalidInput, match="-1 threads"):
        drive.launcher.start(drive.spec(threads=-1))
    assert drive.launcher.list() == []


def test_the_table_knows_the_local_launcher():
    assert LAUNCHERS.load("local") is LocalLauncher
