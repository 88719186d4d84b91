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
