"""Weights of recurrent modules and cells as layers, direction after direction.

What is wanted are the sums before the gates, as the float model has them; inputs are those of the
simulation, with the states that follow from them. A state depends on the weight itself: as long as
that is not decided, it is taken in floating point (see `walking.ahead` for why). Weights of the
input and of the state make one sum, so they are solved together where their grids allow that.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.nn import QuantizationMixin
from fxquant.ptq.layers.columns import Product
from fxquant.ptq.layers.layer import Example, Layer
from fxquant.ptq.walking.originals import float_value
from fxquant.ptq.walking.recurrent_steps import (
    Direction,
    directions_of,
    has_gates_apart,
    reads_of,
    sums,
    unprojected,
)
from fxquant.quantization.affine import AffineQuantizer
from fxquant.quantization.affine.pof2 import PowerOfTwoQuantizeDequantize
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import fx

    from fxquant.ptq.layers.layer import Piece
    from fxquant.ptq.walking.ahead import Given, Operands
    from fxquant.ptq.walking.recurrent_steps import Reads, Values
    from fxquant.quantization import QuantizerBase

# weights by what they are multiplied with
_KINDS = {"x": "weight_ih", "h": "weight_hh", "projected": "weight_hr"}
_BIASES = {"x": "bias_ih", "h": "bias_hh"}


def is_recurrent(module: nn.Module) -> bool:
    """Whether a module is recurrent, or the cell of such a one."""
    return isinstance(module, nn.RNNBase | nn.RNNCellBase)


def recurrent_layers(node: fx.Node, module: Any) -> Iterator[RecurrentLayer]:
    """The layers of a recurrent module, in the order in which they are computed."""
    quantizers = _quantizers_of(module)
    for direction in directions_of(module):
        found = {
            role: (name, quantizer)
            for role, kind in _KINDS.items()
            if isinstance(
                quantizer := quantizers.get(name := direction.name(kind)), AffineQuantizer
            )
        }
        for roles in _together(module, found):
            pieces = tuple(found[role] for role in roles)
            path = f"{node.target}.{'+'.join(name for name, _ in pieces)}"
            quantizer = pieces[0][1]
            yield RecurrentLayer(
                node, path, module, Product(module, 1, 0, False), quantizer, _is_frozen(quantizer),
                pieces_of=pieces, roles=roles, direction=direction,
            )  # fmt: skip


def other_weights(module: nn.Module, layers: Sequence[RecurrentLayer]) -> str:
    """Why weights of a recurrent module are none of its layers; "" if all of them are."""
    known = {name for layer in layers for name, _ in layer.pieces}
    names = {name for name in module._parameters if name.startswith("weight")} - known
    if not names:
        return ""
    if names <= _quantizers_of(module).keys():
        return f"{', '.join(sorted(names))}: on no grid of integers"
    return f"{', '.join(sorted(names))}: in floating point, see quantize_recurrent_weights"


def _quantizers_of(module: Any) -> dict[str, QuantizerBase]:
    found = isinstance(module, QuantizationMixin)
    return dict(module.param_quantizers.active()) if found else {}


def _together(module: nn.Module, found: dict[str, Piece]) -> list[tuple[str, ...]]:
    """What is solved together: input and state, where one grid holds the ranges of both."""
    alone: list[tuple[str, ...]] = [(role,) for role in found]
    if not {"x", "h"} <= set(found) or has_gates_apart(module):
        return alone
    first, second = (found[role][1] for role in "xh")
    alike = (
        _is_frozen(first) == _is_frozen(second)
        and first.shape[:1] == second.shape[:1]
        and isinstance(first, PowerOfTwoQuantizeDequantize)
        == isinstance(second, PowerOfTwoQuantizeDequantize)
    )
    return [("x", "h"), *alone[2:]] if alike else alone


def _is_frozen(quantizer: AffineQuantizer) -> bool:
    return bool(quantizer._held) or not quantizer.overwritable


@dataclass(frozen=True)
class RecurrentLayer(Layer):
    """Weights of one direction of a layer that are solved together.

    Attributes:
        pieces_of: names of the parameters, with their quantizers.
        roles: what each is multiplied with: "x", "h" or "projected".
        direction: the direction.
    """

    pieces_of: tuple[Piece, ...] = ()
    roles: tuple[str, ...] = ()
    direction: Direction = field(default_factory=Direction)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """The parameters that the weight is made of, side by side, with their quantizers."""
        return self.pieces_of

    @property
    def changed(self) -> tuple[str, ...]:
        """Names of the parameters that `write` changes."""
        return (*(name for name, _ in self.pieces_of), *self._bias_names)

    @property
    def _bias_names(self) -> tuple[str, ...]:
        names = (self.direction.name(_BIASES[role]) for role in self.roles if role in _BIASES)
        return tuple(n for n in names if self.module._parameters.get(n) is not None)

    @property
    def biases(self) -> tuple[nn.Parameter, ...]:
        """The parameters that the bias is the sum of."""
        return tuple(self.module._parameters[name] for name in self._bias_names)

    def bias(self) -> Tensor:
        """The sum of the biases as they are stored, float64 `[1, O]`."""
        found = self.weight().new_zeros(self.shape[:2])
        return found + sum(bias.detach().double() for bias in self.biases)

    def float_bias(self) -> Tensor:
        """The same before any technique changed them."""
        found = self.weight().new_zeros(self.shape[:2])
        return found + sum(float_value(self.module, n).double() for n in self._bias_names)

    def set_bias(self, bias: Tensor) -> None:
        """Store a sum of the biases in the first of them."""
        if self.has_bias:
            first, *others = self.biases
            first.copy_(bias[0] - sum(other.detach().double() for other in others))

    def example(self, given: Given) -> Example:
        """What the weight is multiplied with at all steps, and the sums that are wanted."""
        exact, ours = self._values(exact=True), self._values(exact=given.exact)
        wanted = self._reads(given.wanted_operands, exact, quantized=False)
        here = self._reads(given.operands, ours, quantized=not given.exact)
        inside = None if here.inside is None else torch.nonzero(here.inside.reshape(-1))[:, 0]
        return Example(*self._rows(here, wanted, ours, exact), inside)

    def _rows(
        self, here: Reads, wanted: Reads, ours: Values, exact: Values
    ) -> tuple[Tensor, Tensor]:
        way = self.direction
        if self.roles == ("projected",):
            projected = unprojected(wanted, exact, way)
            return unprojected(here, ours, way), projected @ exact[way.name("weight_hr")].mT
        x_sums, h_sums = sums("ih", wanted.x, exact, way), sums("hh", wanted.h, exact, way)
        if self.roles == ("x", "h"):
            return torch.cat([here.x, here.h], -1), x_sums + h_sums
        if self.roles == ("x",):
            return here.x, x_sums
        # the state makes up for what is left of the input's error, where both are added
        left = x_sums - sums("ih", here.x, ours, way)
        if has_gates_apart(self.module):
            left[..., 2 * self.module.hidden_size :] = 0
        return here.h, h_sums + left

    def _reads(self, operands: Operands, values: Values, *, quantized: bool) -> Reads:
        return reads_of(self.module, operands, values, self.direction, quantized=quantized)

    def _values(self, *, exact: bool) -> Values:
        """The parameters: of the float model, or those that are decided on their grids."""
        own = {name for name, _ in self.pieces_of}
        found: Values = {}
        for name, parameter in self.module._parameters.items():
            if parameter is None:
                continue
            quantizer: Any = self.module.param_quantizers._modules.get(name)
            if exact or name in own:
                found[name] = float_value(self.module, name)
            elif isinstance(quantizer, AffineQuantizer) and quantizer.overwritable:
                found[name] = parameter.detach()
            else:
                value = parameter.detach()
                found[name] = value if quantizer is None else plain(quantizer.transform(value))
        return found
