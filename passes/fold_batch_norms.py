"""Fold batch norms into the convolution or linear layer before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from fxquant import ops
from fxquant.errors import QuantizationError
from fxquant.graph.absent_names import FOLDED
from fxquant.graph.pass_infra import Fact, Pass
from fxquant.graph.rewriter import producer
from fxquant.nn.folded_norm import keep_norm
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
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.MODULES_ONLY, Fact.UNIQUE_MODULES})

    def run(self, rw: Rewriter) -> None:
        """Fold wherever it is right."""
        fold_batch_norms(rw)


def fold_batch_norms(rw: Rewriter) -> list[tuple[str, str]]:
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
        _fold(rw, node, layer)
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


def _fold(rw: Rewriter, node: fx.Node, layer: fx.Node) -> None:
    norm, weighted = rw.module(node, nn.modules.batchnorm._BatchNorm), rw.module(layer)
    if norm is None or weighted is None:
        return
    row = rw.op(layer)
    axis = row.weight_axis if row and row.weight_axis is not None else 0
    grad = weighted.get_parameter("weight").requires_grad
    for name, value in folded(weighted, norm, axis).items():
        rw.set_parameter(weighted, name, value, grad)
    rw.edit(keep_norm, weighted, norm)
    rw.explain(layer, f"batch norm {node.target} was folded into its weight and bias")
    rw.set_module(str(node.target), nn.Identity())
    rw.replace(node, layer, FOLDED)


@torch.no_grad()
def folded(layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm, axis: int) -> dict[str, Tensor]:
    """Weight and bias with which a layer computes what it and the batch norm do in evaluation.

    Args:
        layer: convolution (also transposed) or linear layer.
        norm: batch norm with running statistics.
        axis: output-channel axis of the layer's weight.
    """
    weight: nn.Parameter = layer.get_parameter("weight")
    bias = layer._parameters.get("bias")
    scale, shift = norm_as_affine(norm)
    groups = int(getattr(layer, "groups", 1)) if axis == 1 else 1
    scaled = scale_channels(weight, scale, axis, groups)
    moved = shift if bias is None else bias.double() * scale + shift
    return {"weight": scaled, "bias": moved.to(weight.dtype)}


def norm_as_affine(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """The batch norm in evaluation as `x * scale + shift`; both [C], double."""
    if norm.running_mean is None or norm.running_var is None:
        raise QuantizationError("FXQ305", "the batch norm keeps no running statistics")
    sigma = (norm.running_var.double() + norm.eps).sqrt()
    weight, bias = norm._parameters["weight"], norm._parameters["bias"]
    gamma = torch.ones_like(sigma) if weight is None else weight.double()
    beta = torch.zeros_like(sigma) if bias is None else bias.double()
    scale = gamma / sigma
    return scale, beta - norm.running_mean.double() * scale


def scale_channels(weight: Tensor, scale: Tensor, axis: int, groups: int) -> Tensor:
    """Multiply each output channel of a weight; computed in double.

    Args:
        weight: [O, I / groups, ...] for axis 0; [I, O / groups, ...] for axis 1.
        scale: [O].
        axis: where the output channels are.
        groups: groups of a transposed convolution; 1 for axis 0.
    """
    if axis == 0:
        shape = (-1, *[1] * (weight.dim() - 1))
        return (weight.double() * scale.reshape(shape)).to(weight.dtype)
    # the inputs of group g make the outputs of group g only
    grouped = weight.double().reshape(groups, -1, *weight.shape[1:])
    factors = scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
    return (grouped * factors).reshape(weight.shape).to(weight.dtype)
