import numpy as np
import pytest
import torch
from torch import nn

from argosy.compress.config import CompressConfig
from argosy.compress.passes import Model, Sketch, SoFar
from argosy.compress.passes.factorize import Factorize, factorized
from argosy.core.errors import InvalidInput
from argosy.formats.onnx_runtime import OnnxRunner
from compressed import (
    Stripes,
    bench_of,
    cnn,
    low_rank,
    one_thread,
    onnx_of,
    quick_exports,
    steady,
    train,
    weights_of,
)

pytestmark = pytest.mark.capability("C3")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    steady(monkeypatch)
    quick_exports(monkeypatch)


def linear(rank, rows=64, columns=48):
    torch.manual_seed(rank)
    layer = nn.Linear(columns, rows)
    low_rank(layer, rank)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(rows, 3)).eval()


def answers(module, x):
    with torch.no_grad():
        return module(x)


def test_a_linear_layer_of_a_truly_low_rank_answers_the_same_with_fewer_weights():
    teacher, x = linear(8), torch.rand(20, 48)
    student, ranks = factorized(teacher, energy=1 - 1e-9)
    assert ranks == {"0": "8 of 48"}
    assert weights_of(student) == weights_of(teacher) - 64 * 48 + 8 * (64 + 48)
    # Two products of float32 instead of one.
    assert torch.allclose(answers(student, x), answers(teacher, x), atol=1e-5)


@pytest.mark.parametrize(
    "settings",
    [
        {"padding": 1},
        {"stride": 2, "dilation": 2},
        {"padding": "same", "bias": False},
        {"padding_mode": "reflect", "padding": 1},
    ],
    ids=str,
)
def test_a_convolution_of_a_truly_low_rank_answers_the_same(settings):
    torch.manual_seed(0)
    layer = nn.Conv2d(16, 32, 3, **settings)
    low_rank(layer, 8)
    teacher = nn.Sequential(layer, nn.ReLU()).eval()
    student, ranks = factorized(teacher, energy=1 - 1e-9)
    assert ranks == {"0": "8 of 32"}
    x = torch.rand(3, 16, 9, 9)
    assert torch.allclose(answers(student, x), answers(teacher, x), atol=1e-5)
    assert [tuple(part.weight.shape) for part in student[0]] == [(8, 16, 3, 3), (32, 8, 1, 1)]


@pytest.mark.parametrize("energy", [0.5, 0.8, 0.95])
def test_the_rank_is_the_least_that_keeps_the_energy_rounded_up_to_eight(energy):
    torch.manual_seed(0)
    teacher = nn.Sequential(nn.Linear(128, 128, bias=False))
    with torch.no_grad():
        u, _, v = torch.linalg.svd(teacher[0].weight)
        s = 0.8 ** torch.arange(128)
        teacher[0].weight.copy_(u * s @ v)
    student, ranks = factorized(teacher, energy=energy)
    kept = torch.cumsum(s.square(), 0) / s.square().sum()
    least = int((kept < energy).sum()) + 1
    rank = int(ranks["0"].split()[0])
    assert rank == -(-least // 8) * 8
    product = (student[0][1].weight @ student[0][0].weight).detach()
    # Eckart and Young: what is missing are the singular values that were left out.
    missing = float((product - teacher[0].weight.detach()).square().sum())
    assert missing == pytest.approx(float(s[rank:].square().sum()), rel=1e-3, abs=1e-9)


def test_less_energy_gives_lower_ranks_and_the_original_stays():
    teacher = train(cnn(), Stripes(), steps=5)
    low_rank(teacher[3], 12)
    before = [p.clone() for p in teacher.parameters()]
    sizes = [weights_of(factorized(teacher, energy=energy)[0]) for energy in (0.999, 0.8, 0.5)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.parameters(), strict=True))


