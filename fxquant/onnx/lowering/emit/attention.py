"""Scaled dot product attention, written as its products and its softmax."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from fxquant.onnx.lowering.context import Call, UnsupportedError
from fxquant.onnx.lowering.emitters import emits

if TYPE_CHECKING:
    import onnx_ir as ir


@emits("scaled_dot_product_attention")
def _attention(c: Call) -> ir.Value:
    c.primary = "query"
    if c.static("dropout_p"):
        msg = "it drops values in evaluation mode too"
        raise UnsupportedError(msg)
    rank = c.spec("key").rank
    order = [*range(rank - 2), rank - 1, rank - 2]
    keys = c.op("Transpose", _heads(c, "key"), perm=order)
    scores = c.op("MatMul", c.op("Mul", c.tensor("query"), c.number(_scale(c))), keys)
    weights = c.op("Softmax", _masked(c, scores), axis=-1)
    return c.op("MatMul", weights, _heads(c, "value"))


def _scale(c: Call) -> float:
    scale = c.static("scale")
    if scale is not None:
        return float(scale)
    size = c.spec("query").shape[-1]
    if not isinstance(size, int):
        msg = "the head size is dynamic"
        raise UnsupportedError(msg)
    return 1 / math.sqrt(size)


def _heads(c: Call, name: str) -> ir.Value:
    """Keys or values, one head for every query head."""
    shape, queries = c.spec(name).shape, c.spec("query").shape
    if not c.static("enable_gqa") or shape[-3] == queries[-3]:
        return c.tensor(name)
    have, want = shape[-3], queries[-3]
    if not isinstance(have, int) or not isinstance(want, int):
        msg = "the number of heads is dynamic"
        raise UnsupportedError(msg)
    order = torch.arange(have).repeat_interleave(want // have)
    return c.op("Gather", c.tensor(name), c.builder.constant(order), axis=len(shape) - 3)


def _masked(c: Call, scores: ir.Value) -> ir.Value:
    dtype = c.spec("query").dtype
    if c.static("is_causal"):
        scores = c.op("Add", scores, _causal(c, dtype))
    if c["attn_mask"] is None:
        return scores
    mask = c.value(c["attn_mask"], "attn_mask")
    if c.spec("attn_mask").dtype != torch.bool:
        return c.op("Add", scores, mask)
    return c.op("Where", mask, scores, c.number(-math.inf, dtype))


def _causal(c: Call, dtype: torch.dtype) -> ir.Value:
    queries, keys = c.spec("query").shape[-2], c.spec("key").shape[-2]
    if not isinstance(queries, int) or not isinstance(keys, int):
        msg = "the number of queries or keys is dynamic"
        raise UnsupportedError(msg)
    hidden = torch.ones(queries, keys, dtype=torch.bool).tril().logical_not()
    return c.builder.constant(
        torch.zeros(queries, keys, dtype=dtype).masked_fill(hidden, -math.inf)
    )
