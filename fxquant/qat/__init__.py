"""Quantization-aware training: what trains, with which learning rate, and the phases of a run."""

from __future__ import annotations

from fxquant.nn.modes import quantization_off
from fxquant.qat.adapters import add_adapters, merge_adapters
from fxquant.qat.distillation import Distiller, distillation_loss, feature_loss
from fxquant.qat.nan_guard import NanGuard, nan_guard
from fxquant.qat.optimizer_groups import parameter_groups
from fxquant.qat.oscillation import OscillationTracker, dampening_loss
from fxquant.qat.overview import Trained, training_table, what_trains
from fxquant.qat.range_schedule import RangeRule, RangeSchedule
from fxquant.qat.resume import TrainingState, load_training, save_training
from fxquant.qat.switches import (
    enable_quantizers,
    fold_live_norms,
    freeze_batch_norms,
    freeze_ranges,
)

__all__ = [
    "Distiller",
    "NanGuard",
    "OscillationTracker",
    "RangeRule",
    "RangeSchedule",
    "Trained",
    "TrainingState",
    "add_adapters",
    "dampening_loss",
    "distillation_loss",
    "enable_quantizers",
    "feature_loss",
    "fold_live_norms",
    "freeze_batch_norms",
    "freeze_ranges",
    "load_training",
    "merge_adapters",
    "nan_guard",
    "parameter_groups",
    "quantization_off",
    "save_training",
    "training_table",
    "what_trains",
]
