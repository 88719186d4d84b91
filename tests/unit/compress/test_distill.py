import msgspec
import pytest
import torch

from argosy.compress.candidate import Candidate, Quality, Timing
from argosy.compress.config import CompressConfig
from argosy.compress.passes import Hopeless, Model, Sketch, SoFar
from argosy.compress.passes.distill import Distill
from argosy.compress.passes.slim import Slim
from argosy.core.errors import InvalidInput, NotFound
from argosy.formats.onnx_runtime import OnnxRunner
from compressed import Sentences, Stripes, bench_of, cnn, encoder, one_thread, onnx_of, quick_exports, steady, train

pytestmark = pytest.mark.capability("C4")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    steady(monkeypatch)
    quick_exports(monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    with one_thread():
        module = train(cnn(), Stripes(), steps=30)
        path = tmp_path_factory.mktemp("distill") / "model.onnx"
        path.write_bytes(onnx_of(module, Stripes()))
        return module, bench_of(path, Stripes(), module)


def accuracy(content, bench):
    return bench.samples.judge(OnnxRunner.load(content)).value


def test_a_student_of_half_the_channels_learns_four_times_as_long(made):
    _, bench = made
    found = Distill().apply(bench.original, {"ratio": 0.5}, bench)
    short = Slim().apply(bench.original, {"ratio": 0.5}, bench)
    assert found.changed["epochs"] == 4 * short.changed["epochs"] == 4
    assert found.changed["parameters_after"] == short.changed["parameters_after"]
    assert found.changed["parameters_after"] < 0.5 * found.changed["parameters_before"]
    assert accuracy(found.onnx, bench) > 0.9
    assert len(found.onnx) < 0.6 * bench.original.path.stat().st_size


def test_a_fresh_student_begins_with_weights_of_its_own(made):
    module, bench = made
    before = [p.clone() for p in module.parameters()]
    drafts = []
    watched = bench_of(bench.original.path, Stripes(), module, check_draft=drafts.append)
    kept = Distill().apply(bench.original, {"ratio": 0.5}, watched)
    fresh = Distill().apply(bench.original, {"ratio": 0.5, "init": "fresh"}, watched)
    again = Distill().apply(bench.original, {"ratio": 0.5, "init": "fresh"}, watched)
    assert drafts[0] != drafts[1] == drafts[2]
    assert fresh.onnx == again.onnx != kept.onnx
    assert all(torch.equal(a, b) for a, b in zip(before, module.parameters(), strict=True))
    assert Distill().label({"ratio": 0.5, "init": "fresh"}) == "distill 0.5 fresh"


def test_a_student_of_the_users_own_learns_in_the_place_of_a_cut_one(made, tmp_path, monkeypatch):
    _, bench = made
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.py").write_text(
        "from torch import nn\n"
        "def build(input_shape, outputs):\n"
        "    c, h, w = input_shape\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(c * h * w, 8), nn.ReLU(), nn.Linear(8, outputs))\n"
    )
    found = Distill().apply(bench.original, {"student": "small:build"}, bench)
    assert found.changed["student"] == "small:build"
    assert found.changed["parameters_after"] == 36 * 8 + 8 + 8 * 3 + 3
    assert OnnxRunner.load(found.onnx).signature == bench.runner.signature
    assert Distill().label({"student": "small:build"}) == "distill to small:build"
    with pytest.raises(InvalidInput, match="not both"):
        Distill().apply(bench.original, {"student": "small:build", "ratio": 0.5}, bench)
    with pytest.raises(NotFound, match=r"has no function 'make'"):
        Distill().apply(bench.original, {"student": "small:make"}, bench)


def test_random_numbers_of_others_are_not_moved(made):
    _, bench = made
    torch.manual_seed(3)
    state = torch.random.get_rng_state()
    Distill().apply(bench.original, {"ratio": 0.5, "init": "fresh"}, bench)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_an_encoder_loses_blocks(tmp_path):
    with one_thread():
        module = train(encoder(16, 3), Sentences(), steps=40, rate=1e-2)
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(module, Sentences()))
    bench = bench_of(path, Sentences(), learning_rate=5e-3)
    settings = Distill().default(bench.original)
    assert settings == {"blocks": 0.5}
    found = Distill().apply(bench.original, settings, bench)
    assert len(found.changed["blocks_removed"]) == 3
    assert len(set(found.changed["blocks_removed"])) == 3
    assert found.changed["parameters_after"] < 0.8 * found.changed["parameters_before"]
    assert OnnxRunner.load(found.onnx).signature == bench.runner.signature


