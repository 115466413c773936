"""The full-size networks of the benchmarks, with random weights, and inputs for them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fxquant.models.bert import bert_small
from fxquant.models.mobilenet import mobilenet_v2
from fxquant.models.resnet import resnet18, resnet50
from fxquant.models.vit import vit_tiny

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor, nn

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet18": resnet18,
    "resnet50": resnet50,
    "mobilenet_v2": mobilenet_v2,
    "vit_tiny": vit_tiny,
    "bert_6_layers": bert_small,
}


def build(name: str) -> nn.Module:
    """A network of `NETWORKS` in evaluation mode, the same weights every time."""
    torch.manual_seed(0)
    return NETWORKS[name]().eval()


def inputs(name: str, batch: int) -> tuple[Tensor, ...]:
    """224×224 images, or 128 tokens with a mask."""
    generator = torch.Generator().manual_seed(0)
    if name.startswith("bert"):
        ids = torch.randint(0, 30522, (batch, 128), generator=generator)
        return ids, torch.ones_like(ids)
    return (torch.randn(batch, 3, 224, 224, generator=generator),)
