import numpy as np
import pytest
import torch
from torch import nn

from argosy.core.errors import InvalidInput
from argosy.formats.onnx_module import to_module

pytestmark = pytest.mark.capability("F1")


def test_a_product_with_a_constant_becomes_a_linear_layer(make_onnx):
    module = to_module(make_onnx())
    assert [type(part) for part in module.modules() if isinstance(part, nn.Linear)] == [nn.Linear]
    x = torch.tensor([[1.0, 2, 3], [0, 0, 1]])
    assert np.array_equal(module(x).detach().numpy(), [[22, 28], [5, 6]])


def test_bytes_that_are_no_model_are_refused():
    with pytest.raises(InvalidInput):
        to_module(b"\x00\x01")
