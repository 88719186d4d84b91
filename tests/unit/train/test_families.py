"""Each family against a computation that somebody else wrote: torch's own modules, transformers, or NumPy formulas."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from argosy.core.config import from_plain
from argosy.core.errors import InvalidInput
from argosy.formats.onnx_export import export_onnx
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.formats.parity import check_parity
from argosy.train.config import ModelConfig
from argosy.train.families import FAMILIES, load_family
from argosy.train.inputs import ModelInput
from argosy.train.models import build_model

torch.set_num_threads(1)

TEXTS = ModelInput(shape=(12,), vocabulary=40, pad_id=0)


def build(name, given, outputs=3, **options):
    torch.manual_seed(3)
    family = load_family(name)
    return family.build(from_plain(options, family.options, where=name), given, outputs).eval()


def refused(name, given, outputs=3, **options):
    with pytest.raises(InvalidInput) as caught:
        build(name, given, outputs, **options)
    return f"{caught.value} {caught.value.hint}"


def spread(module):
    """Give every parameter a value of its own: with biases of 0 and gains of 1 mistakes would not show."""
    draw = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=draw))
    return module


def sequences(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def texts(batch=4, longest=12, vocabulary=40):
    """Return tokens and a mask of texts from one token to the longest."""
    draw = torch.Generator().manual_seed(5)
    ids = torch.randint(1, vocabulary, (batch, longest), generator=draw)
    lengths = torch.linspace(1, longest, batch).long()
    mask = (torch.arange(longest) < lengths[:, None]).long()
    return ids * mask, mask


def alone(model, ids, mask):
    """Answer each text by itself, without any padding."""
    return torch.cat([model(i[None, : m.sum()], m[None, : m.sum()]) for i, m in zip(ids, mask, strict=True)])


def test_a_family_is_imported_without_the_others():
    code = (
        "import sys; from argosy.train.families import load_family; load_family('mlp');"
        "print([m for m in sys.modules if m.startswith('argosy.train.families.')])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(eval(done.stdout)) == {"argosy.train.families.mlp", "argosy.train.families.checks"}


# --- recurrent networks ---------------------------------------------------------------------------------------------


def torchs_recurrent(model, kind, bidirectional):
    """Return torch's own module with the weights of ours."""
    ours = model.forwards[0]
    layers = len(model.forwards)
    theirs = kind(ours.input_size, ours.hidden_size, layers, batch_first=True, bidirectional=bidirectional)
    for layer in range(layers):
        for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"):
            getattr(theirs, f"{name}_l{layer}").data = getattr(model.forwards[layer], f"{name}_l0").data
            if bidirectional:
                getattr(theirs, f"{name}_l{layer}_reverse").data = getattr(model.backwards[layer], f"{name}_l0").data
    return theirs


@pytest.mark.capability("B1")
@pytest.mark.parametrize(("cell", "kind"), [("lstm", nn.LSTM), ("gru", nn.GRU)])
@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_recurrent_network_equals_torchs_own(cell, kind, bidirectional):
    x = sequences(5, 7, 4)
    model = spread(
        build("lstm", ModelInput(shape=(7, 4)), hidden=6, layers=2, cell=cell, bidirectional=bidirectional, pool="last")
    )
    states, last = torchs_recurrent(model, kind, bidirectional)(x)
    hidden = last[0] if cell == "lstm" else last
    ends = torch.cat([hidden[-2], hidden[-1]], dim=1) if bidirectional else hidden[-1]
    assert torch.allclose(model(x), model.head(ends), atol=1e-6)
    model.pool = "mean"
    assert torch.allclose(model(x), model.head(states.mean(dim=1)), atol=1e-6)
    model.pool = "max"
    assert torch.allclose(model(x), model.head(states.amax(dim=1)), atol=1e-6)


@pytest.mark.capability("B1")
@pytest.mark.parametrize(
    ("family", "options"),
    [
        *[("lstm", {"hidden": 6, "layers": 2, "bidirectional": True, "pool": p}) for p in ("last", "mean", "max")],
        *[("transformer", {"width": 16, "heads": 2, "pool": p}) for p in ("first", "mean", "max")],
    ],
)
def test_what_a_text_gives_depends_on_no_padding_and_no_neighbour(family, options):
    ids, mask = texts()
    model = spread(build(family, TEXTS, **options))
    assert torch.allclose(model(ids, mask), alone(model, ids, mask), atol=1e-5)
    # Padding may hold anything.
    assert torch.allclose(model(torch.where(mask == 1, ids, 17), mask), model(ids, mask), atol=1e-5)


