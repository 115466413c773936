"""Layers that compute with one weight, such as a table that is a head, or a block called again.

There is one tensor of integers, and its loss is that of all layers together: their moments are
summed. Each layer keeps the bias that it has. Tables whose rows are looked up follow: they have no
moments that could say which integers are better than the nearest ones.

The integers are chosen where the first layer or table is reached, before the simulation computes
it: what lies behind is then computed with them once, and is never out of date. What later layers
are given is found by running ahead (see `walking.ahead`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fxquant.ptq.layers.layer import Layer
from fxquant.ptq.walking.originals import changing

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import Tensor, fx, nn

    from fxquant.ptq.layers.layer import Piece
    from fxquant.ptq.solving.grids import WeightGrid


@dataclass(frozen=True)
class TiedLayer(Layer):
    """Several layers with one weight; what a `Layer` says is that of the first one.

    Biases are `[B, G, O]`: one row for each that is different, and one of zeros for the layers that
    have none.

    Attributes:
        layers: the layers, in the order of the graph.
        tables: modules that look up rows of the weight.
    """

    layers: tuple[Layer, ...] = ()
    tables: tuple[Layer, ...] = ()

    @property
    def first(self) -> fx.Node:
        """The first node that computes with the weight."""
        order = {node: index for index, node in enumerate(self.node.graph.nodes)}
        return min((u.node for u in (*self.layers, *self.tables)), key=order.__getitem__)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The parameters that the weight is made of, side by side, with their quantizers."""
        return self.layers[0].pieces

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the parameters that `write` changes."""
        return self.layers[0].changed

    @property
    def uses(self) -> tuple[Layer, ...]:
        """The layers that compute with the weight, in the order of the graph."""
        return self.layers

    @property
    def modules(self) -> dict[str, str]:
        """Path of each -> path of its module."""
        return {layer.path: str(layer.node.target) for layer in (*self.layers, *self.tables)}

    @property
    def by_bias(self) -> list[list[Layer]]:
        """The same, those with the same bias together, in the order of `bias`."""
        found: dict[tuple[int, ...], list[Layer]] = {}
        for layer in self.layers:
            found.setdefault(tuple(map(id, layer.biases)), []).append(layer)
        return list(found.values())

    @property
    def biases(self) -> tuple[nn.Parameter, ...]:
        """All of them."""
        return tuple({id(b): b for layer in self.layers for b in layer.biases}.values())

    def bias(self) -> Tensor:
        """The biases as they are stored, float64 `[B, G, O]`."""
        return torch.stack([same[0].bias() for same in self.by_bias])

    def float_bias(self) -> Tensor:
        """The biases before any technique changed them, float64 `[B, G, O]`."""
        return torch.stack([same[0].float_bias() for same in self.by_bias])

    def set_bias(self, bias: Tensor) -> None:
        """Store what `bias` returns."""
        for same, own in zip(self.by_bias, bias, strict=True):
            same[0].set_bias(own)

    def changing(self) -> AbstractContextManager[None]:
        """Keep the float values of what is changed inside."""
        modules: list[Any] = [layer.module for layer in (*self.layers, *self.tables)]
        return changing(modules[0], *self.changed, also=modules[1:])

    def least_steps(self, grid: WeightGrid) -> Tensor | None:
        """The smallest steps with which all biases fit into int32, `[R, B]`."""
        each = [layer.least_steps(grid) for layer in self.layers]
        needed = [steps for steps in each if steps is not None]
        return torch.stack(needed).amax(0) if needed else None
