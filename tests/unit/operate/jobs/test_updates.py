"""Updates: from new data or an asking to a released version, over every kill in between."""

from types import SimpleNamespace

import pytest

from argosy.core.clock import FakeClock
from argosy.core.errors import Conflict, NotFound
from argosy.operate import commands as serving
from argosy.operate import desired as d
from argosy.operate.desired import Desired
from argosy.operate.jobs import commands
from argosy.operate.jobs import fold as f
from argosy.operate.jobs.fold import Jobs
from argosy.operate.jobs.schedule import Resources
from argosy.operate.jobs.sources import read_data, read_project
from argosy.operate.jobs.updater import Needs, Updater
from argosy.operate.jobs.view import look_at_update, look_at_updates
from argosy.operate.memory import FakeLog
from controller_world import FakeVersions, Killed, make_version

MACHINE = Resources(2, 8_000_000_000, 0)
FILE = """[project]
name = "m"
[data]
train = "rows.csv"
[rollout]
steps = [50]
dwell = "1s"
[update]
"""


class Home:
    """An endpoint `m` that serves m:1, its project in a folder, and an updater that dies where a test says."""

    def __init__(self, folder, section='on = ["new-data"]\nsettle = "5s"'):
        self.folder = folder
        self.file = folder / "argosy.toml"
        self.file.write_text(FILE + section)
        (folder / "rows.csv").write_text("a,label\n1,0\n")
        self.clock = FakeClock()
        self.entries = []
        self.dies_at = -1
        self.points = 0
        self.log = FakeLog(self.entries, self.clock)
        versions = FakeVersions(make_version(1), make_version(2), make_version(3), make_version(9, passed=False))
        self.registry = SimpleNamespace(log=self.log, versions=versions)
        serving.deploy(self.registry, "m:1")
        self.settle_rollout()
        data = read_data(read_project(self.file))
        commands.watch(self.log, "m", file=str(self.file), place="here", data=data.digest, rows=data.rows)
        self.begin()

    def begin(self):
        def hook(what, name):
            if what != "refresh":
                self.points += 1
                if self.points == self.dies_at:
                    raise Killed

        log = FakeLog(self.entries, self.clock, "scheduler", hook)
        registry = SimpleNamespace(log=log, versions=self.registry.versions)
        self.blobs = {}
        self.updater = Updater(
            registry,
            self.clock,
            place="here",
            machine=MACHINE,
            needs=lambda jobs, title: Needs(resources=Resources(1, 10, 0)),
            put=self.blob,
            report=lambda event, **fields: None,
        )
        self.updater_log = log

    def blob(self, data):
        digest = f"sha256:{len(self.blobs)}"
        self.blobs[digest] = data
        return digest

    def state(self):
        self.log.refresh()
        jobs, desired = Jobs(), Desired()
        jobs.catch_up(self.log)
        desired.catch_up(self.log)
        return jobs, desired

    @property
    def watch(self):
        return self.state()[0].watches["m"]

    def look(self, seconds=3.0, times=1):
        for _ in range(times):
            self.clock.advance(seconds)
            jobs, desired = self.state()
            self.updater_log.refresh()
            try:
                self.updater.move(jobs, desired)
            except Killed:
                self.begin()

    def write(self, text):
        path = self.folder / "rows.csv"
        path.write_text(path.read_text() + text)

    def open_job(self):
        return next((job for job in self.state()[0].jobs.values() if job.is_open), None)

    def end_job(self, version="m:2", *, outcome=f.DONE, code="", reason=""):
        job = self.open_job()
        result = {}
        if version:
            result = {"versions": [{"version": version, "digest": self.registry.versions.get(version).digest}]}
        self.log.append(f.STARTED, job.id, {"attempt": 1})
        data = {"attempt": 1, "outcome": outcome, "result": result, "error": {"code": code}, "reason": reason}
        self.log.append(f.ENDED, job.id, data)

    def settle_rollout(self, outcome=d.PROMOTED, reason=""):
        rollout = self.state()[1].endpoints["m"].rollout
        self.log.append(d.ENDED, "m", {"rollout": rollout.id, "outcome": outcome, "reason": reason})

    def serves(self):
        return self.state()[1].endpoints["m"].stable.ref

    def kinds(self, kind):
        return [entry for entry in self.entries if entry.kind == kind]


@pytest.fixture
def home(tmp_path):
    return Home(tmp_path)


