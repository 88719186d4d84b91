"""What every compression pass must do, whatever it does to a model."""

import numpy as np
import pytest
import torch
from torch import nn

from argosy.compress.candidate import Candidate
from argosy.compress.passes import Bench, Model
from argosy.compress.quality import Samples
from argosy.compress.table import PASSES
from argosy.core.progress import silent
from argosy.formats.onnx_export import onnx_bytes
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.train.config import TrainConfig


class Stripes:
    """Pictures with a stripe in one of three places."""

    task, labels, digest = "classification", ["a", "b", "c"], "sha256:" + "5" * 64
    outputs, splits, finish, tokenize = 3, {}, [], None

    def prepared(self, split):
        assert split != "test", "a pass must not look at the test part"
        y = np.arange(48) % 3
        x = 0.1 * np.random.default_rng(len(split)).random((48, 1, 6, 6))
        for row, place in enumerate(y):
            x[row, 0, 2 * place] += 1
        return {"x": x.astype(np.float32)}, y


@pytest.fixture(scope="module")
def module():
    torch.manual_seed(0)
    body = [nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(32 * 36, 3)).eval()


@pytest.fixture(scope="module")
def bench(module, tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("passes") / "model.onnx"
    path.write_bytes(onnx_bytes(module, torch.rand(2, 1, 6, 6), is_draft=True))
    data = Stripes()
    yield Bench(
        original=Model(path=path, module=lambda: module),
        samples=Samples(data, OnnxRunner.load(path)),
        dataset=data,
        train=TrainConfig(batch_size=16),
        epochs=1,
        seed=0,
        check_draft=lambda _: None,
        report=silent,
    )
    torch.set_num_threads(threads)


@pytest.fixture(params=PASSES.names())
def name(request):
    return request.param


def test_a_pass_makes_a_smaller_model_with_the_same_signature_and_says_what_changed(name, bench, module):
    step, original = PASSES.load(name)(), bench.original
    before, weights = original.path.read_bytes(), [p.clone() for p in module.parameters()]
    settings = step.propose(original, [], [], 0.01)
    assert step.accepts(original)
    made = step.apply(original, settings, bench)
    runner = OnnxRunner.load(made.onnx)
    assert runner.signature == OnnxRunner.load(original.path).signature
    assert len(made.onnx) < len(before)
    assert made.changed
    assert made.skipped == []
    assert np.isfinite(runner.run(bench.samples.validation)["logits"]).all()
    assert original.path.read_bytes() == before
    assert all(torch.equal(a, b) for a, b in zip(weights, module.parameters(), strict=True))
    if made.module is not None:
        x = torch.from_numpy(bench.samples.validation["x"])
        with torch.no_grad():
            wanted = made.module(x).numpy()
        assert np.allclose(runner.run({"x": x.numpy()})["logits"], wanted, atol=1e-5)
    done = Model(path=original.path, module=lambda: made.module, recipe=((name, settings),))
    assert not step.accepts(done), "a pass follows itself only with a reason"


def test_proposals_end_never_repeat_and_depend_only_on_what_is_given(name, bench, candidate_of):
    step = PASSES.load(name)()
    for drop in (0.0, 0.5):
        tried = []
        while (settings := step.propose(bench.original, tried, [], 0.01)) is not None:
            assert settings == PASSES.load(name)().propose(bench.original, tried, [], 0.01)
            assert settings not in [c.recipe[-1][1] for c in tried]
            assert step.label(settings)
            tried.append(candidate_of(name, settings, drop))
            assert len(tried) < 20
        assert len({step.label(c.recipe[-1][1]) for c in tried}) == len(tried) > 0


def test_failed_tries_do_not_stop_the_proposals_from_ending(name, bench):
    step, tried = PASSES.load(name)(), []
    while (settings := step.propose(bench.original, tried, [], 0.01)) is not None:
        tried.append(Candidate(name="x", recipe=[(name, settings)], status="failed", reason="no"))
        assert len(tried) < 20


@pytest.fixture
def candidate_of():
    from argosy.compress.candidate import Quality, Timing

    def make(name, settings, drop):
        return Candidate(
            name="x",
            recipe=[(name, settings)],
            status="measured",
            timings=[Timing(batch=1, p50_s=1.0, p95_s=1.0, cpu_s=1.0, ratio=0.5)],
            quality=Quality(measure="accuracy", value=0.9, drop=drop),
        )

    return make
