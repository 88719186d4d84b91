"""A small residual network for images.

Shape suffixes: b batch, c channels, h height, w width.
"""

from math import prod
from typing import cast

import torch
from msgspec import field
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - what every reader of torch code expects

from argosy.core.config import Config
from argosy.core.errors import InvalidInput
from argosy.train.families.checks import at_least, one_tensor
from argosy.train.inputs import ModelInput


class ResnetOptions(Config, frozen=True):
    """Options of `family = "resnet"`."""

    width: int = 32
    """Channels of the first stage; the second has twice as many at half the height and width."""
    blocks: int = 2
    """Residual blocks of two 3x3 convolutions in each of the two stages."""
    image: list[int] = field(default_factory=list)
    """`[channels, height, width]` of a sample that comes as flat numbers."""


def build(options: ResnetOptions, given: ModelInput, outputs: int) -> nn.Module:
    """Build a small residual network for images `[C, H, W]`, `[H, W]`, or flat ones whose size is in the options."""
    at_least(1, width=options.width, blocks=options.blocks)
    one_tensor("resnet", given)
    return Resnet(options.width, options.blocks, _image_shape(options, given.shape), outputs)


def _image_shape(options: ResnetOptions, input_shape: tuple[int, ...]) -> tuple[int, int, int]:
    shape = tuple(options.image) or ((1, *input_shape) if len(input_shape) == 2 else input_shape)
    if len(shape) != 3 or prod(shape) != prod(input_shape):
        raise InvalidInput(
            f"family 'resnet' needs images, but a sample has the shape {list(input_shape)}"
            + (f", which is not image = {options.image}" if options.image else ""),
            hint='say how flat numbers form an image, such as options = {image = [1, 8, 8]}, or use family = "mlp"',
        )
    return shape


class Resnet(nn.Module):
    """Residual network of He et al. 2015 in small: a stem, two stages, global average, one linear layer."""

    def __init__(self, width: int, blocks: int, image: tuple[int, int, int], outputs: int) -> None:
        super().__init__()
        self.image = image
        self.stem = nn.Sequential(nn.Conv2d(image[0], width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        stages = [Block(width, width, 1) for _ in range(blocks)]
        stages += [Block(width if i == 0 else 2 * width, 2 * width, 2 if i == 0 else 1) for i in range(blocks)]
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of a batch of images, which may be flat."""
        x_bchw = x if x.dim() == 4 else x.reshape(-1, *self.image)
        x_bchw = self.stages(F.relu(self.stem(x_bchw)))
        return cast("Tensor", self.head(x_bchw.mean(dim=(2, 3))))


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm around which the input is carried (He et al. 2015, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(outputs)
        self.second = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(outputs)
        self.carry: nn.Module = nn.Identity()
        if inputs != outputs or stride != 1:
            self.carry = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x_bchw: Tensor) -> Tensor:
        """Return the block's output; height and width shrink by its stride."""
        y_bchw = F.relu(self.first_norm(self.first(x_bchw)))
        y_bchw = self.second_norm(self.second(y_bchw))
        return torch.relu(y_bchw + self.carry(x_bchw))
