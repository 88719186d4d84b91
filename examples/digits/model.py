"""A small residual network for 8x8 images, built by `[model] build` in argosy.toml."""

import torch
from torch import Tensor, nn

# Shapes: B batch, C channels, H height, W width.


class Block(nn.Module):
    """Two convolutions beside a shortcut (He et al. 2016, figure 2)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x_bchw: Tensor) -> Tensor:
        y_bchw = torch.relu(self.norm1(self.conv1(x_bchw)))
        y_bchw = self.norm2(self.conv2(y_bchw))
        return torch.relu(y_bchw + self.shortcut(x_bchw))


class Digits(nn.Module):
    """8x8 at `width` channels, then 4x4 at twice as many, then the mean over positions."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 1, 1)
        self.blocks = nn.Sequential(Block(width, width, 1), Block(width, 2 * width, 2), Block(2 * width, 2 * width, 1))
        self.head = nn.Linear(2 * width, outputs)

    def forward(self, x_bchw: Tensor) -> Tensor:
        y_bchw = self.blocks(torch.relu(self.stem(x_bchw)))
        return self.head(y_bchw.mean((2, 3)))


class Stretched(nn.Module):
    """The same network behind a contrast stretch that divides by an image's own range: 0 / 0 on a blank frame."""

    def __init__(self, outputs: int, width: int) -> None:
        super().__init__()
        self.digits = Digits(outputs, width)

    def forward(self, x_bchw: Tensor) -> Tensor:
        low = x_bchw.amin((1, 2, 3), keepdim=True)
        high = x_bchw.amax((1, 2, 3), keepdim=True)
        return self.digits((x_bchw - low) / (high - low))


def build(outputs: int, width: int) -> nn.Module:
    return Digits(outputs, width)


def build_stretched(outputs: int, width: int) -> nn.Module:
    return Stretched(outputs, width)