@pytest.mark.capability("B1")
@pytest.mark.parametrize("family", ["lstm", "transformer"])
def test_sequences_may_be_numbers_vectors_or_tokens_in_a_table(family):
    assert build(family, ModelInput(shape=(9,)))(sequences(2, 9)).shape == (2, 3)
    assert build(family, ModelInput(shape=(9, 5)))(sequences(2, 9, 5)).shape == (2, 3)
    tokens = torch.tensor([[1.0, 4.0, 2.0], [3.0, 0.0, 0.0]])
    model = build(family, ModelInput(shape=(3,)), vocabulary=5)
    assert torch.equal(model(tokens), model(tokens.long()))


# --- transformers ---------------------------------------------------------------------------------------------------


def torchs_block(block, width, heads, activation):
    """Return torch's own layer with the weights of one of our blocks."""
    layer = nn.TransformerEncoderLayer(
        width, heads, block.up.out_features, 0.0, activation, batch_first=True, norm_first=True
    )
    pairs = {
        layer.self_attn.out_proj: block.attention.out,
        layer.linear1: block.up,
        layer.linear2: block.down,
        layer.norm1: block.attention_norm,
        layer.norm2: block.network_norm,
    }
    for theirs, ours in pairs.items():
        theirs.load_state_dict(ours.state_dict())
    layer.self_attn.in_proj_weight.data = block.attention.mix.weight.data
    layer.self_attn.in_proj_bias.data = block.attention.mix.bias.data
    # The fast path of inference is another computation.
    return layer.train()


@pytest.mark.capability("B1")
def test_an_encoder_equals_one_of_torchs_layers():
    ids, mask = texts()
    model = spread(build("transformer", TEXTS, width=16, heads=4, layers=2, dropout=0.0))
    x = model.read.table(ids) + model.places.weight[:12]
    for block in model.blocks:
        x = torchs_block(block, 16, 4, functional.gelu)(x, src_key_padding_mask=mask == 0)
    x = model.norm(x)
    own = mask[:, :, None]
    expected = model.head((x * own).sum(dim=1) / own.sum(dim=1))
    assert torch.allclose(model(ids, mask), expected, atol=1e-5)


@pytest.mark.capability("B1")
def test_a_decoder_equals_torchs_layers_with_a_causal_mask():
    model = spread(build("gpt", TEXTS, 40, width=16, heads=2, layers=2))
    ids, _ = texts()
    x = model.tokens(ids) + model.places.weight[:12]
    future = torch.triu(torch.full((12, 12), -torch.inf), diagonal=1)
    for block in model.blocks:
        x = torchs_block(block, 16, 2, lambda t: functional.gelu(t, approximate="tanh"))(x, src_mask=future)
    assert torch.allclose(model(ids), model.norm(x) @ model.tokens.weight.T, atol=1e-5)


@pytest.mark.capability("B1")
def test_a_decoder_equals_gpt_2_of_transformers():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(vocab_size=40, n_positions=12, n_embd=16, n_layer=2, n_head=2)
    theirs = transformers.GPT2LMHeadModel(config).eval()
    model = spread(build("gpt", TEXTS, 40, width=16, heads=2, layers=2))
    state = {"transformer.wte.weight": model.tokens.weight, "transformer.wpe.weight": model.places.weight}
    state |= {f"transformer.ln_f.{kind}": getattr(model.norm, kind) for kind in ("weight", "bias")}
    state["lm_head.weight"] = model.tokens.weight
    for n, block in enumerate(model.blocks):
        parts = {"attn.c_attn": block.attention.mix, "attn.c_proj": block.attention.out}
        parts |= {"mlp.c_fc": block.up, "mlp.c_proj": block.down}
        norms = {"ln_1": block.attention_norm, "ln_2": block.network_norm}
        for name, part in (parts | norms).items():
            # GPT-2's layers keep their weights the other way round.
            weight = part.weight.T if name in parts else part.weight
            state[f"transformer.h.{n}.{name}.weight"] = weight
            state[f"transformer.h.{n}.{name}.bias"] = part.bias
    theirs.load_state_dict({name: value.detach() for name, value in state.items()}, strict=True)
    ids, _ = texts()
    with torch.no_grad():
        assert torch.allclose(model(ids), theirs(ids).logits, atol=1e-4)


def test_a_decoder_does_not_look_ahead():
    model = spread(build("gpt", TEXTS, 40, width=16, heads=2, layers=2))
    ids, _ = texts()
    changed = ids.clone()
    changed[:, 6:] = (changed[:, 6:] + 1) % 40
    assert torch.equal(model(ids)[:, :6], model(changed)[:, :6])
    assert not torch.allclose(model(ids)[:, 6:], model(changed)[:, 6:])


