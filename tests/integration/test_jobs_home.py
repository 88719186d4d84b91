"""Jobs as real processes beside a real controller: preempted after a checkpoint, resumed, killed, cancelled."""

import os
import signal

import pytest

from argosy.operate import commands as serving
from argosy.operate.jobs import commands
from argosy.operate.jobs import fold as f
from argosy.operate.jobs.capacity import machine_resources
from argosy.operate.jobs.fold import Jobs
from argosy.operate.jobs.folders import JobFolders, place_of
from argosy.operate.jobs.keeper import scheduler_lock, start_scheduler
from argosy.operate.jobs.schedule import Resources
from argosy.operate.jobs.view import look_at_jobs
from controlled import Controlled, Traffic
from served import constant, until

LONG = """[project]
name = "long"
[data]
train = "rows.csv"
[train]
epochs = 1000000
checkpoint_s = 0.5
"""


class Queue(Controlled):
    """A home with a queue, a folder with a training that takes for ever, and a look at what the log says."""

    def __init__(self):
        super().__init__()
        self.place = place_of(self.settings.home)
        self.files = JobFolders(self.settings.home)
        self.project = self.folder / "project"
        self.project.mkdir()
        (self.project / "rows.csv").write_text("a,b,label\n" + "".join(f"{i},{i % 7},{i % 2}\n" for i in range(80)))
        (self.project / "argosy.toml").write_text(LONG)
        self.jobs = Jobs()

    def submit(self, *command, cpus=1, memory=1_000_000_000, priority=0):
        machine = machine_resources()
        accepted = commands.submit(
            self.registry.log,
            list(command),
            title=command[0],
            folder=str(self.project),
            place=self.place,
            needs=Resources(cpus or machine.cpus, memory, 0),
            machine=machine,
            priority=priority,
        )
        return accepted.job

    def start_jobs(self):
        return start_scheduler(self.settings, self.launcher)

    def job(self, id_):
        self.registry.log.refresh()
        self.jobs.catch_up(self.registry.log)
        return self.jobs.jobs[id_]

    def alive(self, id_):
        info = self.launcher.get(self.job(id_).process)
        return info if info is not None and info.alive else None

    def newest_checkpoint(self):
        steps = [int(path.stem.partition("-")[2]) for path in self.settings.home.glob("work/train-*/**/step-*.json")]
        return max(steps, default=0)

    def ends(self, id_, seconds=90):
        until(lambda: not self.job(id_).is_open, seconds)
        return self.job(id_)


@pytest.fixture
def home():
    with_queue = Queue()
    yield with_queue
    with_queue.close()


@pytest.mark.slow
@pytest.mark.capability("H1", "R7")
def test_a_training_makes_way_after_its_checkpoint_and_goes_on_from_there_while_the_endpoint_answers(home):
    """The scheduler is started by the controller, and killed once; nothing of it reaches the endpoint or the jobs."""
    first = serving.deploy(home.registry, str(home.publish(constant(1.0))), name="m")
    home.start()
    home.ended(first.rollout)
    home.serving("m:1")
    long = home.submit("run", "--until", "train", cpus=0)
    with Traffic(home, threads=1) as traffic:
        until(lambda: home.alive(long), 30)
        until(lambda: home.newest_checkpoint() > 0, 90)
        pid = home.alive(long).pid
        os.kill(home.launcher.get("scheduler").pid, signal.SIGKILL)
        until(lambda: not scheduler_lock(home.settings).is_taken())
        home.start_jobs()  # the controller would too, within seconds
        urgent = home.submit("run", "--until", "data", "--set", "data.seed=3", cpus=0, priority=5)
        until(lambda: home.job(long).state == f.STOPPING, 30)
        done = home.ends(urgent)
        before = home.newest_checkpoint()
        assert (done.outcome, done.exit_code) == (f.DONE, 0), home.files.tail(urgent, 20)
        until(lambda: home.job(long).attempt == 2 and home.alive(long), 30)
        until(lambda: home.newest_checkpoint() > before, 90)
    assert traffic.failed == []
    attempts = list(home.registry.log.entries(kind=f.STARTED, subject=long))
    assert [entry.data["attempt"] for entry in attempts] == [1, 2], "the killed scheduler found its job running"
    assert home.alive(long).pid != pid
    assert "needs its place" in next(iter(home.registry.log.entries(kind=f.INTERRUPTED, subject=long))).data["reason"]
    log = home.files.tail(long, 200)
    assert "stopped; it goes on from here later" in log
    assert log.count("--- attempt") == 2
    kept = [int(path.stem.partition("-")[2]) for path in home.settings.home.glob("work/train-*/**/step-*.json")]
    assert min(kept) >= before, "it began anew"
    shown = {job.id: job for job in look_at_jobs(home.jobs, home.launcher.list("job"), now=home.jobs.head)}
    assert (shown[long].state, shown[urgent].state) == ("running", "done")
    commands.cancel(home.registry.log, long)
    over = home.ends(long)
    assert (over.outcome, over.reason) == (f.CANCELLED, "cancelled by test")
    assert over.peak_bytes > 50e6
    until(lambda: not any(info.alive for info in home.launcher.list() if info.role in ("job", "stage", "rank")))


@pytest.mark.slow
def test_a_killed_job_goes_on_and_one_that_fails_says_why(home):
    long = home.submit("run", "--until", "train", cpus=0)
    home.start_jobs()
    until(lambda: home.newest_checkpoint() > 0, 120)
    before = home.newest_checkpoint()
    os.kill(home.alive(long).pid, signal.SIGKILL)
    until(lambda: home.job(long).attempt == 2, 30)
    assert home.job(long).vain == 1
    until(lambda: home.newest_checkpoint() > before, 120)
    commands.cancel(home.registry.log, long)
    home.ends(long)
    wrong = home.submit("run", "--until", "data", "--set", "data.label=nobody")
    failed = home.ends(wrong)
    assert (failed.outcome, failed.exit_code) == (f.FAILED, 2)
    assert "nobody" in failed.error["message"]


@pytest.mark.slow
def test_down_stops_jobs_too_and_they_go_on_afterwards(home):
    long = home.submit("run", "--until", "train", cpus=0)
    home.start_jobs()
    until(lambda: home.newest_checkpoint() > 0, 120)
    home.down()
    assert not any(info.alive for info in home.launcher.list())
    before = home.newest_checkpoint()
    home.start_jobs()
    until(lambda: home.newest_checkpoint() > before, 120)
    assert home.job(long).attempt == 2


@pytest.mark.capability("H1")
def test_a_job_says_what_it_took_and_a_folder_that_is_gone_fails_its_own_job_and_no_other(home):
    import shutil

    kept = home.submit("run", "--until", "data")
    assert home.submit("run", "--until", "data") == kept, "the same job is not put in line twice"
    other = home.folder / "other"
    shutil.copytree(home.project, other)
    whole, home.project = home.project, other
    lost = home.submit("run", "--until", "data")
    home.project = whole
    shutil.rmtree(other)
    home.start_jobs()
    failed = home.ends(lost)
    assert (failed.outcome, failed.error["code"]) == (f.FAILED, "not_found")
    assert "the folder of job" in failed.error["message"]
    done = home.ends(kept)
    assert (done.outcome, done.exit_code, done.attempt) == (f.DONE, 0, 1)
    assert done.result["executed"] == ["data"]
    assert "read, split" in home.files.tail(kept, 50)
    until(lambda: not scheduler_lock(home.settings).is_taken(), 30)  # nothing is left to do
