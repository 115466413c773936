"""What training leaves in a model that must be ended before the model is deployed or solved for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant.errors import TrainingError
from fxquant.nn.live_norm import live_norm_of
from fxquant.nn.low_rank import adapter_of
from fxquant.quantization import QuantizerBase

if TYPE_CHECKING:
    from torch import nn


def require_ended(model: nn.Module) -> None:
    """Refuse a model in the middle of training.

    Args:
        model: a simulated model.

    Raises:
        TrainingError: FXQ802, batch norms go on learning, layers have adapters, or quantizers are
            switched off.
    """
    live = [path for path, module in model.named_modules() if live_norm_of(module) is not None]
    if live:
        what = f"{len(live)} batch norm(s) are folded in with every call, the first in {live[0]}"
        raise TrainingError("FXQ802", what, at=live[0], fix="call fxquant.qat.fold_live_norms(sim)")
    adapted = [path for path, module in model.named_modules() if adapter_of(module) is not None]
    if adapted:
        what = f"{len(adapted)} layer(s) have a low-rank adapter, the first is {adapted[0]}"
        fix = "call fxquant.qat.merge_adapters(sim)"
        raise TrainingError("FXQ802", what, at=adapted[0], fix=fix)
    off = [
        path for path, module in model.named_modules()
        if isinstance(module, QuantizerBase) and not module.enabled
    ]  # fmt: skip
    if off:
        what = f"{len(off)} quantizer(s) are switched off, the first is {off[0]}"
        fix = "call fxquant.qat.enable_quantizers(sim.model)"
        raise TrainingError("FXQ802", what, at=off[0], fix=fix)