def test_the_first_weights_of_a_decoder_are_those_of_gpt_2():
    model = build("gpt", ModelInput(shape=(64,), vocabulary=500), 500, width=128, heads=4, layers=8)
    block = model.blocks[3]
    for weight, deviation in (
        (model.tokens.weight, 0.02),
        (model.places.weight, 0.02),
        (block.attention.mix.weight, 0.02),
        (block.up.weight, 0.02),
        (block.attention.out.weight, 0.005),  # 0.02 / sqrt(2 * 8)
        (block.down.weight, 0.005),
    ):
        assert float(weight.detach().std()) == pytest.approx(deviation, rel=0.05)
    assert not block.up.bias.any()
    # Nothing has been learned: all tokens are about equally likely.
    ids = torch.arange(64)[None]
    loss = functional.cross_entropy(model(ids)[0], ids[0].roll(-1))
    assert float(loss.detach()) == pytest.approx(np.log(500), rel=0.05)


# --- graphs ---------------------------------------------------------------------------------------------------------

GRAPHS = ModelInput(shape=(6, 4), more=((6, 6),))


def graphs(batch=5, nodes=6, features=4):
    draw = np.random.default_rng(2)
    adjacency = (draw.random((batch, nodes, nodes)) < 0.4).astype(np.float32)
    adjacency = np.maximum(adjacency, adjacency.transpose(0, 2, 1))
    adjacency[:, np.arange(nodes), np.arange(nodes)] = 1.0
    return draw.normal(size=(batch, nodes, features)).astype(np.float32), adjacency


def numpys(model, nodes, adjacency, kind):
    """The formulas of Kipf and Welling 2017 (equation 2) and Xu et al. 2019 (equation 4.1), graph by graph."""
    weights = {name: value.detach().numpy() for name, value in model.named_parameters()}

    def affine(name, x):
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    answers = []
    for x, edges in zip(nodes, adjacency, strict=True):
        loop = np.eye(len(x))
        neighbours = edges * (1 - loop)
        h = affine("read", x)
        for n in range(len(model.rounds)):
            if kind == "gcn":
                with_self = neighbours + loop
                scale = np.diag(with_self.sum(axis=1) ** -0.5)
                h = affine(f"rounds.{n}.weigh", scale @ with_self @ scale @ h)
            else:
                mixed = (1 + weights[f"rounds.{n}.epsilon"]) * h + neighbours @ h
                h = affine(f"rounds.{n}.network.2", np.maximum(0, affine(f"rounds.{n}.network.0", mixed)))
            centred = h - h.mean(axis=1, keepdims=True)
            h = centred / np.sqrt((centred**2).mean(axis=1, keepdims=True) + 1e-5)
            h = np.maximum(0, h * weights[f"norms.{n}.weight"] + weights[f"norms.{n}.bias"])
        pooled = {"mean": h.mean(axis=0), "sum": h.sum(axis=0), "max": h.max(axis=0)}[model.pool]
        answers.append(affine("head", pooled))
    return np.stack(answers)


@pytest.mark.capability("B1")
@pytest.mark.parametrize("kind", ["gcn", "gin"])
@pytest.mark.parametrize("pool", ["mean", "sum", "max"])
def test_a_graph_network_equals_the_formula(kind, pool):
    nodes, adjacency = graphs()
    model = spread(build("graph", GRAPHS, kind=kind, pool=pool, width=8))
    found = model(torch.from_numpy(nodes), torch.from_numpy(adjacency)).detach().numpy()
    np.testing.assert_allclose(found, numpys(model, nodes, adjacency, kind), atol=1e-4)


@pytest.mark.capability("B1")
@pytest.mark.parametrize("kind", ["gcn", "gin"])
@pytest.mark.parametrize("pool", ["mean", "sum", "max"])
def test_neither_the_order_of_nodes_nor_padding_changes_what_a_graph_is(kind, pool):
    nodes, adjacency = (torch.from_numpy(array) for array in graphs())
    model = spread(build("graph", GRAPHS, kind=kind, pool=pool, width=8))
    expected = model(nodes, adjacency)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.allclose(model(nodes[:, order], adjacency[:, order][:, :, order]), expected, atol=1e-5)
    larger, edges = torch.full((5, 9, 4), 7.0), torch.zeros(5, 9, 9)
    larger[:, :6], edges[:, :6, :6] = nodes, adjacency
    assert torch.allclose(model(larger, edges), expected, atol=1e-5)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "given", "options", "told"),
    [
        ("lstm", ModelInput(shape=(1, 8, 8)), {}, "it has the shape [1, 8, 8]"),
        ("transformer", ModelInput(shape=(2, 3, 4)), {}, "must have the shape [steps] or [steps, features]"),
        ("transformer", ModelInput(shape=(4, 3)), {"vocabulary": 9}, "a sample must have the shape [steps]; it has"),
        ("lstm", TEXTS, {"vocabulary": 9}, "vocabulary = 9, but the texts were split into 40 different tokens"),
        ("transformer", TEXTS, {"width": 30, "heads": 4}, "heads = 4 does not divide width = 30"),
        ("transformer", TEXTS, {"longest": 3}, "longest = 3 is less than the 12 steps of a sample"),
        ("transformer", TEXTS, {"pool": "cls"}, "known are: first, max, mean"),
        ("lstm", TEXTS, {"cell": "rnn"}, "known are: gru, lstm"),
        ("lstm", TEXTS, {"layers": 0}, "layers = 0 must be 1 or more"),
        ("gpt", TEXTS, {}, "is a language model: for a text it gives the next token"),
        ("gpt", ModelInput(shape=(12,)), {}, 'set [data] task = "language-model"'),
        ("graph", ModelInput(shape=(6, 4)), {}, "it was given shape [6, 4]"),
        ("graph", ModelInput(shape=(6, 4), more=((6, 5),)), {}, "it was given shape [6, 4] and [6, 5]"),
        ("graph", GRAPHS, {"kind": "gat"}, "known are: gcn, gin"),
        ("mlp", GRAPHS, {}, "takes one array per sample, but the data has 2"),
        ("mlp", TEXTS, {}, "takes numbers, but a sample is a text"),
        ("resnet", TEXTS, {}, "takes numbers, but a sample is a text"),
    ],
)
def test_what_a_family_does_not_take_is_told_with_what_it_takes(name, given, options, told):
    assert told in refused(name, given, **options)


