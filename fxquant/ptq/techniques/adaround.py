"""AdaRound by its documented name: a float model with rounded weights, and their encodings."""

from __future__ import annotations

import copy
import logging
import time
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant.calibrate import using_threads
from fxquant.config import QuantConfig
from fxquant.editing import original_model
from fxquant.encodings.collect import module_encodings
from fxquant.encodings.file import as_text, write
from fxquant.errors import ConfigError
from fxquant.graph.selectors import select, several
from fxquant.io.writing import as_path, checked_prefix, write_text
from fxquant.nn import QuantizationMixin
from fxquant.nn.calibration import compute_param_encodings
from fxquant.passes import simulation_pipeline
from fxquant.prepare import is_prepared, prepare_model
from fxquant.ptq.float_graphs.float_models import require_float
from fxquant.ptq.layer_walk import DataOptions, LayerWise, require_number
from fxquant.ptq.layers.tied_layers import TiedLayer
from fxquant.ptq.sampling import Sampling, hash_of, layer_data
from fxquant.ptq.solving.gradient_rounding import AdaroundOptions, adaround_on_rows
from fxquant.ptq.solving.solver import SolverOptions, factor_type, inverse_of, solve
from fxquant.ptq.techniques.adaround_report import AdaroundLayer, AdaroundReport
from fxquant.ptq.techniques.following_activation import activation_after
from fxquant.ptq.techniques.layerwise import batches, rows_of
from fxquant.quantization import QuantScheme
from fxquant.quantization.affine import AffineQuantizer
from fxquant.targets import load_target

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from pathlib import Path

    from fxquant.graph.selectors import Selector
    from fxquant.ptq.layer_walk import Visit
    from fxquant.ptq.layers.layer import Layer
    from fxquant.ptq.sampling import LayerData
    from fxquant.ptq.techniques.layerwise import ForwardFn
    from fxquant.ptq.walking.walk import Progress

log = logging.getLogger("fxquant")
_FEW_BITS = 8
_ITERATIONS, _ITERATIONS_OF_FEW_BITS = 10_000, 15_000


@dataclass(frozen=True)
class AdaroundParameters:
    """Parameters of AdaRound, as AIMET documents them.

    Attributes:
        data_loader: an iterable of batches.
        num_batches: how many of them are used.
        default_num_iterations: steps for each layer; None: 10 000, or 15 000 if a weight has fewer
            than 8 bits.
        default_reg_param: weight of the term that drives the rounding to up or down.
        default_beta_range: first and last exponent of that term.
        default_warm_start: share of the iterations without it.
        forward_fn: `forward_fn(model, batch)` calls the model on a batch in its own way.
        data: how much of the data a layer looks at; every sample is used.
    """

    data_loader: Any
    num_batches: int
    default_num_iterations: int | None = None
    default_reg_param: float = 0.01
    default_beta_range: tuple[float, float] = (20, 2)
    default_warm_start: float = 0.2
    forward_fn: ForwardFn | None = None
    data: DataOptions = field(default_factory=lambda: DataOptions(samples=None))

    def __post_init__(self) -> None:
        require_number("num_batches", self.num_batches, 1)
        require_number("default_num_iterations", self.default_num_iterations, 1, none=True)
        beta: Any = self.default_beta_range
        wrong = {
            "default_reg_param": not _is_number(self.default_reg_param, 0.0),
            "default_warm_start": not _is_number(self.default_warm_start, 0.0, 1.0),
            "default_beta_range": not isinstance(beta, tuple | list)
            or len(beta) != 2
            or not all(_is_number(b, 1e-9) for b in beta),
        }
        for name in (name for name, is_wrong in wrong.items() if is_wrong):
            what = f"the parameter {name} of AdaRound is {getattr(self, name)!r}"
            fix = "the documented values are 0.01, 0.2 and (20, 2)"
            raise ConfigError("FXQ206", what, fix=fix)


