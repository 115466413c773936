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
        self.inputs = tuple(
            i for i in range(weight.dim()) if i not in self.outputs and i not in self.batch
        )

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of the weight in the order in which they are a matrix."""
        return (*self.batch, *self.inputs, *self.outputs)

    def matrix_shape(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the matrix of a weight, or of ranges that lie on it: `[..., in, out]`."""
        sides = (math.prod(shape[i] for i in axes) for axes in (self.inputs, self.outputs))
        return (*(shape[i] for i in self.batch), *sides)

    def matrix(self, weight: Tensor) -> Tensor:
        """A tensor of the weight's shape as a matrix: `[...] -> [..., in, out]`."""
        return weight.permute(self.order).reshape(self.matrix_shape(weight.shape))

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
        *batch, inner, out = self.matrix_shape(self.weight.shape)
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
