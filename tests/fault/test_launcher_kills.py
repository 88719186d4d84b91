"""Real kill -9 at bad moments: no process is doubled, lost or left."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from argosy.cluster import child
from argosy.cluster.launcher import ProcessSpec, stop_all
from argosy.cluster.local import LocalLauncher
from argosy.core.errors import Conflict

ENTRIES = str(Path(__file__).parents[1] / "conformance")


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)
    return found


def spec(name="one", entry="wait", **more):
    return ProcessSpec(name=name, role="replica", entry=f"launched:{entry}", env={"PYTHONPATH": ENTRIES}, **more)


@pytest.fixture
def launcher(tmp_path):
    launcher = LocalLauncher(tmp_path / "processes")
    yield launcher
    stop_all(launcher, [info.name for info in launcher.list()], grace_s=0)


STARTER = """
import sys
from pathlib import Path
from argosy.cluster import local
from argosy.cluster.launcher import ProcessSpec
import os, signal

def die(*_, **__):
    os.kill(os.getpid(), signal.SIGKILL)

moment = sys.argv[2]
if moment == "before the record":
    local.write_atomic = die
elif moment == "before the process":
    local.os.posix_spawn = die
elif moment == "right after the process":
    real = os.posix_spawn
    def spawn(*a, **k):
        real(*a, **k)
        die()
    local.os.posix_spawn = spawn
elif moment == "before its identity":
    local.child.write_identity = die
spec = ProcessSpec(name="one", role="replica", entry="launched:wait", env={"PYTHONPATH": sys.argv[3]})
local.LocalLauncher(Path(sys.argv[1])).start(spec)
die()
"""


def killed_starter(launcher, moment):
    done = subprocess.run(
        [sys.executable, "-c", STARTER, str(launcher.folder), moment, ENTRIES], check=False, capture_output=True
    )
    assert done.returncode == -9, done.stderr


@pytest.mark.parametrize("moment", ["before the record", "before the process"])
def test_a_starter_killed_before_the_process_leaves_none_and_the_name_free(launcher, moment):
    killed_starter(launcher, moment)
    assert [info for info in launcher.list() if info.alive] == []
    launcher.stop("one")
    assert launcher.start(spec()).alive


@pytest.mark.parametrize("moment", ["right after the process", "before its identity", "after the start"])
def test_a_starter_killed_after_the_process_leaves_one_that_others_know(launcher, moment):
    killed_starter(launcher, moment)
    # At once, and again when the process has come to itself.
    with pytest.raises(Conflict):
        launcher.start(spec())
    info = until(lambda: (found := launcher.get("one")) and found.pid and found)
    assert info.alive
    assert child.start_ticks(info.pid) > 0
    with pytest.raises(Conflict):
        launcher.start(spec())
    launcher.stop("one")
    assert child.start_ticks(info.pid) == 0


def test_stop_right_after_the_starter_was_killed_leaves_nothing(launcher):
    killed_starter(launcher, "right after the process")
    launcher.stop("one")
    assert launcher.get("one").alive is False
    assert child.start_ticks(launcher.get("one").pid) == 0


def test_a_detached_process_outlives_the_kill_of_its_starter(launcher, tmp_path):
    inner = {"name": "inner", "detached": True, "config": {"ready": str(tmp_path / "ready")}}
    inner["env"] = {"PYTHONPATH": ENTRIES}
    outer = launcher.start(spec("outer", "start_one", config={"folder": str(launcher.folder), "spec": inner}))
    until((tmp_path / "ready").exists)
    pid = json.loads((tmp_path / "ready").read_text())["pid"]
    os.kill(outer.pid, signal.SIGKILL)
    until(lambda: not launcher.get("outer").alive)
    assert launcher.get("outer").exit_code == -9
    adopted = LocalLauncher(launcher.folder).get("inner")
    assert (adopted.alive, adopted.pid) == (True, pid)


@pytest.mark.parametrize("from_a_thread", [False, True])
def test_a_process_that_is_not_detached_dies_with_its_starter_and_not_before(launcher, tmp_path, from_a_thread):
    inner = {"name": "inner", "detached": False, "config": {"ready": str(tmp_path / "ready")}}
    inner["env"] = {"PYTHONPATH": ENTRIES}
    config = {"folder": str(launcher.folder), "spec": inner, "from_a_thread": from_a_thread}
    outer = launcher.start(spec("outer", "start_one", config=config))
    until((tmp_path / "ready").exists)
    pid = json.loads((tmp_path / "ready").read_text())["pid"]
    # The kernel's signal is bound to the starting thread, which has ended by now in one of the cases.
    assert child.start_ticks(pid) > 0
    os.kill(outer.pid, signal.SIGKILL)
    until(lambda: child.start_ticks(pid) == 0)
    assert launcher.get("inner").alive is False


def test_a_child_whose_starter_died_before_it_could_ask_ends_itself(launcher, tmp_path):
    folder = tmp_path / "lone"
    folder.mkdir()
    (folder / "record.json").write_text(json.dumps({"token": "t", "spec": {"name": "lone", "entry": "os:abort"}}))
    # Its parent is this process, not the one it is told.
    done = subprocess.run(
        [sys.executable, "-m", "argosy.cluster.child", str(folder / "record.json"), "1"],
        check=False,
        pass_fds=(),
        preexec_fn=lambda: os.dup2(0, child.LOCK),
    )
    assert done.returncode == 1
    assert not (folder / "pid.json").exists()


def test_a_successor_ends_what_its_killed_predecessor_had_started(launcher, tmp_path):
    config = {"ready": str(tmp_path / "ready"), "family": str(tmp_path / "family")}
    info = launcher.start(spec(config=config))
    until((tmp_path / "ready").exists)
    grandchild = int((tmp_path / "family").read_text())
    os.kill(info.pid, signal.SIGKILL)
    until(lambda: not launcher.get("one").alive)
    assert launcher.start(spec()).pid != info.pid
    until(lambda: child.start_ticks(grandchild) == 0)


def test_many_kills_at_random_moments_never_double_or_lose_a_process(launcher):
    """Starters are killed at 12 moments spread over their start; afterwards the name is either free or known."""
    command = [sys.executable, "-c", STARTER.replace("\ndie()\n", "\n"), str(launcher.folder), "never", ENTRIES]
    for number in range(12):
        starter = subprocess.Popen(command)
        pidfd = os.pidfd_open(starter.pid)
        folder = launcher.folder / "one"
        # From the lock's appearance on, a little later each time.
        (folder / "record.json").unlink(missing_ok=True)
        record = folder / "record.json"
        until(lambda record=record, starter=starter: record.exists() or starter.poll() is not None)
        deadline = time.monotonic() + number * 0.0005
        while time.monotonic() < deadline:
            pass
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        starter.wait()
        launcher.stop("one")
        assert launcher.get("one").alive is False
        mark = json.loads((folder / "record.json").read_text())["token"]
        assert marked(mark) == []


def marked(token):
    """Return the living processes that carry the token, whatever the launcher believes."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            try:
                marks = Path(entry.path, "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if f"ARGOSY_PROCESS={token}".encode() in marks and child.start_ticks(int(entry.name)):
                found.append(int(entry.name))
    return found
