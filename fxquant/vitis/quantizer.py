"""`torch_quantizer`: calibrate in one process, test and export in the same or in another one.

    # first                                            # later, perhaps elsewhere
    q = torch_quantizer("calib", net, (x,))            q = torch_quantizer("test", net, (x,))
    for batch in data: q.quant_model(batch)            evaluate(q.quant_model)
    q.export_quant_config()                            q.export_onnx_model()

The two are joined by `quant_info.json` in `output_dir`; outputs agree bit for bit.
"""

from __future__ import annotations

import copy
import io
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxquant.analysis.shifts import ShiftReport, check_shifts
from fxquant.errors import CalibrationError, ConfigError
from fxquant.io.writing import as_path, new_file
from fxquant.nn import QuantizationMixin
from fxquant.nn.calibration import fit_biases
from fxquant.passes import align_grids, approximate
from fxquant.prepare import prepare_model
from fxquant.quantization import QuantScheme
from fxquant.sim import QuantizationSimModel
from fxquant.targets import Target, load_target
from fxquant.vitis.finetuning import Finetuning
from fxquant.vitis.info import NAME, load_info, read_info, write_info
from fxquant.vitis.inputs import example_inputs, moved_to
from fxquant.vitis.running_calibration import Following
from fxquant.vitis.setup import aligned, configuration, target_of
from fxquant.vitis.specify import specify
from fxquant.vitis.strategy import Strategy, load_strategy
from fxquant.vitis.xmodel import RefusesXmodel

if TYPE_CHECKING:
    from fxquant.onnx.parity.report import ParityReport

log = logging.getLogger("fxquant")

_MODES = ("calib", "test")


