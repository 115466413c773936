"""A low-rank adapter: what is added to a frozen weight before the sum is rounded.

What is deployed has one weight of integers. So the adapter is trained within the rounding, as
`quantize(W + scale * B @ A)` (Hu et al. 2021, arXiv:2106.09685, equation 3, on a weight that is
rounded), and merging it changes no bit of what the network computes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ADAPTER = "low_rank"


class LowRank(nn.Module):
    """The adapter of a layer, as its child `low_rank`; zero at the beginning.

    Args:
        weight: the layer's weight, `[O, ...]`, seen as a matrix of `O` rows.
        rank: columns of `B` and rows of `A`.
        scale: factor of the product.

    Attributes:
        down: `A`, `[rank, I]`.
        up: `B`, `[O, rank]`.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.scale = scale
        self.down = nn.Parameter(weight.new_empty(rank, columns))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))
        nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def added_to(self, weight: Tensor) -> Tensor:
        """The weight with the adapter: `[O, ...] -> [O, ...]`."""
        product = torch.mm(self.up, self.down).mul(self.scale)
        return weight + product.reshape(weight.shape)

    def extra_repr(self) -> str:
        """Rank and scale."""
        return f"rank={self.up.shape[1]}, scale={self.scale:g}"


def adapter_of(module: nn.Module) -> LowRank | None:
    """The adapter of a layer's weight, or None."""
    found = module._modules.get(ADAPTER)
    return found if isinstance(found, LowRank) else None


def adapts(module: nn.Module, name: str) -> bool:
    """Whether an adapter is added to this parameter of a layer."""
    return name == "weight" and ADAPTER in module._modules
