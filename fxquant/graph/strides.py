"""`as_strided` where it makes overlapping windows: the same values without a word about memory.

Strides are facts of one run's memory: at another batch size they differ, and a runtime has none.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from torch import Tensor

from fxquant.graph.call_data import plain_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.graph.recorder import Recorder

_Axes: TypeAlias = "list[tuple[int, int]]"


def _arguments(
    input: Tensor, size: Any, stride: Any, storage_offset: int | None = None
) -> tuple[Tensor, Any, Any, int | None]:
    return input, plain_all(tuple(size)), plain_all(tuple(stride)), storage_offset


class Windows(NamedTuple):
    """Windows along `dim`, after `dim` and the next dimension are taken as one if `joined`."""

    dim: int
    length: int
    step: int
    joined: bool


def windows(
    tensor: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None
) -> Windows | None:
    """The windows that `as_strided` makes, or None if it makes something else.

    >>> import torch
    >>> windows(torch.zeros(2, 3, 4), (2, 5, 4), (12, 2, 1), None)
    Windows(dim=1, length=4, step=2, joined=True)
    """
    wanted = list(zip(size, stride, strict=True))
    axes = list(zip(tensor.shape, tensor.stride(), strict=True))
    if offset not in (None, tensor.storage_offset()):
        return None
    if len(wanted) == len(axes) + 1:
        tries = [(axes, d, False) for d in range(len(axes))]
    elif len(wanted) == len(axes):
        pairs = [d for d in range(len(axes) - 1) if axes[d][1] == axes[d + 1][0] * axes[d + 1][1]]
        merged = [(axes[d][0] * axes[d + 1][0], axes[d + 1][1]) for d in pairs]
        tries = [
            ([*axes[:d], m, *axes[d + 2 :]], d, True) for d, m in zip(pairs, merged, strict=True)
        ]
    else:
        return None
    found = (_windows_along(base, wanted, d, joined) for base, d, joined in tries)
    return next((f for f in found if f is not None), None)


def _windows_along(base: _Axes, wanted: _Axes, dim: int, joined: bool) -> Windows | None:
    """Windows along one of the axes (size and stride of each) that give the wanted ones."""
    whole, unit = base[dim]
    (count, far), (length, near) = wanted[dim : dim + 2]
    others = wanted[:dim] == base[:dim] and wanted[dim + 2 :] == base[dim + 1 :]
    if not others or not unit or near != unit or far <= 0 or far % unit:
        return None
    step = far // unit
    return Windows(dim, length, step, joined) if count == (whole - length) // step + 1 else None


def as_strided(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Record windows as `unfold`, and everything else as it is."""
    tensor, size, stride, offset = _arguments(*args, **kwargs)
    found = windows(tensor, size, stride, offset)
    if found is None:
        return recorder.call(func, args, kwargs)
    with recorder:
        whole = tensor.flatten(found.dim, found.dim + 1) if found.joined else tensor
        return whole.unfold(found.dim, found.length, found.step).movedim(-1, found.dim + 1)
