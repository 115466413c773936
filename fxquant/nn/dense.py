"""A linear layer whose weight is stored as `x @ weight` reads it."""

from __future__ import annotations

from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Dense(nn.Module):
    """`input @ weight + bias` with a weight `[in, out]`; `torch.nn.Linear` stores `[out, in]`.

    Args:
        weight: `[in, out]`; a parameter stays shared, another tensor becomes a buffer.
        bias: `[out]` or None.

    Example:
        >>> import torch
        >>> Dense(torch.ones(3, 2), torch.tensor([0.0, 1.0]))(torch.ones(1, 3))
        tensor([[3., 4.]])
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        adopt(self, weight=weight, bias=bias)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply and add."""
        return F.linear(input, self.weight.mT, self.bias)

    def extra_repr(self) -> str:
        """Sizes, as `torch.nn.Linear` shows them."""
        inner, out = self.weight.shape
        return f"in_features={inner}, out_features={out}, bias={self.bias is not None}"


def adopt(module: M, **tensors: Tensor | None) -> M:
    """Give a module these very tensors: a parameter stays shared, another one becomes a buffer."""
    for name, tensor in tensors.items():
        module._parameters.pop(name, None)
        module._buffers.pop(name, None)
        if tensor is None or isinstance(tensor, nn.Parameter):
            module.register_parameter(name, tensor)
        else:
            module.register_buffer(name, tensor, persistent=False)
    return module
