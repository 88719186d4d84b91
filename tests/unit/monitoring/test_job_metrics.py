"""What the monitor tells of jobs and updates: by the log, of one home, and the same after a restart."""

from pathlib import Path

import pytest

from argosy.cluster.launcher import ProcessInfo
from argosy.core.clock import FakeClock
from argosy.core.errors import Unavailable
from argosy.core.metrics import METRICS
from argosy.monitoring.jobs import JobMetrics
from argosy.operate.jobs import commands
from argosy.operate.jobs import fold as f
from argosy.operate.jobs.schedule import Resources
from argosy.operate.memory import FakeLog

MACHINE = Resources(4, 16_000_000_000, 1)


class Line:
    def __init__(self):
        self.clock = FakeClock()
        self.log = FakeLog([], self.clock)

    def submit(self, title="run", place="here", needs=Resources(1, 10, 0)):  # noqa: B008 - frozen
        self.clock.advance(1)
        words = ["run", "--file", f"{len(self.log._entries)}"]
        return commands.submit(self.log, words, title=title, folder="/p", place=place, needs=needs, machine=MACHINE).job

    def write(self, kind, subject, **data):
        self.log.append(kind, subject, data)

    def samples(self, metrics=None, processes=()):
        self.log.refresh()
        found = (metrics or JobMetrics("here")).samples(self.log, processes, self.clock.now())
        assert {name for name, *_ in found} <= {name for name, metric in METRICS.items() if metric.part == "monitor"}
        for name, labels, _ in found:
            assert len(labels) == len(METRICS[name].labels)
        return {(name, *labels): value for name, labels, value in found}


@pytest.fixture
def line():
    return Line()


@pytest.mark.capability("M1")
def test_an_empty_line_has_numbers_too_so_that_rules_see_the_first_job(line):
    found = line.samples()
    assert found["argosy_jobs", "waiting"] == found["argosy_jobs_ended_total", "failed"] == 0
    assert found["argosy_jobs_oldest_wait_seconds",] == found["argosy_jobs_interrupted_total",] == 0


def test_jobs_are_counted_by_state_and_what_runs_holds_its_share(line):
    running, waiting = line.submit(needs=Resources(2, 500, 1)), line.submit(needs=Resources(4, 900, 0))
    line.write(f.STARTED, running, attempt=1)
    line.clock.advance(60)
    found = line.samples()
    assert waiting != running
    assert (found["argosy_jobs", "running"], found["argosy_jobs", "waiting"]) == (1, 1)
    reserved = [found[f"argosy_jobs_reserved_{what}",] for what in ("cores", "memory_bytes", "gpus")]
    assert reserved == [2, 500, 1]
    assert found["argosy_jobs_oldest_wait_seconds",] == 60


def test_a_job_being_stopped_holds_its_share_until_its_process_is_gone(line):
    job = line.submit(needs=Resources(2, 500, 0))
    line.write(f.STARTED, job, attempt=1)
    line.write(f.INTERRUPTED, job, attempt=1)
    info = ProcessInfo(
        name=f"job-{job}-1", role="job", pid=1, started=0.0, alive=True, exit_code=None, log=Path("/nowhere")
    )
    found = line.samples(processes=[info])
    assert (found["argosy_jobs", "stopping"], found["argosy_jobs_reserved_cores",]) == (1, 2)
    found = line.samples()
    assert (found["argosy_jobs", "waiting"], found["argosy_jobs_reserved_cores",]) == (1, 0)
    assert found["argosy_jobs_interrupted_total",] == 1


def test_ends_are_counted_once_by_outcome_whoever_counts_and_however_often(line):
    kept = JobMetrics("here")
    for outcome in (f.DONE, f.FAILED, f.FAILED):
        job = line.submit()
        line.write(f.STARTED, job, attempt=1)
        line.write(f.ENDED, job, attempt=1, outcome=outcome)
        line.write(f.ENDED, job, attempt=1, outcome=outcome)  # by one that did not know of the first
        line.samples(kept)
    found = line.samples(kept)
    assert [found["argosy_jobs_ended_total", word] for word in (f.DONE, f.FAILED, f.CANCELLED)] == [1, 2, 0]
    assert found == line.samples()


def test_ended_jobs_that_are_forgotten_stay_counted(line):
    for _ in range(f.KEPT_JOBS + 10):
        job = line.submit()
        line.write(f.STARTED, job, attempt=1)
        line.write(f.ENDED, job, attempt=1, outcome=f.DONE)
    assert line.samples()["argosy_jobs_ended_total", f.DONE] == f.KEPT_JOBS + 10


def test_jobs_of_another_home_on_the_same_log_are_its_own_affair(line):
    other = line.submit(place="there")
    line.write(f.WATCHED, "theirs", file="/x", place="there")
    found = line.samples()
    assert found["argosy_jobs", "waiting"] == 0
    assert not any("theirs" in key for key in found)
    line.write(f.STARTED, other, attempt=1)
    line.write(f.ENDED, other, attempt=1, outcome=f.FAILED)
    assert line.samples()["argosy_jobs_ended_total", f.FAILED] == 0


def test_updates_show_whether_one_is_under_way_and_how_they_ended(line):
    line.write(f.WATCHED, "m", file="/x", place="here")
    assert line.samples()["argosy_updates_ended_total", "m", "gate_failed"] == 0
    for outcome in ("gate_failed", "unchanged", "unchanged"):
        line.write(f.ASKED, "m", reason="new data")
        line.clock.advance(1)
        job = commands.submit(
            line.log, ["run", outcome, str(line.clock.now())], title="update", folder="/p", place="here",
            needs=Resources(1, 10, 0), machine=MACHINE, update={"endpoint": "m"},
        ).job  # fmt: skip
        assert line.samples()["argosy_update_active", "m"] == 1
        line.write(f.UPDATED, "m", job=job, outcome=outcome)
        line.write(f.UPDATED, "m", job=job, outcome=outcome)
    found = line.samples()
    assert found["argosy_update_active", "m"] == 0
    assert found["argosy_updates_ended_total", "m", "gate_failed"] == 1
    assert found["argosy_updates_ended_total", "m", "unchanged"] == 2


def test_a_store_that_fails_leaves_the_numbers_of_the_last_look(line):
    metrics = JobMetrics("here")
    line.submit()
    line.samples(metrics)
    line.submit()
    line.log.refresh()
    line.log.entries = lambda **_: (_ for _ in ()).throw(Unavailable("the store answers 500"))
    found = {(name, *labels): value for name, labels, value in metrics.samples(line.log, (), line.clock.now())}
    assert found["argosy_jobs", "waiting"] == 1
