"""Quantization-aware training: what trains, with which learning rate, and the phases of a run."""

from __future__ import annotations

from fxquant.nn.modes import quantization_off
from fxquant.qat.optimizer_groups import parameter_groups
from fxquant.qat.overview import Trained, training_table, what_trains
from fxquant.qat.switches import (
    enable_quantizers,
    fold_live_norms,
    freeze_batch_norms,
    freeze_ranges,
)

__all__ = [
    "Trained",
    "enable_quantizers",
    "fold_live_norms",
    "freeze_batch_norms",
    "freeze_ranges",
    "parameter_groups",
    "quantization_off",
    "training_table",
    "what_trains",
]
