"""Heads of attention go without harm to the rest, whatever the network was written or exported as."""

import numpy as np
import pytest
import torch
from torch import nn

from argosy.compress.passes.graph import traced
from argosy.compress.passes.heads import attentions_of, silenced, without_heads
from argosy.compress.passes.slim import Slim
from argosy.formats.onnx_module import to_module
from argosy.formats.onnx_runtime import OnnxRunner
from compressed import (
    Sentences,
    Steps,
    bench_of,
    decoder,
    encoder,
    one_thread,
    onnx_of,
    quick_exports,
    weights_of,
)

pytestmark = pytest.mark.capability("C2")


class Separate(nn.Module):
    """Attention as BERT has it: three layers, heads by view and permute, softmax written out."""

    def __init__(self, heads=4, size=6, is_named=False):
        super().__init__()
        torch.manual_seed(1)
        width = heads * size
        self.heads, self.size, self.is_named = heads, size, is_named
        self.words = nn.Embedding(24, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output = nn.Linear(width, width)
        self.last = nn.Linear(width, 3)

    def apart(self, x):
        shape = (x.size(0), x.size(1), self.heads, self.size)
        return x.view(shape).permute(0, 2, 1, 3)

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids)
        q, k, v = (self.apart(layer(x)) for layer in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / self.size**0.5
        scores = scores + (1 - attention_mask[:, None, None, :].float()) * -1e4
        mixed = (torch.softmax(scores, dim=-1) @ v).permute(0, 2, 1, 3).contiguous()
        x = x + self.output(mixed.view(x.size(0), x.size(1), self.heads * self.size))
        return self.last(x.mean(dim=1))


class HeadFirst(nn.Module):
    """One layer makes queries, keys and values, head by head."""

    def __init__(self, heads=4, size=6):
        super().__init__()
        torch.manual_seed(2)
        width = heads * size
        self.heads, self.size = heads, size
        self.words = nn.Embedding(24, width)
        self.mix, self.output, self.last = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 3)

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids)
        mixed = self.mix(x).reshape(x.shape[0], x.shape[1], self.heads, 3, self.size)
        q, k, v = (part.transpose(1, 2) for part in mixed.unbind(3))
        seen = attention_mask[:, None, None, :] > 0
        y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=seen)
        x = x + self.output(y.transpose(1, 2).reshape(x.shape[0], x.shape[1], -1))
        return self.last(x.mean(dim=1))


class PerHead(Separate):
    """Attention with a number of each head's own in its scores, which no cut of layers can follow."""

    def __init__(self):
        super().__init__()
        self.slopes = nn.Parameter(torch.rand(4, 1, 1))

    def forward(self, input_ids, attention_mask):
        x = self.words(input_ids)
        q, k, v = (self.apart(layer(x)) for layer in (self.query, self.key, self.value))
        mixed = (torch.softmax(q @ k.transpose(-1, -2) * self.slopes, dim=-1) @ v).permute(0, 2, 1, 3).contiguous()
        return self.last((x + self.output(mixed.view(x.size(0), x.size(1), 24))).mean(dim=1))


def rows(data, count=2):
    return [torch.from_numpy(array[:count]) for array in data.prepared("train")[0].values()]


def made(kind):
    """Return a network as a graph and its data: from Python, or from what its ONNX file was turned into."""
    name, _, form = kind.partition(" ")
    data = Steps() if name == "decoder" else Sentences()
    module = {
        "encoder": lambda: encoder(width=32, layers=2),
        "decoder": lambda: decoder(width=32, layers=2),
        "separate": Separate,
        "head-first": HeadFirst,
    }[name]().eval()
    with one_thread():
        return traced(to_module(onnx_of(module, data)) if form == "onnx" else module), data


KINDS = ["encoder onnx", "decoder onnx", "separate", "separate onnx", "head-first onnx"]


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_head_a_network_answers_as_if_the_head_said_nothing(kind):
    graph, data = made(kind)
    found = attentions_of(graph, rows(data))
    heads, count = (2, 2) if "coder" in kind else (4, 1)
    assert [a.heads for a in found] == [heads] * count
    given = rows(data, 5)
    for attention in found:
        for gone in ([0], [heads - 1], list(range(1, heads))):
            cut = without_heads(graph, attention, gone, rows(data))
            assert cut is not None
            with torch.no_grad():
                got, want = cut(*given), silenced(graph, attention, gone)(*given)
            for a, b in zip(*(x if isinstance(x, tuple) else (x,) for x in (got, want)), strict=True):
                torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)
            width = attention.heads * attention.size
            gone_weights = len(gone) * attention.size * (4 * width + 3)
            assert weights_of(graph) - weights_of(cut) == gone_weights
            # One head alone can't be told from none.
            if heads - len(gone) > 1:
                assert attentions_of(cut, rows(data))[found.index(attention)].heads == heads - len(gone)
        # The graph that was given is as it was.
        assert attentions_of(graph, rows(data)) == found


def test_a_cut_that_would_answer_otherwise_is_not_made():
    graph = traced(PerHead().eval())
    (attention,) = attentions_of(graph, rows(Sentences()))
    assert without_heads(graph, attention, [1], rows(Sentences())) is None


def test_the_heads_that_matter_least_go_first_and_are_named(tmp_path, monkeypatch):
    quick_exports(monkeypatch)
    module = Separate().eval()
    with torch.no_grad():
        module.output.weight[:, 6:12] = 0
        module.output.weight[:, 18:24] *= 1e-4
    path = tmp_path / "model.onnx"
    path.write_bytes(onnx_of(module, Sentences()))
    bench = bench_of(path, Sentences(), module)
    made_by = Slim().apply(bench.original, {"heads": 0.5}, bench)
    assert list(made_by.changed["heads_removed"].values()) == [[1, 3]]
    assert made_by.changed["parameters_after"] < made_by.changed["parameters_before"]
    draft = Slim().draft(bench.original, {"heads": 0.5}, bench)
    x = bench.samples.validation
    assert np.allclose(OnnxRunner.load(draft).run(x)["logits"], bench.runner.run(x)["logits"], atol=1e-2)
    assert Slim().label({"heads": 0.5}) == "slim 0.5 of heads"
