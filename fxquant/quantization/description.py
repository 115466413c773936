"""What makes a grid beside its range, of every quantizer of a model, as JSON has it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from fxquant.quantization.quantizer_base import QuantizerBase

if TYPE_CHECKING:
    from torch import nn

# as far as a quantizer has it
_TRAITS = (
    "bitwidth", "signed", "symmetric", "qmin", "qmax", "block_size", "block_grouping",
    "decompressed_bw", "rounding", "dtype",
)  # fmt: skip


def describe_quantizers(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Class, grid and whether there is a range, of every quantizer by its path."""
    return {
        name: {"class": type(q).__name__, "initialized": q.is_initialized()}
        | {trait: _plain(getattr(q, trait)) for trait in _TRAITS if hasattr(q, trait)}
        for name, q in model.named_modules()
        if isinstance(q, QuantizerBase)
    }


def _plain(trait: Any) -> Any:
    if isinstance(trait, torch.dtype):
        return str(trait)
    return list(trait) if isinstance(trait, tuple) else trait
