import numpy as np
import pytest
import torch
from torch import nn

from argosy.compress.config import CompressConfig
from argosy.compress.passes import Hopeless, Model, Sketch, SoFar, slim, stairs
from argosy.compress.passes.channels import cut
from argosy.compress.passes.slim import Slim, slimmer
from argosy.core.errors import InvalidInput
from argosy.formats.onnx_module import to_module
from argosy.formats.onnx_runtime import OnnxRunner
from compressed import (
    Sentences,
    Steps,
    Stripes,
    bench_of,
    cnn,
    decoder,
    encoder,
    onnx_of,
    quick_exports,
    steady,
    train,
)

pytestmark = pytest.mark.capability("C2")


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Residual(nn.Module):
    """Channels that can only go together: a sum, batch norm, a grouped convolution and a flat end."""

    def __init__(self, width=16):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.norm = nn.BatchNorm2d(width)
        self.first = nn.Conv2d(width, width, 3, padding=1)
        self.second = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.hidden = nn.Linear(4 * width, 24)
        self.head = nn.Linear(24, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x.reshape(-1, 1, 4, 4))))
        x = torch.relu(self.second(torch.relu(self.first(x))) + x)
        x = torch.nn.functional.max_pool2d(x, 2).flatten(1)
        return self.head(torch.relu(self.hidden(x)))


X = torch.rand(2, 16)


def weights(module):
    return sum(p.numel() for p in module.parameters())


def test_half_of_the_channels_leave_about_a_quarter_of_the_weights():
    teacher = Residual().eval()
    student, skipped = cut(teacher, X, 0.5)
    assert skipped == []
    assert student.stem.out_channels == student.first.in_channels == 8
    assert student.hidden.in_features == 4 * 8
    assert 0.2 < weights(student) / weights(teacher) < 0.35


def test_the_original_is_left_as_it_was():
    teacher = Residual().eval()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    cut(teacher, X, 0.75)
    assert teacher.stem.out_channels == 16
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_the_output_keeps_its_shape_at_every_ratio():
    for ratio in (0.25, 0.625, 0.75):
        student, _ = cut(Residual().eval(), X, ratio)
        assert student(torch.rand(3, 16)).shape == (3, 5)


def test_the_same_cut_is_made_each_time():
    first, second = (cut(Residual().eval(), X, 0.5)[0] for _ in range(2))
    for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_channels_that_carry_nothing_go_first():
    teacher = Residual().eval()
    with torch.no_grad():
        dead = torch.arange(16) % 2 == 0
        for tensor in (teacher.first.weight, teacher.first.bias):
            tensor[dead] = 0
        teacher.second.weight[:, dead] = 0
    student, _ = cut(teacher, X, 0.5)
    assert torch.equal(student.first.bias, teacher.first.bias[~dead])


def test_wide_layers_keep_a_multiple_of_eight_and_thin_ones_a_minimum():
    wide, _ = cut(Residual(64).eval(), X, 0.625)
    assert wide.stem.out_channels % 8 == 0
    thin, _ = cut(Residual(8).eval(), X, 0.75)
    assert thin.stem.out_channels >= 4


