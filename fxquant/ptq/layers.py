"""Layers of a simulation whose integers can be chosen, and how a solution is written into them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant.nn import QuantizationMixin
from fxquant.nn.calibration import weight_of
from fxquant.nn.training_state import require_ended
from fxquant.ptq.columns import Product, is_table, product_of
from fxquant.ptq.solving.grids import WeightGrid
from fxquant.ptq.solving.solver import Solution
from fxquant.ptq.walking.originals import changing, float_value
from fxquant.quantization.affine import AffineQuantizer, BiasQuantizeDequantize
from fxquant.quantization.affine.pof2 import PowerOfTwoQuantizeDequantize
from fxquant.quantization.ranges import range_of
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

# what a bias may use of an int32; the rest is left to the products (see `affine/bias.py`)
_BIAS_STEPS = 2.0**30
# a quantizer that keeps its step to the last bits, as against one that changes it to another
_SAME_STEP = 1e-5
# rows that are in memory together, see `sampling`, and how often
_GATHERED, _COPIES = 4096, 6
_NO_PRODUCT = "it does not multiply its input with its weight once"
_TABLE = "its rows are looked up: nearest integers are best"
# prefix of the range among the names of a layer's state
_RANGE = "range."


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
    def has_bias(self) -> bool:
        """Whether there is a bias that can take in the mean error."""
        return getattr(self.module, "bias", None) is not None

    def working_bytes(self, columns: int) -> int:
        """About what a technique holds that looks at so many positions of the layer.

        Rows of inputs and outputs in float32, as they are gathered, joined, centred and judged by,
        and the matrices of a solver: two of second moments in float64 and one merged into them,
        their factor and inverse.
        """
        shape = torch.empty(self.module.weight.shape, device="meta")
        groups, outputs, inputs = self.product.matrix(shape).shape
        rows = _COPIES * 4 * min(columns, _GATHERED) * groups * (inputs + outputs)
        return int(rows + 8 * groups * inputs * (5 * inputs + 3 * outputs))

    def input(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """What the weight is multiplied with, given the arguments of the module."""
        value: Tensor = args[0] if args else next(iter(kwargs.values()))
        own = self.module.input_quantizers._modules.get("0")
        return plain(value if own is None else own(value))

    def weight(self) -> Tensor:
        """The weight as it is stored, float64 `[G, O, D]`."""
        return self.product.matrix(self.module.weight.detach()).double()

    def float_weight(self) -> Tensor:
        """The weight before any technique changed it, float64 `[G, O, D]`."""
        return self.product.matrix(float_value(self.module, "weight")).double()

    def float_bias(self) -> Tensor:
        """The bias before any technique changed it or zeros, float64 `[G, O]`."""
        if not self.has_bias:
            return self.bias()
        return float_value(self.module, "bias").double().reshape(self.product.groups, -1)

    def bias(self) -> Tensor:
        """The bias as it is stored or zeros, float64 `[G, O]`."""
        weight = self.module.weight
        if not self.has_bias:
            shape = self.product.matrix(weight.detach()).shape[:2]
            return torch.zeros(shape, dtype=torch.float64, device=weight.device)
        found: Tensor = self.module.bias.detach().double()
        return found.reshape(self.product.groups, -1)

    def grid(self) -> tuple[WeightGrid, Tensor]:
        """The grid, and for every range `[R, B]` its place among the quantizer's."""
        quantizer, weight = self.quantizer, self.module.weight.detach()
        scale, offset = quantizer.get_scale(), quantizer.get_offset()
        if scale is None or offset is None:
            raise quantizer._uncalibrated()
        rows, blocks, places = _ranges(quantizer, weight, self.product.matrix)
        steps, zeros = (t.detach().double().reshape(-1)[places] for t in (scale, -offset))
        found = WeightGrid(
            steps, quantizer.qmin - zeros, quantizer.qmax - zeros, rows, blocks,
            frozen=self.frozen,
            power_of_two=isinstance(quantizer, PowerOfTwoQuantizeDequantize),
        )  # fmt: skip
        return replace(found, least=self._least(found)), places

    def _least(self, grid: WeightGrid) -> Tensor | None:
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
        quantizer, kept = self.quantizer, found.grid
        with torch.no_grad(), changing(self.module, "weight", "bias"):
            actual = self._set_scale(found.grid, places)
            if bool(((actual - kept.scale).abs() > _SAME_STEP * kept.scale).any()):
                found = again(replace(kept.with_scale(actual), frozen=True))
            exact = found.grid.with_scale(actual)
            weight = exact.weight(found.integers)
            shape = self.module.weight.shape
            self.module.weight.copy_(self.product.weight(weight, shape))
            if self.has_bias:
                self.module.bias.copy_(bias(weight).reshape(self.module.bias.shape))
        quantizer.allow_overwrite(False)

    def freeze(self, grid: WeightGrid, places: Tensor) -> WeightGrid:
        """Set the range of the weight and freeze it; the grid with the steps as they then are."""
        with torch.no_grad():
            actual = self._set_scale(grid, places)
        self.quantizer.allow_overwrite(False)
        return grid.with_scale(actual)

    def state(self) -> dict[str, Tensor]:
        """What `write` changes, by name."""
        ranges = self.quantizer.state_dict().items()
        found = {f"{_RANGE}{name}": value for name, value in ranges}
        found["weight"] = self.module.weight
        return found | ({"bias": self.module.bias} if self.has_bias else {})

    def set_state(self, state: Mapping[str, Tensor]) -> None:
        """Give the module what `state` returned after `write`, and freeze its range."""
        start = len(_RANGE)
        ranges = {n[start:]: t for n, t in state.items() if n.startswith(_RANGE)}
        self.quantizer.load_state_dict(ranges)
        with torch.no_grad(), changing(self.module, "weight", "bias"):
            self.module.weight.copy_(state["weight"])
            if self.has_bias:
                self.module.bias.copy_(state["bias"])
        self.quantizer.allow_overwrite(False)

    def _set_scale(self, grid: WeightGrid, places: Tensor) -> Tensor:
        """Set the quantizer's range; its steps as they then are, float64 `[R, B]`."""
        quantizer = self.quantizer
        if not self.frozen:
            before, offset = quantizer.get_scale(), quantizer.get_offset()
            if before is None or offset is None:
                raise quantizer._uncalibrated()
            scale = before.detach().clone().reshape(-1)
            scale[places.reshape(-1)] = grid.scale.reshape(-1).to(scale.dtype)
            quantizer.set_range(
                *range_of(quantizer.grid, scale.reshape(quantizer.shape), -offset.detach())
            )
        after = quantizer.get_scale()
        return grid.scale if after is None else after.detach().double().reshape(-1)[places]


