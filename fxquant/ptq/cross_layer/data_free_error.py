"""What rounding of weights and activations does to layers' outputs, estimated without data.

Channels are taken for uncorrelated: the energy of an output is `sum_i W_oi^2 m_i + b_o^2` with the
energies `m_i` of the inputs, which are those of the layers before, and 1 where nothing is known. An
error of a weight counts with its input's energy, an error of an activation with the weights that
read it, and an error of an output with what the layers behind make of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fxquant.ptq.cross_layer.channel_spaces import ChannelSpaces
    from fxquant.ptq.float_graphs.planned_grids import PlannedGrids

# a range of activations as a multiple of the root of the largest energy
_SPAN = 5.0
_NOTHING = 1e-30


class DataFreeError:
    """Errors of the layers of a graph whose channels are scaled.

    Args:
        spaces: the layers and their factors.
        grids: of the simulation.
    """

    def __init__(self, spaces: ChannelSpaces, grids: PlannedGrids) -> None:
        self.spaces, self.grids = spaces, grids
        self._weights = [
            None if layer.is_norm else layer.module.get_parameter("weight").detach().double().cpu()
            for layer in spaces.layers
        ]
        self._inputs: dict[int, Tensor] = {}
        self._outputs: list[Tensor] = []
        self._find_energies()
        self._importance = self._find_importance()

    def of(self, layers: set[int], factors: Tensor) -> float:
        """Errors of some layers, each as a share of its outputs' energy, summed.

        Args:
            layers: numbers of the layers.
            factors: as for `ChannelSpaces.apply`, float64 `[count]`.
        """
        return sum(self._of_layer(i, factors) for i in sorted(layers))

    def is_per_channel(self, layer: int) -> bool:
        """Whether every output channel of a layer's weight has a grid of its own."""
        quantizer = self.grids.weights.get(self.spaces.layers[layer].path)
        count = 0 if quantizer is None else torch.Size(quantizer.shape).numel()
        return count >= len(self._outputs[layer])

    def _find_energies(self) -> None:
        known = torch.zeros(self.spaces.count, dtype=torch.float64)
        for i, (layer, weight) in enumerate(zip(self.spaces.layers, self._weights, strict=True)):
            bias = layer.module._parameters.get("bias")
            added = 0.0 if bias is None else bias.detach().double().cpu().square()
            if weight is None:
                energy = layer.module.get_parameter("weight").detach().double().cpu().square()
            else:
                given = known[self.spaces.inputs[i]]
                there = given > 0
                usual = given[there].mean() if bool(there.any()) else given.new_ones(())
                self._inputs[i] = torch.where(there, given, usual)
                grouped = layer.grouped(weight).square().sum(-1)
                energy = (grouped * self._by_groups(i)).sum(-1).reshape(-1)
            self._outputs.append(energy + added)
            known.scatter_reduce_(0, self.spaces.outputs[i], self._outputs[-1], "amax")
            known[0] = 0.0

    def _by_groups(self, layer: int) -> Tensor:
        return self._inputs[layer].reshape(self.spaces.layers[layer].groups, 1, -1)

    def _find_importance(self) -> Tensor:
        """What a unit of error of every factor's channels is at the layers behind, relatively."""
        found = torch.zeros(self.spaces.count, dtype=torch.float64)
        for i in self._inputs:
            layer, weight = self.spaces.layers[i], self._weights[i]
            if weight is not None:
                grouped = layer.grouped(weight).square().sum(-1)
                energy = self._outputs[i].reshape(len(grouped), -1, 1).clamp(min=_NOTHING)
                counts = (grouped / energy).sum(1).reshape(-1)
                found.index_add_(0, self.spaces.inputs[i], counts)
        return found

    def _of_layer(self, i: int, factors: Tensor) -> float:
        layer, weight = self.spaces.layers[i], self._weights[i]
        if weight is None:
            return 0.0
        exact, scaled = layer.grouped(weight), weight.clone()
        groups = len(exact)
        taken = factors[self.spaces.inputs[i]]
        by = taken.reshape(groups, 1, -1, 1) / factors[self.spaces.outputs[i]].reshape(
            groups, -1, 1, 1
        )
        layer.grouped(scaled).mul_(by)
        rounded = layer.grouped(self.grids.weight(layer.path, scaled).double()) / by
        error = ((rounded - exact).square().sum(-1) * self._by_groups(i)).sum(-1)
        activation = self.grids.inputs.get(layer.path)
        if activation is not None:
            steps = activation.qmax - activation.qmin
            step = _SPAN * float((self._inputs[i].sqrt() / taken).max()) / steps
            noise = (taken * step).square() / 12
            error = error + (exact.square().sum(-1) * noise.reshape(groups, 1, -1)).sum(-1)
        counts = self._importance[self.spaces.outputs[i]]
        if not bool((counts > 0).any()):
            counts = torch.ones_like(counts)
        total = (counts * self._outputs[i]).sum().clamp(min=_NOTHING)
        return float((counts * error.reshape(-1)).sum() / total)
