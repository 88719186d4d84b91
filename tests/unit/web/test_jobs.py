"""The jobs that the page shows are those of the log."""

import pytest

from argosy.cluster.memory import MemoryLauncher
from argosy.core.clock import FakeClock
from argosy.operate.jobs import commands
from argosy.operate.jobs.schedule import Resources
from argosy.operate.memory import FakeLog
from argosy.web.jobs import MOST_JOBS, jobs_of


@pytest.fixture
def home(tmp_path):
    class Home:
        clock = FakeClock()
        log = FakeLog([], clock)

        def __init__(self):
            self.look = jobs_of(tmp_path, MemoryLauncher(self.clock), self.clock)

        def submit(self, *words, **needs):
            self.clock.advance(1)
            return commands.submit(
                self.log,
                words,
                title=" ".join(words),
                folder="/p",
                place="here",
                needs=Resources(**({"cpus": 1, "memory_bytes": 2_000_000_000, "gpus": 0} | needs)),
                machine=Resources(8, 64_000_000_000, 2),
            )

    return Home()


@pytest.mark.capability("H1", "M3")
def test_each_job_is_a_row_and_new_ones_appear(home):
    assert home.look(home.log) == ()
    first = home.submit("run")
    second = home.submit("train", "examples/mlp", cpus=2, gpus=1)
    home.log.refresh()
    rows = home.look(home.log)
    assert [(row.id, row.state, row.needs) for row in rows] == [
        (first.job, "waiting", "1 core, 2 GB"),
        (second.job, "waiting", "2 cores, 2 GB, 1 GPU"),
    ]
    assert rows[0].submitted < rows[1].submitted


def test_a_page_is_not_flooded(home):
    for number in range(MOST_JOBS + 5):
        home.submit("run", "--set", f"train.seed={number}")
    home.log.refresh()
    assert len(home.look(home.log)) == MOST_JOBS
