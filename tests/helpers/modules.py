"""Typed access to the modules of a simulation."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant.nn import QuantizationMixin

if TYPE_CHECKING:
    from fxquant import QuantizationSimModel


def quantized(sim: QuantizationSimModel, path: str) -> QuantizationMixin:
    """The quantized module at `path`."""
    found = sim.model.get_submodule(path)
    assert isinstance(found, QuantizationMixin), f"{path} is a {type(found).__name__}"
    return found
