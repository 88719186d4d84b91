"""The PyTorch modules that are compressed: plain torch, so that every peer that needs a module builds the same one."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm, around which the input is carried."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.carry: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.carry = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output."""
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.carry(x))


class Resnet18(nn.Module):
    """He et al. 2015: four stages of two blocks; 64 wide it has 11.2 million parameters, 16 wide 0.7 million.

    The stem is a 3x3 convolution without pooling, as everybody has it for images of 28 or 32 pixels.
    """

    def __init__(self, width: int, channels: int, outputs: int, stem_stride: int = 1) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )
        blocks, inputs = [], width
        for stage in range(4):
            for number in range(2):
                blocks.append(Block(inputs, width << stage, 2 if stage and not number else 1))
                inputs = width << stage
        self.blocks = nn.Sequential(*blocks)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(inputs, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        return self.head(self.pool(self.blocks(self.stem(x))).flatten(1))


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    own = mask.unsqueeze(2).to(hidden.dtype)
    return (hidden * own).sum(dim=1) / own.sum(dim=1).clamp(min=1.0)


class Encoder(nn.Module):
    """A sentence encoder: mean of the tokens' vectors, brought to length 1."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return one vector per text."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).last_hidden_state
        return F.normalize(_mean(hidden, attention_mask), dim=1)


class Classifier(nn.Module):
    """An encoder with a linear head on the normed mean of its tokens' vectors, as Argosy fine-tunes it."""

    def __init__(self, model: nn.Module, outputs: int) -> None:
        super().__init__()
        self.model = model
        self.head = nn.Linear(int(model.config.hidden_size), outputs)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Return the logits."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask, return_dict=True).last_hidden_state
        mean = _mean(hidden, attention_mask)
        return self.head(F.layer_norm(mean, (self.head.in_features,)))


def _transformer(folder: str, layers: int = 0) -> nn.Module:
    from transformers import AutoConfig, AutoModel

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    if layers:
        config.num_hidden_layers = layers
    model = AutoModel.from_config(config, attn_implementation="eager", dtype=torch.float32)
    if hasattr(model, "pooler"):
        model.pooler = None
    return model


def build(spec: dict[str, Any]) -> nn.Module:
    """Return the module that a spec describes; with its weights if it names a file of them."""
    kind = spec["kind"]
    if kind == "resnet18":
        module: nn.Module = Resnet18(spec["width"], spec["channels"], spec["outputs"], spec.get("stem_stride", 1))
    elif kind == "encoder":
        module = Encoder(_transformer(spec["folder"], spec.get("layers", 0)))
    else:
        module = Classifier(_transformer(spec["folder"], spec.get("layers", 0)), spec["outputs"])
    if spec.get("weights") and Path(spec["weights"]).exists():
        from safetensors.torch import load_file

        module.load_state_dict(load_file(spec["weights"]))
    return module.eval()
