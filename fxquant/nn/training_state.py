"""What training leaves in a model that must be ended before the model is deployed or solved for."""

from __future__ import annotations

import torch
from torch import nn

from fxquant.errors import TrainingError
from fxquant.nn.live_norm import LIVE_NORM, live_norm_of
from fxquant.nn.low_rank import ADAPTER, adapter_of
from fxquant.quantization import QuantizerBase


def require_ended(model: nn.Module) -> None:
    """Refuse a model in the middle of training.

    Args:
        model: a simulated model.

    Raises:
        TrainingError: FXQ802, batch norms go on learning, layers have adapters, or quantizers are
            switched off.
    """
    require_stored_weights(model)
    off = [
        path for path, module in model.named_modules()
        if isinstance(module, QuantizerBase) and not module.enabled
    ]  # fmt: skip
    if off:
        what = f"{len(off)} quantizer(s) are switched off, the first is {off[0]}"
        fix = "call fxquant.qat.enable_quantizers(sim.model)"
        raise TrainingError("FXQ802", what, at=off[0], fix=fix)


def require_stored_weights(model: nn.Module) -> None:
    """Refuse a model whose layers do not round the weights that they store.

    Args:
        model: a simulated model, or one of its modules.

    Raises:
        TrainingError: FXQ802, batch norms go on learning, or layers have adapters.
    """
    named = [(path or type(model).__name__, module) for path, module in model.named_modules()]
    live = [path for path, module in named if live_norm_of(module) is not None]
    if live:
        what = f"{len(live)} batch norm(s) are folded in with every call, the first in {live[0]}"
        raise TrainingError("FXQ802", what, at=live[0], fix="call fxquant.qat.fold_live_norms(sim)")
    adapted = [path for path, module in named if adapter_of(module) is not None]
    if adapted:
        what = f"{len(adapted)} layer(s) have a low-rank adapter, the first is {adapted[0]}"
        fix = "call fxquant.qat.merge_adapters(sim)"
        raise TrainingError("FXQ802", what, at=adapted[0], fix=fix)


@torch.no_grad()
def store_weights(module: nn.Module) -> None:
    """Give a layer the weights that it computes with, and take its live norm or adapter away.

    Args:
        module: a layer; its parameters are replaced, not written into. Others stay as they are.
    """
    live, adapter = live_norm_of(module), adapter_of(module)
    values = {} if live is None else live.folded(module)
    if adapter is not None:
        values = {"weight": adapter.added_to(module.get_parameter("weight"))}
    for name, value in values.items():
        trains = module.get_parameter(name).requires_grad
        module.register_parameter(name, nn.Parameter(value.detach(), requires_grad=trains))
    for child in (LIVE_NORM, ADAPTER):
        module._modules.pop(child, None)
