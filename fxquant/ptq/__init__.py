"""Post-training techniques: what makes a calibrated model better without training it."""

from fxquant.ptq.activation_ranges.choose_ranges import choose_activation_ranges
from fxquant.ptq.activation_ranges.range_report import ActivationRangesReport, RangeReport
from fxquant.ptq.engine import ReconstructionOptions, reconstruct
from fxquant.ptq.layer_walk import DataOptions
from fxquant.ptq.moments import Moments, merge
from fxquant.ptq.reconstruction_report import LayerReport, ReconstructionReport
from fxquant.ptq.snapshot import Snapshot, restore, snapshot
from fxquant.ptq.solving.solver import Solution, SolverOptions, solve
from fxquant.ptq.techniques.bias_correction import BiasReport, correct_bias
from fxquant.ptq.techniques.fast_finetune import (
    FinetuneParams,
    FinetuneReport,
    fast_finetune,
)
from fxquant.ptq.techniques.gptq import GptqParams, apply_gptq
from fxquant.ptq.techniques.seq_mse import SeqMseParams, SeqMseReport, apply_seq_mse

__all__ = [
    "ActivationRangesReport",
    "BiasReport",
    "DataOptions",
    "FinetuneParams",
    "FinetuneReport",
    "GptqParams",
    "LayerReport",
    "Moments",
    "RangeReport",
    "ReconstructionOptions",
    "ReconstructionReport",
    "SeqMseParams",
    "SeqMseReport",
    "Snapshot",
    "Solution",
    "SolverOptions",
    "apply_gptq",
    "apply_seq_mse",
    "choose_activation_ranges",
    "correct_bias",
    "fast_finetune",
    "merge",
    "reconstruct",
    "restore",
    "snapshot",
    "solve",
]
