"""The front door for people who come from the Vitis AI quantizer, over the same parts."""

from fxquant.analysis.inspector import Inspector
from fxquant.vitis.qat_processor import QatProcessor, TrainableModel
from fxquant.vitis.quantizer import TorchQuantizer, torch_quantizer
from fxquant.vitis.strategy import Strategy, load_strategy
from fxquant.vitis.xmodel import dump_xmodel

__all__ = [
    "Inspector",
    "QatProcessor",
    "Strategy",
    "TorchQuantizer",
    "TrainableModel",
    "dump_xmodel",
    "load_strategy",
    "torch_quantizer",
]
