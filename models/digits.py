"""Digit-sized networks: factories for the command line, recipes to train them, and their data.

``fxquant quantize models/digits.py:resnet18 --weights resnet18.safetensors
--calibration models/digits.py:images --out out`` uses two functions of this file.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import torch

from fxquant.models.bert import Bert
from fxquant.models.convnext import ConvNeXt
from fxquant.models.lstm import LstmClassifier
from fxquant.models.mobilenet import SMALL, MobileNetV2, MobileNetV3
from fxquant.models.resnet import ResNet
from fxquant.models.resnet import resnet18 as _resnet18
from fxquant.models.squeezenet import SqueezeNet
from fxquant.models.swin import Swin
from fxquant.models.training import (
    START,
    Recipe,
    as_images,
    as_rows,
    as_tokens,
    digits,
    token_pixels,
)
from fxquant.models.unet import UNet
from fxquant.models.vit import VisionTransformer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import Tensor

    from fxquant.models.training import Encode


def resnet18() -> ResNet:
    """ResNet-18 of half the width, for 32×32 pixels."""
    return _resnet18(num_classes=10, width=32)


def mobilenet_v2() -> MobileNetV2:
    """MobileNet V2 of three quarters of the width, for 32×32 pixels."""
    return MobileNetV2(num_classes=10, width_mult=0.75, strides=(2, 1, 2, 1, 2, 1, 1, 1))


def mobilenet_v3() -> MobileNetV3:
    """MobileNet V3 small of half the width, for 32×32 pixels."""
    return MobileNetV3(SMALL, num_classes=10, width_mult=0.5, stem_stride=1)


def vit() -> VisionTransformer:
    """A vision transformer of 3 blocks of width 128, for 32×32 pixels in patches of 16×16."""
    model = VisionTransformer(image=32, patch=16, width=128, depth=3, heads=4, num_classes=10)
    with torch.no_grad():
        model.pos_embed.mul_(15)  # few images: positions must be told apart from the start
    return model


def bert() -> Bert:
    """An encoder of 3 layers of width 128 that reads an image as 17 tokens."""
    model = Bert(
        vocab=START + 1, hidden=128, layers=3, heads=4, positions=17, num_labels=10, dropout=0.0
    )
    with torch.no_grad():  # few images: patches that look alike get vectors that look alike
        pixels = token_pixels() - 0.3
        model.embeddings.word_embeddings.weight[:START] = pixels @ torch.randn(4, 128)
        model.embeddings.position_embeddings.weight.normal_(std=0.5)
    return model


def lstm() -> LstmClassifier:
    """A bidirectional LSTM that reads an image row by row."""
    return LstmClassifier()


def convnext() -> ConvNeXt:
    """A ConvNeXt of two stages, for 32×32 pixels."""
    return ConvNeXt(depths=(2, 2), widths=(48, 96), num_classes=10)


def swin() -> Swin:
    """A Swin transformer of two stages with shifted 4×4 windows, for 32×32 pixels."""
    return Swin(image=32, width=48, depths=(2, 2), heads=(3, 6), window=4, num_classes=10)


def squeezenet() -> SqueezeNet:
    """SqueezeNet of half the width, for 32×32 pixels."""
    return SqueezeNet(num_classes=10, width=32)


def unet() -> UNet:
    """A U-Net of two levels, for 32×32 pixels; it has no recipe: digits have no pixel labels."""
    return UNet(num_classes=2, width=16, levels=2)


_IMAGES = as_images(32)

RECIPES: dict[str, Recipe] = {
    "resnet18": Recipe(resnet18, _IMAGES, epochs=15),
    "mobilenet_v2": Recipe(mobilenet_v2, _IMAGES, epochs=12),
    "mobilenet_v3": Recipe(mobilenet_v3, _IMAGES, epochs=10, rate=5e-3),
    "vit": Recipe(vit, _IMAGES, epochs=40, rate=2e-3),
    "bert": Recipe(bert, as_tokens, epochs=30, rate=1.5e-3),
    "lstm": Recipe(lstm, as_rows, epochs=40, rate=5e-3),
    "convnext": Recipe(convnext, _IMAGES, epochs=15),
    "swin": Recipe(swin, _IMAGES, epochs=15, rate=2e-3),
    "squeezenet": Recipe(squeezenet, _IMAGES, epochs=15, rate=1e-3),
}


def images() -> Iterator[Tensor]:
    """Calibration data for the image networks: 8 batches of 64 training images."""
    return (inputs[0] for inputs in calibration(_IMAGES))


def tokens() -> Iterator[tuple[Tensor, ...]]:
    """Calibration data for ``bert``: 8 batches of token ids and masks."""
    return calibration(as_tokens)


def rows() -> Iterator[Tensor]:
    """Calibration data for ``lstm``: 8 batches of sequences."""
    return (inputs[0] for inputs in calibration(as_rows))


def calibration(encode: Encode, count: int = 8) -> Iterator[tuple[Tensor, ...]]:
    """The first ``count`` batches of training images, encoded, without labels."""
    train, _ = digits()
    return (inputs for inputs, _ in islice(train.batches(encode), count))
