"""What every compression pass must do, whatever it does to a model."""

import numpy as np
import pytest
import torch

from argosy.compress.candidate import Candidate, Quality, Timing
from argosy.compress.config import CompressConfig
from argosy.compress.passes import Model, Sketch, SoFar
from argosy.compress.table import PASSES
from argosy.core.errors import InvalidInput
from argosy.formats.runner import load_runner
from compressed import Stripes, bench_of, cnn, low_rank, one_thread, onnx_of, quick_exports, steady, train

pytestmark = pytest.mark.capability("C1", "C2", "C3", "C4", "C5", "C7")

# What makes a file smaller by what it does; the engine and the training of a student of the same size don't.
SHRINKING = {"slim", "factorize", "distill", "prune", "quantize"}
# Passes that are tried on the original whatever came of the others.
ALWAYS = {"slim", "factorize", "quantize"}


@pytest.fixture(scope="module")
def module():
    with one_thread():
        trained = train(cnn(), Stripes(), steps=20)
        low_rank(trained[3], 6)
        return trained


@pytest.fixture(scope="module")
def bench(module, tmp_path_factory):
    with one_thread():
        path = tmp_path_factory.mktemp("passes") / "model.onnx"
        path.write_bytes(onnx_of(module, Stripes()))
        yield bench_of(path, Stripes(), module)


@pytest.fixture(autouse=True)
def _steady(monkeypatch):
    steady(monkeypatch)


@pytest.fixture
def quick(monkeypatch):
    quick_exports(monkeypatch)


@pytest.fixture(params=PASSES.names())
def name(request):
    return request.param


def test_a_pass_keeps_the_signature_leaves_the_original_alone_and_says_what_changed(name, bench, module):
    step, original = PASSES.load(name)(), bench.original
    before, weights = original.path.read_bytes(), {k: v.clone() for k, v in module.state_dict().items()}
    settings = step.default(original)
    assert step.accepts(original)
    made = step.apply(original, settings, bench)
    runner = load_runner("onnx", made.onnx, engine=made.engine)
    assert runner.signature == bench.runner.signature
    assert made.changed
    assert all(isinstance(value, str | int | float | bool | dict | list) for value in made.changed.values())
    assert made.skipped == []
    if name in SHRINKING:
        assert len(made.onnx) < len(before)
    answers = runner.run(bench.samples.validation)["logits"]
    assert np.isfinite(answers).all()
    # Whatever a pass does to an easy problem, it isn't guessing afterwards.
    assert (answers.argmax(1) == bench.samples.y).mean() > 0.6
    assert original.path.read_bytes() == before
    assert all(torch.equal(weights[key], value) for key, value in module.state_dict().items())
    if made.module is not None:
        x = torch.from_numpy(bench.samples.validation["x"])
        with torch.no_grad():
            assert np.allclose(answers, made.module(x).numpy(), atol=1e-4)
    done = Model(path=original.path, module=lambda: made.module, recipe=((name, settings),))
    assert not step.accepts(done), "a pass follows itself only with a reason"


def test_a_pass_does_the_same_again(name, bench, quick):
    step = PASSES.load(name)()
    settings = step.default(bench.original)
    first, second = (step.apply(bench.original, settings, bench) for _ in range(2))
    assert first.onnx == second.onnx
    assert first.changed == second.changed


def test_a_pass_works_on_a_bare_file(name, bench, quick):
    bare = Model(path=bench.original.path)
    step = PASSES.load(name)()
    assert step.accepts(bare)
    made = step.apply(bare, step.default(bare), bench)
    assert load_runner("onnx", made.onnx, engine=made.engine).signature == bench.runner.signature


def test_a_draft_has_the_size_of_what_is_made(name, bench, quick):
    step = PASSES.load(name)()
    settings = step.default(bench.original)
    draft = step.draft(bench.original, settings, bench)
    if draft is None:
        assert not {"slim", "factorize", "distill"} & {name}
        return
    made = step.apply(bench.original, settings, bench)
    # Batch norms that are folded and names of layers make the difference.
    assert len(draft) == pytest.approx(len(made.onnx), rel=0.05)


def test_settings_that_do_not_exist_are_refused_with_those_that_do(name, bench):
    step = PASSES.load(name)()
    with pytest.raises(InvalidInput, match=r"no setting 'colour'; there are: "):
        step.apply(bench.original, {**step.default(bench.original), "colour": 3}, bench)


def test_ranks_and_costs_are_those_that_the_search_knows(name):
    step = PASSES.load(name)()
    assert step.rank in range(4)
    assert step.cost in range(3)


def so_far(tried, elsewhere=(), **asked):
    """Sketches shrink with what a pass takes away: the first share, or what energy leaves out."""

    def sketch(settings):
        share = settings.get("ratio") or settings.get("blocks") or 1 - settings.get("energy", 0.5)
        return Sketch(size_bytes=round(1000 * (1 - share)), p95_s=1.0 - share, ratio=1.0 - share, gain=2.0)

    return SoFar(tried=tried, elsewhere=elsewhere, budget=CompressConfig(**asked).budget(), sketch=sketch)


def too_large():
    """Something slim was tried on and lost too much, so that every pass has a reason to go on."""
    return [measured("slim", {"ratio": 0.5}, drop=0.5)]


def measured(name, settings, drop):
    return Candidate(
        name="x",
        recipe=[(name, settings)],
        status="measured",
        size_bytes=10_000,
        timings=[Timing(batch=1, p50_s=1.0, p95_s=1.0, cpu_s=1.0, ratio=0.5)],
        quality=Quality(measure="accuracy", value=0.9, drop=drop),
    )


@pytest.mark.parametrize("asked", [{}, {"size": "950B"}], ids=["no bound", "a size"])
@pytest.mark.parametrize("drop", [0.0, 0.5])
def test_proposals_end_never_repeat_and_depend_only_on_what_is_given(name, bench, asked, drop):
    step, tried = PASSES.load(name)(), []
    while (settings := step.propose(bench.original, so_far(tried, too_large(), **asked))) is not None:
        assert settings == PASSES.load(name)().propose(bench.original, so_far(list(tried), too_large(), **asked))
        assert settings not in [c.recipe[-1][1] for c in tried]
        assert step.label(settings)
        tried.append(measured(name, settings, drop))
        assert len(tried) < 20
    assert len({step.label(c.recipe[-1][1]) for c in tried}) == len(tried)
    assert tried or name not in ALWAYS


@pytest.mark.parametrize("asked", [{}, {"size": "950B"}, {"latency_p95": "1ms"}])
def test_failed_tries_do_not_stop_the_proposals_from_ending(name, bench, asked):
    step, tried = PASSES.load(name)(), []
    while (settings := step.propose(bench.original, so_far(tried, too_large(), **asked))) is not None:
        tried.append(Candidate(name="x", recipe=[(name, settings)], status="failed", reason="no"))
        assert len(tried) < 20


def test_every_pass_has_something_to_propose_somewhere(name, bench):
    if name == "optimize":
        pytest.importorskip("openvino")
    step = PASSES.load(name)()
    assert step.propose(bench.original, so_far([], too_large(), size="950B")) is not None
