"""The scheduler killed before and after every write and act, jobs killed, operators meddling: the same end always."""

import random

import pytest

from argosy.cluster.memory import MemoryLauncher
from argosy.core.clock import FakeClock
from argosy.core.errors import ArgosyError, Conflict, Unavailable
from argosy.operate import desired as d
from argosy.operate.jobs import commands
from argosy.operate.jobs import fold as f
from argosy.operate.jobs.fold import Jobs
from argosy.operate.jobs.schedule import Resources
from argosy.operate.jobs.scheduler import ROLE, Parts, Scheduler, Usage
from argosy.operate.memory import FakeLog
from controller_world import Hooked, Killed, require

MACHINE = Resources(4, 8_000_000_000, 1)


class Files:
    """What jobs leave, in memory."""

    def __init__(self):
        self.made = {}

    def usage(self, id_, attempt):
        return Usage(peak_bytes=1, now_bytes=1)

    def result(self, id_):
        return self.made.get(id_, {})

    def path(self, id_):
        return f"/jobs/{id_}"

    def forget(self, known):
        pass


class JobWorld:
    """One schedule of troubles, from one seed."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        self.clock = FakeClock()
        self.entries = []
        self.launcher = MemoryLauncher(self.clock)
        self.files = Files()
        self.left = {}
        """Seconds of work that each job still has: it is kept over attempts, as checkpoints are."""
        self.points, self.lives, self.failures_left = 0, 0, 0
        self.plan = {
            self.random.randrange(2, 60): self.random.choice(["kill", "kill", "kill", "job", "store", "cancel", "move"])
            for _ in range(self.random.randrange(1, 7))
        }
        self.is_calm = False
        self.cancelled, self.struck = set(), set()
        self.scheduler = None
        self.log = FakeLog(self.entries, self.clock)
        self.jobs = Jobs()
        self.trace = []

    def point(self, what, name=""):
        if what.startswith("before") and self.failures_left and not self.is_calm:
            self.failures_left -= 1
            raise Unavailable("the store answers 500")
        self.points += 1
        trouble = None if self.is_calm else self.plan.pop(self.points, None)
        if trouble is None:
            return
        self.trace.append(f"{trouble} at {what} {name}")
        if trouble == "kill":
            self.scheduler = None
            raise Killed
        if trouble == "store":
            self.failures_left = 2
        elif trouble == "job":
            self.strike()
        else:
            self.operate(trouble)

    def strike(self):
        living = [info.name for info in self.launcher.list(ROLE) if info.alive]
        if living:
            name = self.random.choice(living)
            self.struck.add(name.split("-")[1])
            self.launcher.end(name, self.random.choice([-9, None]))

    def operate(self, what):
        jobs = self.state()
        if jobs.jobs:
            id_ = self.random.choice(sorted(jobs.jobs))
            try:
                if what == "cancel":
                    commands.cancel(self.log, id_)
                    self.cancelled.add(id_)
                else:
                    commands.set_priority(self.log, id_, self.random.randrange(-3, 4))
            except Conflict:
                pass

    def submit(self):
        needs = Resources(
            self.random.randrange(1, 5), self.random.randrange(1, 9) * 1_000_000_000, self.random.randrange(2)
        )
        accepted = commands.submit(
            self.log,
            ["run", "--file", f"p{len(self.left)}"],
            title="run",
            folder="/",
            place="here",
            needs=needs,
            machine=MACHINE,
            priority=self.random.randrange(-2, 3),
            estimate_s=self.random.choice([0.0, 5.0, 60.0]),
        )
        self.left[accepted.job] = float(self.random.randrange(1, 40))

    def deploy(self, replicas):
        version = {"digest": "sha256:1", "ref": "m:1"}
        config = {"replicas": replicas, "memory": "1GB"}
        self.log.append(d.ENDPOINT, "m", {"action": "deploy", "version": version, "endpoint": config})

    def begin(self):
        self.lives += 1
        hook = lambda what, name: None if what == "refresh" else self.point(what, name)  # noqa: E731
        self.scheduler = Scheduler(
            Parts(
                log=FakeLog(self.entries, self.clock, "scheduler", hook),
                launcher=Hooked(self.launcher, ("start", "forget"), self.point),
                clock=self.clock,
                files=self.files,
                place="here",
                machine=MACHINE,
                free_memory=lambda: 1 << 40,
                report=lambda event, **fields: None,
            )
        )

    def step(self, seconds):
        self.clock.advance(seconds)
        for info in self.launcher.list(ROLE):
            if info.alive:
                id_ = info.name.split("-")[1]
                self.left[id_] -= seconds
                if self.left[id_] <= 0:
                    self.files.made[id_] = {"done": True}
                    self.launcher.end(info.name, 0)
        if self.scheduler is None and (self.is_calm or self.random.random() < 0.7):
            self.begin()
        if self.scheduler is not None:
            scheduler = self.scheduler
            try:
                scheduler.tick()
            except Killed:
                pass
            except ArgosyError as error:
                require(isinstance(error, Unavailable), f"tick raised {error!r}")
            for thread in list(scheduler._stoppers.values()):
                thread.join()
        self.check()

    def state(self):
        self.log.refresh()
        self.jobs.catch_up(self.log)
        return self.jobs

    def check(self):
        living = [info.name for info in self.launcher.list(ROLE) if info.alive]
        ids = [name.split("-")[1] for name in living]
        jobs = self.state()
        require(len(set(ids)) == len(ids), f"a job runs twice: {living}")
        require(len(set(self.launcher.started)) == len(self.launcher.started), "an attempt was started twice")
        used = Resources()
        for id_ in ids:
            used += jobs.jobs[id_].needs
        require(used.fits(MACHINE), f"{used} is used of {MACHINE}")
        gpus = [gpu for id_ in ids for gpu in jobs.jobs[id_].gpus]
        require(len(set(gpus)) == len(gpus), "a GPU was given twice")
        ended = [e.subject for e in self.entries if e.kind == f.ENDED]
        require(len(set(ended)) == len(ended), "a job has ended twice")

    def run(self):
        for _ in range(self.random.randrange(2, 8)):
            self.submit()
        for number in range(50):
            if number == 10 and self.random.random() < 0.5:
                self.deploy(self.random.choice([2, 5]))
            if number in (5, 20):
                self.submit()
            self.step(self.random.choice([0.3, 1.0, 5.0]))
        if any(e.kind == d.ENDPOINT for e in self.entries):
            self.log.append(d.GATEWAY, "gateway", {"running": False})  # else some could never fit
        self.is_calm = True
        for _ in range(120):
            self.step(5.0)
            if not self.state().open_jobs("here"):
                break
        jobs = self.state()
        for job in jobs.jobs.values():
            require(not job.is_open, f"{job.id} is {job.state} for ever")
            expected = {f.DONE} | ({f.CANCELLED} if job.id in self.cancelled else set())
            expected |= {f.FAILED} if job.vain and job.id in self.struck else set()
            require(job.outcome in expected, f"{job.id} ended {job.outcome}: {job.reason}")
            require(job.outcome != f.DONE or self.left[job.id] <= 0, f"{job.id} is called done and is not")
        return jobs


def live_through(seeds):
    """Run schedules; return how often the scheduler was killed, and how often a job's attempt ended early."""
    kills = interrupted = 0
    for seed in seeds:
        world = JobWorld(seed)
        try:
            jobs = world.run()
        except AssertionError as error:
            raise AssertionError(f"seed {seed}: {error}\n" + "\n".join(world.trace)) from error
        kills += world.lives - 1
        interrupted += sum(1 for entry in world.entries if entry.kind == f.INTERRUPTED)
        assert len(jobs.jobs) >= 4
    return kills, interrupted


@pytest.mark.capability("H1")
def test_whatever_is_killed_no_job_runs_twice_and_each_one_ends():
    kills, interrupted = live_through(range(80))
    assert kills > 60, "the schedules kill too little to show anything"
    assert interrupted > 20


@pytest.mark.slow
@pytest.mark.parametrize("part", range(8))
def test_the_same_over_many_more_schedules(part):
    live_through(range(1000 + part * 500, 1500 + part * 500))


def test_the_fold_gives_the_same_state_from_any_point_on():
    world = JobWorld(7)
    world.run()
    whole = Jobs()
    for entry in world.entries:
        whole.apply(entry)
    parts = Jobs()
    log = FakeLog(world.entries, world.clock)
    for upto in range(0, len(world.entries) + 1, 3):
        log.head = upto
        parts.catch_up(log)
    log.refresh()
    parts.catch_up(log)
    assert parts.jobs == whole.jobs
    assert parts.watches == whole.watches
