"""Computes the loss of kept models on held-out samples: evaluate.py TASK FOLDER. Runs in Argosy's environment."""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

sys.path.insert(0, str(Path(__file__).parent / "peers"))
import models

TASK, FOLDER = (Path(argument) for argument in sys.argv[1:3])
_AT_ONCE = 16


@torch.no_grad()
def main() -> None:
    """Print, for each model by the step it was kept after, when that was and its loss."""
    plan = json.loads((TASK / "plan.json").read_text())
    model = getattr(models, plan["model"])(**plan["arguments"]).eval()
    arrays = np.load(TASK / "validation.npz")
    x, y = torch.from_numpy(arrays["x"]).long(), torch.from_numpy(arrays["y"]).long()
    found = []
    paths = sorted(FOLDER.glob("model-*.safetensors"), key=lambda path: int(path.stem.partition("-")[2]))
    for path in paths:
        tensors = load_file(path)
        own = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
        model.load_state_dict(own or tensors)
        pairs = zip(x.split(_AT_ONCE), y.split(_AT_ONCE), strict=True)
        losses = [
            float(F.cross_entropy(model(rows).flatten(0, -2), targets.flatten(), reduction="sum"))
            for rows, targets in pairs
        ]
        step = int(path.stem.partition("-")[2])
        found.append({"step": step, "at": path.stat().st_mtime, "loss": sum(losses) / y.numel()})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
