"""Other spellings of the documented modules: those of versions 1 and 2, and of single files.

Over the years the same things were documented under several paths: `aimet_torch.v2.quantsim`,
`aimet_torch.quantsim.quantsim`, `aimet_common.defs`. Each of them is a row here instead of a file.
An alias loads its module when something is asked of it, and hands out that module's own objects.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from typing import Any

from fxquant.aimet.nn.custom import AbsentError

_ROOT = "fxquant.aimet"
_PACKAGES = ("common", "v1", "v2")

# spelling -> module, both below `fxquant.aimet`
SPELLINGS = {
    "adaround.adaround_weight": "adaround",
    "amp": "mixed_precision",
    "amp.mixed_precision_algo": "mixed_precision",
    "auto_quant_v2": "auto_quant",
    "common.defs": "defs",
    "common.utils": "utils",
    "common.quantsim_config": "quantsim_config",
    "common.quantsim_config.utils": "quantsim_config",
    "custom": "nn.custom",
    "elementwise_ops": "nn.custom",
    "mixed_precision.manual_mixed_precision": "mixed_precision",
    "mixed_precision.utils": "mixed_precision",
    "model_validator.model_validator": "model_validator",
    "nn.base": "nn",
    "nn.true_quant": "nn",
    "nn.fake_quant": "nn",
    "nn.modules": "nn",
    "nn.modules.custom": "nn.custom",
    "onnx_utils": "onnx_export",
    "quantization.affine.backends": "quantization.affine",
    "quantization.affine.encoding": "quantization.affine",
    "quantization.affine.quantizer": "quantization.affine",
    "quantization.base.encoding": "quantization.base",
    "quantization.base.quantizer": "quantization.base",
    "quantization.float.encoding": "quantization.float",
    "quantization.float.quantizer": "quantization.float",
    "quantsim.config_utils": "config_utils",
    "quantsim.quantsim": "quantsim",
    "quantsim_config.utils": "quantsim_config",
}
# what versions 1 and 2 have below a name of their own
_VERSIONED = (
    "adaround", "auto_quant", "batch_norm_fold", "bn_reestimation", "cross_layer_equalization",
    "mixed_precision", "model_preparer", "nn", "nn.custom", "quant_analyzer", "quantization",
    "quantization.affine", "quantization.base", "quantization.encoding_analyzer",
    "quantization.float", "quantization.tensor", "quantsim", "seq_mse", "utils",
)  # fmt: skip

# what is documented and cannot be had: why, and what to do instead
ABSENT = {
    "adascale": ("it trains transformer decoders block by block", "fxquant.ptq.reconstruct"),
    "arch_checker": ("its rules are those of one accelerator", "fxquant.inspect_model"),
    "compress": ("compression is not quantization", "torch.nn.utils.prune"),
    "experimental": (
        "what its helpers set for one accelerator, a target says",
        "QuantizationSimModel(target=...)",
    ),
    "gptvq": ("no runtime here computes with vectors of weights", "fxquant.ptq.reconstruct"),
    "layer_output_utils": (
        "tensors are written for the float model and the simulation together",
        "fxquant.analysis.debugging.layer_outputs.save_layer_outputs",
    ),
    "meta": ("the graph of a simulation is an fx graph", "sim.model.graph"),
    "nn.lora": ("adapters of quantized layers are our own", "fxquant.qat.add_adapters"),
    "omniquant": ("it is made for transformer decoders", "fxquant.smooth_model"),
    "peft": ("adapters of quantized layers are our own", "fxquant.qat.add_adapters"),
    "spinquant": ("rotations are made for transformer decoders", "fxquant.smooth_model"),
    "visualization_tools": ("one page holds all pictures", 'sim.report("report.html", data)'),
    "visualize_model": ("one page holds all pictures", 'sim.report("report.html", data)'),
    "winnow": ("compression is not quantization", "torch.nn.utils.prune"),
}


class _Alias(types.ModuleType):
    """A module under another name; it is loaded when something is asked of it."""

    def __init__(self, name: str, home: str) -> None:
        super().__init__(name, f"Another spelling of `{home}`.")
        self.__dict__["_home"] = home

    def __getattr__(self, name: str) -> Any:
        if name == "__path__":  # what lies below has rows of its own
            raise AttributeError(name)
        home = importlib.import_module(self.__dict__["_home"])
        if name == "__all__" and not hasattr(home, name):  # of `from ... import *`
            return [public for public in vars(home) if not public.startswith("_")]
        return getattr(home, name)

    def __dir__(self) -> list[str]:
        return dir(importlib.import_module(self.__dict__["_home"]))


class _Package(types.ModuleType):
    """A package of aliases, which has what the tree itself has."""

    def __init__(self, name: str) -> None:
        super().__init__(name, "The modules above, as other versions spell them.")
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(importlib.import_module(_ROOT), name)


class _Absent(types.ModuleType):
    """A module that is not here: whatever is asked of it is an error.

    Args:
        name: its name; all that documents name below it is absent, too.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__path__: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        why, instead = ABSENT[_absent(self.__name__)]
        what = f"{self.__name__}.{name} is not here: {why}"
        raise AbsentError("FXQ901", what, fix=f"instead there is {instead}")


def _absent(name: str) -> str:
    """The row of `ABSENT` that a module is, or lies below; nothing if there is none."""
    path = name.removeprefix(f"{_ROOT}.") if name.startswith(f"{_ROOT}.") else ""
    return next((row for row in ABSENT if path == row or path.startswith(f"{row}.")), "")


class _BelowAbsent(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds modules below those that are absent, so that they can say so."""

    def find_spec(
        self, fullname: str, path: Any = None, target: Any = None
    ) -> importlib.machinery.ModuleSpec | None:
        """A module that is absent, or None."""
        found = importlib.machinery.ModuleSpec(fullname, self, is_package=True)
        return found if _absent(fullname) else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """The module."""
        return _Absent(spec.name)

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing is in it."""


def install() -> None:
    """Make the spellings importable; done once, when `fxquant.aimet` is."""
    for package in _PACKAGES:
        _add(_Package(f"{_ROOT}.{package}"))
    for version in ("v1", "v2"):
        for name in _VERSIONED:
            _add(_Alias(f"{_ROOT}.{version}.{name}", f"{_ROOT}.{name}"))
        for name, home in SPELLINGS.items():
            _add(_Alias(f"{_ROOT}.{version}.{name}", f"{_ROOT}.{home}"))
    for name, home in SPELLINGS.items():
        _add(_Alias(f"{_ROOT}.{name}", f"{_ROOT}.{home}"))
    for name in ABSENT:
        _add(_Absent(f"{_ROOT}.{name}"))
    if not any(isinstance(finder, _BelowAbsent) for finder in sys.meta_path):
        sys.meta_path.append(_BelowAbsent())


def _add(module: types.ModuleType) -> None:
    sys.modules[module.__name__] = module
    parent, _, name = module.__name__.rpartition(".")
    above = sys.modules.get(parent)
    if above is not None and name not in vars(above):
        setattr(above, name, module)