def _is_number(value: object, least: float, below: float = float("inf")) -> bool:
    return isinstance(value, int | float) and least <= value < below


@dataclass(frozen=True)
class AdaroundResult:
    """What `Adaround.apply_adaround_with_report` returns.

    Attributes:
        model: the float model with rounded weights.
        encodings: the file with the encodings of its parameters.
        report: what was done, layer by layer.
    """

    model: fx.GraphModule
    encodings: Path
    report: AdaroundReport


class Adaround:
    """AdaRound: learn by gradient descent whether to round each weight up or down.

    Source: Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization",
    arXiv:2004.10568: layer by layer, inputs of the quantized and outputs of the float model, behind
    the activation (equation 25).
    """

    @staticmethod
    def apply_adaround(
        model: nn.Module,
        dummy_input: Any,
        params: AdaroundParameters,
        path: str | Path,
        filename_prefix: str,
        default_param_bw: int = 4,
        param_bw_override_list: Sequence[tuple[nn.Module, int]] | None = None,
        ignore_quant_ops_list: Iterable[Selector] | None = None,
        default_quant_scheme: QuantScheme | str = QuantScheme.post_training_tf_enhanced,
        default_config_file: str | Path | None = None,
    ) -> fx.GraphModule:
        """Round the weights of a float model; see `apply_adaround_with_report`.

        Returns:
            The float model with rounded weights: a prepared graph with batch norms folded.

        Raises:
            ConfigError: as for `apply_adaround_with_report`.

        Example:
            >>> import tempfile
            >>> from fxquant import QuantizationSimModel
            >>> net, x = nn.Sequential(nn.Linear(8, 4), nn.ReLU()), torch.randn(32, 8)
            >>> params = AdaroundParameters([x], num_batches=1, default_num_iterations=20)
            >>> with tempfile.TemporaryDirectory() as d:
            ...     rounded = Adaround.apply_adaround(net, x, params, d, "net")
            ...     sim = QuantizationSimModel(rounded, x, default_param_bw=4)
            ...     loaded = sim.set_and_freeze_param_encodings(f"{d}/net.encodings")
            >>> loaded.loaded
            ('0.weight',)
        """
        found = Adaround.apply_adaround_with_report(
            model, dummy_input, params, path, filename_prefix, default_param_bw,
            param_bw_override_list, ignore_quant_ops_list, default_quant_scheme,
            default_config_file,
        )  # fmt: skip
        log.info("AdaRound\n%s", found.report)
        return found.model

    @staticmethod
    def apply_adaround_with_report(
        model: nn.Module,
        dummy_input: Any,
        params: AdaroundParameters,
        path: str | Path,
        filename_prefix: str,
        default_param_bw: int = 4,
        param_bw_override_list: Sequence[tuple[nn.Module, int]] | None = None,
        ignore_quant_ops_list: Iterable[Selector] | None = None,
        default_quant_scheme: QuantScheme | str = QuantScheme.post_training_tf_enhanced,
        default_config_file: str | Path | None = None,
        *,
        target: str = "onnxruntime_x86",
        progress: Progress | None = None,
    ) -> AdaroundResult:
        """Round the weights of a float model and say how good that is.

        Activations stay in floating point. Weights are rounded on the ranges that the scheme
        chooses for them, which are written to `<path>/<filename_prefix>.encodings`.

        Args:
            model: the float model; it is not changed.
            dummy_input: example inputs.
            params: see `AdaroundParameters`.
            path: folder of the encodings; it is made when missing.
            filename_prefix: how the file is called.
            default_param_bw: bits of weights.
            param_bw_override_list: pairs of a module of the model (or its path) and its bits.
            ignore_quant_ops_list: modules of the model, classes, paths or globs that are not
                rounded; the file has no encodings for them.
            default_quant_scheme: how ranges are found.
            default_config_file: configuration, as for `QuantizationSimModel`.
            target: name of the target whose grids weights lie on.
            progress: called after each node with (nodes done, nodes in all).

        Returns:
            The model, the file and the report.

        Raises:
            ConfigError: FXQ206 and FXQ207, an argument is wrong; FXQ292, the model is quantized; as
                for `QuantizationSimModel`.
            SelectorError: FXQ213, a module is not of the model.
            CalibrationError: FXQ441 to FXQ447, as for `reconstruct`; FXQ455, too few batches.
            ExportError: FXQ541 to FXQ545, the file cannot be written.
        """
        if not isinstance(params, AdaroundParameters):
            what = f"params is a {type(params).__name__}"
            raise ConfigError("FXQ207", what, fix="pass AdaroundParameters(data_loader, ...)")
        file = as_path(path) / f"{checked_prefix(filename_prefix)}.encodings"
        require_float(model)
        ignored = select(model, several(ignore_quant_ops_list), below=True) if (
            ignore_quant_ops_list
        ) else frozenset()  # fmt: skip
        bits = _overridden(model, param_bw_override_list or ())
        config = QuantConfig.load(default_config_file)
        scheme = QuantScheme(default_quant_scheme)
        gm = _weights_only(model, dummy_input, config, scheme, default_param_bw, target)
        _set_bits(gm, bits)
        _leave_float(gm, ignored)
        with using_threads(params.data.threads):
            compute_param_encodings(gm)
        report = _rounded(gm, params, progress)
        write_text(file, as_text(_param_encodings(gm, scheme)))
        return AdaroundResult(original_model(gm, qdq_weights=True), file, report)