class Rigid(nn.Module):
    """A layer whose width stands in the forward method."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(16, 32)
        self.rigid = nn.Linear(32, 32)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        return self.head(torch.relu(self.rigid(torch.relu(self.body(x)))).reshape(-1, 8, 4).mean(2))


@pytest.mark.parametrize("seed", range(12))
def test_a_layer_that_cannot_be_cut_is_left_whole_and_listed(seed):
    # By the weights it depends whether the cut breaks the model, or would take all inputs of the head.
    torch.manual_seed(seed)
    student, skipped = cut(Rigid().eval(), X, 0.5)
    assert student.rigid.out_features == 32
    assert student.body.out_features == 16
    assert student(X).shape == (2, 5)
    assert [entry.split(":")[0] for entry in skipped] == ["rigid"]


class Untraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(16, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        with torch.no_grad():
            return self.head(torch.from_numpy(self.layer(x).numpy()))


def test_a_model_that_hides_its_operations_stays_whole_and_is_refused_by_the_pass(tmp_path):
    student, _ = cut(Untraceable().eval(), X, 0.5)
    assert weights(student) == weights(Untraceable())

    class Data(Stripes):
        def prepared(self, split):
            return {"x": X.numpy()}, np.array([0, 1])

    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(Residual().eval(), Data()))
    bench = bench_of(path, Data())
    with pytest.raises(InvalidInput, match="nothing could be taken out"):
        Slim().apply(Model(path=path, module=lambda: Untraceable().eval()), {"ratio": 0.5}, bench)


class Tried:
    given_up = 0.0

    def __init__(self, ratio, drop, seconds=1.0, blocks=0.0, high=None, **more):
        self.recipe = [("slim", {"ratio": ratio} | ({"blocks": blocks} if blocks else {}) | more)]
        self.status, self.seconds = "measured", seconds
        self.quality = type("Q", (), {"drop": drop, "drop_high": drop if high is None else high, "seen_drop": drop})
        self.size_bytes = self.cost = Sketches()(self.recipe[0][1]).size_bytes


class Sketches:
    """What a search would measure: a network of 100 kB and 10 ms shrinks with the share that goes."""

    def __init__(self, impossible=(), gain=1.0):
        self.asked, self.impossible, self.gain = [], impossible, gain

    def __call__(self, settings):
        if "embeddings" in settings:
            left = (1 - settings["embeddings"]) * (1 - settings.get("blocks", 0)) * (1 - settings.get("ratio", 0))
            return Sketch(size_bytes=round(100_000 * left), p95_s=0.01 * left, ratio=0.5, gain=self.gain)
        share = settings["ratio"] if "ratio" in settings else settings["blocks"]
        self.asked.append(share)
        if share in self.impossible:
            return None
        if len(settings) == 2:
            share += (1 - share) * settings["blocks"] / 2
        return Sketch(size_bytes=round(100_000 * (1 - share)), p95_s=0.01 * (1 - share), ratio=1 - share, gain=2.0)


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "pictures.onnx"
    path.write_bytes(onnx_of(cnn(4), Stripes()))
    return Model(path=path)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "texts.onnx"
    path.write_bytes(onnx_of(encoder(8, 1), Sentences()))
    return Model(path=path)


def proposed(model, *tried, sketch=None, **asked):
    budget = CompressConfig(**asked).budget()
    so_far = SoFar(tried=tried, elsewhere=[], budget=budget, sketch=sketch or Sketches())
    return Slim().propose(model, so_far)


GOOD, BAD = 0.0, 0.2


def test_without_a_bound_ratios_follow_what_went_well(model):
    def ratio(*tried):
        """Return the next share of the channels alone; None where that is done, and blocks may go too."""
        found = proposed(model, *tried)
        return found["ratio"] if found and "blocks" not in found else None

    assert ratio() == 0.5
    assert ratio(Tried(0.5, GOOD)) == 0.75
    assert ratio(Tried(0.5, BAD)) == 0.25
    assert ratio(Tried(0.5, GOOD), Tried(0.75, BAD)) == 0.625
    assert ratio(Tried(0.5, BAD), Tried(0.25, GOOD)) == 0.375
    assert ratio(Tried(0.5, GOOD), Tried(0.75, GOOD)) == 0.875
    assert ratio(Tried(0.5, GOOD), Tried(0.75, GOOD), Tried(0.875, GOOD)) == 0.9375
    assert ratio(Tried(0.5, GOOD), Tried(0.75, GOOD), Tried(0.875, BAD)) == 0.8125
    assert ratio(Tried(0.5, GOOD), Tried(0.75, GOOD), Tried(0.875, BAD), Tried(0.8125, BAD)) is None
    assert ratio(Tried(0.5, GOOD), Tried(0.75, GOOD), Tried(0.875, GOOD), Tried(0.9375, GOOD)) is None
    assert ratio(Tried(0.5, BAD), Tried(0.25, BAD)) is None
    assert ratio(Tried(0.5, GOOD), Tried(0.75, BAD, seconds=60)) is None
    assert ratio(Tried(0.5, GOOD), Tried(0.75, BAD), Tried(0.625, GOOD)) is None


def test_without_a_bound_the_climb_ends_where_the_next_network_is_no_smaller_or_no_faster(model):
    went = (Tried(0.5, GOOD), Tried(0.75, GOOD))

    def sketches(changed):
        def sketch(settings):
            return changed.get(settings["ratio"], Sketches()(settings))

        return sketch

    same = Sketch(size_bytes=25_000, p95_s=0.002, ratio=0.2, gain=2.0)
    slower = Sketch(size_bytes=12_000, p95_s=0.003, ratio=0.26, gain=2.0)
    assert proposed(model, *went, sketch=sketches({0.875: same})) == {"ratio": 0.9375}
    on_top = {"ratio": 0.75, "blocks": 0.67}
    assert proposed(model, *went, sketch=sketches({0.875: same, 0.9375: same})) == on_top
    assert proposed(model, *went, sketch=sketches({0.875: slower, 0.9375: slower})) == on_top
    assert proposed(model, *went, sketch=sketches({0.875: None, 0.9375: None})) == on_top


def test_blocks_go_on_top_of_the_thinnest_network_that_surely_keeps_the_drop(model):
    alone = (Tried(0.5, GOOD), Tried(0.75, GOOD), Tried(0.875, 0.005, high=0.02), Tried(0.9375, BAD))

    def both(*shares):
        return [Tried(0.75, drop, blocks=share) for share, drop in shares]

    assert proposed(model, *alone) == {"ratio": 0.75, "blocks": 0.67}
    assert proposed(model, *alone, *both((0.67, GOOD))) == {"ratio": 0.75, "blocks": 0.84}
    assert proposed(model, *alone, *both((0.67, BAD))) == {"ratio": 0.75, "blocks": 0.34}
    assert proposed(model, *alone, *both((0.67, GOOD), (0.84, GOOD))) is None
    assert proposed(model, *alone, *both((0.67, GOOD), (0.84, BAD))) is None
    assert proposed(model, *alone, *both((0.67, BAD), (0.34, GOOD))) is None


def test_blocks_do_not_go_where_that_makes_it_no_faster_or_where_nothing_was_good(model):
    def without_gain(settings):
        return Sketches()({"ratio": settings["ratio"]})

    alone = (Tried(0.5, GOOD), Tried(0.75, BAD), Tried(0.625, GOOD))
    assert proposed(model, *alone) == {"ratio": 0.625, "blocks": 0.67}
    assert proposed(model, *alone, sketch=without_gain) is None
    assert proposed(model, Tried(0.5, BAD), Tried(0.25, BAD)) is None


def test_networks_for_texts_lose_blocks_instead(text):
    assert proposed(text) == {"blocks": 0.34}
    assert Slim().default(text) == {"blocks": 0.34}
    assert proposed(text, size="20KB") == {"blocks": 0.84}


def test_half_of_the_blocks_is_tried_where_half_of_the_loss_may_keep_the_bound(text):
    assert proposed(text, Tried(0.0, 0.04, blocks=0.34), max_drop="1pt") == {"blocks": 0.17}
    assert proposed(text, Tried(0.0, 0.15, blocks=0.34), max_drop="1pt") is None
    given_up = Tried(0.0, 0.0, blocks=0.34)
    given_up.status, given_up.quality, given_up.given_up = "stopped", None, 0.15
    assert proposed(text, given_up, max_drop="1pt") is None


def test_embeddings_go_last_from_the_best_network_for_texts(text):
    blocks = [Tried(0.0, GOOD, blocks=0.34), Tried(0.0, GOOD, blocks=0.5), Tried(0.0, BAD, blocks=0.67)]
    blocks += [Tried(ratio, BAD, blocks=0.5) for ratio in (0.5, 0.25)]
    best = {"ratio": 0.0, "blocks": 0.5}

    def next_share(*tried, gain=2.0):
        found = proposed(text, *blocks, *tried, sketch=Sketches(gain=gain), max_drop="1pt")
        assert found is None or found | {"embeddings": 0} == best | {"embeddings": 0}
        return found and found["embeddings"]

    def cut(share, drop):
        return Tried(0.0, drop, blocks=0.5, embeddings=share)

    assert next_share() == 0.9
    assert next_share(gain=1.05) is None
    assert next_share(cut(0.9, GOOD)) == 0.96
    assert next_share(cut(0.9, GOOD), cut(0.96, GOOD)) == 0.98
    assert next_share(cut(0.9, GOOD), cut(0.96, BAD)) is None
    assert next_share(cut(0.9, BAD)) is None
    assert next_share(cut(0.9, 0.03)) == 0.75
    assert next_share(cut(0.9, 0.03), cut(0.75, GOOD)) is None


def test_everything_goes_at_once_after_the_first_blocks_and_further_while_that_goes_well(text):
    def next_step(*drops, gain=2.0, first=GOOD):
        """Each drop is that of the step proposed before."""
        tried = [Tried(0.0, first, blocks=0.34)]
        for drop in [*drops, None]:
            found = proposed(text, *tried, sketch=Sketches(gain=gain), max_drop="1pt")
            step = stairs._TINY.index(found) if found in stairs._TINY else None
            if drop is not None:
                tried.append(Tried(drop=drop, **found))
        return step

    assert next_step() == 3
    assert next_step(gain=1.05) is None
    assert next_step(GOOD) == 6
    assert next_step(GOOD, GOOD) == 8
    assert next_step(GOOD, GOOD, GOOD) is None
    assert next_step(GOOD, 0.03) == 4
    assert next_step(GOOD, 0.03, GOOD) == 5
    assert next_step(GOOD, 0.03, GOOD, GOOD) is None
    assert next_step(0.03) == 1
    assert next_step(0.03, GOOD) == 2
    assert next_step(0.03, 0.03) == 0
    # More of the blocks alone, where nothing of everything does.
    assert next_step(BAD) is None
    assert proposed(text, Tried(0.0, GOOD, blocks=0.34), Tried(drop=BAD, **stairs._TINY[3]), max_drop="1pt") == {
        "blocks": 0.5
    }


def test_embeddings_go_alone_where_no_block_can(text):
    hopeless = Tried(0.0, 0.5, blocks=0.34)
    assert proposed(text, hopeless, sketch=Sketches(gain=2.0)) == {"embeddings": 0.9}
    assert proposed(text, hopeless, sketch=Sketches(gain=1.0)) is None


def test_a_size_that_blocks_and_widths_cannot_reach_takes_of_everything(text):
    assert proposed(text, size="17KB") == {"blocks": 0.84}
    found = proposed(text, size="1KB")
    assert set(found) == {"embeddings", "blocks", "ratio", "heads"}
    assert Sketches()(found).size_bytes <= 1000
    tried = Tried(found["ratio"], BAD, blocks=found["blocks"], embeddings=found["embeddings"])
    assert proposed(text, tried, size="1KB") is None
    # Nothing can be as small: then as near as blocks come.
    assert proposed(text, size="1B") == {"blocks": 0.84}


@pytest.mark.parametrize(
    ("asked", "ratio"),
    [({"size": "30KB"}, 0.75), ({"size": "99KB"}, 0.25), ({"latency_p95": "1.5ms"}, 0.875), ({"size": "7KB"}, 0.9375)],
)
def test_with_a_bound_the_least_that_comes_within_it_is_found_in_few_sketches(model, asked, ratio):
    sketch = Sketches()
    assert proposed(model, sketch=sketch, **asked) == {"ratio": ratio}
    assert len(set(sketch.asked)) <= 4


def test_what_one_kind_of_cut_cannot_reach_both_together_may(model):
    """Here blocks are worth more than they seem: with them gone the network takes a third of the time."""

    def sketch(settings):
        found = Sketches()({"ratio": settings["ratio"]})
        less = 1 - settings.get("blocks", 0.0)
        return Sketch(
            size_bytes=found.size_bytes, p95_s=max(0.002, found.p95_s) * less, ratio=found.ratio * less, gain=2.0
        )

    asked = {"latency_p95": "1.5ms", "sketch": sketch}
    first = proposed(model, **asked)
    assert first["blocks"]
    assert first["ratio"] < 0.9375
    assert sketch(first).p95_s <= 1.5e-3
    assert proposed(model, Tried(first["ratio"], GOOD, blocks=first["blocks"]), **asked) is None
    assert proposed(model, **asked | {"latency_p95": "1us"}) == {"ratio": 0.9375}


def test_where_the_least_share_within_a_bound_loses_too_much_both_kinds_are_tried(model):
    assert proposed(model, size="30KB") == {"ratio": 0.75}
    together = proposed(model, Tried(0.75, BAD), size="30KB")
    assert set(together) == {"ratio", "blocks"}
    assert together["ratio"] < 0.75
    assert Sketches()(together).size_bytes <= 30_000


def test_what_no_cut_can_reach_is_tried_as_near_as_it_can_be_made(model):
    assert proposed(model, size="1KB") == {"ratio": 0.9375}
    assert proposed(model, sketch=Sketches(impossible=(0.9375, 0.875)), size="1KB") == {"ratio": 0.8125}
    every = Sketches(impossible=(0.25, 0.375, 0.5, 0.625, 0.75, 0.8125, 0.875, 0.9375))
    assert proposed(model, sketch=every, size="1KB") is None


def test_with_a_bound_more_is_taken_while_that_goes_well(model):
    assert proposed(model, Tried(0.75, GOOD), size="30KB") == {"ratio": 0.8125}
    assert proposed(model, Tried(0.75, GOOD), Tried(0.8125, BAD), size="30KB") is None
    assert proposed(model, Tried(0.75, GOOD), Tried(0.8125, GOOD), Tried(0.875, GOOD), size="30KB") is None


@pytest.fixture
def quick(monkeypatch):
    steady(monkeypatch)
    quick_exports(monkeypatch)


def test_the_pass_cuts_says_how_much_and_trains(tmp_path, quick):
    module = train(cnn(), Stripes(), steps=30)
    path, drafts = tmp_path / "model.onnx", []
    path.write_bytes(onnx_of(module, Stripes()))
    bench = bench_of(path, Stripes(), module, check_draft=drafts.append, epochs=2)
    made = Slim().apply(bench.original, {"ratio": 0.5}, bench)
    assert len(drafts) == 1
    assert drafts[0] == Slim().draft(bench.original, {"ratio": 0.5}, bench)
    assert made.changed["parameters_before"] == weights(module)
    assert made.changed["parameters_after"] < 0.5 * weights(module)
    assert made.changed["epochs"] == 2
    runner = OnnxRunner.load(made.onnx)
    assert runner.signature == bench.runner.signature
    assert bench.samples.judge(runner).value > 0.9

    def hopeless(_):
        raise Hopeless("too large")

    with pytest.raises(Hopeless):
        Slim().apply(bench.original, {"ratio": 0.5}, bench_of(path, Stripes(), check_draft=hopeless))


@pytest.mark.parametrize("is_decoder", [False, True])
@pytest.mark.parametrize(
    "settings", [{"blocks": 0.34}, {"ratio": 0.5}, {"blocks": 0.5, "ratio": 0.5, "heads": 0.5}], ids=str
)
def test_networks_for_texts_lose_what_is_asked(tmp_path, quick, is_decoder, settings):
    data, module = (Steps(), decoder(16, 3)) if is_decoder else (Sentences(), encoder(16, 3))
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(module, data))
    bench = bench_of(path, data)
    # From the module and from the bare file.
    for given in (module, None):
        made = Slim().apply(Model(path=path, module=given and (lambda: module)), settings, bench)
        found = OnnxRunner.load(made.onnx).signature
        assert found.inputs == bench.runner.signature.inputs
        assert [spec.name for spec in found.outputs] == [spec.name for spec in bench.runner.signature.outputs]
        gone = made.changed.get("blocks_removed", [])
        assert len(gone) == {0.34: 2, 0.5: 3}.get(settings.get("blocks"), 0)
        assert made.changed["parameters_after"] < 0.85 * made.changed["parameters_before"]
        if "ratio" in settings:
            # The networks between may all be among the blocks that went.
            assert set(made.changed["widths"].values()) <= {"64 to 32"}
            assert made.changed["widths"] or gone


def test_the_order_in_which_blocks_go_is_measured_once(tmp_path, quick, monkeypatch):
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(encoder(16, 3), Sentences()))
    measured = []
    real = slim._importance
    monkeypatch.setattr(slim, "_importance", lambda *given: measured.append(given) or real(*given))

    def parameters_left(bench, share):
        measured.clear()
        student, _, removed = slimmer(to_module(path).eval(), {"blocks": share}, bench)
        return removed["blocks_removed"], {name: tuple(p.shape) for name, p in student.named_parameters()}

    one = bench_of(path, Sentences())
    parameters_left(one, 0.34)
    assert len(measured) == 6 + 5
    half = parameters_left(one, 0.5)
    assert len(measured) == 4
    assert parameters_left(one, 0.5) == half
    assert measured == []
    # As it is found without what was noted before.
    assert parameters_left(bench_of(path, Sentences()), 0.5) == half


def test_the_block_that_matters_least_goes_first(tmp_path, quick):
    module = encoder(16, 3)
    idle = module.blocks[1]
    with torch.no_grad():
        for layer in (module.blocks[0], module.blocks[2]):
            for part in (layer.attention.out, layer.down):
                part.weight.mul_(20)
        for part in (idle.attention.out, idle.down):
            part.weight.zero_()
            part.bias.zero_()
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(module, Sentences()))
    bench = bench_of(path, Sentences())
    draft = Slim().draft(bench.original, {"blocks": 0.34}, bench)
    x = bench.samples.validation
    # Two of six: both parts of the idle layer.
    assert np.allclose(OnnxRunner.load(draft).run(x)["logits"], bench.runner.run(x)["logits"], atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"ratio": 0}, {"ratio": 1}, {"blocks": -0.5}, {"ratio": "half"}])
def test_impossible_shares_are_refused(model, settings):
    bench = bench_of(model.path, Stripes())
    with pytest.raises(InvalidInput, match=r"above 0 and below 1|takes a number"):
        Slim().apply(model, settings, bench)
