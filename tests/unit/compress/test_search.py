import json
from typing import ClassVar

import msgspec
import numpy as np
import pytest

from argosy.compress import search, sketching, tries
from argosy.compress.candidate import Timing
from argosy.compress.config import PASS_NAMES, CompressConfig
from argosy.compress.passes import Made, named_settings
from argosy.core.clock import FakeClock
from argosy.core.errors import InvalidInput
from argosy.train.config import TrainConfig

pytestmark = pytest.mark.capability("C6")

MODULE = object()
WRONG = np.roll(np.eye(4, 3), 1, axis=1)


class FakePass:
    """Gives prepared files for its settings 0, 1, 2 …; notes what it was asked, and the sketches it saw."""

    usual: ClassVar = {"number": 0}

    def __init__(self, name, files, noted, *, on_graph=False, drafts=None):
        self.name, self.files, self.noted, self.on_graph = name, files, noted, on_graph
        self.cost, self.rank = (0, 2) if on_graph else (1, 0)
        self.drafts, self.seen, self.students = drafts, [], None

    def label(self, settings):
        return f"{self.name}{settings['number']}"

    def accepts(self, model):
        return self.name not in model.passes and (self.on_graph or model.module is not None)

    def default(self, model):
        return {"number": 0}

    def propose(self, model, so_far):
        number = len(so_far.tried)
        if number >= len(self.files):
            return None
        if self.drafts is not None:
            sketch = so_far.sketch({"number": number})
            self.seen.append((sketch, so_far.keeps(sketch)))
        return {"number": number}

    def draft(self, model, settings, bench):
        return None if self.drafts is None else self.drafts[settings["number"]]

    def apply(self, model, settings, bench):
        named_settings(settings, self.usual)
        self.noted.append("+".join([*(name for name, _ in model.recipe), f"{self.name}{settings['number']}"]))
        made = self.files[settings["number"]]
        if isinstance(made, BaseException):
            raise made
        bench.check_draft(made)
        if self.students is not None:
            bench.check_student(search.OnnxRunner.load(self.students[settings["number"]]), 0.25)
        return Made(onnx=made, module=None if self.on_graph else object())


@pytest.fixture
def world(tmp_path, monkeypatch, blobs, linear_onnx):
    """A search over fake passes, with latency taken from the size of the file."""

    class World:
        data = blobs()
        work = tmp_path / "search"
        original = tmp_path / "original.onnx"
        clock = FakeClock()

        def __init__(self):
            self.noted, self.news = [], []

        def passes(self, drafts=None, **files):
            self.noted.clear()
            made = self.made = {
                name: FakePass(
                    name, files.get(name, []), self.noted, on_graph=name == "quantize", drafts=(drafts or {}).get(name)
                )
                for name in PASS_NAMES
            }

            class Table:
                def load(self, name):
                    return lambda: made[name]

            for room in (search, sketching, tries):
                monkeypatch.setattr(room, "PASSES", Table())

        def run(self, module=MODULE, clock=None, **asked):
            return search.compress(
                self.original,
                module,
                self.data,
                CompressConfig(**asked),
                TrainConfig(),
                self.work,
                self.news.append,
                clock=clock or self.clock,
            )

        def follow(self, *recipe, module=MODULE, **asked):
            return search.apply_passes(
                self.original,
                module,
                self.data,
                CompressConfig(**asked),
                TrainConfig(),
                self.work,
                recipe,
                self.news.append,
                clock=self.clock,
            )

    def timed(original, candidate, samples, *, seconds, clock):
        def timings(size):
            return [
                Timing(batch=b, p50_s=b * size / 1e6, p95_s=b * size / 0.5e6, cpu_s=0.0, ratio=size / 40_000)
                for b in (1, 32)
            ]

        return timings(original.size), timings(candidate.size)

    real_load = search.OnnxRunner.load

    def load(data, **kwargs):
        runner = real_load(data, **kwargs)
        runner.size = len(data) if isinstance(data, bytes) else data.stat().st_size
        return runner

    monkeypatch.setattr(search, "compare", timed)
    monkeypatch.setattr(search.OnnxRunner, "load", load)
    world = World()
    world.original.write_bytes(linear_onnx(padding=40_000))
    return world


