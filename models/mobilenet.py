"""MobileNet V2 and V3 with torchvision's layout and names (arXiv:1801.04381, arXiv:1905.02244)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor


class InvertedResidual(nn.Module):
    """Expand, filter each channel on its own, project; a shortcut where the shape allows."""

    def __init__(self, inp: int, oup: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inp * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers.append(_conv(inp, hidden, 1, act=nn.ReLU6))
        layers += [
            _conv(hidden, hidden, 3, stride=stride, groups=hidden, act=nn.ReLU6),
            nn.Conv2d(hidden, oup, 1, bias=False),
            nn.BatchNorm2d(oup),
        ]
        self.conv = nn.Sequential(*layers)
        self.use_res_connect = stride == 1 and inp == oup

    def forward(self, x: Tensor) -> Tensor:
        """[N, inp, H, W] -> [N, oup, H/stride, W/stride]."""
        if self.use_res_connect:
            return x + self.conv(x)  # type: ignore[no-any-return]
        return self.conv(x)  # type: ignore[no-any-return]


class MobileNetV2(nn.Module):
    """MobileNet V2.

    Args:
        num_classes: number of logits.
        in_channels: channels of the image.
        width_mult: factor on every number of channels.
        strides: strides of the stem and of the seven groups of blocks.
    """

    def __init__(
        self,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        width_mult: float = 1.0,
        strides: tuple[int, ...] = (2, 1, 2, 2, 2, 1, 2, 1),
    ) -> None:
        super().__init__()
        expand = (1, 6, 6, 6, 6, 6, 6)
        channels = (16, 24, 32, 64, 96, 160, 320)
        repeats = (1, 2, 3, 4, 3, 3, 1)
        inp = _divisible(32 * width_mult)
        last = _divisible(1280 * max(1.0, width_mult))
        features: list[nn.Module] = [_conv(in_channels, inp, 3, stride=strides[0], act=nn.ReLU6)]
        for t, c, n, s in zip(expand, channels, repeats, strides[1:], strict=True):
            for i in range(n):
                oup = _divisible(c * width_mult)
                features.append(InvertedResidual(inp, oup, s if i == 0 else 1, t))
                inp = oup
        features.append(_conv(inp, last, 1, act=nn.ReLU6))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, num_classes))
        self.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, num_classes]."""
        x = F.adaptive_avg_pool2d(self.features(x), (1, 1))
        return self.classifier(torch.flatten(x, 1))  # type: ignore[no-any-return]


class SqueezeExcitation(nn.Module):
    """Scales each channel by a factor in [0, 1] computed from all channels' means."""

    def __init__(self, channels: int, squeeze: int) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, channels, 1)
        self.activation = nn.ReLU()
        self.scale_activation = nn.Hardsigmoid()

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] -> [N, C, H, W]."""
        scale = self.fc2(self.activation(self.fc1(self.avgpool(x))))
        return self.scale_activation(scale) * x  # type: ignore[no-any-return]


class Bneck(NamedTuple):
    """One row of the paper's tables 1 and 2."""

    kernel: int
    expanded: int
    out: int
    se: bool
    hardswish: bool
    stride: int


SMALL = (
    Bneck(3, 16, 16, True, False, 2),
    Bneck(3, 72, 24, False, False, 2),
    Bneck(3, 88, 24, False, False, 1),
    Bneck(5, 96, 40, True, True, 2),
    Bneck(5, 240, 40, True, True, 1),
    Bneck(5, 240, 40, True, True, 1),
    Bneck(5, 120, 48, True, True, 1),
    Bneck(5, 144, 48, True, True, 1),
    Bneck(5, 288, 96, True, True, 2),
    Bneck(5, 576, 96, True, True, 1),
    Bneck(5, 576, 96, True, True, 1),
)
LARGE = (
    Bneck(3, 16, 16, False, False, 1),
    Bneck(3, 64, 24, False, False, 2),
    Bneck(3, 72, 24, False, False, 1),
    Bneck(5, 72, 40, True, False, 2),
    Bneck(5, 120, 40, True, False, 1),
    Bneck(5, 120, 40, True, False, 1),
    Bneck(3, 240, 80, False, True, 2),
    Bneck(3, 200, 80, False, True, 1),
    Bneck(3, 184, 80, False, True, 1),
    Bneck(3, 184, 80, False, True, 1),
    Bneck(3, 480, 112, True, True, 1),
    Bneck(3, 672, 112, True, True, 1),
    Bneck(5, 672, 160, True, True, 2),
    Bneck(5, 960, 160, True, True, 1),
    Bneck(5, 960, 160, True, True, 1),
)