class TorchQuantizer(Finetuning, RefusesXmodel):
    """What `torch_quantizer` returns.

    Attributes:
        quant_model: the quantized model; in "calib" mode calls of it are the calibration.
        target: what the model is quantized for.
        strategy: rules of the strategy file, or None.
        changes: approximations of the user's mathematics that were asked for, one line each.
    """

    def __init__(
        self,
        quant_mode: str,
        module: nn.Module,
        inputs: Any,
        folder: Path,
        options: Mapping[str, Any],
    ) -> None:
        self.mode, self.folder, self._name = quant_mode, folder, type(module).__name__
        self._info = read_info(folder) if quant_mode == "test" else None
        chosen = _remembered(options, self._info)
        self.strategy = _strategy(chosen["strategy"])
        self.target = target_of(chosen["target"], self.strategy)
        self._options = {**chosen, "target": self.target.name}
        prepared = prepare_model(module, inputs)
        self.changes = _approximated(prepared, chosen["approximate"], self.strategy, self.target)
        config = configuration(prepared, chosen["bitwidth"], self.strategy, self.target)
        self._sim = QuantizationSimModel(
            prepared, inputs, QuantScheme.post_training_tf_enhanced, in_place=True,
            config=config, target=self.target,
        )  # fmt: skip
        self.quant_model: fx.GraphModule = self._sim.model.eval()
        statistics: dict[nn.Module, str] = {}
        if self.strategy is not None:
            statistics = specify(self.quant_model, self.strategy, self.target)
        self._following: Following | None = None
        if self._info is not None:
            load_info(self.quant_model, self._info)
        else:
            self._following = Following(self.quant_model, statistics)

    # --- calibration -----------------------------------------------------------------------

    def export_quant_config(self, output_dir: str | Path | None = None) -> Path:
        """End the calibration and write `quant_info.json`.

        Args:
            output_dir: folder; default: that of `torch_quantizer`.

        Returns:
            The file.

        Raises:
            ConfigError: FXQ281, in "test" mode there is no calibration to write.
            CalibrationError: FXQ432, `quant_model` was never called.
        """
        if self.mode != "calib":
            fix = "calibrate with quant_mode='calib'; 'test' reads what that wrote"
            raise ConfigError("FXQ281", "export_quant_config belongs to calibration", fix=fix)
        self._end_calibration()
        path = as_path(output_dir or self.folder) / NAME
        write_info(self.quant_model, path, self._options, finetuned=self.finetuned is not None)
        return path

    def _end_calibration(self) -> None:
        following = self._following
        if following is None or not following.active:
            return
        if not following.batches:
            raise CalibrationError(
                "FXQ432",
                "the model was never called, so there is nothing to calibrate on",
                fix="call quant_model on calibration data (quant_mode='calib') first",
            )
        following.stop()
        kinds = aligned(self.strategy)
        if kinds:
            align_grids.AlignGrids(operators=kinds)(self.quant_model)
            fit_biases(self.quant_model)  # their steps follow those of the inputs

    # --- looking ---------------------------------------------------------------------------

    def check_shifts(self) -> ShiftReport:
        """Compare the shifts of the calibrated model with the ranges of the target."""
        return check_shifts(self.quant_model, self.target)

    # --- export ----------------------------------------------------------------------------

    def export_onnx_model(
        self,
        output_dir: str | Path | None = None,
        *,
        opset_version: int | None = None,
        check_model: bool = True,
    ) -> ParityReport:
        """Write `<Model>_int.onnx`, and prove it against onnxruntime.

        Args:
            output_dir: folder; default: that of `torch_quantizer`.
            opset_version: ONNX opset; default: the strategy's, or 21.
            check_model: compare with onnxruntime before the file gets its name.

        Returns:
            The report of the proof.

        Raises:
            CalibrationError: FXQ432, `quant_model` was never called.
            ExportError: the model cannot be written, or onnxruntime computes something else.
        """
        self._end_calibration()
        self._require_finetuned()
        wanted = opset_version or (self.strategy.onnx_opset_version if self.strategy else None)
        return self._sim.export(
            output_dir or self.folder, f"{self._name}_int", opset=wanted or 21, prove=check_model
        )

    def export_torch_script(self, output_dir: str | Path | None = None) -> Path:
        """Write `<Model>_int.pt2` with PyTorch's exporter; `torch.export.load` reads it.

        The program calls the operator `fxquant::quantize_dequantize`, so fxquant must be imported
        before it is loaded.

        Args:
            output_dir: folder; default: that of `torch_quantizer`.

        Returns:
            The file.

        Raises:
            ExportError: FXQ542 to FXQ545, it cannot be written.
        """
        self._end_calibration()
        self._require_finetuned()
        args, kwargs = self._sim._example
        with torch.no_grad():
            program = torch.export.export(_baked(self.quant_model), args, kwargs)
        path = as_path(output_dir or self.folder) / f"{self._name}_int.pt2"
        content = io.BytesIO()
        torch.export.save(program, content)
        with new_file(path) as file:
            file.write_bytes(content.getbuffer())
        return path


def _baked(model: fx.GraphModule) -> fx.GraphModule:
    """A copy whose parameters are quantized already: an exporter needs no grids of weights."""
    made = copy.deepcopy(model)
    for module in made.modules():
        if not isinstance(module, QuantizationMixin):
            continue
        for name, quantizer in list(module.param_quantizers.active()):
            parameter = getattr(module, name)
            parameter.copy_(quantizer.transform(parameter))
            module.param_quantizers[name] = None
    return made


