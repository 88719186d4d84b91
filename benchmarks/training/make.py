"""Makes what a task needs, once: Argosy's data set, the same samples for the peers, the order, the first weights.

Runs in Argosy's environment: python make.py FOLDER PLAN
"""

import json
import sys
import sysconfig
from pathlib import Path
from typing import Any

import numpy as np
import torch

from argosy.core.digest import digest_of
from argosy.core.tensors import TensorSpec
from argosy.data.config import DataConfig
from argosy.data.dataset import Dataset, batches, build_dataset
from argosy.data.parts import Split
from argosy.train.models import save_weights

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import models

DIGITS = Path(__file__).parents[2] / "examples" / "mlp" / "digits.npz"
_HELD = 64
"""Samples that a model kept on the way is judged by."""


def main() -> None:
    """Make it all."""
    folder, plan = Path(sys.argv[1]), json.loads(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    dataset, arguments = KINDS[plan["data"]](plan, folder)
    dataset.save(folder / "dataset")
    part = dataset.splits["train"]
    (x,) = part.inputs.values()
    np.savez(folder / "samples.npz", x=x, y=part.y)
    held = dataset.splits.get("validation")
    if held is not None and len(held.y):
        np.savez(folder / "validation.npz", x=next(iter(held.inputs.values())), y=held.y)
    count = plan["batch"] * plan["steps"]
    order = [np.concatenate(list(batches(count, plan["batch"], seed=0, epoch=e))) for e in range(plan["epochs"])]
    np.save(folder / "order.npy", np.concatenate(order).astype(np.int64))
    arguments |= plan["options"]
    torch.manual_seed(0)
    model = getattr(models, plan["model"])(**arguments)
    save_weights(model, folder / "weights.safetensors")
    told = {**plan, "arguments": arguments, "parameters": sum(p.numel() for p in model.parameters())}
    (folder / "plan.json").write_text(json.dumps(told))


def _random(plan: dict[str, Any], _: Path) -> tuple[Dataset, dict[str, Any]]:
    draws = np.random.default_rng(0)
    count = plan["batch"] * plan["steps"]
    x = draws.standard_normal((count, 1000), dtype=np.float32)
    y = draws.integers(0, 4000, count)
    return _classes(x, y, 4000), {"input_shape": [1000], "outputs": 4000}


def _digits(plan: dict[str, Any], _: Path) -> tuple[Dataset, dict[str, Any]]:
    arrays = np.load(DIGITS)
    count = plan["batch"] * plan["steps"]
    shape = (1, 8, 8) if plan["model"] == "resnet18" else (64,)
    x = (arrays["pixels"][:count].astype(np.float32) / 16.0).reshape(count, *shape)
    return _classes(x, arrays["label"][:count].astype(np.int64), 10), {"input_shape": list(shape), "outputs": 10}


def _text(plan: dict[str, Any], folder: Path) -> tuple[Dataset, dict[str, Any]]:
    # Under the licence of Python itself (PSF-2.0), and in every Python.
    from pydoc_data.topics import topics

    path = folder / "manual.txt"
    path.write_text("\n\n".join(topics[name] for name in sorted(topics)))
    config = DataConfig(
        task="language-model",
        train=str(path),
        vocabulary=2048,
        tokenizer="bpe",
        context=plan["options"]["context"],
        validation=0.05,
        test_share=0.05,
    )
    whole = build_dataset(config, folder)
    part, count = whole.splits["train"], plan["batch"] * plan["steps"]
    # No peer validates, so there is nothing to validate on.
    splits = {name: _first(part, size) for name, size in (("train", count), ("validation", 0))}
    fields = {name: getattr(whole, name) for name in whole.__struct_fields__} | {"splits": splits}
    return Dataset(**fields), {"vocabulary": whole.outputs}


def _library(plan: dict[str, Any], folder: Path) -> tuple[Dataset, dict[str, Any]]:
    # The modules of Python's library, under Python's own licence: so much text that no step sees a sample again.
    path = folder / "library.txt"
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    path.write_text("\n\n".join(module.read_text(errors="replace") for module in modules))
    config = DataConfig(
        task="language-model",
        train=str(path),
        vocabulary=2048,
        tokenizer="bpe",
        context=plan["options"]["context"],
        validation=0.05,
        test_share=0.05,
    )
    whole = build_dataset(config, folder)
    train, held = whole.splits["train"], _first(whole.splits["validation"], _HELD)
    splits = {"train": train, "validation": held}
    fields = {name: getattr(whole, name) for name in whole.__struct_fields__} | {"splits": splits}
    return Dataset(**fields), {"vocabulary": whole.outputs}


def _first(part: Split, count: int) -> Split:
    return Split(inputs={name: array[:count] for name, array in part.inputs.items()}, y=part.y[:count])


def _classes(x: Any, y: Any, outputs: int) -> Dataset:
    return Dataset(
        splits={"train": Split(inputs={"x": x}, y=y)},
        steps=[],
        finish=[],
        signature_inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, *x.shape[1:])),),
        task="classification",
        labels=[str(number) for number in range(outputs)],
        digest=digest_of([x.shape, outputs]),
    )


KINDS = {"random": _random, "text": _text, "library": _library, "digits": _digits}

if __name__ == "__main__":
    main()
