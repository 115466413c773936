"""Grids for the weights of recurrent modules.

No kernel of a target computes them on integers, so a simulation leaves them in floating point. On
grids those of whole modules are stored as integers and dequantized where they are read: the file
gets smaller. A cell is written by torch's exporter, with numbers that lie on the grid.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from fxquant.editing import explain
from fxquant.errors import place
from fxquant.graph.rewriter import Rewriter
from fxquant.graph.selectors import select_in, several
from fxquant.nn import QuantizationMixin
from fxquant.nn.mixin import is_ignored
from fxquant.ptq.walking.given_simulation import require_simulation
from fxquant.quantization import QuantScheme
from fxquant.targets.quantizer_choice import quantizer_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import fx

    from fxquant.graph.selectors import Selector
    from fxquant.quantization import QuantizerBase
    from fxquant.sim import QuantizationSimModel


def quantize_recurrent_weights(
    sim: QuantizationSimModel,
    modules: Iterable[Selector] | Selector | None = None,
    *,
    bitwidth: int | None = None,
) -> tuple[str, ...]:
    """Give the weights of LSTM, GRU and RNN modules, and of their cells, grids.

    A grid for each row, if the target's weights have one for each channel. Weights that are on a
    grid already keep it. Cells that are called at every step share their weights, and so the grids.
    Biases, states and gates stay in floating point.

    Args:
        sim: the simulation; it may be calibrated already.
        modules: recurrent modules or what holds them, as for `exclude_layers_from_quantization`;
            None: all of them.
        bitwidth: bits; None: those of the simulation's other weights.

    Returns:
        Paths of the parameters that got a grid.

    Raises:
        ConfigError: FXQ262 the target does not have these bits, FXQ297 there is no simulation.
        SelectorError: FXQ213, a selector matches nothing.

    Example:
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(4, 6, 3)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.LSTM(3, 5)), x, default_param_bw=4)
        >>> quantize_recurrent_weights(sim)
        ('0.weight_ih_l0', '0.weight_hh_l0')
    """
    require_simulation(sim, "quantize_recurrent_weights")
    bits = bitwidth or sim.config.weight_bitwidth or sim.target.weight.bitwidth
    sim.target.check_precision("weight", bits)
    nodes = _recurrent_nodes(sim.model)
    chosen = _chosen(sim.model, nodes, modules)
    rw = Rewriter(sim.model, "quantize_recurrent_weights")
    made: dict[int, QuantizerBase] = {}
    found: list[str] = []
    for node in nodes:
        path = str(node.target)
        weights = _weights_of(sim.model.get_submodule(path))
        if not any(id(weight) in chosen for weight in weights.values()):
            continue
        module: Any = QuantizationMixin.from_module(sim.model.get_submodule(path))
        if module is not sim.model.get_submodule(path):
            rw.set_module(path, module)
        for name, weight in weights.items():
            if module.param_quantizers[name] is None:
                if id(weight) not in made:
                    made[id(weight)] = _quantizer(sim, weight, bits, f"the weight of {place(node)}")
                rw.set_quantizer(module.param_quantizers, name, made[id(weight)])
                found.append(f"{path}.{name}".lstrip("."))
        explain(sim.model, [path], f"its weights were given grids of {bits} bits")
    rw.finish()
    return tuple(found)


def _recurrent_nodes(gm: fx.GraphModule) -> list[fx.Node]:
    return [
        node
        for node in gm.graph.nodes
        if node.op == "call_module"
        and isinstance(module := gm.get_submodule(str(node.target)), nn.RNNBase | nn.RNNCellBase)
        and not is_ignored(module)
    ]


def _weights_of(module: nn.Module) -> dict[str, nn.Parameter]:
    return {n: p for n, p in module._parameters.items() if n.startswith("weight") and p is not None}


def _chosen(
    gm: fx.GraphModule, nodes: list[fx.Node], modules: Iterable[Selector] | Selector | None
) -> set[int]:
    """The weights that are meant, by their ids."""
    named = {str(n.target): gm.get_submodule(str(n.target)) for n in nodes}
    paths = named.keys() if modules is None else {
        path for selector in several(modules) for path in select_in(gm, selector, named)
    }  # fmt: skip
    return {id(weight) for path in paths for weight in _weights_of(named[path]).values()}


def _quantizer(
    sim: QuantizationSimModel, weight: nn.Parameter, bits: int, where: str
) -> QuantizerBase:
    kind, given = sim.target.weight, sim.config
    per_row = kind.per_channel if given.per_channel is None else given.per_channel
    symmetric = kind.symmetric if given.weight_symmetric is None else given.weight_symmetric
    made = quantizer_for(
        sim.target, "weight", QuantScheme(sim.quant_scheme), bitwidth=bits,
        shape=(len(weight), 1) if per_row else (), symmetric=symmetric, signed=kind.signed,
    )  # fmt: skip
    made.where = where
    with torch.no_grad(), made.compute_encodings():
        made(weight.detach())
    return made
