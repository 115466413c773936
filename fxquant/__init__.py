"""fxquant: from a trained PyTorch network to integer ONNX that is proven.

The public names are the ones listed here. A name is loaded when it is first asked for, so that
`import fxquant` and the command line start at once.
"""

from __future__ import annotations

import importlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from fxquant._version import __version__

if TYPE_CHECKING:
    from fxquant import nn as nn  # not in __all__, where it would hide torch.nn
    from fxquant import quantization as quantization
    from fxquant.analysis.inspect import inspect_model
    from fxquant.analysis.quant_analyzer import QuantAnalyzer
    from fxquant.auto.auto_quant import AutoQuant
    from fxquant.auto.one_call import quantize
    from fxquant.checkpoint import load_checkpoint, save_checkpoint
    from fxquant.config import QuantConfig
    from fxquant.errors import FxQuantError
    from fxquant.graph.pass_infra import Pass, Pipeline
    from fxquant.graph.rewriter import Rewriter
    from fxquant.inspection.audit.calibration_audit import audit_calibration
    from fxquant.mixed_precision.choose import choose_mixed_precision
    from fxquant.ops import Op, register_op
    from fxquant.precision.recurrent_weights import quantize_recurrent_weights
    from fxquant.precision.requests import set_precision
    from fxquant.prepare import prepare_model
    from fxquant.ptq.batch_norms.bn_fold import fold_all_batch_norms
    from fxquant.ptq.batch_norms.bn_reestimation import reestimate_bn_stats
    from fxquant.ptq.batch_norms.fold_to_scale import fold_all_batch_norms_to_scale
    from fxquant.ptq.cross_layer.equalization import equalize_model
    from fxquant.ptq.smoothing.smooth import smooth_model
    from fxquant.ptq.techniques.adaround import Adaround, AdaroundParameters
    from fxquant.ptq.techniques.bias_correction import correct_bias
    from fxquant.ptq.techniques.fast_finetune import fast_finetune
    from fxquant.ptq.techniques.seq_mse import SeqMseParams, apply_seq_mse
    from fxquant.quantization import QuantScheme
    from fxquant.regions import insert_stubs
    from fxquant.sim import QuantizationSimModel
    from fxquant.targets import Target
    from fxquant.validate import ModelValidator, validate_model
else:
    _HOMES = {
        "Adaround": "ptq.techniques.adaround",
        "AdaroundParameters": "ptq.techniques.adaround",
        "AutoQuant": "auto.auto_quant",
        "FxQuantError": "errors",
        "ModelValidator": "validate",
        "Op": "ops",
        "Pass": "graph.pass_infra",
        "Pipeline": "graph.pass_infra",
        "QuantAnalyzer": "analysis.quant_analyzer",
        "QuantConfig": "config",
        "QuantScheme": "quantization",
        "QuantizationSimModel": "sim",
        "Rewriter": "graph.rewriter",
        "SeqMseParams": "ptq.techniques.seq_mse",
        "Target": "targets",
        "apply_seq_mse": "ptq.techniques.seq_mse",
        "audit_calibration": "inspection.audit.calibration_audit",
        "correct_bias": "ptq.techniques.bias_correction",
        "choose_mixed_precision": "mixed_precision.choose",
        "equalize_model": "ptq.cross_layer.equalization",
        "fast_finetune": "ptq.techniques.fast_finetune",
        "fold_all_batch_norms": "ptq.batch_norms.bn_fold",
        "fold_all_batch_norms_to_scale": "ptq.batch_norms.fold_to_scale",
        "insert_stubs": "regions",
        "inspect_model": "analysis.inspect",
        "load_checkpoint": "checkpoint",
        "prepare_model": "prepare",
        "quantize": "auto.one_call",
        "quantize_recurrent_weights": "precision.recurrent_weights",
        "reestimate_bn_stats": "ptq.batch_norms.bn_reestimation",
        "register_op": "ops",
        "save_checkpoint": "checkpoint",
        "set_precision": "precision.requests",
        "smooth_model": "ptq.smoothing.smooth",
        "validate_model": "validate",
    }

    def __getattr__(name: str) -> Any:
        """A public name, or a part of the package: `fxquant.nn` needs no import of its own."""
        if name in _HOMES:
            found = getattr(importlib.import_module(f"fxquant.{_HOMES[name]}"), name)
            globals()[name] = found
            return found
        if not name.startswith("_") and find_spec(f"fxquant.{name}") is not None:
            return importlib.import_module(f"fxquant.{name}")
        what = f"module 'fxquant' has no attribute {name!r}"
        raise AttributeError(what)

    def __dir__() -> list[str]:
        return sorted({*globals(), *_HOMES, "nn", "quantization"})


__all__ = [
    "Adaround",
    "AdaroundParameters",
    "AutoQuant",
    "FxQuantError",
    "ModelValidator",
    "Op",
    "Pass",
    "Pipeline",
    "QuantAnalyzer",
    "QuantConfig",
    "QuantScheme",
    "QuantizationSimModel",
    "Rewriter",
    "SeqMseParams",
    "Target",
    "__version__",
    "apply_seq_mse",
    "audit_calibration",
    "choose_mixed_precision",
    "correct_bias",
    "equalize_model",
    "fast_finetune",
    "fold_all_batch_norms",
    "fold_all_batch_norms_to_scale",
    "insert_stubs",
    "inspect_model",
    "load_checkpoint",
    "prepare_model",
    "quantization",
    "quantize",
    "quantize_recurrent_weights",
    "reestimate_bn_stats",
    "register_op",
    "save_checkpoint",
    "set_precision",
    "smooth_model",
    "validate_model",
]
