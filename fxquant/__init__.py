"""fxquant: from a trained PyTorch network to integer ONNX that is proven.

The public names are the ones listed here.
"""

from __future__ import annotations

from fxquant import nn as nn  # not in __all__, where it would hide torch.nn
from fxquant import quantization as quantization
from fxquant._version import __version__
from fxquant.analysis.inspect import inspect_model
from fxquant.checkpoint import load_checkpoint, save_checkpoint
from fxquant.config import QuantConfig
from fxquant.errors import FxQuantError
from fxquant.graph.pass_infra import Pass, Pipeline
from fxquant.graph.rewriter import Rewriter
from fxquant.ops import Op, register_op
from fxquant.prepare import prepare_model
from fxquant.ptq.bn_fold import fold_all_batch_norms
from fxquant.quantization import QuantScheme
from fxquant.regions import insert_stubs
from fxquant.sim import QuantizationSimModel
from fxquant.targets import Target
from fxquant.validate import ModelValidator, validate_model

__all__ = [
    "FxQuantError",
    "ModelValidator",
    "Op",
    "Pass",
    "Pipeline",
    "QuantConfig",
    "QuantScheme",
    "QuantizationSimModel",
    "Rewriter",
    "Target",
    "__version__",
    "fold_all_batch_norms",
    "insert_stubs",
    "inspect_model",
    "load_checkpoint",
    "prepare_model",
    "quantization",
    "register_op",
    "save_checkpoint",
    "validate_model",
]