def _overridden(model: nn.Module, pairs: Sequence[tuple[nn.Module | str, int]]) -> dict[str, int]:
    """Path -> bits."""
    found: dict[str, int] = {}
    given: Sequence[Any] = pairs
    for pair in given:
        if not isinstance(pair, tuple | list) or len(pair) != 2 or type(pair[1]) is not int:
            what = f"param_bw_override_list holds {pair!r}"
            raise ConfigError("FXQ207", what, fix="pass pairs of a module and its bits")
        found |= dict.fromkeys(select(model, pair[0]), pair[1])
    return found


def _weights_only(
    model: nn.Module, dummy_input: Any, config: QuantConfig, scheme: QuantScheme, bits: int,
    target: str,
) -> fx.GraphModule:  # fmt: skip
    """The simulated graph of a model, its activations and biases in floating point."""
    chip = load_target(target)
    config = config.with_bits((None, bits), chip.bitwidths)
    prepared = copy.deepcopy(model) if is_prepared(model) else prepare_model(model, dummy_input)
    if not isinstance(prepared, fx.GraphModule):
        what, fix = "preparation did not return a graph", "pass a torch.nn.Module"
        raise ConfigError("FXQ207", what, fix=fix)
    simulation_pipeline(config, chip, scheme)(prepared)
    for module in prepared.modules():
        if isinstance(module, QuantizationMixin):
            module._remove_activation_quantizers()
            if module.param_quantizers._modules.get("bias") is not None:
                module.param_quantizers["bias"] = None
    return prepared


def _set_bits(gm: fx.GraphModule, bits: dict[str, int]) -> None:
    for path, width in bits.items():
        module = dict(gm.named_modules()).get(path)
        quantizer = (
            module.param_quantizers._modules.get("weight")
            if isinstance(module, QuantizationMixin)
            else None
        )
        if not isinstance(quantizer, AffineQuantizer):
            what = f"the bits of {path} are overridden, but its weight is not quantized"
            raise ConfigError("FXQ207", what, fix="leave it out of param_bw_override_list")
        quantizer.bitwidth = width


def _leave_float(gm: fx.GraphModule, ignored: Iterable[str]) -> None:
    modules = dict(gm.named_modules())
    for path in ignored:
        module = modules.get(path)
        if isinstance(module, QuantizationMixin):
            for name, _ in list(module.param_quantizers.active()):
                module.param_quantizers[name] = None


