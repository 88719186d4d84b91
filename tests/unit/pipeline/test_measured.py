"""A module on a part of the data, against the same computed by hand."""

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import nn

from argosy.data.config import DataConfig
from argosy.data.dataset import build_dataset
from argosy.pipeline.stages.model import measured


def table(folder, label):
    draw = np.random.default_rng(0)
    x = draw.normal(size=(1500, 3))
    y = 50 + 20 * x[:, 0] + draw.normal(size=1500)
    answers = ["high" if value > 50 else "low" for value in y] if label == "kind" else y.tolist()
    rows = [f"{a},{b},{c},{answer}" for (a, b, c), answer in zip(x, answers, strict=True)]
    (folder / "t.csv").write_text(f"a,b,c,{label}\n" + "\n".join(rows) + "\n")
    return build_dataset(DataConfig(train="t.csv", label=label), folder)


def linear(outputs):
    torch.manual_seed(0)
    return nn.Linear(3, outputs)


@pytest.mark.capability("T6")
def test_classes_of_the_test_part_are_judged_in_several_batches(tmp_path):
    dataset = table(tmp_path, "kind")
    model = linear(2)
    inputs, y = dataset.prepared("test")
    with torch.no_grad():
        chosen = model(torch.from_numpy(inputs["x"])).argmax(dim=1)
    found = measured(model, dataset, "test")
    assert len(y) == 300
    assert found["accuracy"] == pytest.approx(metrics.accuracy_score(y, chosen))
    assert found["f1"] == pytest.approx(metrics.f1_score(y, chosen, average="macro"))


@pytest.mark.capability("T6")
def test_quantities_of_the_test_part_are_judged_in_the_labels_unit(tmp_path):
    dataset = table(tmp_path, "price")
    model = linear(1)
    inputs, _ = dataset.prepared("test")
    value = dataset.finish[0]
    with torch.no_grad():
        answers = model(torch.from_numpy(inputs["x"])).numpy()[:, 0] * value.scale + value.offset
    truth = dataset.splits["test"].y
    found = measured(model, dataset, "test")
    assert found["rmse"] == pytest.approx(metrics.root_mean_squared_error(truth, answers), rel=1e-5)
    assert found["r2"] == pytest.approx(metrics.r2_score(truth, answers), rel=1e-4)
