"""What can be asked of jobs, what an operator sees of them, and what they are counted with."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from argosy.cluster.launcher import ProcessInfo
from argosy.core.clock import FakeClock
from argosy.core.errors import Conflict, InvalidInput, NotFound
from argosy.operate import desired as d
from argosy.operate.desired import Desired
from argosy.operate.jobs import commands
from argosy.operate.jobs import fold as f
from argosy.operate.jobs.capacity import (
    choose_cores,
    choose_gpus,
    count_gpus,
    endpoint_bytes,
    jobs_capacity,
    machine_resources,
)
from argosy.operate.jobs.fold import Jobs
from argosy.operate.jobs.folders import JobFolders, keep_result, keep_usage, place_of
from argosy.operate.jobs.needs import GUESS_BYTES, needs_like
from argosy.operate.jobs.schedule import Resources
from argosy.operate.jobs.scheduler import Usage
from argosy.operate.jobs.view import look_at_jobs
from argosy.operate.memory import FakeLog
from argosy.operate.replicas import version_key

MACHINE = Resources(4, 16_000_000_000, 0)


class Line:
    def __init__(self):
        self.clock = FakeClock()
        self.log = FakeLog([], self.clock)

    def submit(self, *words, needs=Resources(1, 10, 0), **given):  # noqa: B008 - frozen
        self.clock.advance(1)
        words = words or ("run",)
        return commands.submit(
            self.log, words, title=words[0], folder="/p", place="here", needs=needs, machine=MACHINE, **given
        )

    def write(self, kind, id_, **data):
        self.log.append(kind, id_, data)

    def jobs(self):
        found = Jobs()
        self.log.refresh()
        found.catch_up(self.log)
        return found

    def view(self, processes=()):
        return look_at_jobs(self.jobs(), processes, now=self.clock.now())


@pytest.fixture
def line():
    return Line()


def test_the_same_job_twice_is_one_and_says_so(line):
    first = line.submit()
    again = line.submit()
    assert (again.job, again.is_changed) == (first.job, False)
    assert again.summary == f"'{first.job}' is this very job, and waits"
    assert line.submit("run", "--set", "train.epochs=2").is_changed
    commands.cancel(line.log, first.job)
    assert line.submit().is_changed, "one that is being cancelled does not count"


def test_a_job_that_the_machine_can_never_run_is_refused_with_what_there_is(line):
    with pytest.raises(InvalidInput, match=r"asks for 1 core, 10 B of memory, 1 GPU; this machine has 4 cores, 16 GB"):
        line.submit(needs=Resources(1, 10, 1))
    with pytest.raises(InvalidInput, match="at least one core"):
        line.submit(needs=Resources(0, 10, 0))
    for words in ((), ("deploy", "m"), ("--json",)):
        with pytest.raises(InvalidInput, match="can't be a job"):
            commands.check_command(words)
    with pytest.raises(InvalidInput, match="between -10 and 10"):
        line.submit(priority=11)


def test_cancelling_and_moving_may_be_repeated_and_end_with_the_job(line):
    job = line.submit().job
    assert commands.set_priority(line.log, job, 3).is_changed
    assert not commands.set_priority(line.log, job, 3).is_changed
    assert commands.cancel(line.log, job).is_changed
    assert not commands.cancel(line.log, job).is_changed
    other = line.submit("train").job
    line.write(f.STARTED, other, attempt=1)
    line.write(f.ENDED, other, attempt=1, outcome=f.DONE)
    with pytest.raises(Conflict, match="is done already"):
        commands.cancel(line.log, other)
    with pytest.raises(Conflict, match="is done already"):
        commands.set_priority(line.log, other, 1)
    with pytest.raises(NotFound, match="waiting or running are: j1"):
        commands.cancel(line.log, "j99")


def test_the_view_lists_what_runs_then_the_line_then_what_ended(line):
    names = {name: line.submit(name).job for name in ("run", "train", "compress", "convert")}
    line.write(f.STARTED, names["run"], attempt=1)
    line.write(
        f.ENDED, names["run"], attempt=1, outcome=f.FAILED, reason="no data", error={"code": "x", "message": "no"}
    )
    line.write(f.STARTED, names["train"], attempt=1, cores=[1])
    commands.set_priority(line.log, names["convert"], 2)
    line.clock.advance(60)
    seen = line.view()
    assert [job.id for job in seen] == [names[n] for n in ("train", "convert", "compress", "run")]
    assert [job.state for job in seen] == ["running", "waiting", "waiting", "failed"]
    assert [job.place_in_line for job in seen] == [0, 1, 2, 0]
    assert (seen[0].seconds, seen[3].error, seen[3].error_code) == (60, "no", "x")


def test_a_stopped_job_is_shown_as_stopping_while_its_process_lives_and_as_waiting_then(line):
    job = line.submit().job
    line.write(f.STARTED, job, attempt=1)
    line.write(f.INTERRUPTED, job, attempt=1, reason="stopped", seconds=5.0)
    info = ProcessInfo(
        name=f"job-{job}-1", role="job", pid=1, started=0.0, alive=True, exit_code=None, log=Path("/nowhere")
    )
    assert line.view([info])[0].state == "stopping"
    (shown,) = line.view()
    assert (shown.state, shown.place_in_line, shown.seconds) == ("waiting", 1, 5.0)


def test_entries_of_an_attempt_that_is_over_change_nothing(line):
    job = line.submit().job
    line.write(f.STARTED, job, attempt=2)
    line.write(f.ENDED, job, attempt=1, outcome=f.DONE)
    assert line.jobs().jobs[job].state == f.RUNNING
    line.write(f.SUBMITTED, "spoilt", attempt=1)
    line.write(f.ENDED, "j77", attempt=1, outcome=f.DONE)
    assert list(line.jobs().jobs) == [job]


def test_of_jobs_that_ended_the_last_are_remembered(line, monkeypatch):
    monkeypatch.setattr("argosy.operate.jobs.fold.KEPT_JOBS", 10)
    for number in range(15):
        job = line.submit("run", "--set", f"a.b={number}").job
        line.write(f.ENDED, job, attempt=0, outcome=f.CANCELLED)
    assert len(line.jobs().jobs) == 10


@pytest.mark.capability("H1")
def test_memory_is_counted_as_stated_else_as_last_time_else_as_planned_else_as_guessed(line):
    assert needs_like(line.jobs(), "run", MACHINE).resources == Resources(4, GUESS_BYTES, 0)
    assert needs_like(line.jobs(), "run", MACHINE, expected_bytes=77).resources.memory_bytes == 77
    job = line.submit().job
    line.write(f.STARTED, job, attempt=1)
    line.write(f.ENDED, job, attempt=1, outcome=f.DONE, peak_bytes=2_000_000_000, seconds=30.0)
    found = needs_like(line.jobs(), "run", MACHINE, expected_bytes=77)
    assert (found.resources.memory_bytes, found.estimate_s) == (2_200_000_000, 30.0)
    stated = needs_like(line.jobs(), "run", MACHINE, cpus=1, memory_bytes=5, gpus=1, estimate_s=9)
    assert (stated.resources, stated.estimate_s) == (Resources(1, 5, 1), 9)
    assert needs_like(line.jobs(), "train", MACHINE).resources.memory_bytes == GUESS_BYTES


@pytest.mark.capability("H1")
def test_endpoints_take_their_memory_first_that_of_wanted_replicas_included():
    def desired(replicas, memory=""):
        state = Desired()
        version = {"digest": "sha256:" + "1" * 64, "ref": "m:1"}
        config = {"replicas": replicas, **({"memory": memory} if memory else {})}
        data = {"action": "deploy", "version": version, "endpoint": config}
        state.apply(SimpleNamespace(seq=1, time=0.0, actor="ada", kind=d.ENDPOINT, subject="m", data=data))
        rollout = {"rollout": "r1", "outcome": d.PROMOTED}
        state.apply(SimpleNamespace(seq=2, time=0.0, actor="c", kind=d.ENDED, subject="m", data=rollout))
        return state

    key = version_key("sha256:" + "1" * 64)
    one = ProcessInfo(
        name=f"replica-{key}-aaaa",
        role="replica",
        pid=1,
        started=0.0,
        alive=True,
        exit_code=None,
        log=Path("/nowhere"),
        memory_bytes=400_000_000,
    )
    assert endpoint_bytes(Desired(), []) == 0
    assert endpoint_bytes(desired(3), []) == 3 * 300_000_000, "nobody has seen one yet"
    assert endpoint_bytes(desired(3), [one]) == 3 * 500_000_000, "the others will be as large, and may grow"
    assert endpoint_bytes(desired(2, "1GB"), [one]) == 2_000_000_000
    assert endpoint_bytes(Desired(), [one]) == 400_000_000, "not wanted any more, and not gone yet"
    assert jobs_capacity(MACHINE, 20_000_000_000) == Resources(4, 0, 0)


def test_cores_and_gpus_go_to_who_shares_them_least(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3})
    assert choose_cores(2, []) == (0, 1)
    assert choose_cores(2, [(0, 1)]) == (2, 3)
    assert choose_cores(3, [(0,), (1,)]) == (0, 2, 3)
    assert choose_gpus(2, [(0,)], 4) == (1, 2)


def test_gpus_are_counted_where_the_driver_lists_them(tmp_path):
    assert count_gpus(tmp_path) == 0
    (tmp_path / "proc/driver/nvidia/gpus/0000:01:00.0").mkdir(parents=True)
    assert count_gpus(tmp_path) == 1
    assert machine_resources().memory_bytes > 0


def test_folders_keep_what_jobs_leave_and_forget_the_rest(tmp_path):
    folders = JobFolders(tmp_path)
    assert (folders.usage("j1", 1), folders.result("j1"), folders.tail("j1", 5)) == (Usage(), {}, "")
    place = place_of(tmp_path)
    assert place == place_of(tmp_path)
    for id_ in ("j1", "j2"):
        Path(folders.path(id_)).mkdir(parents=True)
        folders.log_path(id_).write_text("one\ntwo\nthree\n")
    keep_usage(Path(folders.path("j1")), 2, Usage(peak_bytes=5))
    keep_result(Path(folders.path("j1")), {"versions": []})
    folders.forget(["j1"])
    assert (folders.usage("j1", 2).peak_bytes, folders.result("j1")) == (5, {"versions": []})
    assert folders.tail("j1", 2) == "two\nthree\n"
    assert not Path(folders.path("j2")).exists()
    assert place_of(tmp_path) == place
