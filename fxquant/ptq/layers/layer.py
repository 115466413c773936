"""Layers of a simulation whose integers can be chosen, and how a solution is written into them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxquant.ptq.solving.grids import WeightGrid, beside
from fxquant.ptq.solving.solver import Solution
from fxquant.ptq.walking.originals import changing, float_value
from fxquant.quantization.affine import BiasQuantizeDequantize
from fxquant.quantization.affine.pof2 import PowerOfTwoQuantizeDequantize
from fxquant.quantization.ranges import range_of
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from torch import fx, nn

    from fxquant.ptq.layers.columns import Product
    from fxquant.ptq.walking.ahead import Given
    from fxquant.quantization.affine import AffineQuantizer

    Piece = tuple[str, AffineQuantizer]

# what a bias may use of an int32; the rest is left to the products (see `affine/bias.py`)
_BIAS_STEPS = 2.0**30
# a quantizer that keeps its step to the last bits, as against one that changes it to another
_SAME_STEP = 1e-5
# between the name of a parameter and what its quantizer keeps, in a layer's state
_RANGE = ".range."


@dataclass(frozen=True)
class Example:
    """What a weight is multiplied with, and what is wanted of it.

    Attributes:
        x: inputs, as `Product` takes them.
        y: wanted outputs.
        among: positions that count; None: all.
    """

    x: Tensor
    y: Tensor
    among: Tensor | None = None


@dataclass(frozen=True)
class Layer:
    """A module that multiplies its input with a quantized weight.

    Attributes:
        node: its node.
        path: its path.
        module: the quantized module.
        product: how it multiplies.
        quantizer: quantizer of the weight.
        frozen: the quantizer's range must stay as it is.
    """

    node: fx.Node
    path: str
    module: Any
    product: Product
    quantizer: AffineQuantizer
    frozen: bool

    @property
    def first(self) -> fx.Node:
        """The node before which the layer is decided."""
        return self.node

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The parameters that the weight is made of, side by side, with their quantizers."""
        return (("weight", self.quantizer),)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters of the pieces."""
        return [getattr(self.module, name) for name, _ in self.pieces]

    @property
    def uses(self) -> tuple[Layer, ...]:
        """The layers that compute with the weight, in the order of the graph."""
        return (self,)

    @property
    def by_bias(self) -> list[list[Layer]]:
        """The same, those with the same bias together."""
        return [[self]]

    @property
    def modules(self) -> dict[str, str]:
        """Path of each layer with the weight -> path of its module."""
        return {self.path: str(self.node.target)}

    @property
    def biases(self) -> tuple[nn.Parameter, ...]:
        """The parameters that the bias is the sum of."""
        own = getattr(self.module, "bias", None)
        return () if own is None else (own,)

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias that can take in the mean error."""
        return bool(self.biases)

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the parameters that `write` changes."""
        return "weight", "bias"

    def changing(self) -> AbstractContextManager[None]:
        """Keep the float values of what is changed inside."""
        return changing(self.module, *self.changed)

    def set_bias(self, bias: Tensor) -> None:
        """Store what `bias` returns."""
        if self.has_bias:
            self.module.bias.copy_(bias.reshape(self.module.bias.shape))

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, outputs and inputs of the weight."""
        # an expanded scalar has the shape and no memory; joining meta tensors costs a millisecond
        seen = [torch.empty(()).expand(p.shape) for p in self.parameters]
        matrices = [self.product.matrix(value) for value in seen]
        groups, outputs, _ = matrices[0].shape
        return groups, outputs, sum(m.shape[2] for m in matrices)

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """What the weight is multiplied with, given the arguments of the module."""
        value: Tensor = args[0] if args else next(iter(kwargs.values()))
        own = self.module.input_quantizers._modules.get("0")
        return plain(value if own is None else own(value))

    def example(self, given: Given) -> Example:
        """What the weight is multiplied with, and what is wanted of it."""
        return Example(self.input(*given.operands), plain(given.value))

    def _beside(self, values: Sequence[Tensor]) -> Tensor:
        """Values of the parameters as one matrix, `[G, O, D]`."""
        return torch.cat([self.product.matrix(value) for value in values], -1)

    def weight(self) -> Tensor:
        """The weight as it is stored, float64 `[G, O, D]`."""
        return self._beside([p.detach() for p in self.parameters]).double()

    def quantized_weight(self) -> Tensor:
        """The weight as it is computed with, float64 `[G, O, D]`."""
        stored = [(getattr(self.module, name).detach(), q) for name, q in self.pieces]
        return self._beside([plain(q.transform(value)) for value, q in stored]).double()

    def float_weight(self) -> Tensor:
        """The weight before any technique changed it, float64 `[G, O, D]`."""
        return self._beside([float_value(self.module, n) for n, _ in self.pieces]).double()

    def float_bias(self) -> Tensor:
        """The bias before any technique changed it or zeros, float64 `[G, O]`."""
        if not self.has_bias:
            return self.bias()
        return float_value(self.module, "bias").double().reshape(self.product.groups, -1)

    def bias(self) -> Tensor:
        """The bias as it is stored or zeros, float64 `[G, O]`."""
        if not self.has_bias:
            return self.weight().new_zeros(self.shape[:2])
        found: Tensor = self.module.bias.detach().double()
        return found.reshape(self.product.groups, -1)

    def grid(self) -> tuple[WeightGrid, Tensor]:
        """The grid, and for every range `[R, B]` its place among its quantizer's."""
        grids, places = zip(*(self._grid_of(*piece) for piece in self.pieces), strict=True)
        found = beside(grids)
        return replace(found, least=self.least_steps(found)), torch.cat(places, 1)

    def _grid_of(self, name: str, quantizer: AffineQuantizer) -> tuple[WeightGrid, Tensor]:
        scale, offset = quantizer.get_scale(), quantizer.get_offset()
        if scale is None or offset is None:
            raise quantizer._uncalibrated()
        value = getattr(self.module, name).detach()
        rows, blocks, places = _ranges(quantizer, value, self.product.matrix)
        steps, zeros = (t.detach().double().reshape(-1)[places] for t in (scale, -offset))
        found = WeightGrid(
            steps, quantizer.qmin - zeros, quantizer.qmax - zeros, rows, blocks,
            frozen=self.frozen,
            power_of_two=isinstance(quantizer, PowerOfTwoQuantizeDequantize),
        )  # fmt: skip
        return found, places

    def least_steps(self, grid: WeightGrid) -> Tensor | None:
        """The smallest steps with which the bias fits into int32, `[R, B]`."""
        quantizer = self.module.param_quantizers._modules.get("bias")
        if not isinstance(quantizer, BiasQuantizeDequantize):
            return None
        scale = quantizer.input_quantizer.get_scale()
        if scale is None:
            return None
        needed = self.bias().abs() / (_BIAS_STEPS * scale.detach().double().reshape(()))
        least = torch.zeros_like(grid.scale)
        rows = grid.rows.reshape(-1, 1).expand(-1, grid.scale.shape[1])
        return least.scatter_reduce_(0, rows, needed.reshape(-1, 1).expand_as(rows), "amax")

    def solution(self, grid: WeightGrid, live: Tensor, integers: Tensor) -> Solution:
        """Integers of some columns, with all others nearest to the weight as it is stored."""
        every = grid.nearest(self.weight())
        every[:, :, live] = integers.double()
        return Solution(every, grid)

    def write(
        self,
        found: Solution,
        places: Tensor,
        bias: Callable[[Tensor], Tensor],
        again: Callable[[WeightGrid], Solution],
    ) -> None:
        """Give the module the integers, steps and bias of a solution, and freeze its range.

        Args:
            found: the solution.
            places: as `grid` returned them.
            bias: the bias for a weight, `[G, O, D] -> [G, O]`.
            again: solves for a grid whose steps are the quantizer's own, where these are not free,
                as small integers times one scale are not.
        """
        kept = found.grid
        with torch.no_grad(), self.changing():
            actual = self._set_scale(found.grid, places)
            if bool(((actual - kept.scale).abs() > _SAME_STEP * kept.scale).any()):
                found = again(replace(kept.with_scale(actual), frozen=True))
            exact = found.grid.with_scale(actual)
            weight = exact.weight(found.integers)
            for parameter, part in zip(self.parameters, self._apart(weight), strict=True):
                parameter.copy_(self.product.weight(part, parameter.shape))
            if self.has_bias:
                self.set_bias(bias(weight))
        self._freeze()

    def _apart(self, matrix: Tensor) -> Sequence[Tensor]:
        """The parts of a matrix `[G, O, D]` that are those of the parameters."""
        widths = [
            self.product.matrix(torch.empty(p.shape, device="meta")).shape[-1]
            for p in self.parameters
        ]
        parts: Sequence[Tensor] = matrix.split(widths, -1)
        return parts

    def _freeze(self) -> None:
        for _, quantizer in self.pieces:
            quantizer.allow_overwrite(False)

    def freeze(self, grid: WeightGrid, places: Tensor) -> WeightGrid:
        """Set the range of the weight and freeze it; the grid with the steps as they then are."""
        with torch.no_grad():
            actual = self._set_scale(grid, places)
        self._freeze()
        return grid.with_scale(actual)

    def state(self) -> dict[str, Tensor]:
        """What `write` changes, by name."""
        found: dict[str, Tensor] = {"bias": self.bias()} if self.has_bias else {}
        for name, quantizer in self.pieces:
            found[name] = getattr(self.module, name)
            found |= {f"{name}{_RANGE}{key}": v for key, v in quantizer.state_dict().items()}
        return found

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Give the module what `state` returned after `write`, and freeze its range."""
        with torch.no_grad(), self.changing():
            for name, quantizer in self.pieces:
                start = f"{name}{_RANGE}"
                ranges = {n.removeprefix(start): t for n, t in state.items() if n.startswith(start)}
                quantizer.load_state_dict(ranges)
                getattr(self.module, name).copy_(state[name])
            if self.has_bias:
                self.set_bias(state["bias"])
        self._freeze()

    def _set_scale(self, grid: WeightGrid, places: Tensor) -> Tensor:
        """Set the ranges of the quantizers; the steps as they then are, float64 `[R, B]`."""
        widths = [self._grid_of(*piece)[1].shape[1] for piece in self.pieces]
        parts = zip(self.pieces, grid.scale.split(widths, 1), places.split(widths, 1), strict=True)
        return torch.cat([self._set_steps(q, steps, where) for (_, q), steps, where in parts], 1)

    def _set_steps(self, quantizer: AffineQuantizer, steps: Tensor, places: Tensor) -> Tensor:
        if not self.frozen:
            before, offset = quantizer.get_scale(), quantizer.get_offset()
            if before is None or offset is None:
                raise quantizer._uncalibrated()
            scale = before.detach().clone().reshape(-1)
            scale[places.reshape(-1)] = steps.reshape(-1).to(scale.dtype)
            quantizer.set_range(
                *range_of(quantizer.grid, scale.reshape(quantizer.shape), -offset.detach())
            )
        after = quantizer.get_scale()
        return steps if after is None else after.detach().double().reshape(-1)[places]


def _ranges(
    quantizer: AffineQuantizer, weight: Tensor, matrix: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor, Tensor]:
    """Row ranges `[G, O]`, column blocks `[D]` and the place of each range `[R, B]`."""
    layout, device = quantizer._layout, weight.device
    count = max(1, torch.Size(layout.shape).numel())
    ids = layout.spread(torch.arange(count, device=device).reshape(layout.shape))
    ids = matrix(ids.expand(layout.split(weight).shape).reshape(weight.shape))
    rows = torch.unique(ids[:, :, 0], return_inverse=True)[1]
    blocks = torch.unique(ids[0, 0], return_inverse=True)[1]
    places = torch.zeros(int(rows.max()) + 1, int(blocks.max()) + 1, dtype=torch.int64)
    places = places.to(device)
    places[rows[:, :, None], blocks] = ids
    return rows, blocks, places
