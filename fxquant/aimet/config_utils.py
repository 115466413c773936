"""Blocks and floating point for chosen modules: `aimet_torch.v2.quantsim.config_utils`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    import torch

    from fxquant.sim import QuantizationSimModel


def set_activation_quantizers_to_float(
    sim: QuantizationSimModel,
    arg: Any,
    exponent_bits: int | None = None,
    mantissa_bits: int | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Round activations to a floating-point format; see the method of the simulation."""
    sim.set_activation_quantizers_to_float(arg, exponent_bits, mantissa_bits, dtype)


def set_blockwise_quantization_for_weights(
    sim: QuantizationSimModel,
    arg: Any,
    bitwidth: int,
    symmetric: bool,
    block_size: int | Sequence[int],
) -> None:
    """Give weights one grid per block; see the method of the simulation."""
    sim.set_blockwise_quantization_for_weights(arg, bitwidth, symmetric, block_size)


def set_grouped_blockwise_quantization_for_weights(
    sim: QuantizationSimModel,
    arg: Any,
    bitwidth: int,
    symmetric: bool,
    decompressed_bw: int,
    block_size: int | Sequence[int],
    block_grouping: int | Sequence[int] = -1,
) -> None:
    """Give weights one grid per block, with grouped steps; see the method of the simulation."""
    sim.set_grouped_blockwise_quantization_for_weights(
        arg, bitwidth, symmetric, decompressed_bw, block_size, block_grouping
    )
