"""The models of all contenders, as a user would write them. Argosy is given them by `[model] build`.

Shape suffixes: b batch, t tokens, d width, v vocabulary, h heads.
"""

import fcntl
import itertools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects


def mlp(input_shape: Sequence[int], outputs: int, hidden: Sequence[int]) -> nn.Module:
    """Fully connected layers with ReLU between."""
    sizes = [input_shape[0], *hidden, outputs]
    layers: list[nn.Module] = []
    for inputs, width in itertools.pairwise(sizes):
        layers += [nn.Linear(inputs, width), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class GptBlock(nn.Module):
    """Causal attention and a two-layer network, each around a normalized input that is carried past it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention = nn.LayerNorm(width)
        self.asked = nn.Linear(width, 3 * width)
        self.answered = nn.Linear(width, width)
        self.before_network = nn.LayerNorm(width)
        self.network = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x_btd: Tensor) -> Tensor:
        """Return what the block makes of its input."""
        b, t, d = x_btd.shape
        q, k, v = (
            part.view(b, t, self.heads, d // self.heads).transpose(1, 2)
            for part in self.asked(self.before_attention(x_btd)).split(d, dim=2)
        )
        seen_bhtd = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x_btd = x_btd + self.answered(seen_bhtd.transpose(1, 2).reshape(b, t, d))
        return x_btd + self.network(self.before_network(x_btd))


class Gpt(nn.Module):
    """A decoder as GPT-2 has it: learned places, one table for the tokens read and the tokens said."""

    def __init__(self, vocabulary: int, context: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        self.places = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(GptBlock(width, heads) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        for table in (self.tokens, self.places):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids_bt: Tensor, mask_bt: Tensor | None = None) -> Tensor:
        """Return the logits [b, t, v] of each next token; all texts are as long, so a mask says nothing."""
        del mask_bt
        x_btd = self.tokens(ids_bt) + self.places(torch.arange(ids_bt.shape[1]))
        for block in self.blocks:
            x_btd = block(x_btd)
        return F.linear(self.norm(x_btd), self.tokens.weight)


def gpt(vocabulary: int, context: int, width: int, layers: int, heads: int) -> nn.Module:
    """Build a small GPT."""
    return Gpt(vocabulary, context, width, layers, heads)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input is carried."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.carry: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.carry = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Return what the block makes of its input."""
        y = F.relu(self.first_norm(self.first(x)))
        return F.relu(self.second_norm(self.second(y)) + self.carry(x))


def resnet18(input_shape: Sequence[int], outputs: int) -> nn.Module:
    """Build the network of He et al. 2015, table 1, with the stem that is usual for small images."""
    layers: list[nn.Module] = [nn.Conv2d(input_shape[0], 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    inputs = 64
    for width, stride in ((64, 1), (128, 2), (256, 2), (512, 2)):
        layers += [ResidualBlock(inputs, width, stride), ResidualBlock(width, width, 1)]
        inputs = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, outputs))


class Slow(nn.Module):
    """A small model on an emulated accelerator: each forward pass sleeps, and one process's sleeps twice as long.

    The slow one is whoever gets hold of the lock first. Sleeping takes no processor, so that many ranks can be emulated
    on few cores.
    """

    def __init__(self, inputs: int, outputs: int, seconds: float, lock: str) -> None:
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)
        self.seconds, self.lock = seconds, lock
        self.held: IO[bytes] | None = None
        self.is_decided = False

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits, later."""
        if not self.is_decided and self.training:
            self.is_decided = True
            self.held = Path(self.lock).open("ab")  # noqa: SIM115 - held as long as the process lives
            try:
                fcntl.flock(self.held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.held = None
        time.sleep(self.seconds * (2 if self.held is not None else 1) * self.training)
        return self.layer(x)


def slow(input_shape: Sequence[int], outputs: int, seconds: float, lock: str) -> nn.Module:
    """Build the model with one straggler among its ranks; without a lock's name there is none."""
    model = Slow(input_shape[0], outputs, seconds, lock)
    model.is_decided = not lock
    return model
