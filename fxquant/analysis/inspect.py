"""The operators of a model, or of a simulation, on a target: what is quantized, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant.errors import ConfigError
from fxquant.inspection.rows import Inspection, InspectionRow, inspect_simulation
from fxquant.sim import QuantizationSimModel

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from fxquant.config import QuantConfig
    from fxquant.targets import Target

__all__ = ["Inspection", "InspectionRow", "inspect_model"]

_TARGET = "onnxruntime_x86"


def inspect_model(
    model: nn.Module | QuantizationSimModel,
    dummy_input: Any = None,
    *,
    config: QuantConfig | dict[str, Any] | str | Path | None = None,
    target: Target | str = _TARGET,
    runtime: bool | None = None,
) -> Inspection:
    """Show what is quantized, with which grid and kernel, and why.

    Of a float model it is what would be quantized, before anything is calibrated. Of a simulation
    it is what stands there now, with ranges where it is calibrated.

    Args:
        model: float model, prepared graph or simulation; it is not changed.
        dummy_input: example inputs, as for `prepare_model`; a simulation has its own.
        config: as for `QuantizationSimModel`; a simulation has its own.
        target: as for `QuantizationSimModel`; a simulation has its own.
        runtime: read the kernels from the graph that onnxruntime makes of the exported model, in
            place of the rules of the target; default: of a calibrated simulation whose target is
            onnxruntime.

    Returns:
        One row per operator, in the order of execution.

    Raises:
        ConfigError: FXQ289, a simulation and what it has already are given, or a model without
            inputs.
        UncalibratedError: `runtime` is True and a grid has no range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Softmax(1))
        >>> for row in inspect_model(net, torch.randn(1, 3, 8, 8)).rows:
        ...     print(row.node, row.kind, row.precision)
        input_1_stub boundary uint8
        _0 integer uint8 x int8
        _1 integer uint8
        _2 float float32
    """
    if isinstance(model, QuantizationSimModel):
        chosen = None if target == _TARGET else target
        given = {"dummy_input": dummy_input, "config": config, "target": chosen}
        twice = [name for name, value in given.items() if value is not None]
        if twice:
            what = f"a simulation has its own {', '.join(twice)}"
            raise ConfigError("FXQ289", what, fix="leave it out, or pass the float model")
        sim = model
    else:
        if dummy_input is None:
            fix = "pass dummy_input, as for QuantizationSimModel"
            raise ConfigError("FXQ289", "a model without example inputs cannot be traced", fix=fix)
        sim = QuantizationSimModel(model, dummy_input, config=config, target=target)
    if runtime is None:
        runtime = sim.target.contrib and all(q.is_initialized() for q in sim.quantizers())
    return inspect_simulation(sim, runtime=runtime)
