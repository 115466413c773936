"""Quantizers of a simulated model by module path, for tests that look at them."""

from __future__ import annotations

from typing import Any

from torch import nn


def output_of(model: nn.Module, path: str, index: int = 0) -> Any:
    """The quantizer of one output of a module."""
    module: Any = model.get_submodule(path)
    return module.output_quantizers[index]


def param_of(model: nn.Module, path: str, name: str) -> Any:
    """The quantizer of a parameter of a module."""
    module: Any = model.get_submodule(path)
    return module.param_quantizers[name]
