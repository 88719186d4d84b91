"""Blocks and pairs of layers are found in whatever a file was turned into, and go without harm to the rest."""

import pytest
import torch
from torch import nn

from argosy.compress.passes.graph import (
    blocks_of,
    drop_idle_norms,
    pairs_of,
    remove_block,
    shrink_pair,
    traced,
    without_block,
)
from argosy.formats.onnx_module import to_module
from compressed import Sentences, Steps, Stripes, cnn, decoder, encoder, one_thread, onnx_of, weights_of

pytestmark = pytest.mark.capability("C2")


def rows(data, count=2):
    return [torch.from_numpy(array[:count]) for array in data.prepared("train")[0].values()]


def answers(graph, given):
    with torch.no_grad():
        found = graph(*given)
    return found if isinstance(found, tuple) else (found,)


@pytest.fixture(scope="module")
def encoded():
    with one_thread():
        return to_module(onnx_of(encoder(), Sentences())), Sentences()


@pytest.fixture(scope="module")
def decoded():
    with one_thread():
        return to_module(onnx_of(decoder(), Steps())), Steps()


@pytest.fixture(params=["encoded", "decoded"])
def text(request):
    return request.getfixturevalue(request.param)


def test_an_encoder_and_a_decoder_have_two_blocks_in_each_layer(text):
    module, data = text
    blocks = blocks_of(traced(module), rows(data))
    assert len(blocks) == 2 * 3
    # Attention of width 32: 32 * 96 + 96 and 32 * 32 + 32; the network: two matrices of 32 * 128; a norm each.
    sizes = [block.parameters for block in blocks]
    assert sizes[0::2] == [32 * 96 + 96 + 32 * 32 + 32 + 64] * 3
    assert sizes[1::2] == [2 * 32 * 128 + 128 + 32 + 64] * 3
    assert len({name for block in blocks for name in block.modules}) == sum(len(block.modules) for block in blocks)


def test_the_networks_between_are_pairs(text):
    module, _ = text
    graph = traced(module)
    layers = dict(graph.named_modules())
    pairs = pairs_of(graph)
    assert [(layers[p.first].out_features, layers[p.second].in_features) for p in pairs] == [(128, 128)] * 3


def test_removing_any_block_keeps_the_shapes_and_leaves_the_graph_alone(text):
    module, data = text
    graph = traced(module)
    # Another number of rows and another length than the ones the blocks were found with.
    given = [array[:, :7] for array in rows(data, 5)]
    before, wanted = weights_of(graph), answers(graph, given)
    for block in blocks_of(graph, rows(data)):
        thinner = without_block(graph, block)
        found = answers(thinner, given)
        assert [part.shape for part in found] == [part.shape for part in wanted]
        assert not torch.equal(found[0], wanted[0])
        assert weights_of(thinner) == before - block.parameters
    assert weights_of(graph) == before
    assert all(torch.equal(a, b) for a, b in zip(answers(graph, given), wanted, strict=True))


def test_a_block_that_adds_nothing_can_go_without_a_change(text):
    module, data = text
    graph = traced(module)
    silent = without_block(graph, blocks_of(graph, rows(data))[0])  # a copy whose weights may be changed
    block = blocks_of(silent, rows(data))[2]
    layers = dict(silent.named_modules())
    with torch.no_grad():
        layers[block.modules[-1]].weight.zero_()
        layers[block.modules[-1]].bias.zero_()
    wanted = answers(silent, rows(data))
    for got, want in zip(answers(without_block(silent, block), rows(data)), wanted, strict=True):
        assert torch.equal(got, want)


def test_all_blocks_but_one_can_go_one_after_the_other(text):
    module, data = text
    graph = without_block(traced(module), blocks_of(traced(module), rows(data))[0])
    while len(found := blocks_of(graph, rows(data))) > 1:
        before = weights_of(graph)
        remove_block(graph, found[0])
        assert weights_of(graph) < before
    assert all(torch.isfinite(part).all() for part in answers(graph, rows(data, 4)))


def test_norms_that_only_a_norm_reads_go_and_the_last_stays():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 6), *(nn.LayerNorm(6) for _ in range(4)), nn.Linear(6, 2))
    for norm in module[1:5]:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    graph = traced(module)
    assert drop_idle_norms(graph) == 3
    given = torch.randn(5, 6)
    wanted = module[5](module[4](module[0](given)))
    assert torch.equal(answers(graph, [given])[0], wanted)
    assert weights_of(graph) == weights_of(module) - 3 * 12


