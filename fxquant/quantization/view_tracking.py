"""Which scale belongs to which element after a tensor was viewed, cut or permuted.

The scales are laid over the tensor as a view without memory of its own: stride 0 along the axes on
which they do not change. The operator is run on that view, on the device `meta`, where nothing is
computed. If what comes out is still a view of the scales, its strides and its offset say which
scale every element has now: an axis is followed through `permute`, `reshape`, slices and the rest
without a rule for any of them.

If it is a copy (`flip`, index tensors, pooling), the operator is run on the numbers of the scales,
and on their negatives. What it only moves comes out as the same number twice; where it chose among
several scales, the larger of two is the smaller of their negatives, and the results differ. Numbers
that change along fewer axes than the result are an encoding; else elements of several scales were
mixed, and there is no grid.
"""

from __future__ import annotations

import math
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
            moved = None  # a view that the scales do not allow, or an operator that reads values
        found = _each(moved, lambda view: _seen_through(view, base, encoding))
        if _any(found):
            return found
        numbers = torch.arange(scale.numel(), dtype=torch.float32, device=scale.device)
        # in memory of its own, as the tensor itself is: `view` asks for that
        numbers = (numbers + 1.0).reshape(scale.shape).expand(shape).contiguous()
        try:
            once, again = (func(n, *args, **kwargs) for n in (numbers, -numbers))
        except RuntimeError:  # a view that the tensor's own strides allow, and only these
            return None
        return _both(once, again, lambda a, b: _of_numbers(a, b, encoding, math.prod(shape)))


def _both(a: Any, b: Any, of: Callable[[Tensor, Tensor], Encoding | None]) -> Any:
    if isinstance(a, tuple | list):
        return [_both(x, y, of) for x, y in zip(a, b, strict=True)]
    return of(a, b) if isinstance(a, Tensor) else None


def _any(found: Any) -> bool:
    return any(map(_any, found)) if isinstance(found, list) else found is not None


def _of_numbers(once: Tensor, again: Tensor, encoding: Encoding, elements: int) -> Encoding | None:
    """The encoding of a result that holds the numbers of the scales, from 1 on."""
    scales = 1 if encoding.scale is None else encoding.scale.numel()
    if not once.is_floating_point() or not once.numel() or not torch.equal(once, -again):
        return None
    kept = once
    for axis in range(once.dim()):
        first = kept.narrow(axis, 0, 1)
        if torch.equal(first.expand_as(kept), kept):
            kept = first
    if not bool((kept >= 1).all()):  # zeros that the operator filled in
        return None
    # not an axis of the result but a pattern over it, unless as many elements as before share one
    if kept.numel() > scales and once.numel() * scales < kept.numel() * elements:
        return None
    places = (kept.long() - 1) if kept.numel() > 1 else (kept.reshape(()).long() - 1)
    return _replaced(encoding, lambda numbers: numbers.reshape(-1)[places])


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

    return _replaced(encoding, taken)


def _replaced(encoding: Encoding, taken: Callable[[Tensor], Tensor]) -> Encoding | None:
    """The encoding with other scales, chosen among its own."""
    if isinstance(encoding, FloatEncoding):
        return None if encoding.scale is None else replace(encoding, scale=taken(encoding.scale))
    if type(encoding) is not AffineEncoding:
        return None
    return replace(encoding, scale=taken(encoding.scale), offset=taken(encoding.offset))