def test_a_hopeless_student_is_not_trained(made):
    _, bench = made

    def hopeless(_):
        raise Hopeless("too large")

    with pytest.raises(Hopeless):
        Distill().apply(bench.original, {"ratio": 0.5}, bench_of(bench.original.path, Stripes(), check_draft=hopeless))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({}, "say how much"),
        ({"init": "fresh"}, "say how much"),
        ({"ratio": 1.5}, "below 1"),
        ({"ratio": "half"}, "'ratio' takes a number, not 'half'"),
        ({"ratio": 0.5, "init": "random"}, "kept or fresh"),
        ({"ratio": 0.5, "soft_share": 2}, "soft_share"),
    ],
)
def test_impossible_settings_are_refused(made, settings, said):
    _, bench = made
    with pytest.raises(InvalidInput, match=said):
        Distill().apply(bench.original, settings, bench)


def candidate(name, settings, drop):
    quality = Quality(measure="accuracy", value=0.9, drop=drop)
    return Candidate(name="x", recipe=[(name, settings)], status="measured", quality=quality)


def test_what_slim_could_not_teach_shortly_is_tried_the_largest_first(made):
    _, bench = made

    def sketch(settings):
        return Sketch(size_bytes=round(1000 * (1 - settings["ratio"])), p95_s=0.001, ratio=0.5, gain=2.0)

    def proposed(tried, elsewhere, **asked):
        so_far = SoFar(tried=tried, elsewhere=elsewhere, budget=CompressConfig(**asked).budget(), sketch=sketch)
        return Distill().propose(bench.original, so_far)

    lost, well = [candidate("slim", {"ratio": r}, 0.1) for r in (0.75, 0.5)], candidate("slim", {"ratio": 0.25}, 0.0)
    assert proposed([], [well]) is None
    assert proposed([], [well, *lost]) == {"ratio": 0.5}
    assert proposed([], lost, size="300B") == {"ratio": 0.75}, "only what would keep the size"
    assert proposed([candidate("distill", {"ratio": 0.5}, 0.0)], lost) == {"ratio": 0.75}
    assert proposed([candidate("distill", {"ratio": 0.5}, 0.1)], lost) is None


def test_what_keeps_the_drop_by_luck_is_trained_longer_where_it_would_gain_much(made):
    _, bench = made

    def measured(name, settings, cost, high, drop=0.005):
        quality = Quality(measure="accuracy", value=0.9, drop=drop, drop_high=high / 2, drop_surely=high, agreement=0.9)
        timing = Timing(batch=1, p50_s=1.0, p95_s=1.0, cpu_s=1.0, ratio=0.5)
        return Candidate(
            name="x",
            recipe=[(name, settings), ("quantize", {})],
            status="measured",
            size_ratio=2 * cost,
            timings=[timing],
            quality=quality,
        )

    def proposed(*elsewhere):
        so_far = SoFar(tried=[], elsewhere=elsewhere, budget=CompressConfig().budget(), sketch=lambda _: None)
        return Distill().propose(bench.original, so_far)

    lucky, sure = measured("slim", {"ratio": 0.75}, 0.1, high=0.02), measured("slim", {"ratio": 0.5}, 0.2, high=0.008)
    assert proposed(sure, lucky) == {"ratio": 0.75}
    assert proposed(lucky) == {"ratio": 0.75}
    assert proposed(sure) is None
    assert proposed(measured("slim", {"ratio": 0.5}, 0.11, high=0.008), lucky) is None, "little is gained"
    assert proposed(sure, measured("factorize", {"energy": 0.5}, 0.1, high=0.02)) is None


def test_texts_that_are_known_by_heart_are_not_learned_longer(made, tmp_path):
    _, bench = made
    path = tmp_path / "texts.onnx"
    path.write_bytes(onnx_of(encoder(8, 1), Sentences()))
    short = candidate("slim", {"blocks": 0.5}, 0.02)
    done = msgspec.structs.replace(short, changed={"epochs": 30})
    doubtful = Quality(measure="accuracy", value=0.9, drop_high=0.02, drop_surely=0.02, agreement=0.9)
    timing = Timing(batch=1, p50_s=1.0, p95_s=1.0, cpu_s=1.0, ratio=0.5)
    lucky = msgspec.structs.replace(
        short, recipe=[*short.recipe, ("quantize", {})], size_ratio=0.1, timings=[timing], quality=doubtful
    )

    def proposed(*elsewhere, model=None):
        so_far = SoFar(tried=[], elsewhere=elsewhere, budget=CompressConfig().budget(), sketch=lambda _: None)
        return Distill().propose(model or Model(path=path), so_far)

    assert proposed(short) == proposed(short, lucky) == {"blocks": 0.5}
    assert proposed(done) is None
    assert proposed(done, lucky) is None
    assert proposed(done, model=bench.original) == {"blocks": 0.5}, "of pictures more is of use"


def test_only_the_original_in_float_is_taken(made):
    _, bench = made
    assert Distill().accepts(bench.original)
    assert not Distill().accepts(Model(path=bench.original.path, recipe=(("prune", {"sparsity": 0.5}),)))
