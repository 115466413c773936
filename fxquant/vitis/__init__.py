"""The front door for people who come from the Vitis AI quantizer, over the same parts."""

from fxquant.analysis.inspector import Inspector
from fxquant.vitis.qat_processor import QatProcessor, TrainableModel
from fxquant.vitis.quantizer import TorchQuantizer, torch_quantizer
from fxquant.vitis.strategy import Strategy, load_strategy

__all__ = [
    "Inspector",
    "QatProcessor",
    "Strategy",
    "TorchQuantizer",
    "TrainableModel",
    "load_strategy",
    "torch_quantizer",
]