def test_cheap_passes_come_first_and_good_results_are_built_upon(world, linear_onnx):
    world.passes(
        quantize=[linear_onnx(padding=10_000)],
        slim=[linear_onnx(padding=20_000), linear_onnx(WRONG, padding=5_000)],
    )
    result = world.run()
    # After slim0 its quantization; nothing is built upon slim1, which answers wrongly.
    assert world.noted == ["quantize0", "slim0", "slim+quantize0", "slim1"]
    assert [c.name for c in result.candidates] == ["quantize0", "slim0", "slim0 + quantize0", "slim1"]
    assert result.chosen.name == "quantize0"
    assert result.chosen.path.read_bytes() == linear_onnx(padding=10_000)


def test_the_chosen_file_keeps_the_drop_and_the_original_is_untouched(world, linear_onnx):
    before = world.original.read_bytes()
    world.passes(slim=[linear_onnx(WRONG, padding=1_000), linear_onnx(padding=30_000)])
    result = world.run()
    assert result.chosen.quality.drop == 0.0
    assert result.chosen.path.read_bytes() == linear_onnx(padding=30_000)
    assert world.original.read_bytes() == before


def test_an_interrupted_search_goes_on_without_repeating_a_finished_try(world, linear_onnx):
    files = {"quantize": [linear_onnx(padding=30_000)], "slim": [linear_onnx(padding=20_000), KeyboardInterrupt()]}
    world.passes(**files)
    with pytest.raises(KeyboardInterrupt):
        world.run()
    files["slim"][1] = linear_onnx(padding=10_000)
    world.passes(**files)
    result = world.run()
    assert world.noted == ["slim1", "slim+quantize0"]
    assert result.chosen.path.read_bytes() == linear_onnx(padding=10_000)
    world.passes(**files)
    assert world.run().chosen.digest == result.chosen.digest
    assert world.noted == []


def test_a_damaged_or_half_written_record_is_made_again(world, linear_onnx):
    world.passes(quantize=[linear_onnx(padding=10_000)])
    first = world.run()
    first.chosen.path.write_bytes(first.chosen.path.read_bytes()[:-1])
    assert world.run().chosen.digest == first.chosen.digest
    assert len(world.noted) == 2
    record = next(world.work.glob("*.json"))
    record.write_bytes(record.read_bytes()[:40])
    assert world.run().chosen.digest == first.chosen.digest
    assert len(world.noted) == 3


def test_a_result_of_other_inputs_is_not_taken_from_the_cache(world, linear_onnx):
    world.passes(quantize=[linear_onnx(padding=10_000)])
    world.run()
    world.run(seed=1)
    world.run(epochs=3)
    world.data.digest = "sha256:" + "9" * 64
    world.run()
    assert len(world.noted) == 4


def test_a_pass_that_fails_is_listed_and_the_others_go_on(world, linear_onnx):
    world.passes(
        slim=[InvalidInput("no channel could be cut"), RuntimeError("tracing failed")],
        quantize=[linear_onnx(padding=10_000)],
    )
    result = world.run()
    assert {c.reason for c in result.candidates if c.status == "failed"} == {
        "no channel could be cut",
        "RuntimeError: tracing failed",
    }
    assert result.chosen is not None


def test_a_hopeless_draft_is_stopped_before_its_training(world, linear_onnx):
    world.passes(slim=[linear_onnx(padding=39_000)], quantize=[])
    result = world.run(size="1KB")
    assert result.candidates[0].status == "stopped"
    assert "bytes before quantization" in result.candidates[0].reason
    world.passes(slim=[linear_onnx(padding=90_000)])
    assert "as long as the original" in world.run().candidates[0].reason


@pytest.mark.parametrize(
    ("told", "status"), [((0.15, 0.01), "stopped"), ((0.15, 0.04), "measured"), ((0.3, 0.04), "stopped")]
)
def test_a_student_of_which_a_glance_is_in_doubt_goes_on(world, linear_onnx, monkeypatch, told, status):
    # Ten points are the patience after a quarter; 15 on few samples may be less than that.
    monkeypatch.setattr(search.Samples, "glimpse", lambda *_: told)
    world.passes(slim=[linear_onnx(padding=20_000)])
    world.made["slim"].students = [linear_onnx()]
    assert [candidate.status for candidate in world.run().candidates] == [status]


