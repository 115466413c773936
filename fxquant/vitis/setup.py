"""What the ways into this door share: the target and the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant import ops
from fxquant.config import QuantConfig
from fxquant.errors import ConfigError
from fxquant.targets import Target, load_target

if TYPE_CHECKING:
    from torch import fx

    from fxquant.vitis.strategy import Strategy

DEFAULT_TARGET = "onnxruntime_x86"
_OF_DEVICE = {"DPU": "generic_pof2", "CPU": DEFAULT_TARGET, "GPU": DEFAULT_TARGET}


def target_of(given: str | Target | None, strategy: Strategy | None) -> Target:
    if given is None:
        given = _OF_DEVICE[strategy.target_device] if strategy else DEFAULT_TARGET
    target = load_target(given)
    if strategy and (strategy.target_device == "DPU") is not target.powers_of_two:
        has = "only has" if target.powers_of_two else "does not have"
        what = f"target_device={strategy.target_device}, but {target.name} {has} powers of two"
        raise ConfigError("FXQ275", what, fix="change target_device, or take another target")
    return target


def configuration(
    prepared: fx.GraphModule, bitwidth: int | None, strategy: Strategy | None, target: Target
) -> QuantConfig:
    """The base that the strategy's rules then change."""
    said = strategy.overall_quantize_config.bit_width if strategy else None
    if bitwidth is not None and said is not None and bitwidth != said:
        what = f"bitwidth={bitwidth}, but overall_quantize_config.bit_width={said}"
        raise ConfigError("FXQ276", what, fix="give one of them")
    bits = bitwidth or said
    kept = _kept(prepared, strategy) if strategy else ()
    config = QuantConfig(
        activation_bitwidth=bits or target.activation.bitwidth,
        weight_bitwidth=bits or target.weight.bitwidth,
        keep_float=kept,
    )
    target.check(config)
    return config


def _kept(prepared: fx.GraphModule, strategy: Strategy) -> tuple[str, ...]:
    """Paths of the modules that stay in floating point for the sake of accuracy."""
    rows = [(n, ops.row_of(n, prepared)) for n in prepared.graph.nodes if n.op == "call_module"]
    weighted = [str(n.target) for n, row in rows if row is not None and row.weight_axis is not None]
    kept: list[str] = []
    if strategy.keep_first_last_layer_accuracy and weighted:
        kept += [weighted[0], weighted[-1]]
    if strategy.keep_add_layer_accuracy:
        kept += [str(n.target) for n, row in rows if row is not None and row.name == "add"]
    return tuple(dict.fromkeys(kept))


def aligned(strategy: Strategy | None) -> tuple[str, ...]:
    """Operators whose operands are put on the grid of their result."""
    if strategy is None:
        return ()
    kinds: list[str] = []
    if strategy.change_concat_input_fix:
        kinds += ["cat", "stack"]
    if strategy.change_pool_input_fix:
        kinds += ["avg_pool1d", "avg_pool2d", "avg_pool3d"]
    if strategy.change_add_input_fix:
        kinds += ["add"]
    return tuple(kinds)
