import numpy as np
import onnx
import pytest
import torch
from torch import nn

from argosy.core.errors import InvalidInput
from argosy.formats import onnx_export
from argosy.formats.onnx_export import export_onnx, onnx_bytes
from argosy.formats.onnx_runtime import OnnxRunner

pytestmark = pytest.mark.capability("F1")


class Net(nn.Module):
    """Everything that behaves differently in training: batch norm and dropout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5))
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    net = Net().train()
    net.body[1].eval()  # a frozen layer must stay frozen
    net.body[1].running_mean.fill_(0.3)
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    export_onnx(net, torch.rand(1, 1, 6, 6), path)
    return net, path


def test_the_file_answers_as_the_module_does_in_inference_mode_for_any_batch(exported):
    net, path = exported
    runner = OnnxRunner.load(path)
    for rows in (1, 2, 7):
        x = torch.rand(rows, 1, 6, 6)
        with torch.no_grad():
            wanted = _inference_copy(net)(x).numpy()
        # Float32 with another order of additions.
        assert np.allclose(runner.run({"x": x.numpy()})["logits"], wanted, atol=1e-6)


def test_the_free_dimension_is_called_batch_and_the_opset_is_fixed(exported):
    model = onnx.load(exported[1])
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert model.opset_import[0].version == onnx_export.OPSET
    onnx.checker.check_model(model, full_check=True)


def test_training_flags_are_as_before(exported):
    net, _ = exported
    assert net.training
    assert net.body[3].training
    assert not net.body[1].training


def test_the_file_stands_alone_and_tells_nothing_about_this_machine(exported):
    _, path = exported
    assert [p.name for p in path.parent.iterdir()] == ["model.onnx"]
    assert b"site-packages" not in path.read_bytes()
    assert b".py" not in path.read_bytes()


def test_equal_modules_give_equal_bytes_silently(exported, capfd):
    net, path = exported
    assert onnx_bytes(net, torch.rand(5, 1, 6, 6)) == path.read_bytes()
    assert capfd.readouterr() == ("", "")


def test_a_module_in_float64_is_exported_in_the_datatype_callers_send():
    module = nn.Linear(3, 2).double()
    runner = OnnxRunner.load(onnx_bytes(module, torch.rand(2, 3), is_draft=True))
    assert runner.signature.inputs[0].datatype == "FP32"
    assert module.weight.dtype == torch.float64


def test_the_older_exporter_steps_in_where_the_newer_fails(monkeypatch):
    def fails(*_):
        raise RuntimeError("not today")

    monkeypatch.setattr(onnx_export, "_with_dynamo", fails)
    assert OnnxRunner.load(onnx_bytes(nn.Linear(3, 2), torch.rand(2, 3))).signature.is_batched


class Branching(nn.Module):
    def forward(self, x):
        return x + 1 if float(x.sum()) > 0 else x


class Counting(nn.Module):
    def forward(self, x):
        return x * float(x.shape[0])


@pytest.mark.capability("F4")
@pytest.mark.parametrize("module", [Branching(), Counting()])
def test_a_model_that_tracing_would_freeze_is_refused_with_what_each_exporter_said(module, tmp_path):
    with pytest.raises(InvalidInput, match=r"dynamo: .*; torchscript: ") as caught:
        export_onnx(module, torch.ones(2, 3), tmp_path / "model.onnx")
    assert caught.value.code == "export_failed"
    assert "\x1b" not in caught.value.message
    assert not (tmp_path / "model.onnx").exists()


def test_an_example_without_rows_is_refused():
    with pytest.raises(InvalidInput, match="at least one row"):
        onnx_bytes(nn.Linear(3, 2), torch.zeros(0, 3))


def _inference_copy(net):
    copy = Net()
    copy.load_state_dict(net.state_dict())
    return copy.eval()


class Texts(nn.Module):
    """Token vectors, averaged over those that the mask marks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, ids, mask):
        own = mask.unsqueeze(2).float()
        return self.head((self.table(ids) * own).sum(1) / own.sum(1))


def tokens(rows, length):
    draw = torch.Generator().manual_seed(length)
    ids = torch.randint(1, 20, (rows, length), generator=draw)
    mask = torch.ones_like(ids)
    mask[0, length // 2 + 1 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.parametrize("exporter", ["_with_torchscript", "_with_dynamo"])
def test_a_model_of_texts_takes_batches_of_any_size_and_texts_of_any_length(tmp_path, monkeypatch, exporter):
    def fails(*_):
        raise RuntimeError("not today")

    monkeypatch.setattr(onnx_export, "_with_dynamo" if exporter == "_with_torchscript" else "_with_torchscript", fails)
    module, path = Texts().eval(), tmp_path / "model.onnx"
    export_onnx(module, tokens(4, 7), path, free_lengths=True)
    runner = OnnxRunner.load(path)
    assert [(s.name, s.datatype, s.shape) for s in runner.signature.inputs] == [
        ("input_ids", "INT64", (-1, -1)),
        ("attention_mask", "INT64", (-1, -1)),
    ]
    for rows, length in ((1, 1), (2, 3), (5, 7), (3, 40)):
        given = tokens(rows, length)
        with torch.no_grad():
            wanted = module(ids=given["input_ids"], mask=given["attention_mask"]).numpy()
        found = runner.run({name: array.numpy() for name, array in given.items()})["logits"]
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-6)


class Lengthy(nn.Module):
    """Answers by the length of what it was traced with."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(20, 3)

    def forward(self, ids, mask):
        return (self.table(ids) * mask.unsqueeze(2)).sum(1) * float(ids.shape[1])


def test_a_model_of_texts_whose_length_tracing_would_freeze_is_refused():
    with pytest.raises(InvalidInput) as caught:
        onnx_bytes(Lengthy(), tokens(4, 8), free_lengths=True)
    assert caught.value.code == "export_failed"
