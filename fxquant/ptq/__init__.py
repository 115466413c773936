"""Post-training techniques: what makes a calibrated model better without training it."""

from fxquant.ptq.activation_ranges.choose import choose_activation_ranges
from fxquant.ptq.activation_ranges.range_report import ActivationRangesReport, RangeReport
from fxquant.ptq.engine import ReconstructionOptions, reconstruct
from fxquant.ptq.moments import Moments, merge
from fxquant.ptq.reconstruction_report import LayerReport, ReconstructionReport
from fxquant.ptq.snapshot import Snapshot, restore, snapshot
from fxquant.ptq.solving.solver import Solution, SolverOptions, solve

__all__ = [
    "ActivationRangesReport",
    "LayerReport",
    "Moments",
    "RangeReport",
    "ReconstructionOptions",
    "ReconstructionReport",
    "Snapshot",
    "Solution",
    "SolverOptions",
    "choose_activation_ranges",
    "merge",
    "reconstruct",
    "restore",
    "snapshot",
    "solve",
]
