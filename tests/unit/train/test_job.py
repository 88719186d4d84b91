"""How a job treats its ranks, with a launcher that starts nothing."""

import pytest
import torch

from argosy.cluster.memory import MemoryLauncher
from argosy.core.clock import FakeClock
from argosy.core.digest import canonical, sha256
from argosy.core.errors import Conflict, InvalidInput, NotFound, Unavailable
from argosy.core.files import FileLock, write_atomic
from argosy.train.checkpoint import Checkpoints
from argosy.train.config import ModelConfig, TrainConfig
from argosy.train.job import run_training
from argosy.train.outcome import CHECKPOINTS, NEWS, RESULT, WEIGHTS, Outcome
from argosy.train.shared_memory import Segment, SharedMemoryTransport
from argosy.train.transport import rank_lost


class World(FakeClock):
    """A clock that, each time the job waits, lets the next thing happen to its ranks."""

    def __init__(self, tmp_path, *events, workers=2):
        super().__init__()
        self.launcher = MemoryLauncher(self)
        self.news = []
        self.work = tmp_path / "work"
        self.base = tmp_path
        self.data = tmp_path / "data"
        self.data.mkdir(exist_ok=True)
        (self.data / "dataset.json").write_text("{}")
        self.train = TrainConfig(workers=workers)
        self._events = list(events)

    def sleep(self, seconds):
        super().sleep(seconds)
        if self._events:
            self._events.pop(0)(self)

    def rank(self, number):
        """Return the process that has been started last for a rank."""
        return [name for name in self.launcher.started if name.endswith(f"-{number}")][-1]

    def run(self, **train):
        return run_training(
            self.data,
            ModelConfig(),
            TrainConfig(workers=self.train.workers, **train),
            self.base,
            self.work,
            self.news.append,
            launcher=self.launcher,
            clock=self,
        )

    def said(self):
        return [news.message for news in self.news if news.message]


def nothing(world):
    pass


def killed(rank, signal=9):
    return lambda world: world.launcher.end(world.rank(rank), exit_code=-signal)


def raised(rank, error):
    return lambda world: world.launcher.end(world.rank(rank), exit_code=error.exit_code, error=error)


def checkpointed(step):
    def happen(world):
        made_by = world.launcher.specs[world.rank(0)].config["made_by"]
        Checkpoints(world.work / CHECKPOINTS, made_by).save(step, {"model.w": torch.zeros(1)}, {})

    return happen


def finished(world):
    write_atomic(world.work / WEIGHTS, b"weights")
    outcome = Outcome(
        made_by=world.launcher.specs[world.rank(0)].config["made_by"],
        digest=sha256(b"weights"),
        history=[{"epoch": 1.0}],
        epochs=1,
        steps=4,
        metric="accuracy",
        best_metric=0.5,
        seconds=2.0,
    )
    write_atomic(world.work / RESULT, canonical(outcome))
    for rank in range(world.train.workers):
        world.launcher.end(world.rank(rank), exit_code=0)


def test_a_training_whose_ranks_end_well_gives_its_weights(tmp_path):
    world = World(tmp_path, nothing, finished)
    result = world.run()
    assert (result.weights.read_bytes(), result.best_metric, result.restarts) == (b"weights", 0.5, 0)
    assert len(world.launcher.started) == 2
    specs = [world.launcher.specs[name] for name in world.launcher.started]
    assert [spec.config["rank"] for spec in specs] == [0, 1]
    assert all(not spec.detached and spec.role == "rank" and spec.threads >= 1 for spec in specs)


def test_a_finished_training_is_not_run_again(tmp_path):
    World(tmp_path, finished).run()
    again = World(tmp_path)
    assert again.run().best_metric == 0.5
    assert again.launcher.started == []


def test_a_finished_training_with_other_settings_or_damaged_weights_is_run_again(tmp_path):
    World(tmp_path, finished).run()
    other = World(tmp_path, finished)
    other.run(epochs=99)
    assert len(other.launcher.started) == 2
    (other.work / WEIGHTS).write_bytes(b"weightz")
    damaged = World(tmp_path, finished)
    damaged.run(epochs=99)
    assert len(damaged.launcher.started) == 2