class InvertedResidualV3(nn.Module):
    """Expand, filter, squeeze-and-excite, project; a shortcut where the shape allows."""

    def __init__(self, inp: int, row: Bneck, width_mult: float) -> None:
        super().__init__()
        hidden, oup = _divisible(row.expanded * width_mult), _divisible(row.out * width_mult)
        act: Callable[[], nn.Module] = nn.Hardswish if row.hardswish else nn.ReLU
        conv = partial(_conv, eps=0.001)
        layers: list[nn.Module] = []
        if hidden != inp:
            layers.append(conv(inp, hidden, 1, act=act))
        layers.append(conv(hidden, hidden, row.kernel, stride=row.stride, groups=hidden, act=act))
        if row.se:
            layers.append(SqueezeExcitation(hidden, _divisible(hidden // 4)))
        layers.append(conv(hidden, oup, 1, act=None))
        self.block = nn.Sequential(*layers)
        self.use_res_connect = row.stride == 1 and inp == oup

    def forward(self, x: Tensor) -> Tensor:
        """[N, inp, H, W] -> [N, out, H/stride, W/stride]."""
        result: Tensor = self.block(x)
        if self.use_res_connect:
            result += x
        return result


class MobileNetV3(nn.Module):
    """MobileNet V3.

    Args:
        rows: the blocks, ``SMALL`` or ``LARGE``.
        num_classes: number of logits.
        in_channels: channels of the image.
        width_mult: factor on every number of channels.
        stem_stride: stride of the first convolution.
    """

    def __init__(
        self,
        rows: tuple[Bneck, ...] = SMALL,
        *,
        num_classes: int = 1000,
        in_channels: int = 3,
        width_mult: float = 1.0,
        stem_stride: int = 2,
    ) -> None:
        super().__init__()
        inp = _divisible(16 * width_mult)
        hidden = _divisible((1024 if rows is SMALL else 1280) * width_mult)
        conv = partial(_conv, act=nn.Hardswish, eps=0.001)
        features: list[nn.Module] = [conv(in_channels, inp, 3, stride=stem_stride)]
        for row in rows:
            features.append(InvertedResidualV3(inp, row, width_mult))
            inp = _divisible(row.out * width_mult)
        features.append(conv(inp, 6 * inp, 1))
        self.features = nn.Sequential(*features)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Linear(6 * inp, hidden),
            nn.Hardswish(inplace=True),
            nn.Dropout(0.2, inplace=True),
            nn.Linear(hidden, num_classes),
        )
        self.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        """[N, in_channels, H, W] -> [N, num_classes]."""
        x = torch.flatten(self.avgpool(self.features(x)), 1)
        return self.classifier(x)  # type: ignore[no-any-return]


def mobilenet_v2(
    *, num_classes: int = 1000, in_channels: int = 3, width_mult: float = 1.0
) -> MobileNetV2:
    """MobileNet V2; the defaults are torchvision's."""
    return MobileNetV2(num_classes=num_classes, in_channels=in_channels, width_mult=width_mult)


def mobilenet_v3_small(*, num_classes: int = 1000, in_channels: int = 3) -> MobileNetV3:
    """MobileNet V3 small; the defaults are torchvision's."""
    return MobileNetV3(SMALL, num_classes=num_classes, in_channels=in_channels)


def mobilenet_v3_large(*, num_classes: int = 1000, in_channels: int = 3) -> MobileNetV3:
    """MobileNet V3 large; the defaults are torchvision's."""
    return MobileNetV3(LARGE, num_classes=num_classes, in_channels=in_channels)


def _conv(
    inp: int,
    oup: int,
    kernel: int,
    *,
    stride: int = 1,
    groups: int = 1,
    eps: float = 1e-5,
    act: Callable[[], nn.Module] | None,
) -> nn.Sequential:
    """Convolution, batch norm and activation as items 0, 1 and 2."""
    conv = nn.Conv2d(inp, oup, kernel, stride, kernel // 2, groups=groups, bias=False)
    layers: list[nn.Module] = [conv, nn.BatchNorm2d(oup, eps=eps)]
    return nn.Sequential(*layers, *([act()] if act else []))


def _init(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.01)
        nn.init.zeros_(module.bias)


def _divisible(value: float, by: int = 8) -> int:
    """The multiple of 8 nearest to ``value``, but never more than 10 % below it."""
    rounded = max(by, int(value + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * value else rounded
