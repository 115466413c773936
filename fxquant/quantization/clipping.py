"""What the gradient of a fixed range keeps from the forward pass: which elements were clipped.

The quantized tensor takes the place of the float one in what the next layer keeps for its own
gradient. If the quantizer kept its input as well, training in simulation would need twice the
memory of training in floating point. So it keeps a bit for each element, and nothing at all where
no element was clipped or where the operator that computed the input keeps it anyway.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

#: operators whose gradient is computed from their result, which they keep
_KEEP_RESULT = frozenset(
    f"{name}Backward0"
    for name in ("Relu", "Sigmoid", "Tanh", "Softmax", "LogSoftmax", "Exp", "Sqrt", "Rsqrt")
)

_PIECE = 1 << 18  # elements that are looked at before others push them out of the cache


def is_kept_anyway(x: Tensor) -> bool:
    """Whether a tensor stays in memory until the backward pass without the quantizer's doing."""
    node = x.grad_fn
    return node is None or node.name() in _KEEP_RESULT


@dataclass(frozen=True, slots=True)
class Clipped:
    """Which elements of a tensor were clipped.

    Attributes:
        size: shape of the tensor.
        stride: its strides where what is kept are bits, else None.
    """

    size: torch.Size
    stride: tuple[int, ...] | None

    def gradient(self, g: Tensor, kept: Tensor | None = None) -> Tensor:
        """The gradient where nothing was clipped, zero elsewhere; `[...] -> [...]`.

        Args:
            g: the gradient of the quantized tensor.
            kept: bits, uint8 in the order of the tensor's memory, or the mask; None: nowhere.
        """
        if kept is None:
            return g
        mask = self._mask(kept)
        if not g.is_cpu or torch.is_grad_enabled():
            return torch.where(mask, 0.0, g)
        dx = g.detach().clone()
        np.copyto(dx.numpy(), 0.0, where=mask.numpy())  # a third of the time of torch.where
        return dx

    def _mask(self, kept: Tensor) -> Tensor:
        if self.stride is None:
            return kept
        flat = np.unpackbits(kept.numpy(), count=self.size.numel()).view(np.bool_)
        return torch.from_numpy(flat).as_strided(self.size, self.stride)


#: how to read what is kept where nothing was clipped
NOTHING = Clipped(torch.Size(), None)


def outside_of(x: Tensor, low: float | None, high: float | None) -> tuple[Clipped, Tensor | None]:
    """Elements from `low` downward and from `high` upward, of a tensor on the CPU.

    Args:
        x: the tensor.
        low: the lower edge; None where no element lies there.
        high: the upper edge; None where no element lies there.

    Returns:
        How to read what is kept, and what is kept; see `Clipped.gradient`.

    Not-a-number is not clipped: its gradient passes.
    """
    x = x.detach()
    if x.untyped_storage().nbytes() != x.numel() * x.element_size():
        x = x.contiguous()  # what lies between the elements does not count
    flat = x.as_strided((x.numel(),), (1,), 0).numpy()
    bits = np.empty((flat.size + 7) // 8, np.uint8)
    for start in range(0, flat.size, _PIECE):
        part = flat[start : start + _PIECE]
        out = bits[start // 8 : (start + part.size + 7) // 8]
        out[:] = 0 if low is None else np.packbits(part <= low)
        if high is not None:
            np.bitwise_or(out, np.packbits(part >= high), out=out)
    kept = torch.from_numpy(bits) if bits.any() else None
    return Clipped(x.size(), x.stride()), kept


def where(mask: Tensor) -> tuple[Clipped, Tensor]:
    """As `outside_of`, of elements that a mask tells, on any device."""
    return Clipped(mask.size(), None), mask