@pytest.mark.capability("T7")
def test_a_killed_rank_is_noticed_at_once_the_others_are_stopped_and_all_start_again(tmp_path):
    world = World(tmp_path, nothing, killed(1), *[nothing] * 20, finished)
    began = world.monotonic()
    waits = []
    start = world.launcher.start
    world.launcher.start = lambda spec: (waits.append(world.monotonic() - began), start(spec))[1]
    result = world.run()
    assert result.restarts == 1
    assert world.said() == ["rank 1 was ended by signal 9; all ranks start again from the last checkpoint"]
    assert len(world.launcher.started) == 4
    assert len(set(world.launcher.started)) == 4
    assert world.launcher.started[0] in world.launcher.stopped
    assert waits[2] <= 2.0


@pytest.mark.capability("T7")
def test_ranks_that_die_again_and_again_without_progress_end_the_training(tmp_path):
    world = World(tmp_path, *[event for _ in range(9) for event in (killed(0, 11), *[nothing] * 25)])
    with pytest.raises(Unavailable, match="rank 0 was ended by signal 11, for the 4th time without any progress"):
        world.run()
    assert len(world.launcher.started) == 2 * 4
    assert not any(info.alive for info in world.launcher.list())


def test_progress_between_deaths_allows_more_of_them(tmp_path):
    rounds = [event for step in range(1, 7) for event in (checkpointed(step), killed(0), killed(1), nothing)]
    assert World(tmp_path, *rounds, finished).run().restarts >= 5


def test_what_a_rank_raises_is_raised_and_nothing_is_restarted(tmp_path):
    error = InvalidInput("the model 'model:build' has no parameters to train", hint="assign", code="no_parameters")
    world = World(tmp_path, raised(0, error), raised(1, error))
    with pytest.raises(InvalidInput, match="no parameters") as caught:
        world.run()
    assert caught.value.hint == "assign"
    assert len(world.launcher.started) == 2


def test_the_cause_is_raised_even_if_the_rank_that_only_waited_ended_first(tmp_path):
    cause = InvalidInput("line 3 of model.py", code="user_code")
    world = World(tmp_path, raised(0, rank_lost(1, "stopped with an error")), nothing, nothing, raised(1, cause))
    with pytest.raises(InvalidInput, match=r"line 3 of model\.py"):
        world.run()


def test_a_rank_that_only_lost_another_one_leads_to_a_restart(tmp_path):
    world = World(tmp_path, raised(0, rank_lost(1, "gave no sign of life")), *[nothing] * 30, finished)
    assert world.run().restarts == 1


@pytest.mark.capability("T7")
def test_a_frozen_rank_is_noticed_within_15_seconds_stopped_and_replaced(tmp_path):
    joined = []

    def join(world):
        segment = Segment.open(world.launcher.specs[world.rank(0)].config["segment"])
        # Alive by the fake clock's time of joining, and never again: no thread of theirs beats before the test ends.
        segment.header[segment.word(0, 4)] = segment.header[segment.word(1, 4)] = 1
        for rank in (0, 1):
            segment.header[segment.word(rank, 3)] = int(world.monotonic() * 1e9)
        joined.append(world.monotonic())

    def beat_of_rank_0(world):
        segment = Segment.open(world.launcher.specs[world.rank(0)].config["segment"])
        segment.header[segment.word(0, 3)] = int(world.monotonic() * 1e9)

    world = World(tmp_path, join, *[beat_of_rank_0] * 260, finished)
    starts = []
    start = world.launcher.start
    world.launcher.start = lambda spec: (starts.append(world.monotonic()), start(spec))[1]
    result = world.run()
    assert (result.restarts, result.replaced) == (0, 1)
    assert world.said()[0].startswith("rank 1 gave no sign of life for 10 s; another takes its place")
    assert 10.0 < starts[2] - joined[0] <= 15.0
    assert world.launcher.started[2].endswith("-1")