@pytest.mark.parametrize(("own_error", "status"), [(0.1, "measured"), (0.01, "stopped")])
def test_where_the_original_errs_often_a_student_may_do_so_for_a_while(
    world, linear_onnx, monkeypatch, own_error, status
):
    monkeypatch.setattr(search.Samples, "glimpse", lambda *_: (0.25, 0.0))
    monkeypatch.setattr(search.Samples, "own_error", own_error)
    world.passes(slim=[linear_onnx(padding=20_000)])
    world.made["slim"].students = [linear_onnx()]
    assert [candidate.status for candidate in world.run().candidates] == [status]


def test_a_student_that_learns_too_little_is_given_up_once(world, linear_onnx):
    def run(**asked):
        world.passes(slim=[linear_onnx(padding=20_000)] * 2)
        world.made["slim"].students = [linear_onnx(WRONG), linear_onnx()]
        return world.run(**asked)

    given_up, kept = run().candidates
    assert (given_up.status, kept.status) == ("stopped", "measured")
    assert given_up.reason == f"after 25% of its training it still lost {given_up.given_up * 100:.1f} points"
    assert given_up.given_up > 0.1
    # That is known from then on, but says nothing for a wider bound.
    again = run()
    assert world.noted == []
    assert [c.status for c in again.candidates] == ["stopped", "measured"]
    assert again.candidates[0].given_up == given_up.given_up
    assert [c.status for c in run(max_drop="90pt").candidates] == ["measured", "measured"]
    assert world.noted == ["slim0"]


def test_who_asks_for_a_pass_gets_its_training_to_the_end(world, linear_onnx):
    world.passes(slim=[linear_onnx(padding=20_000)])
    world.made["slim"].students = [linear_onnx(WRONG)]
    assert world.follow(("slim", {})).chosen is not None


def test_only_passes_that_accept_the_model_are_tried(world, linear_onnx):
    world.passes(slim=[linear_onnx(padding=10_000)], quantize=[linear_onnx(padding=10_000)])
    assert [c.recipe[0][0] for c in world.run(module=None).candidates] == ["quantize"]


def test_after_the_time_limit_no_try_is_begun_and_the_best_so_far_is_taken(world, linear_onnx):
    class Running(FakeClock):
        def monotonic(self):
            self.advance(1.0)
            return super().monotonic()

    world.passes(slim=[linear_onnx(padding=10_000 - 100 * i) for i in range(9)])
    result = world.run(clock=Running(), time_limit="12s")
    assert result.out_of_time
    assert 1 <= len(world.noted) < 9
    assert result.chosen is not None


@pytest.mark.parametrize(("limit", "is_begun"), [("100s", True), ("25s", False)])
def test_no_training_is_begun_that_would_not_end_in_time(world, linear_onnx, limit, is_begun):
    class Late(FakeClock):
        def monotonic(self):
            # Most of the time goes before the first training.
            return 20.0 if world.noted else 0.0

    world.passes(quantize=[linear_onnx(padding=30_000)], slim=[linear_onnx(padding=20_000)])
    result = world.run(clock=Late(), time_limit=limit)
    assert ("slim0" in world.noted) is is_begun
    assert result.out_of_time is not is_begun
    assert result.chosen is not None


def test_after_the_time_limit_what_takes_seconds_is_still_tried_while_nothing_is_within_the_budget(world, linear_onnx):
    class Late(FakeClock):
        def monotonic(self):
            # The first training takes all the time there is.
            return 100.0 if "slim0" in world.noted else 0.0

    too_large = [linear_onnx(padding=30_000)]
    world.passes(quantize=too_large, slim=[linear_onnx(padding=20_000)] * 2)
    assert world.run(clock=Late(), size="10KB", time_limit="12s").out_of_time
    assert world.noted == ["quantize0", "slim0", "slim+quantize0"]


def test_out_of_reach_is_said_with_the_nearest_point(world, linear_onnx):
    world.passes(quantize=[linear_onnx(padding=20_000), linear_onnx(padding=30_000)])
    result = world.run(size="15KB")
    assert result.chosen is None
    assert result.nearest.size_bytes == len(linear_onnx(padding=20_000))
    assert 'size = "21KB"' in result.hint
    assert result.nearest_values()["size_bytes"] == result.nearest.size_bytes
    assert result.values() == {}


def test_an_impossible_budget_is_refused_before_anything_is_written(world):
    world.passes()
    with pytest.raises(InvalidInput, match="impossible"):
        world.run(size="0MB")
    assert not world.work.exists()


