"""The factors of a graph as numbers in a row, and the groups of them that one tensor has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.ptq.cross_layer.channel_flow import ChannelFlow

if TYPE_CHECKING:
    from torch import fx

    from fxquant.ptq.cross_layer.scalable_layers import ScalableLayer


@dataclass(frozen=True)
class Space:
    """Factors of the output channels of layers that feed each other's consumers.

    Attributes:
        producers: layers whose output channels have the factors.
        consumers: layers whose input channels have them.
        factors: the factors that can be chosen, `[F]`; empty if there are none.
        channels: how many factors there are, with those that cannot be chosen.
        reasons: why factors cannot be chosen.
    """

    producers: tuple[int, ...]
    consumers: tuple[int, ...]
    factors: Tensor
    channels: int
    reasons: tuple[str, ...]


class ChannelSpaces:
    """Layers, and the factor that each of their channels has.

    Args:
        gm: a prepared graph.

    Attributes:
        layers: convolutions, linear layers and norms in the order of the graph.
        count: number of factors; factor 0 is that of zeros and always 1.
        outputs: the factor of every output channel, by layer.
        inputs: the factor of every input channel, by layer.
        spaces: groups of factors in the order of the graph.
    """

    def __init__(self, gm: fx.GraphModule) -> None:
        flow = ChannelFlow(gm)
        self.layers: list[ScalableLayer] = flow.layers
        numbers: dict[int, int] = {0: 0}

        def numbered(ids: Tensor) -> Tensor:
            found = [numbers.setdefault(r, len(numbers)) for r in flow.ids.roots(ids)]
            return torch.tensor(found, dtype=torch.long)

        self.outputs = [numbered(layer.outputs) for layer in self.layers]
        self.inputs = [numbered(layer.inputs) for layer in self.layers]
        self.count = len(numbers)
        self._reasons = {number: flow.ids.reason(root) for root, number in numbers.items()}
        self._consumed: dict[int, list[int]] = {}
        for index, factors in enumerate(self.inputs):
            for factor in factors.unique().tolist():
                self._consumed.setdefault(factor, []).append(index)
        self.spaces = [self._space(group) for group in self._groups()]

    def _groups(self) -> list[list[int]]:
        """Layers whose output channels have factors in common."""
        first: dict[int, int] = {}
        group = list(range(len(self.layers)))

        def root(i: int) -> int:
            while group[i] != i:
                i = group[i]
            return i

        for index, factors in enumerate(self.outputs):
            for factor in factors.unique().tolist():
                group[root(index)] = root(first.setdefault(factor, index))
        found: dict[int, list[int]] = {}
        for index in range(len(self.layers)):
            found.setdefault(root(index), []).append(index)
        return list(found.values())

    def _space(self, producers: list[int]) -> Space:
        every = sorted({f for p in producers for f in self.outputs[p].tolist()} - {0})
        consumers = sorted({c for f in every for c in self._consumed.get(f, ())})
        free = [f for f in every if self._reasons[f] is None and f in self._consumed]
        reasons = {self._reasons[f] or "no layer reads it" for f in every if f not in set(free)}
        chosen = torch.tensor(free, dtype=torch.long)
        return Space(tuple(producers), tuple(consumers), chosen, len(every), tuple(sorted(reasons)))

    def apply(self, factors: Tensor) -> list[str]:
        """Divide output channels by their factors and multiply input channels by theirs.

        Args:
            factors: float64 `[count]`, positive.

        Returns:
            Paths of the layers that were changed.
        """
        changed = []
        for layer, outputs, inputs in zip(self.layers, self.outputs, self.inputs, strict=True):
            device = layer.module.get_parameter("weight").device
            made, taken = (1 / factors[outputs]).to(device), factors[inputs].to(device)
            if bool((made != 1).any()) or bool((taken != 1).any()):
                layer.scale(made, None if layer.is_norm else taken)
                changed.append(layer.path)
        return changed