@pytest.mark.capability("T7")
def test_where_memory_is_short_a_training_goes_on_with_fewer_workers_and_says_so(tmp_path):
    def finished_alone(world):
        assert world.launcher.specs[world.rank(0)].config["train"].get("workers", 1) == 1
        world.train = TrainConfig(workers=1)
        finished(world)

    kills = [event for _ in range(4) for event in (killed(1, 9), *[nothing] * 25)]
    world = World(tmp_path, *kills, finished_alone)
    assert world.run().restarts == 4
    assert len(world.launcher.started) == 2 * 4 + 1
    assert world.said()[-1] == (
        "rank 1 was ended by signal 9, again and again; going on with 1 of them; "
        "all ranks start again from the last checkpoint"
    )


@pytest.mark.capability("T7")
def test_a_rank_lost_at_the_very_end_does_not_keep_a_finished_training(tmp_path):
    """Rank 0 has all it needs and leaves; nobody will tell the process in place of rank 1 anything any more."""

    def join(world):
        segment = Segment.open(world.launcher.specs[world.rank(0)].config["segment"])
        for rank in (0, 1):
            segment.header[segment.word(rank, 4)] = 1
            segment.header[segment.word(rank, 3)] = int(world.monotonic() * 1e9)

    def finished_alone(world):
        world.train = TrainConfig(workers=1)
        finished(world)

    world = World(tmp_path, join, killed(1), nothing, finished_alone)
    result = world.run()
    assert (result.restarts, result.replaced) == (0, 1)
    assert world.monotonic() < 5.0


def test_ranks_that_never_come_up_are_given_up(tmp_path):
    world = World(tmp_path)
    with pytest.raises(Unavailable, match="not all ranks came up within 180 s, for the 4th time"):
        world.run()


def test_a_user_thread_that_keeps_a_finished_process_alive_does_not_keep_the_job(tmp_path):
    def left_but_alive(world):
        segment = Segment.open(world.launcher.specs[world.rank(0)].config["segment"])
        SharedMemoryTransport.join(segment, 0).close()
        made_by = world.launcher.specs[world.rank(0)].config["made_by"]
        write_atomic(world.work / WEIGHTS, b"weights")
        outcome = Outcome(
            made_by=made_by,
            digest=sha256(b"weights"),
            history=[],
            epochs=1,
            steps=1,
            metric="",
            best_metric=0,
            seconds=1,
        )
        write_atomic(world.work / RESULT, canonical(outcome))

    world = World(tmp_path, left_but_alive, workers=1)
    assert world.run().epochs == 1
    assert len(world.launcher.stopped) == 1


def test_news_of_rank_0_are_passed_on_once_and_only_whole_lines(tmp_path):
    def write(text):
        def happen(world):
            with (world.work / NEWS).open("a") as stream:
                stream.write(text)

        return happen

    world = World(
        tmp_path,
        write('{"stage":"train","message":"a"}\n{"stage":"train",'),
        nothing,
        write('"message":"b"}\n'),
        finished,
    )
    world.run()
    assert world.said() == ["a", "b"]


def test_a_reporter_that_raises_stops_the_ranks(tmp_path):
    def news(world):
        (world.work / NEWS).write_text('{"stage":"train","message":"a"}\n')

    world = World(tmp_path, news, *[nothing] * 9)
    world.news = None

    class Stop(Exception):
        pass

    def stop(_):
        raise Stop

    with pytest.raises(Stop):
        run_training(
            world.data, ModelConfig(), world.train, world.base, world.work, stop, launcher=world.launcher, clock=world
        )
    assert not any(info.alive for info in world.launcher.list())
    assert not FileLock(world.work / "lock").is_taken()


def test_two_jobs_in_one_folder_do_not_mix(tmp_path):
    world = World(tmp_path)
    with FileLock(world.work / "lock"), pytest.raises(Conflict, match="another process is training in"):
        world.run()
    assert world.launcher.started == []


def test_mistakes_in_the_config_and_a_missing_data_set_start_nothing(tmp_path):
    world = World(tmp_path)
    with pytest.raises(InvalidInput, match="optimizer = 'sgdd' is not known; known are: adagrad, adam"):
        world.run(optimizer="sgdd")
    (world.data / "dataset.json").unlink()
    with pytest.raises(NotFound, match="holds no data set"):
        world.run()
    assert world.launcher.started == []
