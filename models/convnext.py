"""ConvNeXt-like network (Liu et al., 2022, arXiv:2201.03545)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class LayerNorm2d(nn.LayerNorm):
    """Layer norm over the channels of an image."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        x = x.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


class Block(nn.Module):
    """A 7×7 depthwise convolution and an MLP over the channels, scaled, beside a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dwconv = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.pwconv1 = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.pwconv2 = nn.Linear(4 * width, width)
        self.gamma = nn.Parameter(torch.full((width,), 0.1))

    def forward(self, x: Tensor) -> Tensor:
        """[N, width, H, W] -> [N, width, H, W]."""
        y = self.dwconv(x).permute(0, 2, 3, 1)
        y = self.gamma * self.pwconv2(self.act(self.pwconv1(self.norm(y))))
        return x + y.permute(0, 3, 1, 2)  # type: ignore[no-any-return]


class ConvNeXt(nn.Module):
    """Stages of blocks with a patch-merging convolution before each.

    Args:
        depths: blocks in each stage.
        widths: channels of each stage.
        patch: stride of the stem.
        num_classes: number of logits.
        in_channels: channels of the image.
    """

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (3, 3, 9, 3),
        widths: tuple[int, ...] = (96, 192, 384, 768),
        patch: int = 4,
        num_classes: int = 1000,
        in_channels: int = 3,
    ) -> None:
        super().__init__()
        first = nn.Conv2d(in_channels, widths[0], patch, stride=patch)
        layers: list[nn.Module] = [nn.Sequential(first, LayerNorm2d(widths[0], eps=1e-6))]
        for i, (depth, width) in enumerate(zip(depths, widths, strict=True)):
            if i:
                merge = nn.Conv2d(widths[i - 1], width, 2, stride=2)
                layers.append(nn.Sequential(LayerNorm2d(widths[i - 1], eps=1e-6), merge))
            layers.append(nn.Sequential(*(Block(width) for _ in range(depth))))
        self.features = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(widths[-1], eps=1e-6)
        self.head = nn.Linear(widths[-1], num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, num_classes]."""
        x = self.features(x).mean([-2, -1])
        return self.head(self.norm(x))  # type: ignore[no-any-return]
