"""Which scale belongs to which element after a tensor was viewed, cut or permuted.

The scales are laid over the tensor as a view without memory of its own: stride 0 along the axes on
which they do not change. The operator is run on that view, on the device `meta`, where nothing is
computed. If what comes out is still a view of the scales, its strides and its offset say which
scale every element has now: an axis is followed through `permute`, `reshape`, slices and the rest
without a rule for any of them. If it is a copy, elements of several scales were mixed, and there is
no grid.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fxquant.quantization.encodings import AffineEncoding, Encoding, FloatEncoding

_plain = torch._C.DisableTorchFunctionSubclass


def follow(
    func: Callable[..., Any],
    encoding: Encoding,
    shape: tuple[int, ...],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    """Encodings of the results of an operator that moves values, nested as the results are.

    Args:
        func: the operator.
        encoding: what the first argument's numbers mean; several scales, no blocks.
        shape: shape of the first argument.
        args: the other arguments.
        kwargs: keyword arguments.

    Returns:
        An encoding, or None where there is no longer one scale for every element.
    """
    scale = encoding.scale
    if scale is None or getattr(encoding, "block_size", None) is not None:
        return None
    with torch.inference_mode(False), torch.no_grad(), _plain():
        base = torch.empty(scale.shape, device="meta")
        try:
            moved = func(base.expand(shape), *args, **kwargs)
        except (RuntimeError, IndexError, TypeError, NotImplementedError):
            return None  # a view that the scales do not allow, or an operator that reads values
        return _each(moved, lambda view: _seen_through(view, base, encoding))


def _each(result: Any, of: Callable[[Tensor], Encoding | None]) -> Any:
    if isinstance(result, tuple | list):
        return [_each(item, of) for item in result]
    return of(result) if isinstance(result, Tensor) else None


def _seen_through(view: Tensor, base: Tensor, encoding: Encoding) -> Encoding | None:
    if view.untyped_storage()._cdata != base.untyped_storage()._cdata:
        return None
    pairs = list(zip(view.shape, view.stride(), strict=True))
    sizes = [n if stride else 1 for n, stride in pairs]
    strides = [stride if n > 1 else 1 for n, stride in zip(sizes, view.stride(), strict=True)]
    if all(n == 1 for n in sizes):
        sizes, strides = [], []

    def taken(numbers: Tensor) -> Tensor:
        return numbers.contiguous().as_strided(sizes, strides, view.storage_offset()).clone()

    if isinstance(encoding, FloatEncoding):
        return None if encoding.scale is None else replace(encoding, scale=taken(encoding.scale))
    if type(encoding) is not AffineEncoding:
        return None
    return replace(encoding, scale=taken(encoding.scale), offset=taken(encoding.offset))
