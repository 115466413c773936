"""Switches for the phases of a training run: warm-up, frozen statistics, frozen ranges, the end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import nn

from fxquant.nn.live_norm import LiveNorm
from fxquant.passes import FoldLiveNorms
from fxquant.quantization import QuantizerBase

if TYPE_CHECKING:
    from fxquant.sim import QuantizationSimModel


def enable_quantizers(model: nn.Module, enabled: bool = True) -> None:
    """Switch all quantizers on or off; ranges stay as they are.

    Args:
        model: a simulation's model, or a part of it, to freeze layers one after the other.
        enabled: False: everything is computed in floating point, as in a warm-up.
    """
    for module in model.modules():
        if isinstance(module, QuantizerBase):
            module.enabled = enabled


def freeze_ranges(model: nn.Module) -> None:
    """Keep all ranges as they are from now on: they neither learn nor follow their parameters."""
    for module in model.modules():
        if isinstance(module, QuantizerBase):
            module.requires_grad_(requires_grad=False)
            module.allow_overwrite(False)
            for end in module.parameters(recurse=False):
                end.grad = None  # an optimizer would go on with its momentum


def freeze_batch_norms(model: nn.Module, frozen: bool = True) -> None:
    """Normalize by the running statistics, which stay as they are, in training as well.

    Affects batch norms that are folded in with every call (`fold_batch_norms="live"`). One that
    stands alone is frozen by its own `eval()` after each `train()` of the model.
    """
    for module in model.modules():
        if isinstance(module, LiveNorm):
            module.freeze(frozen)


def fold_live_norms(sim: QuantizationSimModel) -> None:
    """End training with live batch norms: fold them in for good, in place.

    In evaluation the simulation computes the same bits as before.

    Args:
        sim: a simulation whose configuration has `fold_batch_norms="live"`.
    """
    FoldLiveNorms()(sim.model)
