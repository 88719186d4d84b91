"""The models that are compressed: trained or fetched once, exported once, kept below .bench/.

For each there is a folder that tools are given (original.onnx, weights.safetensors, train.npz, validation.npz) and one
that only the judge opens (test.npz, with what the original answers).
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finetune import TASKS, encoder, prepared

from argosy.formats.onnx_export import export_onnx
from argosy.train.config import ModelConfig
from argosy.train.job import run_training
from compression import data
from compression.peers import modules

_EPOCHS = {"cnn": 3, "cnn-hard": 10, "search20m": 6}


@dataclass(frozen=True)
class Case:
    """A model with what is measured of it."""

    name: str
    title: str
    measure: str
    """accuracy, or cosine to the original's vectors."""
    max_drop: float
    """Of the measure, that tools are asked to keep: what the table calls within the bound."""
    is_text: bool = False
    has_peers: bool = True
    tight_drop: float = 0.0
    """A second bound for what searches by a bound; 0: none."""


CASES = {
    case.name: case
    for case in (
        Case("cnn", "ResNet-18 layout of 0.7 million parameters on handwritten digits", "accuracy", 0.01),
        Case("cnn-hard", "the same on digits turned, sheared, cluttered and noisy", "accuracy", 0.01),
        Case(
            "minilm",
            "all-MiniLM-L6-v2, sentence vectors of newsgroup texts",
            "cosine",
            0.01,
            is_text=True,
            tight_drop=0.002,
        ),
        Case("r52", "all-MiniLM-L6-v2 fine-tuned by Argosy to Reuters R52", "accuracy", 0.01, is_text=True),
        Case(
            "search20m",
            "ResNet-18 layout of 20 million parameters on the harder digits",
            "accuracy",
            0.01,
            has_peers=False,
        ),
    )
}


@dataclass(frozen=True)
class Place:
    """Where a model is."""

    case: Case
    given: Path
    hidden: Path

    @property
    def onnx(self) -> Path:
        """The original."""
        return self.given / "original.onnx"

    @property
    def spec(self) -> dict[str, Any]:
        """What `modules.build` makes the original's module of."""
        return json.loads((self.given / "module.json").read_text())

    @property
    def facts(self) -> dict[str, Any]:
        """How it was made."""
        return json.loads((self.given / "facts.json").read_text())


def make(case: Case, cache: Path, *, quick: bool = False) -> Place:
    """Return a model's folders, after making them if necessary. A quick one is trained for one epoch."""
    home = cache / ("quick" if quick else "models") / case.name
    place = Place(case, home / "given", home / "hidden")
    if not (home / "made").exists():
        place.given.mkdir(parents=True, exist_ok=True)
        place.hidden.mkdir(parents=True, exist_ok=True)
        print(f"making {case.name}: {case.title} ...", flush=True)
        begun = time.monotonic()
        facts = _MAKERS[case.name](place, cache / "data", quick=quick)
        facts["seconds"] = time.monotonic() - begun
        (place.given / "facts.json").write_text(json.dumps(facts, indent=1) + "\n")
        (home / "made").touch()
    return place


def _cnn(place: Place, cache: Path, *, quick: bool) -> dict[str, Any]:
    name = place.case.name
    parts = (data.digits if name == "cnn" else data.hard_digits)(cache)
    width, stem_stride = (86, 2) if name == "search20m" else (16, 1)
    spec = {"kind": "resnet18", "width": width, "channels": 1, "outputs": 10, "stem_stride": stem_stride}
    module = _trained(spec, parts, 1 if quick else _EPOCHS[name])
    _keep(place, module, spec, parts, "logits")
    return {"parameters": sum(p.numel() for p in module.parameters()), "epochs": _EPOCHS[name]}


