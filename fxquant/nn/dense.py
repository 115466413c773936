"""A linear layer whose weight is stored as a product with a parameter reads it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

M = TypeVar("M", bound=nn.Module)
ROW = "linear"  # of the operator table


class Dense(nn.Module):
    """`input @ matrix + bias` with a weight that is, its axes in order, a matrix `[in, out]`.

    `torch.nn.Linear` stores `[out, in]`. A weight may also have several axes of inputs or outputs,
    as `[heads, size, out]`, or be several matrices, one for each place along the last axes but two
    of the input.

    Args:
        weight: a parameter stays shared, another tensor becomes a buffer.
        bias: `[out]` or None.
        outputs: axes of the weight that are outputs; default: the last one.
        batch: axes along which it is several matrices.

    Attributes:
        inputs: the axes that are neither.
        order: the axes in the order in which they are a matrix.
        size: its shape, `[batches ..., in, out]`.

    Example:
        >>> Dense(torch.ones(3, 2), torch.tensor([0.0, 1.0]))(torch.ones(1, 3))
        tensor([[3., 4.]])
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        outputs: Sequence[int] | None = None,
        batch: Sequence[int] = (),
    ) -> None:
        super().__init__()
        adopt(self, weight=weight, bias=bias)
        self.batch = tuple(batch)
        self.outputs = (weight.dim() - 1,) if outputs is None else tuple(outputs)
        taken = self.outputs + self.batch
        self.inputs = tuple(i for i in range(weight.dim()) if i not in taken)
        self.order = self.batch + self.inputs + self.outputs
        sides = (math.prod(weight.shape[i] for i in axes) for axes in (self.inputs, self.outputs))
        self.size = (*(weight.shape[i] for i in self.batch), *sides)

    def matrix(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as a matrix: `[...] -> [..., in, out]`."""
        return weight.permute(self.order).reshape(self.size)

    def stored(self, matrix: Tensor) -> Tensor:
        """The way back: `[..., in, out]` as the weight is stored."""
        sizes = [self.weight.shape[i] for i in self.order]
        back = [self.order.index(i) for i in range(len(sizes))]
        return matrix.reshape(sizes).permute(back)

    def forward(self, input: Tensor) -> Tensor:
        """Multiply and add."""
        matrix = self.matrix(self.weight)
        if not self.batch:
            return F.linear(input, matrix.mT, self.bias)
        product = torch.matmul(input, matrix)
        return product if self.bias is None else product + self.bias

    def extra_repr(self) -> str:
        """Sizes, as `torch.nn.Linear` shows them."""
        *batch, inner, out = self.size
        several = f"batch={tuple(batch)}, " if batch else ""
        return f"{several}in_features={inner}, out_features={out}, bias={self.bias is not None}"


def layer_of(
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    outputs: Sequence[int],
    batch: Sequence[int] = (),
) -> nn.Module:
    """A linear layer that holds this very weight: a `torch.nn.Linear` if it is `[out, in]`."""
    if weight.dim() != 2 or tuple(outputs) != (0,):
        return Dense(weight, bias, outputs=outputs, batch=batch)
    with torch.device("meta"):
        module = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    return adopt(module, weight=weight, bias=bias)


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
