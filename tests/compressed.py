"""What passes are tried on: networks of three kinds, trained for a moment on data made here, and a bench for them."""

import contextlib

import numpy as np
import torch
from torch import nn

from argosy.compress import teaching
from argosy.compress.lessons import Lesson
from argosy.compress.passes import Bench, Model, export
from argosy.compress.quality import Samples
from argosy.core.progress import silent
from argosy.formats.onnx_export import onnx_bytes
from argosy.formats.onnx_runtime import OnnxRunner
from argosy.train.families import load_family
from argosy.train.inputs import ModelInput
from argosy.train.next_token import NextToken

WORDS, LONGEST = 24, 12


class Stripes:
    """Pictures with a stripe in one of three places."""

    task, labels, digest = "classification", ["a", "b", "c"], "sha256:" + "5" * 64

    def __init__(self, count=48, size=6):
        self.count, self.size = count, size

    def prepared(self, split):
        assert split != "test", "a pass must not look at the test part"
        y = np.arange(self.count) % 3
        x = 0.4 * np.random.default_rng(len(split)).random((self.count, 1, self.size, self.size))
        for row, place in enumerate(y):
            x[row, 0, 2 * place] += 1
        return {"x": x.astype(np.float32)}, y


class Sentences:
    """Texts of token numbers; the class is which of three words stands in them."""

    task, labels, digest = "classification", ["a", "b", "c"], "sha256:" + "6" * 64

    def __init__(self, count=96):
        self.count = count

    def prepared(self, split):
        assert split != "test", "a pass must not look at the test part"
        random = np.random.default_rng(len(split))
        y = np.arange(self.count) % 3
        mask = (np.arange(LONGEST) < random.integers(3, LONGEST + 1, size=(self.count, 1))).astype(np.int64)
        ids = random.integers(4, WORDS, size=mask.shape)
        ids[np.arange(self.count), random.integers(0, 3, size=self.count)] = 1 + y
        return {"input_ids": ids * mask, "attention_mask": mask}, y


class Steps:
    """Running text in which each token is the one before it and one or two more."""

    task, labels, digest = "language-model", [], "sha256:" + "7" * 64

    def __init__(self, count=64):
        self.count = count

    def prepared(self, split):
        assert split != "test", "a pass must not look at the test part"
        random = np.random.default_rng(len(split))
        steps = random.integers(1, 3, size=(self.count, LONGEST + 1))
        ids = steps.cumsum(axis=1) % WORDS
        inputs = {"input_ids": ids[:, :-1], "attention_mask": np.ones((self.count, LONGEST), np.int64)}
        return inputs, ids[:, 1:]


def cnn(width=32):
    """Return a small network for `Stripes` with random weights."""
    torch.manual_seed(0)
    body = [nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    body += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.Flatten(), nn.Linear(width * 36, 3)).eval()


def encoder(width=32, layers=3, outputs=3):
    """Return an encoder of the built-in family for `Sentences`."""
    torch.manual_seed(0)
    family = load_family("transformer")
    options = family.options(width=width, layers=layers, heads=2, dropout=0.0)
    return family.build(options, ModelInput(shape=(LONGEST,), vocabulary=WORDS), outputs).eval()


def decoder(width=32, layers=3):
    """Return a decoder of the built-in family for `Steps`, as it is exported."""
    torch.manual_seed(0)
    family = load_family("gpt")
    options = family.options(width=width, layers=layers, heads=2)
    return NextToken(family.build(options, ModelInput(shape=(LONGEST,), vocabulary=WORDS), WORDS)).eval()


def train(module, data, steps=60, rate=3e-3):
    """Train in place: every step sees all rows."""
    inputs, y = data.prepared("train")
    rows = [torch.from_numpy(array) for array in inputs.values()]
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate)
    module.train()
    for _ in range(steps):
        answer = module(*rows)
        is_text = data.task == "language-model"
        loss = answer[1].mean() if is_text else nn.functional.cross_entropy(answer, torch.from_numpy(y))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return module.eval()


def onnx_of(module, data, rows=4):
    """Return the network as an ONNX file."""
    inputs, _ = data.prepared("train")
    example = {name: torch.from_numpy(array[:rows]) for name, array in inputs.items()}
    outputs = ("logits", "nats") if data.task == "language-model" else ("logits",)
    return onnx_bytes(module, example, output=outputs, is_draft=True, free_lengths="input_ids" in inputs)


def bench_of(
    path, data, module=None, *, report=silent, check_draft=lambda _: None, check_student=lambda *_: None, **lesson
):
    """Return what passes work with; a lesson of one epoch unless told."""
    runner = OnnxRunner.load(path)
    defaults = {"epochs": 1, "seconds": 5.0, "batch_size": 16, "learning_rate": 2e-3, "seed": 0}
    return Bench(
        original=Model(path=path, module=None if module is None else lambda: module),
        runner=runner,
        samples=Samples(data, runner),
        lesson=Lesson(**(defaults | lesson)),
        seed=0,
        check_draft=check_draft,
        check_student=check_student,
        report=report,
    )


def steady(monkeypatch):
    """Train in float32 on one core: which is the fastest here today is nothing a test may depend on."""

    @contextlib.contextmanager
    def fastest(student, lessons):
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            yield contextlib.nullcontext, 0.01
        finally:
            torch.set_num_threads(threads)

    monkeypatch.setattr(teaching, "fastest", fastest)


def quick_exports(monkeypatch):
    """Export by the older exporter, in a tenth of the time, where it isn't the exporter that is tested."""
    monkeypatch.setattr(export, "onnx_bytes", lambda *given, **asked: onnx_bytes(*given, **{**asked, "is_draft": True}))


def low_rank(layer, rank):
    """Make a layer's matrix one of a low rank, in place."""
    with torch.no_grad():
        u, s, v = torch.linalg.svd(layer.weight.flatten(1), full_matrices=False)
        layer.weight.copy_((u[:, :rank] * s[:rank] @ v[:rank]).reshape(layer.weight.shape))


@contextlib.contextmanager
def one_thread():
    """Compute on one core for a while."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def weights_of(module):
    """Return how many weights a module has."""
    return sum(p.numel() for p in module.parameters())
