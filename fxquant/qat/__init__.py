"""Quantization-aware training: what trains, with which learning rate, and the phases of a run."""

from __future__ import annotations

from fxquant.qat.distillation import Distiller, distillation_loss, feature_loss
from fxquant.qat.nan_guard import NanGuard, nan_guard
from fxquant.qat.optimizer_groups import parameter_groups
from fxquant.qat.oscillation import OscillationTracker, dampening_loss
from fxquant.qat.overview import Trained, training_table, what_trains
from fxquant.qat.range_schedule import RangeRule, RangeSchedule
from fxquant.qat.switches import (
    enable_quantizers,
    fold_live_norms,
    freeze_batch_norms,
    freeze_ranges,
    quantization_off,
)

__all__ = [
    "Distiller",
    "NanGuard",
    "OscillationTracker",
    "RangeRule",
    "RangeSchedule",
    "Trained",
    "dampening_loss",
    "distillation_loss",
    "enable_quantizers",
    "feature_loss",
    "fold_live_norms",
    "freeze_batch_norms",
    "freeze_ranges",
    "nan_guard",
    "parameter_groups",
    "quantization_off",
    "training_table",
    "what_trains",
]
