"""Batch norms of a trained simulation, folded into the steps of weights instead of the integers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from fxquant import editing, ops
from fxquant.graph.rewriter import Rewriter
from fxquant.nn import QuantizationMixin
from fxquant.nn.norm_folding import folded, norm_as_affine, scale_channels
from fxquant.passes.fold_batch_norms import Folded, drop_norm, layer_before
from fxquant.ptq.batch_norms.bn_fold import FoldedBatchNorms
from fxquant.quantization import QuantizerBase, affine
from fxquant.quantization.affine import AffineQuantizer

if TYPE_CHECKING:
    from fxquant.sim import QuantizationSimModel

# factors of one range that are equal but for rounding
_SAME = 1e-6


def fold_all_batch_norms_to_scale(sim: QuantizationSimModel) -> FoldedBatchNorms:
    """Fold batch norms into the layers before them so that the layers' integers stay as they are.

    For simulations that were built with `fold_batch_norms=False` and trained: channel `c` of the
    weight, and the step of its grid, are multiplied by `gamma_c / sigma_c`. The layer gets the
    batch norm's grid for its output; the one that it had between the two is gone. A negative
    factor turns the integers' signs round; on a symmetric grid the smallest one has no opposite
    and moves by one.

    Args:
        sim: the simulation, calibrated; its batch norms evaluate with their running statistics.

    Returns:
        Pairs of (layer, batch norm) that were folded, in the order of the graph; `left` tells of
        every other batch norm why it was not.

    Source: Krishnamoorthi 2018, "Quantizing deep convolutional networks for efficient inference",
    arXiv:1806.08342, section 3.2.2; the factor is in the scale, as `w = s (q - z)` is linear in it.

    Example:
        >>> from fxquant import QuantizationSimModel
        >>> net, x = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2)), torch.randn(4, 1, 3, 3)
        >>> sim = QuantizationSimModel(net.eval(), x, config={"fold_batch_norms": False})
        >>> sim.compute_encodings([x])
        >>> print(fold_all_batch_norms_to_scale(sim))
        1: folded into 0
    """
    gm = sim.model
    rw = Rewriter(gm, "fold_all_batch_norms_to_scale")
    pairs: list[tuple[nn.Module, nn.Module]] = []
    paths: list[Folded] = []
    left: dict[str, str] = {}
    for node in rw.nodes:
        row = rw.op(node)
        if row is None or row.name != "batch_norm" or node.op != "call_module":
            continue
        norm, path = rw.module(node), str(node.target)
        found = layer_before(rw, node)
        if isinstance(found, str):
            left[path] = found
            continue
        reason = _fold(rw, node, *found)
        if reason:
            left[path] = reason
        elif norm is not None:
            layer = str(found[0].target)
            pairs.append((gm.get_submodule(layer), norm))
            paths.append(Folded(layer, path, False))
    rw.finish()
    editing.refresh_biases(gm)
    return FoldedBatchNorms(pairs, paths, left)


def _fold(rw: Rewriter, node: fx.Node, layer: fx.Node, channels: Tensor) -> str:
    """Fold one batch norm; why not, if it cannot be."""
    norm, module = rw.module(node), rw.module(layer)
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or module is None:
        return "its statistics are computed at run time"
    axis = ops.weight_axis(module)
    quantizer = None
    if isinstance(module, QuantizationMixin):
        quantizer = module.param_quantizers._modules.get("weight")
    ends = None
    if isinstance(quantizer, AffineQuantizer):
        ends = _ends(quantizer, module, norm_as_affine(norm)[0].detach()[channels], axis)
        if isinstance(ends, str):
            return f"{layer.target}: {ends}"
    elif quantizer is not None:
        return f"the weight of {layer.target} does not lie on a grid of integers"
    had_bias = module._parameters.get("bias") is not None
    grad = module.get_parameter("weight").requires_grad
    for name, value in folded(module, norm, axis, channels).items():
        rw.set_parameter(module, name, value.detach(), grad)
    if isinstance(quantizer, AffineQuantizer) and ends is not None:
        rw.set_range(quantizer, *ends)
    if isinstance(module, QuantizationMixin):
        module.drop_kept()
        _take_grid(rw, module, norm)
        if not had_bias and quantizer is not None:
            # on the grid of what the layer reads, once the biases are refreshed
            bias = affine.BiasQuantizeDequantize(quantizer, quantizer)
            bias.where = f"the bias of {layer.target}"
            rw.set_quantizer(module.param_quantizers, "bias", bias)
    rw.explain(layer, f"batch norm {node.target} was folded into the steps of its weight")
    drop_norm(rw, node)
    return ""


def _take_grid(rw: Rewriter, layer: QuantizationMixin, norm: nn.Module) -> None:
    """Give a layer the grid of what the batch norm puts out."""
    found = (
        norm.output_quantizers._modules.get("0") if isinstance(norm, QuantizationMixin) else None
    )
    found = found if isinstance(found, QuantizerBase) else None
    rw.set_quantizer(layer.output_quantizers, 0, found)


def _ends(
    quantizer: AffineQuantizer, module: nn.Module, factors: Tensor, axis: int
) -> tuple[Tensor, Tensor] | str:
    """The range of a weight whose output channels are multiplied by factors, or why it has none."""
    if not quantizer.is_initialized():
        return "its weight is not calibrated"
    weight, layout = module.get_parameter("weight").detach(), quantizer._layout
    groups = int(getattr(module, "groups", 1)) if axis == 1 else 1
    by_element = scale_channels(torch.ones_like(weight).double(), factors, axis, groups)
    count = max(1, torch.Size(layout.shape).numel())
    ids = layout.spread(torch.arange(count, device=weight.device).reshape(layout.shape))
    ids = ids.expand(layout.split(weight).shape).reshape(-1)
    zeros = by_element.new_zeros(count)
    least, most = (
        zeros.scatter_reduce(0, ids, by_element.reshape(-1), how, include_self=False)
        for how in ("amin", "amax")
    )
    if bool((most - least > _SAME * most.abs().maximum(least.abs())).any()):
        return "channels with different factors share a range of its weight"
    factor = most.reshape(layout.shape)
    ends = (quantizer.min.detach().double(), quantizer.max.detach().double())
    low, high = (e * factor.abs() for e in ends)
    if not quantizer.symmetric:
        turned = factor < 0
        low, high = torch.where(turned, -high, low), torch.where(turned, -low, high)
    return low.to(quantizer.min.dtype), high.to(quantizer.max.dtype)