@pytest.mark.parametrize("family", ["gpt", "transformer"])
def test_a_text_that_is_too_long_is_told_with_the_limit(family):
    outputs = 40 if family == "gpt" else 3
    model = build(family, TEXTS, outputs, width=8, heads=2)
    with pytest.raises(InvalidInput, match=r"has 13 .*at most 12"):
        model(torch.ones(1, 13, dtype=torch.int64))


def test_without_a_name_the_family_is_what_fits_the_samples(tmp_path):
    def chosen(given, outputs=3):
        return type(build_model(ModelConfig(), tmp_path, given, outputs, seed=0)).__name__

    assert chosen(ModelInput(shape=(4,))) == "Sequential"
    assert chosen(ModelInput(shape=(1, 8, 8))) == "Resnet"
    assert chosen(GRAPHS) == "GraphNetwork"
    assert chosen(TEXTS) == "Encoder"
    assert chosen(TEXTS, outputs=40) == "Gpt"


# --- exports --------------------------------------------------------------------------------------------------------


@pytest.mark.capability("B1", "F1")
@pytest.mark.parametrize(
    ("name", "options", "is_text"),
    [
        ("lstm", {"bidirectional": True}, True),
        ("lstm", {"cell": "gru", "pool": "mean"}, True),
        ("transformer", {"layers": 1}, True),
        # The newer exporter, which numbers go through first, takes seconds for each.
        pytest.param("lstm", {"cell": "gru", "bidirectional": True}, False, marks=pytest.mark.slow),
        pytest.param("lstm", {"pool": "mean"}, False, marks=pytest.mark.slow),
        pytest.param("transformer", {"layers": 1}, False, marks=pytest.mark.slow),
    ],
)
def test_networks_of_sequences_are_exported_and_answer_the_same(tmp_path, name, options, is_text):
    given = TEXTS if is_text else ModelInput(shape=(7, 4))
    model = spread(build(name, given, **options))
    if is_text:
        ids, mask = texts()
        samples = {"input_ids": ids, "attention_mask": mask}
    else:
        samples = {"x": sequences(5, 7, 4)}
    export_onnx(model, samples, tmp_path / "m.onnx", free_lengths=is_text)
    agrees(model, tmp_path / "m.onnx", samples)


@pytest.mark.capability("B1", "F1")
@pytest.mark.parametrize("kind", [pytest.param("gcn", marks=pytest.mark.slow), "gin"])
def test_graph_networks_are_exported_with_their_two_inputs(tmp_path, kind):
    model = spread(build("graph", GRAPHS, kind=kind, width=8))
    nodes, adjacency = (torch.from_numpy(array) for array in graphs())
    samples = {"nodes": nodes, "adjacency": adjacency}
    export_onnx(model, samples, tmp_path / "m.onnx")
    agrees(model, tmp_path / "m.onnx", samples)
    assert [spec.name for spec in OnnxRunner.load(tmp_path / "m.onnx").signature.inputs] == ["nodes", "adjacency"]


def agrees(model, path, samples):
    runner = OnnxRunner.load(path)

    def reference(arrays):
        with torch.no_grad():
            return {"logits": model(*(torch.from_numpy(a) for a in arrays.values())).numpy()}

    check_parity(reference, runner.run, {name: array.numpy() for name, array in samples.items()}).require(path.name)


def test_every_family_is_in_the_table_under_its_own_name():
    for name in FAMILIES:
        assert load_family(name).options.__name__ == f"{name.capitalize()}Options"