def test_code_that_asks_a_layer_for_its_sizes_or_weights_still_gets_them():
    class Asking(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(3)
            self.conv, self.head = nn.Conv2d(8, 32, 3, padding=1), nn.Linear(32, 48)
            low_rank(self.conv, 4)
            low_rank(self.head, 4)

        def forward(self, x):
            y = x[:, : self.conv.in_channels]
            mean = self.conv(y).mean((2, 3))
            return nn.functional.linear(
                nn.functional.layer_norm(mean, (self.head.in_features,)), self.head.weight, self.head.bias
            )

    teacher = Asking().eval()
    student, ranks = factorized(teacher, energy=0.999)
    assert set(ranks) == {"conv", "head"}
    assert student.conv.kernel_size == teacher.conv.kernel_size
    torch.testing.assert_close(student.conv.weight, teacher.conv.weight, rtol=1e-2, atol=1e-2)
    x = torch.randn(4, 8, 6, 6)
    torch.testing.assert_close(answers(student, x), answers(teacher, x), rtol=5e-2, atol=5e-2)


def test_weights_that_two_layers_share_are_left_alone():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(64, 48), nn.Linear(48, 64, bias=False)
            self.head.weight = self.table.weight
            self.free = nn.Linear(48, 48)
            for layer in (self.head, self.free):
                low_rank(layer, 4)

        def forward(self, ids):
            return self.head(self.free(self.table(ids)))

    student, ranks = factorized(Tied(), energy=0.99)
    assert list(ranks) == ["free"]
    assert student.head.weight is student.table.weight


def test_a_layer_that_stands_in_two_places_is_left_alone():
    again, once = nn.Linear(48, 48), nn.Linear(48, 48)
    for layer in (again, once):
        low_rank(layer, 4)
    student, ranks = factorized(nn.Sequential(again, nn.ReLU(), again, once), energy=0.99)
    assert list(ranks) == ["3"]
    assert student[0] is student[2]


def test_grouped_convolutions_and_what_would_save_nothing_stay():
    grouped, full = nn.Conv2d(16, 16, 3, groups=4), nn.Linear(40, 40)
    low_rank(grouped, 2)
    with torch.no_grad():
        full.weight.copy_(torch.eye(40))
    with pytest.raises(InvalidInput, match="no layer has a low rank: with 99%"):
        factorized(nn.Sequential(grouped, nn.Flatten(), full), energy=0.99)


@pytest.mark.parametrize("energy", [0, 1, -1, 2.5])
def test_an_impossible_share_of_energy_is_refused(energy, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(cnn(8), Stripes()))
    bench = bench_of(path, Stripes())
    with pytest.raises(InvalidInput, match="between 0 and 1"):
        Factorize().apply(bench.original, {"energy": energy}, bench)


@pytest.mark.parametrize(("ratio", "gain", "is_worth_it"), [(0.8, 1.2, True), (0.99, 1.01, False), (1.1, 1.2, False)])
def test_what_is_hardly_smaller_and_no_faster_is_not_trained(tmp_path, ratio, gain, is_worth_it):
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(cnn(4), Stripes()))
    sketch = Sketch(size_bytes=1000, p95_s=0.001, ratio=ratio, gain=gain)
    so_far = SoFar(tried=[], elsewhere=[], budget=CompressConfig().budget(), sketch=lambda _: sketch)
    assert Factorize().propose(Model(path=path), so_far) == ({"energy": 0.9} if is_worth_it else None)


def test_the_pass_says_the_ranks_and_the_file_has_them(tmp_path):
    with one_thread():
        teacher = train(cnn(), Stripes(), steps=20)
        low_rank(teacher[3], 6)
        path = tmp_path / "model.onnx"
        path.write_bytes(onnx_of(teacher, Stripes()))
        bench = bench_of(path, Stripes(), teacher)
        plain = Factorize().apply(bench.original, {"energy": 0.999, "tune": False}, bench)
        tuned = Factorize().apply(bench.original, {"energy": 0.999}, bench)
    assert plain.changed["ranks"] == {"3": "8 of 32"}
    saved = plain.changed["parameters_before"] - plain.changed["parameters_after"]
    assert saved == 32 * 32 * 9 - 8 * (32 + 32 * 9)
    assert path.stat().st_size - len(plain.onnx) == pytest.approx(4 * saved, rel=0.05)
    assert "epochs" not in plain.changed
    assert tuned.changed["epochs"] == 1
    assert tuned.onnx != plain.onnx
    x = bench.samples.validation
    assert np.allclose(OnnxRunner.load(plain.onnx).run(x)["logits"], OnnxRunner.load(path).run(x)["logits"], atol=1e-3)