def test_a_rollouts_own_metrics_go_along_with_an_update(home):
    """Their code is kept with the deployment, as `argosy deploy` keeps it: the file may change meanwhile."""
    (home.folder / "watch.py").write_text("def bad(window):\n    return 0.0\n")
    own = "[rollout.metrics.own]\npython = 'watch:bad'\nlow = 0\nhigh = 1\n"
    home.file.write_text(home.file.read_text().replace("[update]", own + "[update]"))
    home.write("2,1\n3,0\n")
    home.look(times=3)
    home.end_job()
    home.look()
    rollout = home.state()[1].endpoints["m"].rollout
    assert home.blobs[rollout.config.metrics["own"].code] == (home.folder / "watch.py").read_bytes()


@pytest.mark.capability("R5")
def test_new_data_becomes_a_job_its_version_a_rollout_and_its_end_is_told(home):
    home.look(times=5)
    assert home.open_job() is None, "nothing is new"
    home.write("2,1\n3,0\n")
    home.look(times=3)
    job = home.open_job()
    assert job.command == ("run", "--file", str(home.file))
    assert home.watch.current.reason == "new data: 2 rows more"
    home.end_job()
    home.look()
    rollout = home.state()[1].endpoints["m"].rollout
    assert (rollout.to.ref, rollout.config.steps) == ("m:2", (50,))
    home.look()
    assert home.watch.rollout == rollout.id
    home.settle_rollout()
    home.look()
    last = home.watch.last
    assert (last.outcome, last.version, home.serves()) == ("promoted", "m:2", "m:2")
    home.look(times=10)
    assert len(home.kinds(f.SUBMITTED)) == 1, "one change is one update"
    shown = look_at_update(home.state()[0], home.watch)
    assert (shown.state, shown.last_in_words) == ("idle", "m:2 took over")


@pytest.mark.capability("R5")
@pytest.mark.parametrize("version", ["m:9", ""])
def test_what_failed_a_gate_is_never_released_and_not_tried_again_until_data_changes(home, version):
    home.write("2,1\n")
    home.look(times=3)
    home.end_job(version, outcome=f.FAILED, code="gate_failed", reason="accuracy 0.5, asked >= 0.9")
    home.look(times=10)
    assert home.watch.last.outcome == "gate_failed"
    assert home.serves() == "m:1"
    assert len(home.kinds(f.SUBMITTED)) == 1
    assert len(home.kinds(d.ENDPOINT)) == 1, "nothing was deployed"
    home.write("3,1\n")
    home.look(times=3)
    assert home.open_job() is not None


def test_a_version_that_claims_to_have_passed_is_refused_by_its_own_evaluation(home):
    home.write("2,1\n")
    home.look(times=3)
    home.end_job("m:9")
    home.look(times=3)
    assert (home.watch.last.outcome, home.serves()) == ("gate_failed", "m:1")
    assert "accuracy" in home.watch.last.reason


@pytest.mark.parametrize("dies_at", range(1, 14))
def test_killed_before_or_after_any_write_an_update_ends_the_same(tmp_path, dies_at):
    home = Home(tmp_path)
    home.dies_at = dies_at
    home.write("2,1\n")
    for _ in range(40):
        home.look()
        if home.open_job() is not None:
            home.end_job()
        elif home.state()[1].endpoints["m"].rollout is not None:
            home.settle_rollout()
    assert home.points >= dies_at or dies_at > 8
    assert (home.watch.last.outcome, home.watch.last.version, home.serves()) == ("promoted", "m:2", "m:2")
    assert len(home.kinds(f.SUBMITTED)) == 1
    assert len(home.kinds(d.ENDPOINT)) == 2
    assert len(home.kinds(f.UPDATED)) == 1


def test_it_waits_for_a_rollout_before_its_job_and_before_its_release(home):
    serving.deploy(home.registry, "m:3")
    home.write("2,1\n")
    home.look(times=5)
    assert home.open_job() is None
    home.settle_rollout()
    home.look()
    assert home.open_job() is not None
    serving.rollback(home.registry, "m")
    home.end_job()
    home.look(times=5)
    assert home.state()[1].endpoints["m"].rollout.to.ref == "m:1", "the return by hand comes first"
    home.settle_rollout()
    home.look()
    assert home.state()[1].endpoints["m"].rollout.to.ref == "m:2"


def test_data_that_comes_in_mid_update_starts_one_more_afterwards(home):
    home.write("2,1\n")
    home.look(times=3)
    home.write("3,1\n")
    home.look(times=5)
    home.write("4,1\n")
    home.look(times=5)
    assert len(home.kinds(f.SUBMITTED)) == 1, "one at a time"
    home.end_job()
    home.look()
    home.settle_rollout()
    home.look(times=4)
    assert len(home.kinds(f.SUBMITTED)) == 2
    home.end_job("m:3")
    home.look()
    home.settle_rollout(d.ROLLED_BACK, "errors")
    home.look(times=10)
    assert (home.watch.last.outcome, home.watch.last.reason, home.serves()) == ("rolled_back", "errors", "m:2")
    assert len(home.kinds(f.SUBMITTED)) == 2, "the newest data was in it"


