"""QuantizationSimModel: a prepared model with a quantizer at every place the target has a grid."""

from __future__ import annotations

import copy
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxquant import calibrate, editing
from fxquant.config import QuantConfig
from fxquant.errors import ConfigError, ModelError, SelectorError, nearest
from fxquant.export_methods import ExportMethods
from fxquant.fingerprint import mark_calibrated
from fxquant.flags import require_flags
from fxquant.graph.absent_names import absence
from fxquant.graph.kept_state import random_numbers_kept
from fxquant.graph.meta import path_matches
from fxquant.graph.pass_infra import state_of
from fxquant.graph.rewriter import label
from fxquant.inspection.summary import quantizer_table, summary
from fxquant.nn import QuantizationMixin
from fxquant.nn.training_state import require_stored_weights
from fxquant.passes import simulation_pipeline
from fxquant.precision.requests import PrecisionChange, set_precision
from fxquant.prepare import call_arguments, is_prepared, prepare_model
from fxquant.quantization import QuantizerBase, QuantScheme, affine
from fxquant.targets import Target, load_target
from fxquant.targets.quantizer_choice import quantizer_for, set_training

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    import torch

    from fxquant.graph.selectors import Selector


class QuantizationSimModel(ExportMethods):
    """Simulates how a target computes a model in integers.

    The model that is handed in is prepared if it is not yet, and never changed: the simulation
    works on a copy. `sim.model` is an ordinary `torch.fx.GraphModule` whose modules are
    `Quantized*` classes at the paths the user gave them.

    Args:
        model: float model, or the result of `prepare_model`.
        dummy_input: example inputs: a tensor, a tuple of positional or a dict of keyword inputs.
        quant_scheme: how ranges are found; a `QuantScheme` or its name ("min_max", "tf_enhanced",
            "percentile", "mse", "entropy", "moving_average").
        default_output_bw: bits of activations, 2 to 32; default: the configuration's or target's.
        default_param_bw: bits of weights, 2 to 32; default: the configuration's or target's.
        others: refused: what comes after the bitwidths is given by keyword.
        config: a `QuantConfig`, a mapping of its fields or the path of a JSON file.
        config_file: the same as a path; the file may be one of AIMET's.
        target: name of a shipped target, or a `Target`.
        in_place: build the simulation in the prepared graph that was handed in.
        unknown: refused, with the nearest names.

    Raises:
        ModelError: the model cannot be prepared.
        ConfigError: FXQ230 the model holds quantized modules already, FXQ231 two configurations
            are given, FXQ233 and FXQ234 bitwidths are; FXQ235 an argument is unknown, FXQ236 a
            switch is neither True nor False; a configuration is wrong.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> x = torch.randn(4, 3)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2), nn.ReLU()), x)
        >>> sim.compute_encodings([x])
        >>> sim.model(x).shape
        torch.Size([4, 2])
    """

    def __init__(
        self,
        model: nn.Module,
        dummy_input: Any,
        quant_scheme: QuantScheme | str = QuantScheme.post_training_tf_enhanced,
        default_output_bw: int | None = None,
        default_param_bw: int | None = None,
        *others: Any,
        config: QuantConfig | dict[str, Any] | str | Path | None = None,
        config_file: str | Path | None = None,
        target: Target | str = "onnxruntime_x86",
        in_place: bool = False,
        **unknown: Any,
    ) -> None:
        _refuse_unknown(unknown)
        require_flags(in_place=in_place)
        _refuse_quantized(model)
        self.target = load_target(target)
        if config is not None and config_file is not None:
            raise ConfigError("FXQ231", "config and config_file are given", fix="leave one out")
        self.config = QuantConfig.load(config_file if config is None else config).with_bits(
            (default_output_bw, default_param_bw, *others), self.target.bitwidths
        )
        self.quant_scheme = QuantScheme(quant_scheme)
        self._example = call_arguments(dummy_input)
        prepared = model if is_prepared(model) else prepare_model(model, dummy_input)
        if not isinstance(prepared, fx.GraphModule):
            fix = "give a torch.nn.Module, or what prepare_model gave"
            raise ModelError("FXQ150", "preparation did not return a GraphModule", fix=fix)
        owned = in_place or prepared is not model
        self.model: fx.GraphModule = prepared if owned else copy.deepcopy(prepared)
        pipeline = simulation_pipeline(self.config, self.target, self.quant_scheme)
        with random_numbers_kept():  # new modules draw the parameters that they lose at once
            pipeline(self.model)

    @property
    def example(self) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword inputs that the simulation was made with."""
        return self._example  # type: ignore[no-any-return]

    # --- calibration ---------------------------------------------------------------------------

    def compute_encodings(
        self,
        forward_pass_callback: Callable[..., Any] | Iterable[Any],
        forward_pass_callback_args: Any = calibrate.NOT_GIVEN,
        *,
        progress: calibrate.Progress | None = None,
        threads: int | None = 1,
        merge: Callable[[fx.GraphModule], None] | None = None,
    ) -> None:
        """Calibrate: run data through the model and set every range.

        Activations are observed with the rounded weights, but with the float ones where weights
        have two bits or fewer.

        Args:
            forward_pass_callback: `callback(model, args)`, or an iterable of batches.
            forward_pass_callback_args: second argument of the callback.
            progress: called after each batch with (done, total or None).
            threads: of torch, see `calibrate`; 1 gives the same result on every machine.
            merge: called when all data have run, before ranges are chosen. Among several processes
                `fxquant.distributed.compute_encodings` merges what each of them has seen; this
                method calibrates on the data of its own process alone.

        Raises:
            CalibrationError: no data came, or a tensor held NaN or infinity (it is named).
        """
        editing.refresh_biases(self.model)  # quantizers may have been assigned by hand
        data = forward_pass_callback, forward_pass_callback_args
        calibrate.calibrate(self.model, *data, progress=progress, threads=threads, merge=merge)
        mark_calibrated(self.model)

    # --- looking -------------------------------------------------------------------------------

    def __str__(self) -> str:
        """What it is, on one screen: counts, sizes, what is in floating point, what comes next."""
        return summary(self)

    def table(self) -> str:
        """Every quantizer: where it stands, its type, range, step and zero point."""
        return quantizer_table(self.model)

    def named_qmodules(self) -> Iterator[tuple[str, QuantizationMixin]]:
        """(path, module) of every quantized module."""
        for name, module in self.model.named_modules():
            if isinstance(module, QuantizationMixin):
                yield name, module

    def qmodules(self) -> Iterator[QuantizationMixin]:
        """Every quantized module."""
        return (module for _, module in self.named_qmodules())

    def named_quantizers(self) -> Iterator[tuple[str, QuantizerBase]]:
        """(path, quantizer) of every quantizer; a shared one comes once."""
        for name, module in self.model.named_modules():
            if isinstance(module, QuantizerBase):
                yield name, module

    def quantizers(self) -> Iterator[QuantizerBase]:
        """Every quantizer, a shared one once."""
        return (quantizer for _, quantizer in self.named_quantizers())

    def explain(self, name: str) -> str:
        """Why a module, or every module that a glob matches, is quantized as it is.

        Raises:
            SelectorError: FXQ240, nothing matches.
        """
        nodes = {label(n): n for n in self.model.graph.nodes if n.op not in ("output", "get_attr")}
        found = [k for k in nodes if path_matches(name, k, below=True)]
        lost = None if found else absence(self.model, name)
        if lost is not None:
            raise lost.error("FXQ240")
        if not found:
            raise SelectorError("FXQ240", f"no module is called {name!r}", fix=nearest(name, nodes))
        return "\n".join(self._explain(nodes[k]) for k in found)

    def _explain(self, node: fx.Node) -> str:
        why = state_of(self.model).why.get(label(node), ("no tensor operation",))
        source = node.meta.get("source")
        head = f"{label(node)} ({source})" if source else label(node)
        lines = [head, *(f"  - {reason}" for reason in why)]
        if node.op == "call_module":
            lines += _quantizer_lines(self.model.get_submodule(str(node.target)))
        return "\n".join(lines)

    # --- changing ------------------------------------------------------------------------------

    def exclude_layers_from_quantization(
        self, layers_to_exclude: Iterable[Selector] | Selector
    ) -> None:
        """Let modules compute in floating point and hand on floating-point values.

        Grids of their inputs belong to the modules that make them and stay. To keep the grid of
        their output too, name them in `QuantConfig.keep_float` instead.

        Args:
            layers_to_exclude: modules of `sim.model`, classes, paths, globs or predicates
                `(module)` or `(path, module)`; a container stands for what is below it.

        Raises:
            SelectorError: FXQ213 a selector matches nothing, FXQ241 nothing quantized.
        """
        editing.exclude_layers(self.model, layers_to_exclude)

    def exclude_param_from_quantization(self, param_name_to_exclude: str) -> None:
        """Leave parameters in floating point: a name ("bias"), a path, or a glob of either.

        Raises:
            SelectorError: FXQ243, no parameter is called so.
        """
        editing.exclude_params(self.model, param_name_to_exclude)

    def set_percentile_value(self, percentile_value: float) -> None:
        """Set what the percentile scheme keeps, 50 to 100; it counts from calibration on.

        Raises:
            ConfigError: FXQ242, no quantizer uses percentiles.
            QuantizationError: FXQ415, the value is out of range.
        """
        editing.set_percentile(self.model, percentile_value)

    def set_activation_quantizers_to_float(
        self,
        arg: Iterable[Selector] | Selector,
        exponent_bits: int | None = None,
        mantissa_bits: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        """Round activations of modules to a narrow floating-point format instead of integers.

        Args:
            arg: the modules, as in `exclude_layers_from_quantization`.
            exponent_bits: with `mantissa_bits`, the format by its bits.
            mantissa_bits: see `exponent_bits`.
            dtype: the format as a type of PyTorch, instead of the bits.

        Raises:
            SelectorError: FXQ213, FXQ241 or FXQ244, there is nothing to change.
        """
        kind = {"exponent_bits": exponent_bits, "mantissa_bits": mantissa_bits, "dtype": dtype}
        editing.set_activations_to_float(self.model, arg, **kind)

    def set_precision(
        self,
        arg: Iterable[Selector] | Selector | fx.Node,
        activation: int | str | None = None,
        param: int | str | Mapping[str, int | str] | None = None,
        *,
        output: int | str | None = None,
        data: Callable[..., Any] | Iterable[Any] | None = None,
    ) -> PrecisionChange:
        """Give operators other bits, or floating point; the latest request for a grid counts.

        See `fxquant.set_precision`, which is the same.

        Example:
            >>> import torch
            >>> from torch import nn
            >>> x = torch.randn(4, 3)
            >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2)), x, "min_max")
            >>> sim.compute_encodings([x])
            >>> print(sim.set_precision("0", param=6))
            0.weight: 8 bits -> 6 bits
        """
        return set_precision(self, arg, activation, param, output=output, data=data)

    def set_blockwise_quantization_for_weights(
        self,
        arg: Iterable[Selector] | Selector,
        bitwidth: int,
        symmetric: bool,
        block_size: int | Sequence[int],
    ) -> None:
        """Give weights one grid per block.

        Args:
            arg: the modules, as in `exclude_layers_from_quantization`.
            bitwidth: bits of the weights.
            symmetric: whether the grids are symmetric.
            block_size: elements per block along the input channels, one grid per output channel; or
                one size for every axis, -1 for a whole axis.

        Raises:
            SelectorError: FXQ213, FXQ241 or FXQ245, there is nothing to change.
            ConfigError: FXQ246, the blocks do not divide a weight.
        """

        def make(shape: tuple[int, ...], blocks: tuple[int, ...]) -> affine.QuantizeDequantize:
            return quantizer_for(
                self.target, "weight", self.quant_scheme, bitwidth=bitwidth, shape=shape,
                symmetric=symmetric, signed=True, block_size=blocks,
            )  # fmt: skip

        editing.set_blocks(self.model, arg, block_size, make)

    def set_grouped_blockwise_quantization_for_weights(
        self,
        arg: Iterable[Selector] | Selector,
        bitwidth: int,
        symmetric: bool,
        decompressed_bw: int,
        block_size: int | Sequence[int],
        block_grouping: int | Sequence[int] = -1,
    ) -> None:
        """Give weights one grid per block, whose steps are small integers times one of the group.

        Args:
            arg: the modules, as in `exclude_layers_from_quantization`.
            bitwidth: bits of the weights.
            symmetric: must be True.
            decompressed_bw: bits once the small integers are multiplied in.
            block_size: as in `set_blockwise_quantization_for_weights`.
            block_grouping: blocks per group along the blocked axis, -1 for all; or one number for
                every axis.
        """

        def make(shape: tuple[int, ...], blocks: tuple[int, ...]) -> affine.QuantizeDequantize:
            made = affine.GroupedBlockQuantizeDequantize(
                shape, bitwidth, symmetric, decompressed_bw, block_size=blocks,
                block_grouping=editing.grouping(shape, blocks, block_grouping),
            )  # fmt: skip
            set_training(made, "weight", self.quant_scheme)
            return made

        editing.set_blocks(self.model, arg, block_size, make)

    def fold_param_quantizers(self) -> None:
        """Give the parameters the values of their grids; what is computed stays the same.

        Raises:
            TrainingError: FXQ802, training has not ended: live batch norms or adapters.
        """
        require_stored_weights(self.model)
        for module in self.qmodules():
            module.fold_param_quantizers()

    def get_original_model(self, *, qdq_weights: bool = False) -> fx.GraphModule:
        """The model without quantizers: a copy that can be run, trained and simulated again.

        Its state dict has the names of the network that was prepared, so it goes into the network
        itself. Batch norms that were folded stay folded, and so do weights that were computed from
        parameters; a weight norm computes its weight again.

        Args:
            qdq_weights: give the weights the values of their grids.
        """
        return editing.original_model(self.model, qdq_weights=qdq_weights)


def _quantizer_lines(module: nn.Module) -> list[str]:
    if not isinstance(module, QuantizationMixin):
        return []
    lines = [f"  output {i}: {q}" for i, q in module.output_quantizers.active()]
    return lines + [f"  {name}: {q}" for name, q in module.param_quantizers.active()]


def _refuse_unknown(given: dict[str, Any]) -> None:
    for name in given:
        known = list(inspect.signature(QuantizationSimModel.__init__).parameters)[1:]
        fix = nearest(name, known) or f"the arguments are {', '.join(known)}"
        if name == "rounding_mode":  # of AIMET's older signature
            fix = "leave it out: ties go to even"
        raise ConfigError("FXQ235", f"QuantizationSimModel has no argument {name!r}", fix=fix)


def _refuse_quantized(model: nn.Module) -> None:
    if not hasattr(model, "_modules") or isinstance(model, type):
        return  # preparation says what is wrong with it
    for name, module in model.named_modules():
        if isinstance(module, (QuantizationMixin, QuantizerBase)):
            raise ConfigError(
                "FXQ230",
                f"the model holds a quantized module already: {name or 'the model itself'}",
                fix="pass the float model, not sim.model",
            )
