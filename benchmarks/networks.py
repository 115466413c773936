"""The full-size networks of the benchmarks, with random weights, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import nn

from fxquant.models.bert import Bert, bert_small
from fxquant.models.convnext import ConvNeXt
from fxquant.models.efficientnet import efficientnet_b0
from fxquant.models.mobilenet import mobilenet_v2, mobilenet_v3_large
from fxquant.models.resnet import resnet18, resnet50
from fxquant.models.swin import Swin
from fxquant.models.vit import vit_tiny

if TYPE_CHECKING:
    from torch import Tensor

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "mobilenet_v3_large": mobilenet_v3_large,
    "efficientnet_b0": efficientnet_b0,
    "vit_tiny": vit_tiny,
    "swin_tiny": Swin,
    "convnext_tiny": ConvNeXt,
    "bert_6_layers": bert_small,
}
LARGE: dict[str, Callable[[], nn.Module]] = {
    "bert_12_layers": lambda: Bert(hidden=768, layers=12),
}


def build(name: str) -> nn.Module:
    """A network in evaluation mode, the same weights every time."""
    torch.manual_seed(0)
    return (NETWORKS | LARGE)[name]().eval()


def inputs(name: str, batch: int) -> tuple[Tensor, ...]:
    """224×224 images, or 128 tokens with a mask."""
    generator = torch.Generator().manual_seed(0)
    if name.startswith("bert"):
        ids = torch.randint(0, 30522, (batch, 128), generator=generator)
        return ids, torch.ones_like(ids)
    return (torch.randn(batch, 3, 224, 224, generator=generator),)