def test_news_tell_the_best_so_far(world, linear_onnx):
    world.passes(quantize=[linear_onnx(WRONG, padding=10_000), linear_onnx(padding=20_000)])
    world.run()
    best = [news.values["best"] for news in world.news if "best" in news.values]
    assert best[0] == "none within the budget yet"
    assert "faster" in best[1]
    assert {news.stage for news in world.news} == {"compress"}


def test_the_report_holds_every_try_without_paths_of_this_machine(world, linear_onnx, tmp_path):
    world.passes(quantize=[linear_onnx(padding=20_000), InvalidInput("not today")])
    result = world.run()
    text = json.dumps(result.report())
    assert str(tmp_path) not in text
    assert result.report()["rows"][0]["model"] == "original"
    assert "failed: not today" in text
    msgspec.json.encode(result.values())


def test_sketches_are_measured_once_and_judged_by_the_budget(world, linear_onnx):
    drafts = {"slim": [linear_onnx(padding=30_000), linear_onnx(padding=5_000)]}
    world.passes(drafts, slim=[linear_onnx(padding=20_000), linear_onnx(padding=20_000)])
    world.run(size="10KB")
    large, small = world.made["slim"].seen
    assert (large[0].size_bytes, large[1]) == (len(drafts["slim"][0]), False)
    assert (small[0].size_bytes, small[1]) == (len(drafts["slim"][1]), True)
    assert small[0].ratio == pytest.approx(len(drafts["slim"][1]) / 40_000)
    # Size times time of the best so far, by the sketch's: first the original, then what the first one became.
    best = len(linear_onnx(padding=20_000))
    assert large[0].gain == pytest.approx(40_000 * world.original.stat().st_size / large[0].size_bytes ** 2)
    assert small[0].gain == pytest.approx((best / small[0].size_bytes) ** 2)


def test_what_cannot_be_sketched_has_no_sketch_and_the_search_goes_on(world, linear_onnx):
    world.passes({"slim": [b"no model"]}, slim=[linear_onnx(padding=20_000)])
    assert world.run().chosen is not None
    assert world.made["slim"].seen == [(None, False)]


def test_passes_that_are_asked_for_follow_in_order_and_the_last_is_taken(world, linear_onnx):
    # Larger than the original and wrong: who asks for it gets it.
    world.passes(slim=[linear_onnx(padding=20_000)], quantize=[linear_onnx(WRONG, padding=90_000)])
    result = world.follow(("slim", {}), ("quantize", {"number": 0}), size="1KB")
    assert world.noted == ["slim0", "slim+quantize0"]
    assert [c.name for c in result.candidates] == ["slim0", "slim0 + quantize0"]
    assert result.chosen.path.read_bytes() == linear_onnx(WRONG, padding=90_000)
    assert result.chosen.quality.drop > 0.5
    assert result.nearest is None
    assert "slim0 + quantize0" in result.says


def test_a_pass_that_fails_ends_what_was_asked_for(world, linear_onnx):
    world.passes(slim=[InvalidInput("no channel could be cut")], quantize=[linear_onnx(padding=1_000)])
    result = world.follow(("slim", {}), ("quantize", {}))
    assert result.chosen is None
    assert world.noted == ["slim0"]
    assert result.says == "slim0: no channel could be cut"


def test_a_pass_that_does_not_accept_the_model_is_refused(world, linear_onnx):
    world.passes(slim=[linear_onnx(padding=20_000)])
    with pytest.raises(InvalidInput, match="slim can't be applied to slim0"):
        world.follow(("slim", {}), ("slim", {}))


def test_a_setting_nobody_has_is_told_with_those_there_are(world, linear_onnx):
    world.passes(slim=[linear_onnx(padding=20_000)])
    with pytest.raises(InvalidInput, match="no setting 'colour'; there are: number"):
        world.follow(("slim", {"colour": 3}))
    assert world.noted == []


def test_what_was_applied_is_not_applied_again_after_a_crash(world, linear_onnx):
    files = {"slim": [linear_onnx(padding=20_000)], "quantize": [KeyboardInterrupt()]}
    world.passes(**files)
    with pytest.raises(KeyboardInterrupt):
        world.follow(("slim", {}), ("quantize", {}))
    files["quantize"] = [linear_onnx(padding=1_000)]
    world.passes(**files)
    assert world.follow(("slim", {}), ("quantize", {})).chosen is not None
    assert world.noted == ["slim+quantize0"]
