"""What a classifier knows before its last layer, found in its graph and learned by a student of the same width."""

import io

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from argosy.compress.features import heard, with_features
from argosy.compress.lessons import Insight, Lesson
from argosy.compress.passes.learning import taught
from argosy.compress.teaching import teach
from argosy.core.progress import silent
from argosy.formats.onnx_runtime import OnnxRunner
from compressed import Stripes, bench_of, one_thread, onnx_of, steady, train

WIDTH, CLASSES = 12, 3
RNG = np.random.default_rng(5)
W = RNG.normal(size=(WIDTH, CLASSES)).astype("float32")
LESSON = Lesson(epochs=12, seconds=60.0, batch_size=16, learning_rate=3e-3, seed=1)


def graph_of(*nodes, w=W, extra=()):
    made = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["h"]), *nodes],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", WIDTH])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", CLASSES])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(np.ones(CLASSES, "float32"), "b"), *extra],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    return model.SerializeToString()


def node(kind, inputs, output="y", **settings):
    return helper.make_node(kind, inputs, [output], **settings)


@pytest.mark.parametrize(
    "content",
    [
        graph_of(node("MatMul", ["h", "w"])),
        graph_of(node("Gemm", ["h", "w", "b"])),
        graph_of(node("Gemm", ["h", "w", "b"], transB=1), w=np.ascontiguousarray(W.T)),
        graph_of(node("MatMul", ["h", "w"], "m"), node("Add", ["m", "b"])),
        graph_of(node("MatMul", ["h", "w"], "m"), node("Add", ["b", "m"], "a"), node("Identity", ["a"])),
    ],
    ids=["without a bias", "gemm", "turned", "bias", "bias in front"],
)
def test_the_input_of_the_last_layer_becomes_an_output(content):
    found = with_features(content)
    assert (found.name, found.width, found.classes) == ("h", WIDTH, CLASSES)
    x = RNG.normal(size=(4, WIDTH)).astype("float32")
    before, after = (OnnxRunner.load(data).run({"x": x}) for data in (content, found.content))
    np.testing.assert_array_equal(before["y"], after["y"])
    np.testing.assert_array_equal(after["h"], np.maximum(x, 0))


@pytest.mark.parametrize(
    "content",
    [
        graph_of(node("MatMul", ["h", "w"], "m"), node("Softmax", ["m"])),
        graph_of(node("MatMul", ["h", "w"], "m"), node("MatMul", ["h", "w"], "o"), node("Add", ["m", "o"])),
        graph_of(
            node("MatMul", ["h", "v"]), extra=[numpy_helper.from_array(np.zeros((1, WIDTH, CLASSES), "float32"), "v")]
        ),
    ],
    ids=["an activation", "a sum of two", "not a matrix"],
)
def test_where_answers_are_no_linear_function_there_is_nothing_to_learn(content):
    assert with_features(content) is None


class Twins(nn.Module):
    """Two layers of the same shape."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.head(torch.relu(self.first(x)))


def test_of_several_layers_of_that_shape_the_last_is_heard_and_only_meanwhile():
    module, x = Twins(), torch.randn(3, 4)
    before_the_last = torch.relu(module.first(x))
    with heard(module, 4, 4) as take:
        module(x)
        assert torch.equal(take(), before_the_last)
        assert take() is None, "it was taken"
        module(torch.randn(2, 3, 4))
        assert take() is None, "not one row for each sample"
    module(x)
    assert take() is None


def student_of(width):
    torch.manual_seed(3)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, width), nn.ReLU(), nn.Linear(width, CLASSES)).eval()


@pytest.fixture
def bench(tmp_path, monkeypatch):
    steady(monkeypatch)
    with one_thread():
        torch.manual_seed(1)
        teacher = nn.Sequential(
            nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES)
        )
        path = tmp_path / "model.onnx"
        path.write_bytes(onnx_of(train(teacher, Stripes(), steps=40), Stripes()))
        yield bench_of(path, Stripes())


def far(student, bench, insight):
    with torch.no_grad(), heard(student, WIDTH, CLASSES) as take:
        student(torch.from_numpy(bench.samples.train["x"]))
        return float(np.square(take().numpy() - insight.features).mean())


def test_a_student_as_wide_comes_near_what_the_original_knows_and_answers_alike(bench):
    told = []
    insight = Insight.of(
        bench.runner, bench.samples, bench.original.path, lambda done, total: told.append((done, total))
    ).for_student(student_of(WIDTH))
    assert told[-1] == (len(bench.samples.train["x"]),) * 2
    np.testing.assert_allclose(insight.answers, bench.samples.answers(bench.runner, bench.samples.train), atol=1e-6)
    apart = {}
    for file in (None, bench.original.path):
        student = student_of(WIDTH)
        teach(student, bench.runner, bench.samples, LESSON, silent, label="test", file=file)
        apart[file] = far(student, bench, insight)
    assert apart[bench.original.path] < 0.75 * apart[None]


def test_a_student_of_another_width_learns_the_answers_alone(bench):
    insight = Insight.of(bench.runner, bench.samples, bench.original.path)
    assert insight.for_student(student_of(WIDTH)).features.shape[1] == WIDTH
    assert insight.for_student(student_of(WIDTH - 2)).features is None
    states = []
    for file in (None, bench.original.path):
        student = student_of(WIDTH - 2)
        teach(student, bench.runner, bench.samples, LESSON, silent, label="test", file=file)
        states.append(io.BytesIO())
        torch.save(student.state_dict(), states[-1])
    assert states[0].getvalue() == states[1].getvalue()


def test_the_original_is_asked_once_for_all_trainings(bench, monkeypatch):
    asked = []
    real = Insight.of
    monkeypatch.setattr(Insight, "of", lambda *given: asked.append(given) or real(*given))
    for width in (WIDTH, WIDTH - 2):
        taught(student_of(width), bench, "test", lesson=LESSON)
    assert len(asked) == 1
