"""Low-rank adapters (LoRA): the weights of a simulation stay as they are, and small ones train.

Adapters that the float network has already, from whatever library, are operators of its graph: they
are simulated and exported as such, beside their layer. Those of this file are added to a simulation
and end in its weights, so that what is deployed has no more operators than before.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch

from fxquant.editing import quantized_modules
from fxquant.errors import TrainingError
from fxquant.nn import QuantizationMixin
from fxquant.nn.live_norm import live_norm_of
from fxquant.nn.low_rank import ADAPTER, LowRank, adapter_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import nn

    from fxquant.graph.selectors import Selector
    from fxquant.sim import QuantizationSimModel


def add_adapters(
    sim: QuantizationSimModel,
    rank: int = 8,
    layers: Iterable[Selector] | Selector | None = None,
    *,
    alpha: float | None = None,
) -> list[str]:
    """Add an adapter to the weights of layers, and freeze all other parameters but ranges.

    Nothing that the simulation computes changes at first. Ranges go on as the scheme says.

    Args:
        sim: a calibrated simulation.
        rank: of the adapters; lower where a weight has fewer rows or columns.
        layers: paths, globs, classes or containers; None: all layers with a quantized weight of
            two dimensions or more.
        alpha: the product is multiplied by `alpha / rank`; None: by 1.

    Returns:
        The paths of the layers that got one.

    Raises:
        TrainingError: FXQ834, the rank or alpha is no positive number, no layer can have an
            adapter, or one has an adapter or a live batch norm already.
        SelectorError: FXQ213 or FXQ241, a selector matches nothing.

    Example:
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> net, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(4, 8)
        >>> sim = QuantizationSimModel(net, x, default_param_bw=4)
        >>> sim.compute_encodings([x])
        >>> add_adapters(sim, rank=2)
        ['0', '2']
        >>> [name for name, p in sim.model.named_parameters() if p.requires_grad][:2]
        ['0.low_rank.down', '0.low_rank.up']
        >>> merge_adapters(sim)
    """
    _require("rank", rank, whole=True)
    if alpha is not None:
        _require("alpha", alpha)
    chosen = quantized_modules(sim.model, "*" if layers is None else layers)
    adapted = {path: module for path, module in chosen.items() if _is_adaptable(module)}
    if not adapted:
        what = "no layer has a quantized weight of two dimensions or more"
        raise TrainingError("FXQ834", what, fix="name linear layers or convolutions")
    for path, module in adapted.items():
        if adapter_of(module) is not None or live_norm_of(module) is not None:
            other = "an adapter" if live_norm_of(module) is None else "a live batch norm"
            fix = "call merge_adapters(sim) or fold_live_norms(sim) before"
            raise TrainingError("FXQ834", f"{path} has {other} already", at=path, fix=fix)
    ranges = {id(p) for q in sim.quantizers() for p in q.parameters()}
    for parameter in sim.model.parameters():
        if id(parameter) not in ranges:
            parameter.requires_grad = False
            parameter.grad = None  # an optimizer would go on with it
    for module in adapted.values():
        weight = module.get_parameter("weight")
        least = min(rank, weight.shape[0], weight[0].numel())
        scale = 1.0 if alpha is None else alpha / least
        module.add_module(ADAPTER, LowRank(weight.detach(), least, scale))
        module.drop_kept()
    return list(adapted)


@torch.no_grad()
def merge_adapters(sim: QuantizationSimModel) -> None:
    """End training with adapters: weights become what they were rounded from, in place.

    In evaluation the simulation computes the same bits as before.

    Args:
        sim: a simulation; one without adapters stays as it is.
    """
    for module in sim.model.modules():
        adapter = adapter_of(module)
        if adapter is not None and isinstance(module, QuantizationMixin):
            module.drop_kept()
            weight = module.get_parameter("weight")
            weight.copy_(adapter.added_to(weight))
            del module._modules[ADAPTER]
            module.drop_kept()


def _is_adaptable(module: nn.Module) -> bool:
    weight = module._parameters.get("weight")
    quantizer = dict(module.param_quantizers.active()).get("weight")  # type: ignore[operator, union-attr]
    return weight is not None and weight.dim() >= 2 and quantizer is not None


def _require(name: str, value: Any, *, whole: bool = False) -> None:
    kinds = int if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not 0 < value < math.inf:
        what = f"{name} is {value!r}"
        raise TrainingError("FXQ834", what, fix="pass a positive number, for the rank a whole one")