def _param_encodings(gm: fx.GraphModule, scheme: QuantScheme) -> dict[str, Any]:
    return write(replace(module_encodings(gm, scheme=scheme.name), activations=()))


def _rounded(
    gm: fx.GraphModule, params: AdaroundParameters, progress: Progress | None
) -> AdaroundReport:
    walk = LayerWise.of(gm, params.data)
    few = any(layer.quantizer.bitwidth < _FEW_BITS for layer in walk.layers)
    default = _ITERATIONS_OF_FEW_BITS if few else _ITERATIONS
    options = AdaroundOptions(
        iterations=params.default_num_iterations or default,
        regularization=params.default_reg_param,
        beta=(float(params.default_beta_range[0]), float(params.default_beta_range[1])),
        warm_start=params.default_warm_start,
    )
    report = AdaroundReport(options.iterations, skipped=walk.skipped, cost=walk.cost)
    data = batches(gm, params.data_loader, params.num_batches, params.forward_fn)
    sampling = Sampling(params.data.columns, params.data.held_out, params.data.seed)
    report.layers += walk.run(data, lambda v: _round(v, gm, options, sampling), progress)
    return report


def _round(
    visit: Visit, gm: fx.GraphModule, options: AdaroundOptions, sampling: Sampling
) -> AdaroundLayer:
    layer = visit.layer
    data = layer_data(layer, visit.walk, visit.sim, visit.float, sampling, rows=True)
    after = None if isinstance(layer, TiedLayer) else activation_after(gm, layer.node)
    problem = _Problem(layer, data, after and after[1])
    nearest = problem.nearest()
    begin = time.process_time()
    seed = sampling.seed * 1_000_003 + hash_of(layer.path)
    learned = adaround_on_rows(problem.weight, problem.seen, problem.grid, options, seed=seed)
    between = time.process_time()
    engine = problem.by_engine()
    end = time.process_time()
    losses = [problem.loss(k) for k in (nearest, learned, engine)]
    kept = nearest if losses[0] < losses[1] else learned
    problem.write(kept)
    return AdaroundLayer(
        layer.path, int(layer.quantizer.bitwidth), after[0] if after else "",
        losses[0], losses[1], losses[2], "nearest" if kept is nearest else "adaround",
        between - begin, end - between,
    )  # fmt: skip


class _Problem:
    """What is asked for one layer; its matrices hold live columns only."""

    def __init__(self, layer: Layer, data: LayerData, activation: Any) -> None:
        self.layer, self.data = layer, data
        grid, self.places = layer.grid()
        self.every = layer.weight()
        self.whole = replace(grid, frozen=True)
        self.grid = self.whole.part(data.live).to(torch.float32)
        self.weight = self.every[:, :, data.live].float()
        self.seen, self.held = rows_of(layer, data, activation)

    def nearest(self) -> Tensor:
        """The nearest integers."""
        return self.grid.nearest(self.weight)

    def by_engine(self) -> Tensor:
        """What `reconstruct` makes of the same question: the same scale and bias."""
        moments = self.data.seen.damped(
            SolverOptions.damping, centred=False, dtype=factor_type(len(self.data.live))
        )
        target = self._target(inverse_of(moments))
        return solve(target.float(), moments.float(), self.grid).integers

    def _target(self, inverse: Tensor) -> Tensor:
        """The weight that makes the wanted outputs without the bias."""
        unbiased = self.data.seen.without_bias(self.layer.bias())
        return unbiased.target(self.weight.double(), inverse, centred=False)

    def loss(self, integers: Tensor) -> float:
        """Mean squared error on the rows held out."""
        return float(self.held.loss(self.grid.weight(integers)).mean())

    def write(self, integers: Tensor) -> None:
        """Give the layer these integers on its own grid."""
        found = self.layer.solution(self.whole, self.data.live, integers)
        self.layer.write(found, self.places, lambda _: self.layer.bias(), lambda _: found)
