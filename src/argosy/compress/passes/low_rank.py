"""Two thin layers in the place of one, for code that asks for more than answers."""

from typing import Any

from torch import Tensor, einsum, nn


class LowRank(nn.Sequential):
    """A linear layer or convolution as the product of two, the first without a bias.

    It has the other attributes of the layer it stands for, such as `in_features`, and gives the product as its
    `weight`: code around a layer reads them.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int) -> None:
        has_bias = layer.bias is not None
        names: tuple[str, ...]
        if isinstance(layer, nn.Linear):
            names = ("in_features", "out_features")
            super().__init__(
                nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features, bias=has_bias)
            )
        else:
            names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
            wide: Any = layer
            super().__init__(
                nn.Conv2d(
                    wide.in_channels,
                    rank,
                    wide.kernel_size,
                    wide.stride,
                    wide.padding,
                    wide.dilation,
                    bias=False,
                    padding_mode=wide.padding_mode,
                ),
                nn.Conv2d(rank, wide.out_channels, 1, bias=has_bias),
            )
        for name in names:
            setattr(self, name, getattr(layer, name))

    @property
    def weight(self) -> Tensor:
        """The weight of the layer it stands for, as near as the rank allows."""
        first, second = (part.weight for part in self)
        assert isinstance(first, Tensor)
        assert isinstance(second, Tensor)
        return einsum("or,r...->o...", second.flatten(1), first)

    @property
    def bias(self) -> Tensor | None:
        """The bias of the layer it stands for."""
        found: Any = self[1].bias
        return None if found is None else found
