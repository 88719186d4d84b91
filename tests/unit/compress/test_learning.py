import pytest
import torch

from argosy.compress.passes import learning
from argosy.compress.passes.learning import taught
from compressed import Sentences, Stripes, bench_of, cnn, encoder, onnx_of

pytestmark = pytest.mark.capability("C2", "C4")


@pytest.mark.parametrize(
    ("is_text", "shrunk", "times"), [(True, 1, 1), (True, 8, 2), (True, 0.5, 1), (True, 1e6, 5), (False, 8, 1)]
)
def test_what_is_left_of_a_network_for_texts_learns_faster(tmp_path, monkeypatch, is_text, shrunk, times):
    module, data = (encoder(8, 1), Sentences()) if is_text else (cnn(4), Stripes())
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(module, data))
    bench = bench_of(path, data)
    rates = []
    monkeypatch.setattr(learning, "teach", lambda student, runner, samples, lesson, *_, **__: rates.append(lesson))
    taught(torch.nn.Linear(1, 1), bench, "a student", shrunk=shrunk)
    assert rates[0].learning_rate == pytest.approx(times * bench.lesson.learning_rate)
