"""EfficientNet B0 with torchvision's layout and names (Tan and Le, 2019, arXiv:1905.11946)."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import nn

if TYPE_CHECKING:
    from torch import Tensor


class Stage(NamedTuple):
    """One row of the paper's table 1."""

    expand: int
    kernel: int
    stride: int
    out: int
    blocks: int


B0 = (
    Stage(1, 3, 1, 16, 1),
    Stage(6, 3, 2, 24, 2),
    Stage(6, 5, 2, 40, 2),
    Stage(6, 3, 2, 80, 3),
    Stage(6, 5, 1, 112, 3),
    Stage(6, 5, 2, 192, 4),
    Stage(6, 3, 1, 320, 1),
)


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor in [0, 1] computed from all channels' means."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)
        self.activation = nn.SiLU(inplace=True)
        self.scale_activation = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return self.scale_activation(scale) * x  # type: ignore[no-any-return]


class MBConv(nn.Module):
    """Expand, filter, squeeze-and-excite, project; a shortcut where the shape allows.

    The shortcut's random dropping of whole blocks while training is left out.
    """

    def __init__(self, inp: int, stage: Stage, stride: int) -> None:
        super().__init__()
        hidden = inp * stage.expand
        layers: list[nn.Module] = []
        if stage.expand != 1:
            layers.append(_conv(inp, hidden, 1))
        layers += [
            _conv(hidden, hidden, stage.kernel, stride=stride, groups=hidden),
            SqueezeExcitation(hidden, max(1, inp // 4)),
            _conv(hidden, stage.out, 1, act=False),
        ]
        self.block = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and inp == stage.out

    def forward(self, x: Tensor) -> Tensor:
        """[N, inp, H, W] -> [N, out, H/stride, W/stride]."""
        result: Tensor = self.block(x)
        return result + x if self.use_res_connect else result


class EfficientNet(nn.Module):
    """EfficientNet.

    Args:
        stages: groups of blocks.
        num_classes: number of logits.
        in_channels: channels of the image.
        stem: channels and stride of the first convolution.
        last: channels of the last convolution.
    """

    def __init__(
        self,
        stages: tuple[Stage, ...] = B0,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        stem: tuple[int, int] = (32, 2),
        last: int = 1280,
    ) -> None:
        super().__init__()
        inp, stride = stem
        features: list[nn.Module] = [_conv(in_channels, inp, 3, stride=stride)]
        for stage in stages:
            blocks: list[nn.Module] = []
            for i in range(stage.blocks):
                blocks.append(MBConv(inp, stage, 1 if i else stage.stride))
                inp = stage.out
            features.append(nn.Sequential(*blocks))
        features.append(_conv(inp, last, 1))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(nn.Dropout(0.2, inplace=True), nn.Linear(last, num_classes))
        self.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, num_classes]."""
        x = torch.flatten(self.avgpool(self.features(x)), 1)
        return self.classifier(x)  # type: ignore[no-any-return]


def efficientnet_b0(*, num_classes: int = 1000, in_channels: int = 3) -> EfficientNet:
    """EfficientNet B0; the defaults are torchvision's."""
    return EfficientNet(B0, num_classes=num_classes, in_channels=in_channels)


def _conv(
    inp: int, oup: int, kernel: int, *, stride: int = 1, groups: int = 1, act: bool = True
) -> nn.Sequential:
    """Convolution, batch norm and SiLU as items 0, 1 and 2."""
    conv = nn.Conv2d(inp, oup, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(oup)]
    return nn.Sequential(*layers, *([nn.SiLU(inplace=True)] if act else []))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.Linear):
        bound = module.out_features**-0.5
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)
