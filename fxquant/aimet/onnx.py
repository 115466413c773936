"""`onnx.export(sim, args, f)`: one ONNX file with quantizers in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant.aimet.onnx_export import export_file

if TYPE_CHECKING:
    from pathlib import Path

    from fxquant.onnx.parity.report import ParityReport
    from fxquant.sim import QuantizationSimModel


def export(
    model: QuantizationSimModel,
    args: Any,
    f: str | Path,
    *,
    export_int32_bias: bool = True,
    prequantize_constants: bool = False,
    force_activation_as: str | None = "unsigned",
    **kwargs: Any,
) -> ParityReport:
    """Write a simulation as ONNX, proven against onnxruntime.

    Args:
        model: the simulation.
        args: inputs of the proof.
        f: path of the file.
        export_int32_bias: False is refused: biases of integer kernels are int32.
        prequantize_constants: weights are stored as integers in any case.
        force_activation_as: as in `sim.onnx.export`.
        kwargs: of `torch.onnx.export`: `opset_version` is used.

    Raises:
        ConfigError: FXQ905, an argument asks for what cannot be had.
        ExportError: as for `fxquant.QuantizationSimModel.export`.
    """
    return export_file(
        model, args, f, {".onnx"}, kwargs, bias=export_int32_bias, activation=force_activation_as
    )
