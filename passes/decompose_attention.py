"""Attention as its parts: two products and a softmax, so that each can have its own grid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxquant.graph.meta import TensorSpec
from fxquant.graph.pass_infra import Fact, Pass
from fxquant.nn import functional as fn
from fxquant.placement.regions import find_regions

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter

_ATTENTION = "scaled_dot_product_attention"


@dataclass(frozen=True)
class DecomposeAttention(Pass):
    """Write `scaled_dot_product_attention` as products and a softmax.

    Before: `scaled_dot_product_attention(q, k, v, mask, scale=s)`.
    After: `matmul(softmax(matmul(q, transpose(k)) * s + mask), v)`, with the dropout asked for.

    Why only for the simulation: the fused kernel sums in another order, so the prepared model,
    which is bit-equal to the original, keeps it whole.
    """

    needs = frozenset({Fact.MODULES_ONLY})

    def run(self, rw: Rewriter) -> None:
        """Rewrite every attention of the graph."""
        regions = find_regions(rw.gm)
        for node in rw.nodes:
            row = rw.op(node)
            if row is None or row.name != _ATTENTION:
                continue
            if regions is not None and not regions.holds(node):
                rw.skip(node, "it lies outside of the quantized regions")
            else:
                _Attention(rw, node).rewrite()


class _Attention:
    def __init__(self, rw: Rewriter, node: fx.Node) -> None:
        self.rw, self.node = rw, node
        self.given = rw.arguments(node)
        self.query = self._spec("query")
        self.key = self._spec("key")

    def _spec(self, name: str) -> TensorSpec:
        spec: TensorSpec = self.given[name].meta["spec"]
        return spec

    def _call(
        self,
        name: str,
        module: nn.Module,
        args: tuple[Any, ...],
        shape: tuple[int, ...],
        dtype: torch.dtype | None = None,
    ) -> fx.Node:
        spec = TensorSpec(shape, dtype or self.query.dtype)
        return self.rw.new_module(module, *args, like=self.node, name=name, spec=spec)

    def rewrite(self) -> None:
        """Insert the parts before the attention and let them take its place."""
        key, value = self._repeated("key"), self._repeated("value")
        *outer, size = self.query.shape
        length = self.key.shape[-2]
        scores_shape = (*outer, length)
        moved = self._call(
            "key_transpose", fn.Transpose(), (key, -2, -1), (*self.key.shape[:-2], size, length)
        )
        scores = self._call("scores", fn.MatMul(), (self.given["query"], moved), scores_shape)
        scale = self.given["scale"]
        scale = 1 / math.sqrt(size) if scale is None else scale
        scores = self._call("scale", fn.Multiply(), (scores, scale), scores_shape)
        scores = self._masked(scores, scores_shape)
        weights = self._call("softmax", nn.Softmax(-1), (scores,), scores_shape)
        module = self.rw.module(self.node, fn.ScaledDotProductAttention)
        if module is not None and module.dropout:
            dropout = nn.Dropout(module.dropout)
            weights = self._call("attention_dropout", dropout, (weights,), scores_shape)
        elif self.given["dropout_p"]:
            weights = self._call(
                "attention_dropout",
                fn.DynamicDropout(),
                (weights, self.given["dropout_p"]),
                scores_shape,
            )
        shape = self.node.meta["spec"].shape
        result = self._call("attention", fn.MatMul(), (weights, value), shape)
        self.rw.replace(self.node, result, "was taken apart; its values come from")

    def _repeated(self, name: str) -> fx.Node:
        """Keys or values, one head for every query head."""
        node: fx.Node = self.given[name]
        spec = self._spec(name)
        if not self.given["enable_gqa"] or spec.shape[-3] == self.query.shape[-3]:
            return node
        times = self.query.shape[-3] // spec.shape[-3]
        shape = (*spec.shape[:-3], self.query.shape[-3], *spec.shape[-2:])
        return self._call(f"{name}_heads", fn.RepeatInterleave(), (node, times, -3), shape)

    def _masked(self, scores: fx.Node, shape: tuple[int, ...]) -> fx.Node:
        mask = self.given["attn_mask"]
        if self.given["is_causal"]:
            scores = self._call("causal_mask", fn.CausalMask(), (scores,), shape)
        if mask is None:
            return scores
        spec: TensorSpec = mask.meta["spec"]
        if spec.dtype != torch.bool:
            return self._call("mask", fn.Add(), (scores, mask), shape)
        hidden = self._call("hidden", fn.LogicalNot(), (mask,), spec.shape, torch.bool)
        return self._call("mask", fn.MaskedFill(), (scores, hidden, float("-inf")), shape)