def test_too_few_new_rows_wait_for_more(tmp_path):
    home = Home(tmp_path, 'settle = "5s"\nmin_new_rows = 3')
    home.write("2,1\n3,1\n")
    home.look(times=5)
    assert home.open_job() is None
    home.write("4,1\n")
    home.look(times=5)
    assert home.watch.current.reason == "new data: 3 rows more"


def test_a_schedule_is_kept_over_clocks_that_jump(tmp_path):
    home = Home(tmp_path, 'on = ["schedule"]\nevery = "1h"')
    home.look(times=3)
    assert home.open_job() is None
    home.clock._now -= 2 * 86400  # set back: the next one comes an hour after the last all the same
    home.look(seconds=600, times=7)
    assert home.watch.current.reason == "schedule (1h)"
    home.end_job("m:1")
    home.look(times=3)
    assert home.watch.last.outcome == "unchanged"
    home.clock._now += 2 * 86400  # forward: one is due, not forty-eight
    home.look(times=3)
    home.end_job("m:1")
    home.look(times=10)
    assert len(home.kinds(f.SUBMITTED)) == 2


def test_by_hand_it_goes_the_same_way_at_once_or_by_steps(tmp_path):
    home = Home(tmp_path, "on = []")
    with pytest.raises(NotFound, match="comes from no project"):
        commands.ask_update(home.log, "other", "drift")
    assert commands.ask_update(home.log, "m", "drift", now=True).is_changed
    assert not commands.ask_update(home.log, "m", "drift again", now=True).is_changed
    home.look()
    home.end_job()
    home.look()
    assert home.state()[1].endpoints["m"].rollout.kind == d.SWITCH
    home.settle_rollout()
    home.look()
    assert home.serves() == "m:2"


def test_deploy_false_makes_the_version_and_leaves_the_rest_to_you(tmp_path):
    home = Home(tmp_path, 'settle = "5s"\ndeploy = false')
    home.write("2,1\n")
    home.look(times=3)
    home.end_job()
    home.look(times=3)
    assert (home.watch.last.outcome, home.watch.last.version, home.serves()) == ("kept", "m:2", "m:1")


def test_a_project_that_is_gone_or_broken_is_a_state_and_heals(home):
    text = home.file.read_text()
    home.file.unlink()
    home.look(times=3)
    assert "there is no 'argosy.toml'" in look_at_updates(home.state()[0])[0].detail
    assert home.serves() == "m:1"
    home.file.write_text("[update]\non = 7\n[project]\nname = 'm'")
    home.look(times=3)
    assert look_at_updates(home.state()[0])[0].state == "trouble"
    home.file.write_text(text)
    (home.folder / "rows.csv").rename(home.folder / "moved.csv")
    home.look(times=3)
    assert "no data 'rows.csv' any more" in look_at_updates(home.state()[0])[0].detail
    (home.folder / "moved.csv").rename(home.folder / "rows.csv")
    home.write("2,1\n")
    home.look(times=4)
    assert home.open_job() is not None


def test_a_cancelled_job_ends_its_update_and_a_removed_endpoint_its_watch(home):
    home.write("2,1\n")
    home.look(times=3)
    commands.cancel(home.log, home.open_job().id)
    home.end_job("", outcome=f.CANCELLED, reason="cancelled by ada")
    home.look(times=5)
    assert home.watch.last.outcome == "cancelled"
    assert home.open_job() is None
    serving.remove(home.registry, "m")
    assert home.state()[0].watches == {}
    home.write("3,1\n")
    home.look(times=5)
    assert home.open_job() is None


def test_an_update_of_another_home_is_left_to_it(home):
    commands.watch(home.log, "m", file=str(home.file), place="elsewhere")
    home.write("2,1\n")
    home.look(times=5)
    assert home.open_job() is None


def test_somebody_elses_version_that_came_first_leaves_the_update_behind(home):
    home.write("2,1\n")
    home.look(times=3)
    home.end_job()
    home.look(times=2)
    rollout = home.watch.rollout
    home.settle_rollout(d.ROLLED_BACK, "by hand")
    serving.deploy(home.registry, "m:3")
    home.settle_rollout()
    home.look()
    assert rollout
    assert (home.watch.last.outcome, home.serves()) == ("superseded", "m:3")
    with pytest.raises(Conflict):
        serving.promote(home.registry, "m")
