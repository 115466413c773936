"""`QuantizationSimModel` with AIMET's arguments in AIMET's order, and what stands beside it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch

from fxquant import checkpoint, editing, sim
from fxquant.aimet.checkpoints import edit_as_saved, save_checkpoint, saved_here
from fxquant.aimet.defs import QuantizationDataType
from fxquant.aimet.float_simulation import to_float16
from fxquant.aimet.input_quantizers import link_inputs
from fxquant.aimet.learned_ranges import learn_ranges
from fxquant.aimet.model_preparer import recorded
from fxquant.aimet.onnx_export import OnnxExporter, export_files
from fxquant.aimet.sim_arguments import (
    Given,
    QuantParams,
    bits_of,
    in_order,
    require_nearest,
    supported_kernels,
)
from fxquant.io.state_dicts import write_tensors
from fxquant.io.writing import as_path, checked_prefix
from fxquant.nn import compute_encodings
from fxquant.nn.modes import evaluating
from fxquant.quantization import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from torch import fx, nn

    from fxquant.config import QuantConfig
    from fxquant.encodings.load import Loaded
    from fxquant.nn import QuantizationMixin
    from fxquant.onnx.parity.report import ParityReport
    from fxquant.targets import Target

__all__ = [
    "QuantParams",
    "QuantScheme",
    "QuantizationDataType",
    "QuantizationSimModel",
    "check_accumulator_overflow",
    "compute_encodings_for_sims",
    "load_checkpoint",
    "load_encodings_to_sim",
    "save_checkpoint",
]


class QuantizationSimModel(sim.QuantizationSimModel):
    """`fxquant.QuantizationSimModel` as AIMET calls it.

    Grids of the model's inputs show at the modules that read them (`input_quantizers`), and ranges
    are trained whatever the scheme is, unless `quantizer.requires_grad_(False)` says otherwise.

    Args:
        model: float model, or the result of `prepare_model`.
        dummy_input: a tensor, a tuple of positional inputs or a dict of keyword inputs.
        quant_scheme: how ranges are found.
        rounding_mode: "nearest"; the newer signature, which goes on with the bits, is understood.
        default_output_bw: bits of activations.
        default_param_bw: bits of weights.
        in_place: build the simulation in the prepared graph that was handed in.
        config_file: a configuration, AIMET's or one's own.
        default_data_type: `QuantizationDataType.int`; or `float` with 16 bits, in which weights and
            activations are rounded to float16.
        config: see `fxquant.QuantizationSimModel`.
        target: see `fxquant.QuantizationSimModel`.

    Raises:
        ModelError: the model cannot be prepared.
        ConfigError: FXQ906 an argument means nothing here; as for `fxquant.QuantizationSimModel`.
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        quant_scheme: QuantScheme | str | None = QuantScheme.post_training_tf_enhanced,
        rounding_mode: str = "nearest",
        default_output_bw: int = 8,
        default_param_bw: int = 8,
        in_place: bool = False,
        config_file: str | Path | None = None,
        default_data_type: QuantizationDataType = QuantizationDataType.int,
        *,
        config: QuantConfig | dict[str, Any] | str | Path | None = None,
        target: Target | str = "onnxruntime_x86",
    ) -> None:
        given = in_order(
            Given(
                rounding_mode, default_output_bw, default_param_bw, in_place, config_file,
                default_data_type,
            )
        )  # fmt: skip
        require_nearest(given.rounding_mode)
        bits, floats = bits_of(given, configured=(config or given.config_file) is not None)
        recorded(model, dummy_input)
        super().__init__(
            model, dummy_input, quant_scheme or QuantScheme.min_max, *bits, config=config,
            config_file=given.config_file, target=target, in_place=given.in_place,
        )  # fmt: skip
        self._config_file = given.config_file
        link_inputs(self.model)
        learn_ranges(self.model)
        if floats:
            to_float16(self.model)

    @property
    def onnx(self) -> OnnxExporter:
        """`sim.onnx.export(args, f, ...)` writes the ONNX file and its encodings."""
        return OnnxExporter(self)

    def quant_wrappers(self) -> Iterator[tuple[str, QuantizationMixin]]:
        """Another name of `named_qmodules`."""
        return self.named_qmodules()

    # --- files ---------------------------------------------------------------------------------

    def export(
        self,
        path: str | Path,
        filename_prefix: str,
        dummy_input: Any = None,
        onnx_export_args: Any = None,
        propagate_encodings: bool = False,
        export_to_torchscript: bool = False,
        use_embedded_encodings: bool = False,
        export_model: bool = True,
        filename_prefix_encodings: str | None = None,
        apply_param_qdq: bool = True,
        **options: Any,
    ) -> ParityReport:
        """Write integer ONNX and its encodings, proven against onnxruntime.

        Beside the files of `fxquant.QuantizationSimModel.export` there is
        `<prefix>_torch.encodings`, keyed by module, which `load_encodings` takes.

        Args:
            path: folder; it is made when missing.
            filename_prefix: how the files are called.
            dummy_input: inputs of the proof; default: those of the constructor.
            onnx_export_args: of `torch.onnx.export`, as a dict or an object: `opset_version` is
                used, names must be those that the model has, the rest has no meaning.
            propagate_encodings: refused: the ONNX file has the grids of all tensors.
            export_to_torchscript: refused: the file is ONNX.
            use_embedded_encodings: grids are in the ONNX file in any case.
            export_model: False keeps the encodings only.
            filename_prefix_encodings: how the encodings are called, if not like the model.
            apply_param_qdq: weights lie on their grids in any case.
            options: `opset`, `prove`, `contrib`, `deploy` and `encoding_version`, as in
                `fxquant.QuantizationSimModel.export`.

        Raises:
            ConfigError: FXQ905, an argument asks for what cannot be had.
            ExportError: as for `fxquant.QuantizationSimModel.export`.
        """
        asked = {
            "propagate_encodings": propagate_encodings,
            "export_to_torchscript": export_to_torchscript,
        }
        return export_files(
            self, super().export, (path, filename_prefix, dummy_input), onnx_export_args, asked,
            options, keep_model=export_model, encodings_prefix=filename_prefix_encodings,
        )  # fmt: skip

    def export_weights_to_safetensors(self, path: str | Path, filename_prefix: str) -> None:
        """Write the weights, on their grids, to `<path>/<filename_prefix>.safetensors`."""
        weights = self.get_original_model(self.model, qdq_weights=True).state_dict()
        file = as_path(path) / f"{checked_prefix(filename_prefix)}.safetensors"
        write_tensors({k: v.detach().cpu().clone() for k, v in weights.items()}, file)

    # --- encodings -----------------------------------------------------------------------------

    def load_and_freeze_encodings(
        self,
        encoding_path: str | Path | Mapping[str, Any],
        ignore_when_quantizer_disabled: bool = False,
    ) -> Loaded:
        """Take the grids of an encodings file, and freeze them: neither calibrated nor trained.

        Args:
            encoding_path: path of the file, or its content.
            ignore_when_quantizer_disabled: entries without a quantizer are left out.

        Raises:
            CheckpointError, SelectorError, QuantizationError: as for `load_encodings`.
        """
        return self.load_encodings(
            encoding_path, strict=not ignore_when_quantizer_disabled, partial=True,
            requires_grad=False, allow_overwrite=False,
        )  # fmt: skip

    def get_activation_param_encodings(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Encodings of activations and of parameters: version 0.6.1, keyed by module."""
        found = self.get_encodings()
        return found["activation_encodings"], found["param_encodings"]

    def get_supported_kernels(self) -> dict[str, Any]:
        """Lists of kernels of the configuration file, by operator type, as written."""
        return supported_kernels(self._config_file)

    @classmethod
    def get_original_model(  # type: ignore[override]
        cls, model: fx.GraphModule, qdq_weights: bool = False
    ) -> fx.GraphModule:
        """A copy of `sim.model` without quantizers.

        Args:
            model: `sim.model`.
            qdq_weights: give the weights the values of their grids.
        """
        return editing.original_model(model, qdq_weights=qdq_weights)


def load_checkpoint(
    file_path: str | Path, *, model: nn.Module | None = None, dummy_input: Any = None
) -> sim.QuantizationSimModel:
    """The simulation that was saved.

    Args:
        file_path: the folder.
        model: the float model; needed in another process than the one that saved.
        dummy_input: with a model: inputs as those of the simulation that was saved.

    Raises:
        CheckpointError: FXQ608 another process saved it and there is no model; as for
            `fxquant.load_checkpoint`.
    """
    if model is None:
        found = saved_here(file_path)
    else:
        config, target, quantizers = checkpoint.setup_of(file_path)
        found = QuantizationSimModel(model, dummy_input, config=config, target=target)
        edit_as_saved(found, quantizers)
    checkpoint.load_checkpoint(found, file_path)
    return found


def load_encodings_to_sim(
    quant_sim_model: QuantizationSimModel, pytorch_encoding_path: str | Path
) -> Loaded:
    """Take the grids of an encodings file; quantizers for which it has nothing are taken out."""
    return quant_sim_model.load_encodings(
        pytorch_encoding_path, strict=True, partial=False, requires_grad=None, allow_overwrite=None
    )


def compute_encodings_for_sims(
    sim_list: Sequence[QuantizationSimModel],
    forward_pass_callback: Callable[..., Any],
    forward_pass_callback_args: Any,
) -> None:
    """Calibrate several simulations of one pipeline in one go.

    Args:
        sim_list: the simulations.
        forward_pass_callback: `callback([sim.model, ...], args)`.
        forward_pass_callback_args: its second argument.
    """
    models = [one.model for one in sim_list]
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for one in models:
            editing.refresh_biases(one)
            stack.enter_context(evaluating(one))
            stack.enter_context(compute_encodings(one))
        forward_pass_callback(models, forward_pass_callback_args)


def check_accumulator_overflow(
    model: nn.Module, quant_bw: int, accum_bw: int
) -> tuple[str | None, float]:
    """How much of an accumulator's range the convolutions of a model can use.

    A sum over a filter of quantized weights and inputs that are as large as they can be; nothing is
    assumed of the inputs.

    Args:
        model: the float model.
        quant_bw: bits of weights and activations.
        accum_bw: bits of the accumulator.

    Returns:
        Path of the convolution that uses most, and the share of the range: above 1 it overflows.
    """
    worst: tuple[str | None, float] = (None, 0.0)
    for path, layer in model.named_modules():
        if isinstance(layer, torch.nn.Conv2d):
            weight = layer.weight.detach().double()
            low, high = weight.min().clamp(max=0.0), weight.max().clamp(min=0.0)
            step = (high - low) / (2**quant_bw - 1)
            sums = torch.round(weight / step).abs().flatten(1).sum(1) * (2**quant_bw - 1)
            share = float(sums.max()) / 2 ** (accum_bw - 1)
            worst = max(worst, (path, share), key=lambda found: found[1])
    return worst
