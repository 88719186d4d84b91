import numpy as np
import pytest
from torch import nn

from argosy.compress.advice import advise, stacked
from argosy.compress.config import CompressConfig
from compressed import Stripes, cnn, one_thread, onnx_of, train

pytestmark = pytest.mark.capability("A1")


def test_two_linear_layers_without_an_activation_are_pointed_out():
    module = nn.Sequential(nn.Linear(64, 256), nn.Dropout(), nn.Linear(256, 32), nn.ReLU(), nn.Linear(32, 3))
    (waste,) = stacked(module.eval())
    assert (waste.first, waste.second) == ("0", "2")
    assert (waste.weights, waste.one_weights) == (64 * 256 + 256 * 32, 64 * 32)
    assert "without an activation" in waste.says()


def test_a_narrow_middle_is_a_low_rank_and_meant_so():
    assert stacked(nn.Sequential(nn.Linear(64, 4), nn.Linear(4, 64)).eval()) == []


def test_methods_are_measured_on_the_model_and_one_is_named(tmp_path):
    data = Stripes()
    with one_thread():
        path = tmp_path / "model.onnx"
        path.write_bytes(onnx_of(train(cnn(), data), data))
        found = advise(path, data, CompressConfig(max_drop="5pt", passes=["quantize"]), tmp_path / "work")
    methods = {option.method for option in found.options}
    assert {"quantize", "slim", "factorize"} >= methods >= {"quantize", "slim"}
    for option in found.options:
        assert (option.drop is None) == (option.method in ("slim", "factorize"))
        assert np.isfinite([option.times_smaller, option.times_faster]).all()
    best = max((o for o in found.options if o.drop is not None and o.drop <= 0.05), key=lambda o: o.times_faster)
    assert best.name in found.says[0]
