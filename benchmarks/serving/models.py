"""The three models and what is asked of them: one ONNX file and one list of requests for every contender."""

import itertools
import json
import random
import re
from dataclasses import dataclass
from pathlib import Path
from pydoc_data import topics
from typing import Any

import numpy as np

SEED = 20
TEXTS, ROWS, IMAGES = 256, 64, 8
WORDS = (8, 120)


@dataclass(frozen=True)
class Model:
    """A model, where its files are, and how many connections ask it."""

    name: str
    connections: tuple[int, ...]
    quick: tuple[int, ...]
    """Connections of a quick run."""
    what: str
    is_fast: bool = False
    """Thousands of requests a second: asked by wrk."""


MLP = Model("mlp", (1, 64), (1, 64), "64-256-10 perceptron, float32, JSON", is_fast=True)
MINILM = Model("minilm", (1, 8, 16, 64), (1, 64), "all-MiniLM-L6-v2, texts of 8 to 120 words, tokenized in the server")
RESNET18 = Model("resnet18", (1, 4, 16), (1, 16), "ResNet-18, 3x224x224 float32, binary where the contender allows it")
MODELS = (MLP, MINILM, RESNET18)


def make(model: Model, folder: Path) -> Path:
    """Write the model's requests and, for mlp and resnet18, its ONNX file into `folder`/name; return that folder."""
    home = folder / model.name
    home.mkdir(parents=True, exist_ok=True)
    if not (home / "inputs.npy").exists() and not (home / "inputs.json").exists():
        {"mlp": _mlp, "minilm": _texts, "resnet18": _resnet18}[model.name](home)
    return home


def inputs(home: Path) -> list[Any]:
    """Return the requests: rows of numbers, texts, or the raw bytes of images."""
    if (home / "inputs.npy").exists():
        return [image.tobytes() for image in np.load(home / "inputs.npy")]
    return json.loads((home / "inputs.json").read_text())


def _mlp(home: Path) -> None:
    from onnx import TensorProto, checker, helper, numpy_helper, save

    rng = np.random.default_rng(SEED)
    weights = {
        "w1": rng.normal(0, 64**-0.5, (64, 256)),
        "b1": rng.normal(0, 0.1, 256),
        "w2": rng.normal(0, 256**-0.5, (256, 10)),
        "b2": rng.normal(0, 0.1, 10),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"]),
            helper.make_node("Relu", ["h1"], ["h2"]),
            helper.make_node("Gemm", ["h2", "w2", "b2"], ["y"]),
        ],
        "mlp",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 10])],
        [numpy_helper.from_array(array.astype(np.float32), name) for name, array in weights.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(made)
    save(made, str(home / "model.onnx"))
    rows = rng.normal(size=(ROWS, 64)).round(4).tolist()
    (home / "inputs.json").write_text(json.dumps(rows))


def _texts(home: Path) -> None:
    """Write runs of words of Python's own language reference, which every Python brings along, code left out."""
    prose = re.compile(r"""["'(]?[A-Za-z]+(?:['-][a-z]+)*[.,;:)"']*""")
    words = [word for name in sorted(topics.topics) for word in topics.topics[name].split() if prose.fullmatch(word)]
    draw = random.Random(SEED)
    found = []
    for _ in range(TEXTS):
        count = draw.randint(*WORDS)
        start = draw.randrange(len(words) - count)
        found.append(" ".join(words[start : start + count]))
    (home / "inputs.json").write_text(json.dumps(evenly(sorted(found, key=len))))


def evenly(items: list[str]) -> list[str]:
    """Return sorted items in an order of which each short stretch has small and large ones in their proportions.

    A measurement sees some hundred texts, and what they cost differs tenfold. In random order the same server would
    seem up to a fifth faster or slower from one measurement to the next. The order is van der Corput's sequence.
    """
    bits = (len(items) - 1).bit_length()
    return [items[at] for n in range(1 << bits) if (at := int(f"{n:0{bits}b}"[::-1], 2)) < len(items)]


def _resnet18(home: Path) -> None:
    import torch

    torch.manual_seed(SEED)
    torch.onnx.export(
        _residual_network().eval(),
        (torch.randn(2, 3, 224, 224),),
        str(home / "model.onnx"),
        input_names=["image"],
        output_names=["logits"],
        dynamic_axes={"image": {0: "n"}, "logits": {0: "n"}},
        opset_version=17,
        dynamo=False,
    )
    np.save(home / "inputs.npy", torch.randn(IMAGES, 3, 224, 224).numpy())


def _residual_network() -> Any:
    """Return ResNet-18 (He et al. 2015, table 1) with random weights."""
    from torch import nn

    def conv(taken: int, given: int, size: int, stride: int) -> nn.Sequential:
        return nn.Sequential(nn.Conv2d(taken, given, size, stride, size // 2, bias=False), nn.BatchNorm2d(given))

    class Block(nn.Module):
        def __init__(self, taken: int, given: int, stride: int) -> None:
            super().__init__()
            self.way = nn.Sequential(conv(taken, given, 3, stride), nn.ReLU(), conv(given, given, 3, 1))
            self.short = nn.Identity() if stride == 1 and taken == given else conv(taken, given, 1, stride)

        def forward(self, x: Any) -> Any:
            return nn.functional.relu(self.way(x) + self.short(x))

    widths = (64, 64, 128, 256, 512)
    blocks = [
        block
        for taken, given in itertools.pairwise(widths)
        for block in (Block(taken, given, 1 if given == 64 else 2), Block(given, given, 1))
    ]
    return nn.Sequential(
        conv(3, 64, 7, 2),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(512, 1000),
    )