def _trained(spec: dict[str, Any], parts: data.Parts, epochs: int):
    """Train from scratch; the same weights every time on the same machine."""
    import torch
    from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

    torch.manual_seed(data.SEED)
    module = modules.build(spec).train()
    x, y = torch.from_numpy(parts["train"][0]["image"]), torch.from_numpy(parts["train"][1])
    held, truth = torch.from_numpy(parts["validation"][0]["image"]), torch.from_numpy(parts["validation"][1])
    steps = -(-len(x) // 64)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * steps)
    for epoch in range(epochs):
        module.train()
        for rows in torch.randperm(len(x)).split(64):
            loss = F.cross_entropy(module(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        module.eval()
        with torch.no_grad():
            right = sum(int((module(a).argmax(1) == b).sum()) for a, b in zip(held.split(256), truth.split(256)))  # noqa: B905
        print(f"  epoch {epoch + 1}: {right / len(held):.2%} on the validation part", flush=True)
    return module


def _minilm(place: Place, cache: Path, *, quick: bool) -> dict[str, Any]:
    del quick
    import torch
    from transformers import AutoModel

    folder = encoder(cache)
    model = AutoModel.from_pretrained(folder, local_files_only=True, attn_implementation="eager", dtype=torch.float32)
    model.pooler = None
    module = modules.Encoder(model).eval()
    spec = {"kind": "encoder", "folder": str(folder)}
    tokens = data.newsgroups(cache)
    parts = {}
    for name, inputs in tokens.items():
        with torch.inference_mode():
            parts[name] = (inputs, _torch_answers(module, inputs))
    _keep(place, module, spec, parts, "embedding")
    return {"parameters": sum(p.numel() for p in module.parameters())}


def _r52(place: Place, cache: Path, *, quick: bool) -> dict[str, Any]:
    """Fine-tune as `benchmarks/finetune.py` does, by Argosy's own training."""
    import msgspec
    from safetensors.torch import load_file

    work = place.given.parent / "training"
    work.mkdir(parents=True, exist_ok=True)
    dataset = prepared(TASKS["r52"], cache, work)
    train = TASKS["r52"].tuned
    if quick:
        train = msgspec.structs.replace(train, epochs=1)
    model = ModelConfig(init=str(encoder(cache)))
    result = run_training(work / "dataset", model, train, work, work / "run", _say)
    spec = {"kind": "classifier", "folder": str(encoder(cache)), "outputs": dataset.outputs}
    module = modules.build(spec)
    module.load_state_dict(load_file(result.weights))
    parts = {name: dataset.prepared(name) for name in ("train", "validation", "test")}
    _keep(place, module, spec, parts, "logits")
    return {"parameters": sum(p.numel() for p in module.parameters()), "epochs": train.epochs}


def _say(news: Any) -> None:
    if "epoch" in news.message:
        print(f"  {news.message} {news.values}", flush=True)


def _torch_answers(module: Any, inputs: dict[str, np.ndarray]) -> np.ndarray:
    import torch

    from compression.peers import given

    return given.answers(
        lambda batch: module(*(torch.from_numpy(batch[name]) for name in inputs)).numpy(), inputs, size=32
    )


def _keep(place: Place, module: Any, spec: dict[str, Any], parts: data.Parts, output: str) -> None:
    import torch
    from safetensors.torch import save_file

    weights = place.given / "weights.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in module.state_dict().items()}, weights)
    (place.given / "module.json").write_text(json.dumps({**spec, "weights": str(weights)}) + "\n")
    inputs = parts["train"][0]
    example = {name: torch.from_numpy(array[:2]) for name, array in inputs.items()}
    if place.case.is_text:
        export_onnx(module, example, place.onnx, output=output, free_lengths=True)
    else:
        (name, rows), *_ = example.items()
        export_onnx(module, rows, place.onnx, input_name=name, output=output)
    for name, (arrays, y) in parts.items():
        folder = place.hidden if name == "test" else place.given
        np.savez_compressed(folder / f"{name}.npz", **arrays, y=y)


_MAKERS: dict[str, Callable[..., dict[str, Any]]] = {
    "cnn": _cnn,
    "cnn-hard": _cnn,
    "minilm": _minilm,
    "r52": _r52,
    "search20m": _cnn,
}
