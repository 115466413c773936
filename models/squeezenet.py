"""SqueezeNet with torchvision's layout and names (arXiv:1602.07360): concatenations everywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class Fire(nn.Module):
    """A 1×1 squeeze whose output goes through a 1×1 and a 3×3 expansion side by side."""

    def __init__(self, inplanes: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inplanes, squeeze, 1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """[N, inplanes, H, W] -> [N, 2·expand, H, W]."""
        x = self.squeeze_activation(self.squeeze(x))
        one = self.expand1x1_activation(self.expand1x1(x))
        three = self.expand3x3_activation(self.expand3x3(x))
        return torch.cat([one, three], 1)


class SqueezeNet(nn.Module):
    """SqueezeNet 1.1.

    Args:
        num_classes: number of logits.
        in_channels: channels of the image.
        width: channels of the stem; all other numbers follow it.
    """

    def __init__(self, *, num_classes: int = 1000, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        s = width // 4
        self.features = nn.Sequential(
            nn.Conv2d(in_channels, width, 3, stride=2),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(width, s, 4 * s),
            Fire(8 * s, s, 4 * s),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(8 * s, 2 * s, 8 * s),
            Fire(16 * s, 2 * s, 8 * s),
            nn.MaxPool2d(3, stride=2, ceil_mode=True),
            Fire(16 * s, 3 * s, 12 * s),
            Fire(24 * s, 3 * s, 12 * s),
            Fire(24 * s, 4 * s, 16 * s),
            Fire(32 * s, 4 * s, 16 * s),
        )
        self.classifier = nn.Sequential(
            nn.Dropout(0.5),
            nn.Conv2d(32 * s, num_classes, 1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d((1, 1)),
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, num_classes]."""
        return torch.flatten(self.classifier(self.features(x)), 1)