def layers_of(gm: fx.GraphModule) -> tuple[dict[fx.Node, Layer], dict[str, str]]:
    """Layers in the order of the graph, and why other quantized weights are left as they are."""
    found, skipped = _weights(gm)
    tables = {node for node, layer in found.items() if is_table(layer.module)}
    skipped |= {layer.path: _TABLE for node, layer in found.items() if node in tables}
    return {node: layer for node, layer in found.items() if node not in tables}, skipped


def tables_of(gm: fx.GraphModule) -> list[Layer]:
    """Tables whose rows are looked up and whose steps may be chosen."""
    return [y for y in _weights(gm)[0].values() if is_table(y.module) and not y.frozen]


def _weights(gm: fx.GraphModule) -> tuple[dict[fx.Node, Layer], dict[str, str]]:
    require_ended(gm)
    weights, quantizers = _users(gm)
    found: dict[fx.Node, Layer] = {}
    skipped: dict[str, str] = {}
    for node in gm.graph.nodes:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, QuantizationMixin):
            continue
        quantizer = module.param_quantizers._modules.get("weight")
        weight = weight_of(module, "weight")
        if quantizer is None or weight is None:
            if any(name.startswith("weight") for name, _ in module.param_quantizers.active()):
                skipped[str(node.target)] = _NO_PRODUCT
            continue
        product = Product(module, 1, 0, False) if is_table(module) else product_of(module)
        reason = _obstacle(product, quantizer, weights[id(weight)])
        if product is None or not isinstance(quantizer, AffineQuantizer) or reason:
            skipped[str(node.target)] = reason
            continue
        frozen = bool(quantizer._held) or not quantizer.overwritable
        frozen = frozen or quantizers[id(quantizer)] > 1
        found[node] = Layer(node, str(node.target), module, product, quantizer, frozen)
    return found, skipped


def _obstacle(product: Product | None, quantizer: nn.Module, users: int) -> str:
    if product is None:
        return _NO_PRODUCT
    if not isinstance(quantizer, AffineQuantizer):
        return "its weight does not lie on a grid of integers"
    if users > 1:
        return "its weight is used in several places"
    return ""


def _users(gm: fx.GraphModule) -> tuple[dict[int, int], dict[int, int]]:
    """How many modules compute with a weight and a quantizer of parameters, by their ids.

    A weight that functions were called with is also where the network registered it, which is no
    use; where the graph itself reads it there, it is.
    """
    weights: dict[int, int] = {}
    quantizers: dict[int, int] = {}
    for value in tensors_read(gm):
        weights[id(value)] = weights.get(id(value), 0) + 1
    for module in gm.modules():
        if isinstance(module, QuantizationMixin):
            for _, quantizer in module.param_quantizers.active():
                quantizers[id(quantizer)] = quantizers.get(id(quantizer), 0) + 1
    return weights, quantizers


def tensors_read(gm: fx.GraphModule) -> Iterator[Any]:
    """Parameters and buffers that the nodes of a graph compute with, one after the other."""
    for node in gm.graph.nodes:
        if node.op == "get_attr":
            path, _, name = str(node.target).rpartition(".")
            yield getattr(gm.get_submodule(path), name, None)
        elif node.op == "call_module":
            for module in gm.get_submodule(str(node.target)).modules():
                yield from (*module._parameters.values(), *module._buffers.values())


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
