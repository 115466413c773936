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
    from fxquant.checkpoint import load_checkpoint, save_checkpoint
    from fxquant.config import QuantConfig
    from fxquant.errors import FxQuantError
    from fxquant.graph.pass_infra import Pass, Pipeline
    from fxquant.graph.rewriter import Rewriter
    from fxquant.ops import Op, register_op
    from fxquant.prepare import prepare_model
    from fxquant.ptq.bn_fold import fold_all_batch_norms
    from fxquant.ptq.bn_reestimation import reestimate_bn_stats
    from fxquant.ptq.cross_layer.equalization import equalize_model
    from fxquant.ptq.fold_to_scale import fold_all_batch_norms_to_scale
    from fxquant.ptq.smoothing.smooth import smooth_model
    from fxquant.quantization import QuantScheme
    from fxquant.regions import insert_stubs
    from fxquant.sim import QuantizationSimModel
    from fxquant.targets import Target
    from fxquant.validate import ModelValidator, validate_model
else:
    _HOMES = {
        "FxQuantError": "errors",
        "ModelValidator": "validate",
        "Op": "ops",
        "Pass": "graph.pass_infra",
        "Pipeline": "graph.pass_infra",
        "QuantConfig": "config",
        "QuantScheme": "quantization",
        "QuantizationSimModel": "sim",
        "Rewriter": "graph.rewriter",
        "Target": "targets",
        "equalize_model": "ptq.cross_layer.equalization",
        "fold_all_batch_norms": "ptq.bn_fold",
        "fold_all_batch_norms_to_scale": "ptq.fold_to_scale",
        "insert_stubs": "regions",
        "inspect_model": "analysis.inspect",
        "load_checkpoint": "checkpoint",
        "prepare_model": "prepare",
        "reestimate_bn_stats": "ptq.bn_reestimation",
        "register_op": "ops",
        "save_checkpoint": "checkpoint",
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
    "equalize_model",
    "fold_all_batch_norms",
    "fold_all_batch_norms_to_scale",
    "insert_stubs",
    "inspect_model",
    "load_checkpoint",
    "prepare_model",
    "quantization",
    "reestimate_bn_stats",
    "register_op",
    "save_checkpoint",
    "smooth_model",
    "validate_model",
]
