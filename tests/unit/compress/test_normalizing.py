import pytest
import torch
from torch import nn

from argosy.compress.passes.normalizing import with_batch_norms
from argosy.formats.onnx_module import to_module
from compressed import Stripes, cnn, onnx_of, train

pytestmark = pytest.mark.capability("C2", "C4")


def norms(module):
    return [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]


@pytest.fixture
def folded():
    """Return a network as a file gives it back, its batch norm folded into the convolution."""
    from argosy.compress.passes.optimize import folded

    module = to_module(folded(onnx_of(train(cnn(16), Stripes(), steps=10), Stripes())))
    assert norms(module) == []
    return module


def rows(count=48):
    return torch.from_numpy(Stripes(count).prepared("train")[0]["x"])


def test_a_folded_network_answers_the_same_with_norms_behind_each_convolution(folded):
    x = rows()
    with torch.no_grad():
        wanted = folded(x)
        with_batch_norms(folded, [x])
        got = folded.eval()(x)
    assert len(norms(folded)) == 2
    # The norm's scale and shift undo its statistics up to rounding.
    assert torch.allclose(got, wanted, atol=1e-4)
    assert float(wanted.std()) > 0.1


def test_in_training_it_answers_nearly_the_same_on_the_batch_it_was_begun_with(folded):
    x = rows()
    with torch.no_grad():
        wanted = folded(x)
        with_batch_norms(folded, [x])
        got = folded.train()(x)
    assert torch.allclose(got, wanted, atol=1e-3)


def test_the_norms_learn_and_are_gone_again_in_the_file(folded):
    import onnx

    with_batch_norms(folded, [rows()])
    train(folded, Stripes(), steps=5)
    assert all(norm.weight.grad is not None and norm.num_batches_tracked == 5 for norm in norms(folded))
    assert "BatchNormalization" not in {n.op_type for n in onnx.load_from_string(onnx_of(folded, Stripes())).graph.node}


def test_a_network_with_norms_of_its_own_is_left_alone():
    module = cnn(8)
    before = [name for name, _ in module.named_modules()]
    with_batch_norms(module, [rows()])
    assert [name for name, _ in module.named_modules()] == before


def test_a_convolution_that_runs_twice_gets_none():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.again = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return self.again(torch.relu(self.again(self.first(x))))

    module = Twice().eval()
    with_batch_norms(module, [rows()])
    assert len(norms(module)) == 1
    assert isinstance(module.again, nn.Conv2d)


def test_convolutions_of_one_dimension_and_networks_without_any_are_taken():
    torch.manual_seed(0)
    line = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 5, 2)).eval()
    x = torch.rand(30, 3, 7)
    with torch.no_grad():
        wanted = line(x)
        with_batch_norms(line, [x])
        assert torch.allclose(line(x), wanted, atol=1e-5)
    assert isinstance(norms(line)[0], nn.BatchNorm1d)
    plain = nn.Sequential(nn.Linear(3, 2))
    with_batch_norms(plain, [torch.rand(4, 3)])
    assert norms(plain) == []


def test_a_channel_that_never_moves_stays_a_number():
    dead = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU()).eval()
    with torch.no_grad():
        dead[0].weight.zero_()
    with_batch_norms(dead, [rows()])
    with torch.no_grad():
        assert torch.isfinite(dead.train()(rows())).all()
