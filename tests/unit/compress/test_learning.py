import msgspec
import pytest
import torch

from argosy.compress.passes import learning
from argosy.compress.passes.learning import taught
from compressed import Stripes, bench_of, cnn, onnx_of

pytestmark = pytest.mark.capability("C2", "C4")


@pytest.mark.parametrize(
    ("rate", "shrunk", "faster"),
    [(1e-3, 1, 1e-3), (1e-3, 8, 2e-3), (1e-3, 0.5, 1e-3), (1e-3, 1e6, 5e-3), (4e-3, 1e6, 1e-2), (2e-2, 8, 2e-2)],
)
def test_what_is_left_of_a_network_learns_faster(tmp_path, monkeypatch, rate, shrunk, faster):
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(cnn(4), Stripes()))
    bench = bench_of(path, Stripes())
    bench = msgspec.structs.replace(bench, lesson=msgspec.structs.replace(bench.lesson, learning_rate=rate))
    rates = []
    monkeypatch.setattr(learning, "teach", lambda student, runner, samples, lesson, *_, **__: rates.append(lesson))
    taught(torch.nn.Linear(1, 1), bench, "a student", shrunk=shrunk)
    assert rates[0].learning_rate == pytest.approx(faster)
