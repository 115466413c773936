"""Rows in groups, as mixtures of experts and code books have them: counts, products, distances."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F

from fxquant.onnx.lowering.context import Call, UnsupportedError
from fxquant.onnx.lowering.emitters import emits_function
from fxquant.onnx.runs.observed import Shaped

if TYPE_CHECKING:
    import onnx_ir as ir


@emits_function(*(f for f in (getattr(F, "grouped_mm", None), torch._grouped_mm) if f))
def _grouped_mm(c: Call) -> ir.Value:
    """[S, K], [E, K, N], offs [E] -> [S, N]: row s is multiplied with the matrix of its group.

    Every row is multiplied with every matrix, and its own product is chosen: which rows a matrix
    gets is known at run time only.
    """
    rows, matrices, ends = _operands(c)
    found = c.value(rows, "input")
    products = c.op("MatMul", c.unsqueeze(found, [0]), c.value(matrices, "mat2"))
    end = c.unsqueeze(c.value(ends, "offs", torch.int64), [1])
    first = c.builder.constant(np.zeros((1, 1), np.int64))
    start = c.op("Concat", first, c.slice(end, 0, 0, -1), axis=0)
    count = c.op("Squeeze", c.op("Slice", c.op("Shape", found), [0], [1]), [0])
    zero, one = (c.builder.constant(np.asarray(n, np.int64)) for n in (0, 1))
    place = c.op("Range", zero, count, one)
    own = c.op("And", c.op("GreaterOrEqual", place, start), c.op("Less", place, end))
    nothing = c.builder.number(0.0, c.out.dtype)
    return c.reduce("ReduceSum", c.op("Where", c.unsqueeze(own, [2]), products, nothing), [0])


def _operands(c: Call) -> tuple[Any, Any, Any]:
    given = _given(c, "input", "mat2", "offs", "bias", "out_dtype")
    rows, matrices, ends = given["input"], given["mat2"], given.get("offs")
    plain = given.get("bias") is None and given.get("out_dtype") is None
    if ends is None or not plain or [c.spec_of(x).rank for x in (rows, matrices)] != [2, 3]:
        msg = "other groups than rows of a matrix"
        raise UnsupportedError(msg)
    return rows, matrices, ends


def _given(c: Call, *names: str) -> dict[str, Any]:
    """The arguments of a function without a row by name."""
    spelled = {"mat_a": "input", "mat_b": "mat2", "self": "input"}
    named = {spelled.get(name, name): value for name, value in c.node.kwargs.items()}
    return dict(zip(names, c.node.args, strict=False)) | named


@emits_function(torch.histc, "histc")
def _histc(c: Call) -> ir.Value:
    """[S] -> [bins]: how many values lie in each of equal parts of a fixed range."""
    given = {"bins": 100, "min": 0, "max": 0} | _given(c, "input", "bins", "min", "max")
    x, bins, low, high = (given[name] for name in ("input", "bins", "min", "max"))
    if low >= high:
        msg = "a range that is found in the values"
        raise UnsupportedError(msg)
    spec: Shaped = c.spec_of(x)
    value = c.op("Reshape", c.value(x, "input"), [-1, 1])
    bounds = [c.builder.number(float(n), spec.dtype) for n in (low, high, bins, high - low)]
    scaled = c.op("Div", c.op("Mul", c.op("Sub", value, bounds[0]), bounds[2]), bounds[3])
    last = c.builder.number(float(bins - 1), spec.dtype)
    place = c.op("Min", c.op("Floor", scaled), last)  # the upper end belongs to the last part
    numbers = np.arange(bins, dtype=np.float32)
    here = c.op("Equal", place, c.value(torch.from_numpy(numbers).to(spec.dtype), "bins"))
    known = c.op("And", c.op("GreaterOrEqual", value, bounds[0]),
                 c.op("LessOrEqual", value, bounds[1]))  # fmt: skip
    counted = c.cast(c.op("And", here, known), torch.bool, c.out.dtype)
    return c.reduce("ReduceSum", counted, [0])


@emits_function(torch.cdist)
def _cdist(c: Call) -> ir.Value:
    """[..., P, M], [..., R, M] -> [..., P, R]: the distance of each row to each other one."""
    given = {"p": 2.0} | _given(c, "x1", "x2", "p")
    kind = {1.0: "ReduceL1", 2.0: "ReduceL2"}.get(float(given["p"]))
    if kind is None:
        msg = f"the distance of order {given['p']}"
        raise UnsupportedError(msg)
    first, second = c.value(given["x1"], "x1"), c.value(given["x2"], "x2")
    apart = c.op("Sub", c.unsqueeze(first, [-2]), c.unsqueeze(second, [-3]))
    return c.reduce(kind, apart, [-1])
