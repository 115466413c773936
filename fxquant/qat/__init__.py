"""Quantization-aware training: what trains, and with which learning rate."""

from __future__ import annotations

from fxquant.qat.groups import parameter_groups
from fxquant.qat.overview import Trained, training_table, what_trains

__all__ = ["Trained", "parameter_groups", "training_table", "what_trains"]
