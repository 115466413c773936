"""Positions of layers that the model's outputs depend on: padded tokens are none.

A batch of sentences is mostly padding, and what a layer puts out there is never read. Moments over
all positions would fit weights to it. Where a model has inputs of integers or booleans (tokens,
lengths, masks), gradients of its outputs tell which positions count; elsewhere all of them do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fxquant.graph.pytree import tensors
from fxquant.nn.modes import quantization_off
from fxquant.ptq.walking.output_gradients import OutputGradients
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, fx

    from fxquant.ptq.layers.layer import Layer
    from fxquant.ptq.walking.walk import Walk

# of the mean weight of a batch's positions; the outputs of a layer norm leak some rounding
_WEIGHTLESS = 1e-3

Positions = dict[tuple["fx.Node", int], "Tensor"]


def dependent_positions(walk: Walk, layers: Iterable[Layer], seed: int) -> Positions:
    """Which positions of layers count.

    Args:
        walk: before its first node.
        layers: whose outputs are looked at.
        seed: of the signs of gradients.

    Returns:
        (node, batch) -> the positions in order, int64. Missing where all count: in a batch whose
        inputs are all floating point, and where no output depends smoothly on the layer.
    """
    found: Positions = {}
    chosen = {layer.node: layer for layer in layers if not layer.product.dims}
    gradients = OutputGradients(walk.gm, chosen, chosen, seed)
    for batch in range(len(walk)):
        inputs = walk.inputs(batch)
        if not chosen or all(t.is_floating_point() for t in tensors(inputs)):
            continue
        with quantization_off(walk.gm):
            weights = gradients.of(inputs, walk.parts.batches_before + batch)
        for node, gradient in weights.items():
            product = chosen[node].product
            every = torch.arange(product.positions(gradient), device=gradient.device)
            weight = product.outputs(plain(gradient), every).double().square().sum((0, 2))
            counting = weight > _WEIGHTLESS * weight.mean()
            if bool(counting.any()) and not bool(counting.all()):
                found[node, batch] = torch.nonzero(counting)[:, 0]
    return found
