"""Post-training techniques: what makes a calibrated model better without training it."""

from fxquant.ptq.engine import ReconstructionOptions, reconstruct
from fxquant.ptq.moments import Moments, merge
from fxquant.ptq.reconstruction_report import LayerReport, ReconstructionReport
from fxquant.ptq.snapshot import Snapshot, restore, snapshot
from fxquant.ptq.solving.solver import Solution, SolverOptions, solve

__all__ = [
    "LayerReport",
    "Moments",
    "ReconstructionOptions",
    "ReconstructionReport",
    "Snapshot",
    "Solution",
    "SolverOptions",
    "merge",
    "reconstruct",
    "restore",
    "snapshot",
    "solve",
]
