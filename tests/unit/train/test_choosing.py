"""When `auto` measures, what it keeps, and that a resumed training goes on as it began."""

import msgspec
import pytest

from argosy.cluster.memory import MemoryLauncher
from argosy.core.clock import FakeClock
from argosy.core.errors import DeadlineExceeded
from argosy.core.progress import Progress
from argosy.train import choosing
from argosy.train.choosing import CHOICE, Asked, Chooser
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.measurement import Measurement, MeasurementStore, Trial, measurement_key
from argosy.train.outcome import CHECKPOINTS

pytestmark = pytest.mark.capability("T8")


class Desk:
    """A training that is only told how it would be carried out."""

    def __init__(self, tmp_path, monkeypatch, **train):
        self.asked = Asked(
            dataset=tmp_path / "data",
            data="sha256:d",
            model=ModelConfig(),
            train=TrainConfig(**{"workers": 2, **train}),
            base=tmp_path,
            work=tmp_path / "work",
            made_by="sha256:m",
        )
        self.asked.work.mkdir(exist_ok=True)
        self.store = MeasurementStore(tmp_path / "home")
        self.said, self.measured, self.began = [], [], []
        self.fails = None
        monkeypatch.setattr(choosing, "measure", self.measure)

    def measure(self, dataset, model, train, base, key, *, is_quick, limit_s, **_):
        self.measured.append(limit_s)
        if self.fails is not None:
            raise self.fails
        return self.measurement(key)

    def measurement(self, key, single_s=0.01):
        def trial(strategy, workers, threads, step_s):
            return Trial(
                strategy=strategy,
                workers=workers,
                threads=threads,
                batch=64,
                step_s=step_s,
                memory_bytes=1,
                host_bytes=1,
            )

        return Measurement(
            key=key,
            cores=2,
            samples=640,
            batch=64,
            usual_epochs=10,
            parameters=1,
            parameter_bytes=4,
            state_bytes=8,
            start_s=1.0,
            trials=[trial("data-parallel", 2, 1, 0.02), trial("single", 1, 2, single_s)],
        )

    def run(self, *news):
        def train(choice, report):
            self.began.append((choice.strategy, choice.workers, choice.threads))
            for one in news:
                report(one)
            return choice

        chooser = Chooser(
            self.asked, self.store, launcher=MemoryLauncher(FakeClock()), clock=FakeClock(), report=self.said.append
        )
        return chooser.run(train)

    def notes(self):
        return [news.message for news in self.said if news.is_note]


@pytest.fixture
def desk(tmp_path, monkeypatch):
    return Desk(tmp_path, monkeypatch)


def step(number, left_s):
    return Progress(stage="train", done=number, total=1000, left_s=left_s)


def test_a_short_training_is_not_measured_and_says_so(desk):
    desk.run(step(1, 999.0), step(4, 20.0), step(9, 999.0))
    assert desk.measured == []
    assert desk.began == [("data-parallel", 2, 0)]
    (note,) = desk.notes()
    assert note.startswith("auto: data-parallel with 2 workers, not measured: about 20 s to go")


def test_a_long_training_is_measured_for_a_twentieth_of_it_at_most_and_begins_anew(desk):
    (desk.asked.work / CHECKPOINTS).mkdir()
    desk.run(step(4, 600.0))
    assert desk.measured == [30.0]
    assert desk.began == [("data-parallel", 2, 0), ("single", 1, 2)]
    assert not (desk.asked.work / CHECKPOINTS).exists()
    announced, *lines = desk.notes()
    assert announced == "10 min 0 s to go as data-parallel; measuring for some seconds what is fastest here"
    assert len(lines) == 3
    assert lines[0].startswith("auto: one process with 2 threads: 10 ms a step")
    assert "threads beat ranks here" in lines[1]


def test_a_resumed_training_goes_on_with_what_was_chosen_and_says_nothing(desk):
    chosen = desk.run(step(4, 600.0))
    desk.said.clear()
    desk.store.keep(
        desk.measurement(measurement_key("sha256:d", ModelConfig(), desk.asked.train, desk.asked.base), 9.0)
    )
    assert desk.run(step(5, 900.0)) == chosen
    assert desk.notes() == []
    assert len(desk.measured) == 1


def test_a_choice_of_another_training_is_none(desk):
    desk.run(step(4, 600.0))
    desk.asked = msgspec.structs.replace(desk.asked, made_by="sha256:other")
    desk.store = None
    desk.run(step(4, 1.0))
    assert desk.began[-1] == ("data-parallel", 2, 0)


def test_checkpoints_without_a_choice_are_gone_on_with_as_they_began(desk):
    folder = desk.asked.work / CHECKPOINTS
    folder.mkdir()
    (folder / "step-000000007.json").write_text("{}")
    desk.run(step(8, 900.0))
    assert desk.measured == []
    assert desk.began == [("data-parallel", 2, 0)]
    assert folder.exists()


def test_what_was_measured_before_is_not_measured_again(desk):
    desk.store.keep(desk.measurement(measurement_key("sha256:d", ModelConfig(), desk.asked.train, desk.asked.base)))
    desk.run(step(4, 600.0))
    assert (desk.measured, desk.began) == ([], [("single", 1, 2)])
    assert "(measured before)" in desk.notes()[0]


def test_a_measurement_that_fails_leaves_the_training_as_it_was(desk):
    desk.fails = DeadlineExceeded("measuring this training took more than 30 s")
    desk.run(step(4, 600.0))
    assert desk.began == [("data-parallel", 2, 0)] * 2
    assert desk.notes()[-1].endswith("not measured: measuring this training took more than 30 s")


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ({"workers": 1}, ("single", 1, 0)),
        ({"strategy": "data-parallel"}, ("data-parallel", 2, 0)),
        ({"strategy": "sharded", "workers": 3}, ("sharded", 3, 0)),
    ],
)
def test_where_nothing_is_to_be_chosen_nothing_is_looked_at_or_left(tmp_path, monkeypatch, train, expected):
    desk = Desk(tmp_path, monkeypatch, **train)
    desk.run(step(4, 9999.0))
    assert (desk.began, desk.measured, desk.notes()) == ([expected], [], [])
    assert not (desk.asked.work / CHOICE).exists()
