"""Fold batch norms into the convolution or linear layer before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import nn

from fxquant import ops
from fxquant.graph.absent_names import FOLDED
from fxquant.graph.pass_infra import Fact, Pass
from fxquant.graph.rewriter import producer
from fxquant.nn.folded_norm import keep_norm
from fxquant.nn.live_norm import LIVE_NORM, LiveNorm
from fxquant.nn.norm_folding import folded
from fxquant.placement.regions import find_regions

if TYPE_CHECKING:
    from torch import fx

    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class FoldBatchNorms(Pass):
    """A batch norm disappears into the layer whose output only it reads.

    Before::

        %conv = conv2d[features.0](%x)
        %bn   = batch_norm[features.1](%conv)

    After::

        %conv = conv2d[features.0](%x)

    with the weight `W * gamma / sigma` and the bias `beta + (b - mu) * gamma / sigma`, computed in
    double precision. An `nn.Identity` stays in the module tree at the batch norm's place, so that
    indices of a `Sequential` keep their meaning.

    Args:
        live: the layer keeps the batch norm as `live_norm`, which goes on learning: the layer folds
            it anew with every call (`fxquant.nn.live_norm`). For training.
    """

    live: bool = False

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.MODULES_ONLY, Fact.UNIQUE_MODULES})

    def run(self, rw: Rewriter) -> None:
        """Fold wherever it is right."""
        fold_batch_norms(rw, live=self.live)


def fold_batch_norms(rw: Rewriter, *, live: bool = False) -> list[tuple[str, str]]:
    """Fold wherever it is right; returns the paths of (layer, batch norm) in order."""
    pairs: list[tuple[str, str]] = []
    regions = find_regions(rw.gm)
    for node in rw.nodes:
        row = rw.op(node)
        if row is None or row.name != "batch_norm":
            continue
        if regions is not None and not regions.holds(node):
            rw.skip(node, "it lies outside of the quantized regions")
            continue
        layer = producer(node, rw.gm)
        if layer is None:
            rw.skip(node, "nothing computes its input")
            continue
        reason = _objection(rw, node, layer)
        if reason:
            rw.skip(node, reason)
            continue
        pairs.append((str(layer.target), str(node.target)))
        _fold(rw, node, layer, live=live)
    return pairs


def _objection(rw: Rewriter, node: fx.Node, layer: fx.Node) -> str | None:
    """Why the batch norm cannot be folded, or None."""
    if rw.module(layer) is None:
        return "no layer computes its input"
    row = rw.op(layer)
    if row is None or row.weight_use is not ops.WeightUse.SUMS:
        return f"{layer.target} before it is no convolution or linear layer"
    others = [u.name for u in layer.users if u is not node]
    if others:
        return f"{layer.target} is also read by {', '.join(others)}"
    return _module_objection(rw, node, layer)


def _module_objection(rw: Rewriter, node: fx.Node, layer: fx.Node) -> str | None:
    norm, weighted = rw.module(node), rw.module(layer)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return "its statistics are computed at run time"
    if norm.running_mean is None:
        return "it keeps no running statistics"
    weight = getattr(weighted, "weight", None)
    if weighted is None or not isinstance(weight, nn.Parameter):
        return f"the weight of {layer.target} is computed at run time"
    if _is_tied(rw, layer, weighted):
        return f"{layer.target} shares its weight with another module"
    if weighted._forward_hooks or norm._forward_hooks or norm._forward_pre_hooks:
        return "a hook sits between the two"
    if isinstance(weighted, nn.Linear) and len(rw.shape(node)) != 2:
        return "its channels are not the last dimension of the linear layer's output"
    return None


def _is_tied(rw: Rewriter, layer: fx.Node, module: nn.Module) -> bool:
    """Whether another module or node uses the layer's weight or bias."""
    mine = {id(p) for p in module.parameters(recurse=False)}
    for path, other in rw.gm.named_modules(remove_duplicate=False):
        if path != layer.target and any(id(p) in mine for p in other.parameters(recurse=False)):
            return True
    reads = rw.gm.graph.find_nodes(op="get_attr")
    return any(id(rw.constant(n)) in mine for n in reads)


@torch.no_grad()
def _fold(rw: Rewriter, node: fx.Node, layer: fx.Node, *, live: bool) -> None:
    norm, weighted = rw.module(node, nn.modules.batchnorm._BatchNorm), rw.module(layer)
    if norm is None or weighted is None:
        return
    row = rw.op(layer)
    axis = row.weight_axis if row and row.weight_axis is not None else 0
    if live:
        if weighted._parameters.get("bias") is None:
            zeros = torch.zeros_like(norm.running_mean)  # type: ignore[arg-type]
            rw.set_parameter(weighted, "bias", zeros, grad=False)
        rw.edit(weighted.add_module, LIVE_NORM, LiveNorm(norm, axis))
        rw.explain(layer, f"batch norm {node.target} is folded into it with every call")
    else:
        grad = weighted.get_parameter("weight").requires_grad
        for name, value in folded(weighted, norm, axis).items():
            rw.set_parameter(weighted, name, value, grad)
        rw.edit(keep_norm, weighted, norm)
        rw.explain(layer, f"batch norm {node.target} was folded into its weight and bias")
    rw.set_module(str(node.target), nn.Identity())
    rw.replace(node, layer, FOLDED)