def torch_quantizer(
    quant_mode: str,
    module: nn.Module,
    input_args: Any = None,
    input_kwargs: Mapping[str, Any] | None = None,
    *,
    output_dir: str | Path = "quantize_result",
    bitwidth: int | None = None,
    device: torch.device | str | None = None,
    quant_config_file: str | Path | Mapping[str, Any] | None = None,
    target: str | Target | None = None,
    approximate: bool = False,
) -> TorchQuantizer:
    """Quantize a network: "calib" to calibrate it, "test" to use what a calibration has written.

    Args:
        quant_mode: "calib" or "test".
        module: the float network; it is not changed.
        input_args: example inputs: a tensor or a tuple of positional inputs.
        input_kwargs: keyword inputs, if the network takes no positional ones.
        output_dir: folder of `quant_info.json` and of exports.
        bitwidth: bits of weights and activations; default: the strategy's or the target's.
        device: where the network runs; default: where it is.
        quant_config_file: strategy, a JSON file or its content.
        target: name of a shipped target, or a `Target`; default in "test" mode: that of the
            calibration, else the strategy's device, else onnxruntime.
        approximate: permit the approximations that the target computes with; they are listed in
            `changes`. Without it the network's mathematics stays as it is.

    Returns:
        The quantizer; `quant_model` is the network to call.

    Raises:
        ConfigError: FXQ27x the strategy is wrong, FXQ28x arguments contradict each other.
        CheckpointError: FXQ62x, in "test" mode there is no calibration that fits.

    Example:
        >>> import tempfile
        >>> net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()), torch.randn(8, 4)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     q = torch_quantizer("calib", net, (x,), output_dir=folder)
        ...     y = q.quant_model(x)
        ...     path = q.export_quant_config()
        ...     later = torch_quantizer("test", net, (x,), output_dir=folder)
        ...     same = torch.equal(later.quant_model(x), q.quant_model(x))
        >>> same
        True
    """
    if quant_mode not in _MODES:
        what = f"quant_mode is {quant_mode!r}"
        raise ConfigError("FXQ280", what, fix="use 'calib' or 'test'")
    if not isinstance(module, nn.Module):
        what = f"module is a {type(module).__name__}, not a torch.nn.Module"
        raise ConfigError("FXQ282", what, fix="pass the float network")
    inputs = example_inputs(input_args, input_kwargs)
    if device is not None:
        module, inputs = moved_to(module, inputs, torch.device(device))
    options = {
        "bitwidth": bitwidth, "approximate": approximate, "target": target,
        "strategy": quant_config_file,
    }  # fmt: skip
    return TorchQuantizer(quant_mode, module, inputs, as_path(output_dir, "output_dir"), options)


def _remembered(options: Mapping[str, Any], info: dict[str, Any] | None) -> dict[str, Any]:
    """The options, and in "test" mode those of the calibration where none is given.

    Raises:
        ConfigError: FXQ284, one differs from that of the calibration.
    """
    chosen = dict(options)
    if chosen["strategy"] is not None:
        chosen["strategy"] = load_strategy(chosen["strategy"]).model_dump(
            mode="json", exclude_none=True
        )
    known = (info or {}).get("fxquant", {})
    for key, value in options.items():
        if key not in known:
            continue
        given = chosen[key]
        name = given.name if isinstance(given, Target) else given
        if isinstance(given, str) and key == "target":
            name = load_target(given).name
        if value in (None, False):
            chosen[key] = known[key]
        elif name != known[key]:
            label = "quant_config_file" if key == "strategy" else key
            what = f"{label} is not what the calibration was made with ({known[key]})"
            raise ConfigError("FXQ284", what, fix=f"leave {label} out, or calibrate again")
    return chosen


def _strategy(source: Any) -> Strategy | None:
    return None if source is None else load_strategy(source)


def _approximated(
    prepared: fx.GraphModule, permitted: bool, strategy: Strategy | None, target: Target
) -> tuple[str, ...]:
    kinds = list(target.approximations) if permitted else []
    asked = {
        "relu6": bool(strategy and strategy.convert_relu6_to_relu),
        "silu": bool(strategy and strategy.convert_silu_to_hswish),
    }
    for kind in (k for k, wanted in asked.items() if wanted):
        if not permitted:
            what = f"the strategy converts {kind}, which changes what the network computes"
            raise ConfigError("FXQ277", what, fix="pass approximate=True, or set it to false")
        kinds.append(kind)
    if not kinds:
        return ()
    outcome = approximate.Approximate(operators=tuple(dict.fromkeys(kinds)))(prepared)
    log.info("approximated %d operator(s)", outcome.changes)
    return approximate.listed(prepared)
