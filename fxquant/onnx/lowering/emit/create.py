"""Tensors made from sizes that are known at run time: `arange(n)`, `zeros(n, 4)`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fxquant.onnx.lowering.context import Call, UnsupportedError
from fxquant.onnx.lowering.emitters import Emitter, emits_function
from fxquant.onnx.lowering.values import LoweredValue
from fxquant.onnx.runs.observed import Dim

if TYPE_CHECKING:
    import onnx_ir as ir


def _filled(c: Call, value: Any) -> ir.Value:
    """A tensor of the result's shape, filled with one value."""
    fill = c.value(value, "value", c.out.dtype)
    return c.op("Expand", fill, _shape(c))


def _shape(c: Call) -> ir.Value:
    """The result's shape: from the sizes that were given, or from the tensor it is like."""
    given = [c.resolve(a) for a in c.node.args]
    like = next((a for a in given if isinstance(a, LoweredValue)), None)
    if like is not None and like.spec.shape == c.out.shape:
        return c.op("Shape", like.any_value(c.builder))
    asked: Any = c.node.kwargs.get("size", c.node.args[1 if like is not None else 0 :])
    asked = asked[0] if asked and isinstance(asked[0], (tuple, list)) else asked
    items = c.sizes(tuple(asked)[: len(c.out.shape)])
    known = [s if not isinstance(s, Dim) else i for s, i in zip(c.out.shape, items, strict=True)]
    return c.builder.vector(known)


def _constant_fill(value: float) -> Emitter:
    return lambda c: _filled(c, value)


emits_function(
    torch.zeros, torch.zeros_like, torch.empty, torch.empty_like, "new_zeros", "new_empty"
)(_constant_fill(0))
emits_function(torch.ones, torch.ones_like, "new_ones")(_constant_fill(1))


@emits_function(torch.full, torch.full_like, "new_full")
def _full(c: Call) -> ir.Value:
    position = 2 if c.node.target == "new_full" else 1
    args = c.node.args
    value = args[position] if len(args) > position else c.node.kwargs["fill_value"]
    return _filled(c, value)


_BOUNDS = ("start", "end", "step")


@emits_function(torch.arange)
def _arange(c: Call) -> ir.Value:
    args, kwargs = c.node.args, c.node.kwargs
    names = ("end",) if len(args) == 1 and "end" not in kwargs else _BOUNDS
    given = {"start": 0, "step": 1} | dict(zip(names, args, strict=False)) | dict(kwargs)
    bounds = [c.value(given[name], name, c.out.dtype) for name in _BOUNDS]
    return c.op("Range", *bounds)


def _vector(c: Call, values: list[Any]) -> ir.Value:
    if len(c.out.shape) != 1 or any(isinstance(v, float) for v in values):
        msg = "a tensor of several run-time values"
        raise UnsupportedError(msg)
    return c.cast(c.builder.vector(c.sizes(values)), torch.int64, c.out.dtype)


@emits_function(torch.tensor, torch.as_tensor, torch.scalar_tensor)
def _tensor(c: Call) -> ir.Value:
    value = c.resolve(c.node.args[0])
    if isinstance(value, list):
        return _vector(c, value)
    return c.value(c.node.args[0], "data", c.out.dtype)
