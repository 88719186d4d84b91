"""Graphs with less to do in each run."""

from collections import Counter

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from argosy.compress.passes.export import shaped_rows
from argosy.compress.passes.optimize import folded
from argosy.compress.passes.simplify import simplified
from argosy.formats.onnx_export import onnx_bytes
from compressed import Sentences, Stripes, bench_of, cnn, onnx_of

pytestmark = pytest.mark.capability("C5")


class Attention(nn.Module):
    """One block as transformers writes it, sizes taken from the input."""

    def __init__(self, width=32, heads=4):
        super().__init__()
        torch.manual_seed(0)
        self.heads, self.table = heads, nn.Embedding(40, width)
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.output, self.norm, self.head = nn.Linear(width, width), nn.LayerNorm(width), nn.Linear(width, 3)

    def forward(self, input_ids, attention_mask):
        x = self.table(input_ids)
        shape = (x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
        scores = q @ k.transpose(2, 3) / 3 - 1e4 * (1 - attention_mask[:, None, None, :].float())
        y = (scores.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        return self.head(self.norm(self.output(y) + x)[:, 0])


def texts(rows, tokens, seed=0):
    random = np.random.default_rng(seed)
    mask = (np.arange(tokens) < random.integers(1, tokens + 1, size=(rows, 1))).astype(np.int64)
    return {"input_ids": random.integers(1, 40, size=(rows, tokens)) * mask, "attention_mask": mask}


RUNS = [texts(2, 7), texts(3, 11), texts(5, 13), texts(4, 9)]


@pytest.fixture(scope="module")
def attention():
    example = {name: torch.from_numpy(array) for name, array in texts(2, 6).items()}
    return folded(onnx_bytes(Attention().eval(), example, free_lengths=True))


def kinds(content):
    return Counter(node.op_type for node in onnx.load_from_string(content).graph.node)


def answers(content, rows):
    return ort.InferenceSession(content, providers=["CPUExecutionProvider"]).run(None, rows)


def test_sizes_that_exporters_compute_become_numbers(attention):
    made = simplified(attention, RUNS)
    before, after = kinds(attention), kinds(made)
    assert before["Shape"] > 0
    assert after["Shape"] < before["Shape"]
    assert after["Concat"] < before["Concat"]
    assert after["Reshape"] == before["Reshape"]
    for rows, tokens in ((1, 1), (1, 40), (6, 3), (32, 20)):
        given = texts(rows, tokens, seed=rows)
        for want, have in zip(answers(attention, given), answers(made, given), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


def test_a_sum_before_a_norm_is_not_fused_with_it(attention):
    assert kinds(attention)["Sum"] == 0
    assert kinds(simplified(attention, RUNS))["Sum"] == kinds(attention)["LayerNormalization"] == 1


def test_with_too_few_shapes_to_tell_sizes_stay(attention):
    assert kinds(simplified(attention, RUNS[:2]))["Shape"] == kinds(attention)["Shape"]


def reshaping(computed):
    """A reshape to sizes that `computed` nodes make of the input."""
    graph = helper.make_graph(
        [*computed, helper.make_node("Reshape", ["x", "sizes"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["rows", "columns"])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.array(values, np.int64), name) for name, values in CONSTANTS.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    return model.SerializeToString()


CONSTANTS = {"first": [0], "second": [1], "one": [1], "four": [4]}
SHAPE = helper.make_node("Shape", ["x"], ["shape"])
ROWS = helper.make_node("Gather", ["shape", "first"], ["rows"])
COLUMNS = helper.make_node("Gather", ["shape", "second"], ["columns"])


def tables(*shapes):
    random = np.random.default_rng(1)
    return [{"x": random.normal(size=shape).astype(np.float32)} for shape in shapes]


def test_two_sizes_that_are_not_the_inputs_own_are_left_alone():
    turned = reshaping([SHAPE, ROWS, COLUMNS, helper.make_node("Concat", ["columns", "rows"], ["sizes"], axis=0)])
    assert simplified(turned, tables((2, 7), (3, 11), (5, 13), (4, 9))) == turned


def test_what_only_looks_fixed_in_the_runs_is_found_out_on_another():
    # The number of rows is four in all runs that are looked at, and not in the last.
    split = reshaping([SHAPE, ROWS, COLUMNS, helper.make_node("Concat", ["one", "rows", "columns"], ["sizes"], axis=0)])
    assert simplified(split, tables((4, 4), (4, 4), (4, 4), (6, 9))) == split


def test_a_graph_that_takes_no_such_shapes_stays_as_it_is(attention):
    other = [{"input_ids": run["input_ids"]} for run in RUNS]
    assert simplified(attention, other) == attention


def test_other_shapes_come_of_the_training_part(tmp_path):
    path = tmp_path / "cnn.onnx"
    path.write_bytes(onnx_of(cnn(), Stripes()))
    assert [rows["x"].shape[0] for rows in shaped_rows(bench_of(path, Stripes()))] == [2, 3, 5, 4]
    from compressed import encoder

    path = tmp_path / "texts.onnx"
    path.write_bytes(onnx_of(encoder(), Sentences()))
    found = [tuple(array.shape for array in rows.values()) for rows in shaped_rows(bench_of(path, Sentences()))]
    assert len({shape for shapes in found for shape in shapes}) == 4
    assert all(len(set(shapes)) == 1 for shapes in found)


class Encoder(nn.Module):
    """A small BERT of transformers', which makes its own mask; token types are given, or the model's own zeros."""

    def __init__(self, *, takes_types):
        import transformers

        super().__init__()
        torch.manual_seed(0)
        sizes = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
        config = transformers.BertConfig(**sizes, intermediate_size=32, attn_implementation="eager")
        self.model = transformers.BertModel(config, add_pooling_layer=False).eval()
        self.takes_types = takes_types

    def forward(self, input_ids, attention_mask, token_type_ids=None):
        types = {"token_type_ids": token_type_ids} if self.takes_types else {}
        return self.model(input_ids=input_ids, attention_mask=attention_mask, **types).last_hidden_state


def holed(rows, tokens, seed=0, *, takes_types=False):
    """Texts of which any token may be masked, not only the last ones."""
    random = np.random.default_rng(seed)
    mask = random.integers(0, 2, size=(rows, tokens))
    mask[:, 0] = 1
    found = {"input_ids": random.integers(1, 40, size=(rows, tokens)), "attention_mask": mask}
    return found | ({"token_type_ids": random.integers(0, 2, size=(rows, tokens))} if takes_types else {})


COMPUTED = ("Range", "Expand", "GreaterOrEqual", "And", "GatherElements", "Equal")


@pytest.mark.parametrize("takes_types", [False, True])
def test_masks_and_kinds_that_transformers_computes_become_a_choice_and_a_row(takes_types):
    module = Encoder(takes_types=takes_types).eval()
    runs = [holed(*run["input_ids"].shape, takes_types=takes_types) for run in RUNS]
    example = {name: torch.from_numpy(array) for name, array in runs[0].items()}
    content = folded(onnx_bytes(module, example, free_lengths=True))
    # The rows at hand have no gaps, so that only masks which are drawn can tell.
    whole = [{**run, "attention_mask": np.ones_like(run["attention_mask"])} for run in runs]
    made = simplified(content, whole)
    before, after = kinds(content), kinds(made)
    assert sum(before[kind] for kind in COMPUTED) >= 5
    assert not any(after[kind] for kind in COMPUTED)
    assert after["Gather"] >= 2, "words and positions are looked up as before"
    assert after.total() < 0.75 * before.total()
    for rows, tokens in ((1, 1), (1, 2), (4, 30), (9, 5)):
        given = holed(rows, tokens, seed=tokens, takes_types=takes_types)
        for want, have in zip(answers(content, given), answers(made, given), strict=True):
            np.testing.assert_allclose(have, want, rtol=1e-5, atol=1e-5)


def test_a_mask_that_looks_only_back_stays():
    class Causal(Attention):
        def forward(self, input_ids, attention_mask):
            x = self.table(input_ids)
            places = torch.arange(x.shape[1])
            seen = (places[None, :] <= places[:, None]) & attention_mask.bool()[:, None, :]
            added = torch.where(seen, 0.0, -1e9)[:, None]
            shape = (x.shape[0], x.shape[1], self.heads, x.shape[2] // self.heads)
            q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value))
            y = ((q @ k.transpose(2, 3) / 3 + added).softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
            return self.head(self.norm(self.output(y) + x)[:, -1])

    example = {name: torch.from_numpy(array) for name, array in texts(2, 6).items()}
    content = folded(onnx_bytes(Causal().eval(), example, free_lengths=True))
    made = simplified(content, RUNS)
    assert kinds(made)["LessOrEqual"] == kinds(content)["LessOrEqual"] == 1
    given = holed(4, 9)
    np.testing.assert_allclose(answers(made, given)[0], answers(content, given)[0], rtol=1e-5, atol=1e-5)


def test_what_a_pass_exports_is_simpler_at_once(tmp_path):
    from argosy.compress.passes.export import exported

    class Classifier(Encoder):
        def forward(self, input_ids, attention_mask):
            return super().forward(input_ids, attention_mask)[:, 0, :3]

    module = Classifier(takes_types=False).eval()
    example = {name: torch.from_numpy(array) for name, array in texts(2, 6).items()}
    path = tmp_path / "texts.onnx"
    path.write_bytes(onnx_bytes(module, example, output="logits", free_lengths=True))
    made = exported(module, bench_of(path, Sentences()))
    assert not any(kinds(made)[kind] for kind in COMPUTED)