def test_norms_that_something_else_reads_too_stay():
    class Kept(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.wide = nn.LayerNorm(6), nn.LayerNorm(6), nn.LayerNorm((5, 6))

        def forward(self, x):
            y = self.first(x)
            return y + self.wide(self.second(y))

    graph = traced(Kept())
    assert drop_idle_norms(graph) == 0
    assert weights_of(graph) == weights_of(Kept())


def test_what_is_left_of_a_pair_answers_as_if_the_others_were_zero(text):
    module, data = text
    given = rows(data, 4)
    for number in range(3):
        graph = without_block(traced(module), blocks_of(traced(module), rows(data))[0])
        pair = pairs_of(graph)[min(number, len(pairs_of(graph)) - 1)]
        keep = torch.arange(0, 128, 3)
        second = dict(graph.named_modules())[pair.second]
        with torch.no_grad():
            gone = torch.ones(128, dtype=torch.bool)
            gone[keep] = False
            second.weight[:, gone] = 0
        wanted = answers(graph, given)
        shrink_pair(graph, pair, keep)
        assert second.weight.shape[1] == second.in_features == len(keep)
        for got, want in zip(answers(graph, given), wanted, strict=True):
            # Fewer summands, in another order.
            assert torch.allclose(got, want, atol=1e-5)


class Residual(nn.Module):
    """Two residual blocks that keep their width, and one that doubles it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(4))
        self.wider, self.short = nn.Conv2d(8, 16, 3, padding=1), nn.Conv2d(8, 16, 1)
        self.last = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 3)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        for first, second in ((0, 1), (2, 3)):
            x = torch.relu(x + self.inner[second](torch.relu(self.inner[first](x))))
        x = torch.relu(self.short(x) + self.last(torch.relu(self.wider(x))))
        return self.head(x.mean((2, 3)))


def test_residual_blocks_that_keep_their_width_are_blocks():
    module = Residual().eval()
    x = torch.rand(2, 1, 6, 6)
    for graph in (traced(module), traced(to_module(onnx_of(module, Stripes())))):
        blocks = blocks_of(graph, [x])
        assert len(blocks) == 2
        assert all(block.parameters == 2 * (8 * 8 * 9 + 8) for block in blocks)
        for block in blocks:
            thinner = without_block(graph, block)
            assert thinner(torch.rand(5, 1, 6, 6)).shape == (5, 3)


def test_convolutions_are_no_pairs_and_a_chain_of_one_width_is_cut_without_harm():
    assert pairs_of(traced(cnn())) == []


class Awkward(nn.Module):
    """What looks like a pair and isn't: used twice, normed in between, seen from outside, a vector in between."""

    def __init__(self):
        super().__init__()
        self.twice, self.after = nn.Linear(8, 8), nn.Linear(8, 8)
        self.normed, self.norm, self.behind = nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 8)
        self.seen, self.unseen = nn.Linear(8, 8), nn.Linear(8, 8)
        self.scaled, self.scale, self.end = nn.Linear(8, 8), nn.Parameter(torch.rand(8)), nn.Linear(8, 8)
        self.true, self.pair = nn.Linear(8, 12), nn.Linear(12, 8)

    def forward(self, x):
        x = self.after(torch.relu(self.twice(torch.relu(self.twice(x)))))
        x = self.behind(self.norm(self.normed(x.softmax(1))))
        seen = self.seen(x.softmax(1))
        x = self.end(self.scaled((self.unseen(torch.relu(seen)) + seen).softmax(1)) * self.scale)
        x = x.softmax(1)
        return self.pair(0.5 * torch.nn.functional.gelu(self.true(x)) + 1)


def test_only_what_goes_value_by_value_from_one_layer_to_one_other_is_a_pair():
    assert [tuple(pair) for pair in pairs_of(traced(Awkward()))] == [("true", "pair")]


def test_gelu_taken_apart_is_still_between_a_pair():
    class Old(nn.Module):
        def __init__(self):
            super().__init__()
            self.up, self.down = nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            x = self.up(x)
            return self.down(x * 0.5 * (1 + torch.erf(x / 1.41421)))

    assert [tuple(pair) for pair in pairs_of(traced(Old()))] == [("up", "down")]


def test_a_network_without_repeated_shapes_has_no_blocks():
    module = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 3))
    assert blocks_of(traced(module), [torch.rand(2, 6)]) == []


def test_norms_alone_make_no_block_and_neither_does_one_layer():
    module = nn.Sequential(nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 3))
    assert blocks_of(traced(module), [torch.rand(2, 6)]) == []


class Masked(nn.Module):
    """Attention as transformers writes it: one mask for all layers, made by the sizes of the first one's input."""

    def __init__(self, width=16, layers=3):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.head = nn.Embedding(20, width), nn.Linear(width, 3)
        self.layers = nn.ModuleList(
            nn.ModuleDict({
                **{name: nn.Linear(width, width) for name in ("query", "key", "value", "output")},
                "norm": nn.LayerNorm(width), "wide": nn.Linear(width, 32), "narrow": nn.Linear(32, width),
                "norm2": nn.LayerNorm(width),
            })
            for _ in range(layers)
        )  # fmt: skip

    def forward(self, ids):
        x = self.table(ids)
        mask = (ids > 0).float().reshape(x.shape[0], 1, x.shape[1]) * 9.0
        for layer in self.layers:
            scores = layer["query"](x) @ layer["key"](x).transpose(1, 2) + mask
            x = layer["norm"](layer["output"](scores.softmax(-1) @ layer["value"](x)) + x)
            x = layer["norm2"](layer["narrow"](torch.relu(layer["wide"](x))) + x)
        return self.head(x[:, 0])


def test_a_mask_made_by_the_sizes_of_a_blocks_input_does_not_join_the_blocks():
    given = [torch.arange(12).reshape(2, 6)]
    graph = traced(Masked().eval())
    blocks = blocks_of(graph, given)
    assert [len(block.modules) for block in blocks] == [4, 2] * 3
    for block in blocks:
        left = without_block(graph, block)
        assert answers(left, given)[0].shape == (2, 3)
        assert len(blocks_of(left, given)) == len(blocks) - 1
