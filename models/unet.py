"""U-Net: an encoder and a decoder joined by concatenations (arXiv:1505.04597)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


def double_conv(inp: int, oup: int) -> nn.Sequential:
    """Two 3×3 convolutions, each with batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inp, oup, 3, padding=1, bias=False),
        nn.BatchNorm2d(oup),
        nn.ReLU(inplace=True),
        nn.Conv2d(oup, oup, 3, padding=1, bias=False),
        nn.BatchNorm2d(oup),
        nn.ReLU(inplace=True),
    )


class Up(nn.Module):
    """Doubles the size, joins the encoder's features, and convolves."""

    def __init__(self, inp: int, oup: int, *, transposed: bool) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inp, oup, 2, stride=2) if transposed else None
        self.reduce = None if transposed else nn.Conv2d(inp, oup, 1)
        self.conv = double_conv(2 * oup, oup)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """[N, inp, H, W], [N, oup, 2H, 2W] -> [N, oup, 2H, 2W]."""
        if self.up is not None:
            x = self.up(x)
        elif self.reduce is not None:
            x = F.interpolate(
                self.reduce(x), scale_factor=2.0, mode="bilinear", align_corners=False
            )
        return self.conv(torch.cat([skip, x], dim=1))  # type: ignore[no-any-return]


class UNet(nn.Module):
    """A class for every pixel.

    Args:
        num_classes: logits for every pixel.
        in_channels: channels of the image.
        width: channels of the first level; each next level has twice as many.
        levels: number of halvings.
        transposed: upsample by transposed convolutions; otherwise bilinear.
    """

    def __init__(
        self,
        *,
        num_classes: int = 2,
        in_channels: int = 3,
        width: int = 64,
        levels: int = 4,
        transposed: bool = True,
    ) -> None:
        super().__init__()
        widths = [width * 2**i for i in range(levels + 1)]
        self.inc = double_conv(in_channels, width)
        self.down = nn.ModuleList(double_conv(a, a * 2) for a in widths[:-1])
        self.up = nn.ModuleList(Up(a * 2, a, transposed=transposed) for a in widths[-2::-1])
        self.outc = nn.Conv2d(width, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, num_classes, H, W]; H and W divisible by 2^levels."""
        x = self.inc(x)
        skips = []
        for down in self.down:
            skips.append(x)
            x = down(F.max_pool2d(x, 2))
        for up, skip in zip(self.up, reversed(skips), strict=True):
            x = up(x, skip)
        return self.outc(x)  # type: ignore[no-any-return]
