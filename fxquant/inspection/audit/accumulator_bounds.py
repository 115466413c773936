"""How large the integers of a sum can become: biases and accumulators beside int32.

A kernel sums products of integers, and a bias on the step of the product, in 32 bits. Of a layer
with integer weights `w`, inputs `x` between `x0` and `x1` (zero point subtracted) and bias `b`

    worst case            |b| + D * max|x| * max|w| of their types
    calibrated ranges     |b + sum(w+) x1 + sum(w-) x0|, or with x0 and x1 swapped

where `w+` and `w-` are the positive and the negative weights of an output channel; the largest
channel counts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxquant.errors import place
from fxquant.inspection.operator_kernels import INTEGER, kernels_of
from fxquant.nn.calibration import weight_of
from fxquant.placement.dataflow import resolve_grids
from fxquant.precision.sites import find_sites
from fxquant.ptq.layers.columns import product_of
from fxquant.quantization.affine import AffineQuantizer, BiasQuantizeDequantize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import fx

    from fxquant.targets import Target

INT32 = 2**31 - 1


@dataclass(frozen=True)
class AccumulatorBound:
    """The largest integers of one layer.

    Attributes:
        where: the layer, with the user's file and line.
        products: products in each sum.
        worst_case: largest sum that types allow, whatever the weights are.
        calibrated: largest sum that the weights and the calibrated range of the input allow.
        bias: largest bias, before int32 cuts it off; 0 where there is none.
    """

    where: str
    products: int
    worst_case: float
    calibrated: float
    bias: float


def accumulator_bounds(gm: fx.GraphModule, target: Target) -> Iterator[AccumulatorBound]:
    """Bounds of every layer that the target computes in integers; only of calibrated ones.

    Args:
        gm: a simulated graph.
        target: what it is quantized for.
    """
    sites = find_sites(gm)
    kernels = kernels_of(gm, target, resolve_grids(gm))
    for node, kernel in kernels.items():
        if kernel.kind != INTEGER or node.op != "call_module":
            continue
        module = gm.get_submodule(str(node.target))
        reads = dict(sites.operands.get(node, []))
        source = reads[0].quantizer if 0 in reads else None
        found = _bound(node, module, source)
        if found is not None:
            yield found


def _bound(node: fx.Node, module: Any, source: AffineQuantizer | None) -> AccumulatorBound | None:
    product, weight = product_of(module), weight_of(module, "weight")
    quantizer = module.param_quantizers["weight"] if product is not None else None
    if product is None or weight is None or source is None:
        return None
    if not isinstance(quantizer, AffineQuantizer) or quantizer.block_size is not None:
        return None
    given, grid = source.get_encodings(), quantizer.get_encodings()
    if given is None or grid is None or given.scale.numel() != 1:
        return None
    integers = product.matrix(grid.quantize(weight.detach()) + grid.offset).double()
    x0, x1 = (float(end + given.offset) for end in (given.qmin, given.qmax))
    bias = _bias(module, integers)
    up, down = integers.clamp(min=0).sum(-1), integers.clamp(max=0).sum(-1)
    sums = torch.stack([bias + up * x1 + down * x0, bias + up * x0 + down * x1]).abs()
    largest, terms = float(bias.abs().max()), integers.shape[-1]
    kinds = max(abs(x0), abs(x1)) * max(abs(grid.qmin), abs(grid.qmax))
    return AccumulatorBound(
        place(node) or node.name, terms, terms * kinds + largest, float(sums.max()), largest
    )


def _bias(module: Any, integers: Tensor) -> Tensor:
    """Integers of the bias before they are cut off, float64 `[G, O]`."""
    zeros = torch.zeros(integers.shape[:2], dtype=torch.float64, device=integers.device)
    bias = weight_of(module, "bias")
    quantizer = module.param_quantizers._modules.get("bias")
    if bias is None or not isinstance(quantizer, BiasQuantizeDequantize):
        return zeros
    scale = quantizer.encoding_for(bias.detach()).scale.double()
    return zeros + (bias.detach().double() / scale).reshape(integers.shape[0], -1)
