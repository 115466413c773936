"""Which layers a simulated graph has whose integers can be chosen, and why others are left."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from fxquant.nn import QuantizationMixin
from fxquant.nn.calibration import weight_of
from fxquant.nn.stored_tensors import tensors_read
from fxquant.nn.training_state import require_ended
from fxquant.ptq.layers.columns import Product, is_table, product_of
from fxquant.ptq.layers.layer import Layer
from fxquant.ptq.layers.recurrent_layers import is_recurrent, other_weights, recurrent_layers
from fxquant.ptq.layers.tied_layers import TiedLayer
from fxquant.quantization.affine import AffineQuantizer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

_NO_PRODUCT = "it does not multiply its input with its weight once"
_TABLE = "its rows are looked up: nearest integers are best"
_OTHER_USES = "its weight is used in several places"
_SEVERAL_GRIDS = "its weight lies on several grids, and a file stores it once for each"
_NO_INTEGERS = "its weight does not lie on a grid of integers"
_TIED = "its weight is that of {}, with whose integers it computes"


def layers_of(gm: fx.GraphModule, *, tied: bool = True) -> tuple[list[Layer], dict[str, str]]:
    """Layers in the order in which they are decided, and why other weights are left as they are.

    Args:
        gm: the graph of a simulation.
        tied: layers with one weight are one, at the first node that computes with it. False: each
            is by itself, as what is to be changed is its bias.
    """
    found, skipped = _searched(gm, tied=tied)
    skipped |= {layer.path: _TABLE for layer in found if is_table(layer.module)}
    return [layer for layer in found if not is_table(layer.module)], skipped


def tables_of(gm: fx.GraphModule) -> list[Layer]:
    """Tables whose rows are looked up and whose steps may be chosen."""
    found, _ = _searched(gm, tied=True)
    return [layer for layer in found if is_table(layer.module) and not layer.frozen]


def _searched(gm: fx.GraphModule, *, tied: bool) -> tuple[list[Layer], dict[str, str]]:
    require_ended(gm)
    candidates, skipped = _candidates(gm)
    uses = _Uses.of(gm)
    groups: dict[tuple[int, ...], list[Layer]] = {}
    for number, layer in enumerate(candidates):
        key = tuple(map(id, layer.parameters)) if tied else (number,)
        groups.setdefault(key, []).append(layer)
    found: list[Layer] = []
    for same in groups.values():  # in the order of the first of each
        reason = uses.obstacle(same, tied=tied)
        if not tied and is_recurrent(same[0].module):
            reason = "what it puts out is no sum that a bias could correct"
        elif not tied and same[0].product.matrices:
            reason = "its weight is several matrices, which have no bias"
        if reason:
            skipped |= {layer.path: reason for layer in same}
            continue
        made = uses.together(same)
        found.append(made)
        skipped |= {path: _TIED.format(made.path) for path in made.modules if path != made.path}
    return found, skipped


def _candidates(gm: fx.GraphModule) -> tuple[list[Layer], dict[str, str]]:
    """Modules that multiply with a quantized weight or look up its rows."""
    found: list[Layer] = []
    skipped: dict[str, str] = {}
    for node in gm.graph.nodes:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if module is not None and is_recurrent(module):
            layers = list(recurrent_layers(node, module))
            found += layers
            others = other_weights(module, layers)
            if others:
                skipped[str(node.target)] = others
            continue
        if not isinstance(module, QuantizationMixin):
            continue
        quantizer = module.param_quantizers._modules.get("weight")
        if quantizer is None or weight_of(module, "weight") is None:
            if any(name.startswith("weight") for name, _ in module.param_quantizers.active()):
                skipped[str(node.target)] = _NO_PRODUCT
            continue
        product = Product(module, 1, 0, False) if is_table(module) else product_of(module)
        if product is None:
            skipped[str(node.target)] = _NO_PRODUCT
        elif not isinstance(quantizer, AffineQuantizer):
            skipped[str(node.target)] = _NO_INTEGERS
        else:
            frozen = bool(quantizer._held) or not quantizer.overwritable
            found.append(Layer(node, str(node.target), module, product, quantizer, frozen))
    return found, skipped


@dataclass(frozen=True)
class _Uses:
    """How often tensors and quantizers of parameters are computed with, by their ids.

    A weight that functions were called with is also where the network registered it, which is no
    use; where the graph itself reads it there, it is.
    """

    tensors: Counter[int] = field(default_factory=Counter)
    quantizers: Counter[int] = field(default_factory=Counter)

    @classmethod
    def of(cls, gm: fx.GraphModule) -> _Uses:
        found = cls(Counter(id(value) for value in tensors_read(gm)))
        for module in gm.modules():
            if isinstance(module, QuantizationMixin):
                found.quantizers.update(id(q) for _, q in module.param_quantizers.active())
        return found

    def obstacle(self, same: Sequence[Layer], *, tied: bool) -> str:
        """Why layers that are all with one weight are left as they are; "" if they are not."""
        if tied and any(self.tensors[id(p)] > len(same) for p in same[0].parameters):
            return _OTHER_USES
        if len({layer.node for layer in same}) < len(same):
            return "its module multiplies with its weight more than once"
        if len({tuple(id(q) for _, q in layer.pieces) for layer in same}) > 1:
            return _SEVERAL_GRIDS
        if len({layer.product.layout for layer in same}) > 1:
            return "other layers multiply with its weight in another way"
        biases = Counter(id(bias) for layer in same for bias in layer.biases)
        if any(self.tensors[key] > count for key, count in biases.items()):
            return "its bias is used in several places"
        return ""

    def together(self, same: Sequence[Layer]) -> Layer:
        """The layers as one."""
        layers = [layer for layer in same if not is_table(layer.module)] or same
        tables = [layer for layer in same if layer not in layers]
        first = layers[0]
        frozen = first.frozen or any(self.quantizers[id(q)] > len(same) for _, q in first.pieces)
        if len(same) == 1:
            return replace(first, frozen=frozen)
        return TiedLayer(
            first.node, first.path, first.module, first.product, first.quantizer, frozen,
            tuple(layers), tuple(tables),
        )  # fmt: skip
