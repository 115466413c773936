"""Pieces of large tensors that stay in a core's cache from one step of a chain to the next."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

SIZE = 1 << 19  # elements of a piece on one thread


def in_one(x: Tensor) -> bool:
    """True if the tensor needs no cutting; accelerators gain nothing from it."""
    n = x.numel()
    return n <= SIZE or n <= SIZE * torch.get_num_threads() or not x.is_cpu


def pieces(
    tensors: Sequence[Tensor], values: Sequence[Tensor], most: int | None = None
) -> Iterator[tuple[Sequence[Tensor], Sequence[Tensor]]]:
    """Views of tensors of one shape, `[...]`, each with the views of its values.

    Cuts where the first tensor's memory lies farthest apart, so that a piece lies close together.

    Args:
        tensors: of the same shape.
        values: laid against the tensors from the right, as in broadcasting, `[S]`.
        most: elements of a piece.

    Example:
        >>> x, s = torch.zeros(4, 6), torch.zeros(4, 1)
        >>> [(tuple(a.shape), tuple(b.shape)) for [a], [b] in pieces([x], [s], 12)]
        [((2, 6), (2, 1)), ((2, 6), (2, 1))]
    """
    yield from _cut(tensors, values, most or SIZE * torch.get_num_threads())


def _cut(
    tensors: Sequence[Tensor], values: Sequence[Tensor], most: int
) -> Iterator[tuple[Sequence[Tensor], Sequence[Tensor]]]:
    x = tensors[0]
    if x.numel() <= most:
        yield tensors, values
        return
    axis = max((a for a in range(x.dim()) if x.shape[a] > 1), key=x.stride)
    size, back = x.shape[axis], axis - x.dim()
    step = max(1, most * size // x.numel())
    for start in range(0, size, step):
        length = min(step, size - start)
        yield from _cut(
            [t.narrow(axis, start, length) for t in tensors],
            [
                v.narrow(back, start, length) if v.dim() >= -back and v.shape[back] > 1 else v
                for v in values
            ],
            most,
        )
