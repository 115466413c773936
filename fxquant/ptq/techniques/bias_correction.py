"""Bias correction: what rounding adds to the mean of a layer's outputs is taken off its bias."""

from __future__ import annotations

import time
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor

from fxquant.editing import add_bias, remove_bias
from fxquant.errors import CalibrationError, ConfigError, nearest
from fxquant.ptq.layer_walk import DataOptions, LayerWise, require_number
from fxquant.ptq.snapshot import undone_on_error
from fxquant.ptq.techniques.expected_inputs import expected_inputs
from fxquant.ptq.techniques.following_activation import activation_after
from fxquant.ptq.techniques.layerwise import batches, set_bias
from fxquant.ptq.walking.given_simulation import require_simulation
from fxquant.ptq.walking.walk_cost import Cost, layer_lines
from fxquant.quantization.tensor import plain
from fxquant.targets.quantizer_choice import quantizer_for

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import fx

    from fxquant.graph.selectors import Selector
    from fxquant.ptq.layer_walk import Visit
    from fxquant.ptq.layers.layer import Layer
    from fxquant.ptq.techniques.layerwise import ForwardFn
    from fxquant.ptq.walking.walk import Progress
    from fxquant.quantization import QuantizerBase
    from fxquant.sim import QuantizationSimModel

Method = Literal["empirical", "analytical"]
# outputs of a batch that are in memory together: the layer's, rounded, the float model's, their
# difference by channels, and both behind the activation
_AROUND = 8
# a mean of so many samples is good to 3 % of their deviation
_SAMPLES = 1024
METHODS: tuple[Method, ...] = get_args(Method)


@dataclass(frozen=True)
class BiasLayer:
    """One layer.

    Attributes:
        path: its path.
        method: "empirical" or "analytical".
        changed: "bias", "new bias" or "nothing": what was better on the data held out.
        error_before: mean over channels of the absolute mean error of the layer's output against
            the float model's, on data held out; None without data.
        error_after: the same with the bias as it is now.
        seconds: CPU seconds.
    """

    path: str
    method: Method
    changed: str
    error_before: float | None
    error_after: float | None
    seconds: float


@dataclass
class BiasReport:
    """What `correct_bias` did.

    Attributes:
        layers: in the order of the graph.
        skipped: why other layers are as they were, by path.
        cost: what it cost.
    """

    layers: list[BiasLayer] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    cost: Cost = field(default_factory=Cost)

    def __str__(self) -> str:
        heads = ("layer", "method", "mean error", "before", "changed")
        rows = [
            (r.path, r.method, _number(r.error_after), _number(r.error_before), r.changed)
            for r in self.layers
        ]
        lines = layer_lines(heads, rows, self.skipped)
        if self.cost.samples:
            lines.append(str(self.cost))
        return "\n".join(lines)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def correct_bias(
    sim: QuantizationSimModel,
    data: Any = None,
    method: Method = "empirical",
    *,
    num_batches: int | None = None,
    modules_to_exclude: Iterable[Selector] | Selector | None = None,
    add_biases: bool = True,
    forward_fn: ForwardFn | None = None,
    options: DataOptions | None = None,
    progress: Progress | None = None,
) -> BiasReport:
    """Take off the biases what quantization adds to the means of layers' outputs, in place.

    "empirical" measures the means on data, layer after layer, each with its predecessors corrected.
    "analytical" computes them from the batch norms that were folded: `dW E[x]`, with the mean of a
    normal variable that the activation has clipped. Where no batch norm tells the inputs' means it
    measures, if there are data, and leaves the layer as it is otherwise.

    A channel is changed only if its squared error behind the following activation does not grow: a
    mean of what a ReLU cuts off says nothing of the rest. A layer is changed only if that brings
    the means of its outputs nearer to the float model's on data held out. Without data nothing can
    be compared. A mean that is measured counts as far as the samples agree on it: of few of them a
    part is corrected, and nothing of one.

    Args:
        sim: a calibrated simulation.
        data: an iterable of batches, as for `compute_encodings`; needed by "empirical".
        method: see above.
        num_batches: batches of the data that are used; None: all, up to `options.samples`.
        modules_to_exclude: modules of `sim.model`, classes, paths, globs or predicates.
        add_biases: give a layer a bias that has none, where that helps.
        forward_fn: `forward_fn(model, batch)` calls the model on a batch.
        options: how much of the data is looked at; 1024 samples by default.
        progress: called after each node with (nodes done, nodes in all).

    Returns:
        What was done, layer by layer.

    Raises:
        ConfigError: FXQ205 the method is unknown or needs data, FXQ296, FXQ297.
        SelectorError: FXQ213 or FXQ241, there is nothing to exclude.
        CalibrationError: FXQ441 to FXQ445, as for `reconstruct`; FXQ455, too few batches; FXQ456, a
            layer's output is not finite.
        UncalibratedError: FXQ401, the simulation is not calibrated.

    Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias
    Correction", arXiv:1906.04721, section 4.2 (analytical) and appendix D (empirical).

    Example:
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.rand(64, 8)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)), x, default_param_bw=3)
        >>> sim.compute_encodings([x])
        >>> report = correct_bias(sim, [x])
        >>> report.layers[0].error_after < report.layers[0].error_before
        True
    """
    require_simulation(sim, "correct_bias")
    require_number("num_batches", num_batches, 1, none=True)
    _check(method, data)
    given = options or DataOptions(samples=_SAMPLES)
    given = given if num_batches is None else replace(given, samples=None)
    walk = LayerWise.of(sim.model, given, modules_to_exclude, tied=False)
    report = BiasReport(skipped=walk.skipped, cost=walk.cost)
    with undone_on_error(sim):
        correction = _Correction(sim, walk, method, add_biases, report)
        if data is None:
            correction.without_data()
        else:
            chosen = batches(sim.model, data, num_batches, forward_fn)
            # outputs of one batch are all that a layer takes: they are reserved where it is run
            report.layers += walk.run(chosen, correction.measured, progress, working=lambda *_: 0)
    return report


def _check(method: str, data: Any) -> None:
    if method not in METHODS:
        fix = nearest(str(method), METHODS) or f"use one of {', '.join(METHODS)}"
        raise ConfigError("FXQ205", f"unknown method {method!r}", fix=fix)
    if method == "empirical" and data is None:
        what = "empirical bias correction measures on data, and there are none"
        raise ConfigError("FXQ205", what, fix="pass data, or method='analytical'")


class _Correction:
    """One layer after the other, with or without data."""

    def __init__(
        self,
        sim: QuantizationSimModel,
        walk: LayerWise,
        method: Method,
        add_biases: bool,
        report: BiasReport,
    ) -> None:
        self.sim, self.walk, self.add_biases, self.report = sim, walk, add_biases, report
        self.means = expected_inputs(sim.model) if method == "analytical" else {}

    def without_data(self) -> None:
        """Correct what batch norms tell."""
        for layer in self.walk.layers:
            begin, node = time.process_time(), layer.node
            if node not in self.means:
                self._skip(layer, "no batch norm tells the means of its inputs, and no data are")
                continue
            if not layer.quantizer.is_initialized():
                raise layer.quantizer._uncalibrated()
            new = self._opened(layer)
            if new is None:
                continue
            set_bias(layer, layer.bias().reshape(-1) - self._expected_shift(node, layer))
            seconds = time.process_time() - begin
            changed = "new bias" if new else "bias"
            found = BiasLayer(layer.path, "analytical", changed, None, None, seconds)
            self.report.layers.append(found)

    def measured(self, visit: Visit) -> BiasLayer | None:
        """Correct one layer, and keep that if the data held out say so."""
        begin, layer = time.process_time(), visit.layer
        new = self._opened(layer)
        if new is None:
            return None
        analytical = layer.node in self.means
        means = _MeanErrors(visit, self.walk.options.held_out)
        old = layer.bias().reshape(-1)
        before = means.of_output()
        if analytical:
            set_bias(layer, old - self._expected_shift(layer.node, layer))
        else:
            _correct(layer, means, before.seen)
        after = means.of_output()
        worse = after.squared > before.squared
        if bool(worse.any()):  # the mean of what the activation cuts off is of no use
            set_bias(layer, torch.where(worse, old, layer.bias().reshape(-1)))
            after = means.of_output()
        better = float(after.held.square().sum()) < float(before.held.square().sum())
        if not better:
            remove_bias(self.sim.model, layer.node) if new else set_bias(layer, old)
            after = before
        changed = ("new bias" if new else "bias") if better else "nothing"
        return BiasLayer(
            layer.path, "analytical" if analytical else "empirical", changed,
            float(before.held.abs().mean()), float(after.held.abs().mean()),
            time.process_time() - begin,
        )  # fmt: skip

    def _expected_shift(self, node: fx.Node, layer: Layer) -> Tensor:
        """`dW E[x]`, what rounding of the weight adds to the means: `[C]`."""
        change = layer.quantized_weight() - layer.float_weight()
        columns = layer.product.mean_columns(self.means[node])
        shift = torch.bmm(change, columns[:, :, None])[:, :, 0].reshape(-1)
        # what another technique has taken off the bias already
        return shift - (layer.float_bias() - layer.bias()).reshape(-1)

    def _opened(self, layer: Layer) -> bool | None:
        """Whether a bias was added to the layer; None if it has none and gets none."""
        if layer.has_bias:
            return False
        if not self.add_biases:
            self._skip(layer, "it has no bias, and none is to be added")
            return None
        target, config = self.sim.target, self.sim.config
        integer = config.quantize_bias

        def own() -> QuantizerBase:
            return quantizer_for(
                target, "bias", self.sim.quant_scheme, bitwidth=target.bias.bitwidth,
                symmetric=True, signed=True,
            )  # fmt: skip

        make = own if target.bias.scale == "own" else None
        add_bias(self.sim.model, layer.node, make, integer=integer)
        set_bias(layer, layer.bias().reshape(-1))
        return True

    def _skip(self, layer: Layer, reason: str) -> None:
        self.report.skipped[layer.path] = reason


@dataclass(frozen=True)
class _Means:
    """Errors of channels, float64 `[C]`.

    Attributes:
        seen: mean error on the samples that are fitted.
        held: mean error on those held out.
        squared: sum of squared errors over all samples, behind the activation.
    """

    seen: Tensor
    held: Tensor
    squared: Tensor


class _MeanErrors:
    """Mean errors of a layer's outputs in the simulation against the float model's."""

    def __init__(self, visit: Visit, held_out: int) -> None:
        self.visit, self.held_out = visit, held_out
        found = activation_after(visit.walk.gm, visit.layer.node)
        self.activation = None if found is None else found[1]

    def of_output(self) -> _Means:
        """Of the output as the simulation has it."""
        return self._of(self._sums(quantized=True))

    def of_sum(self) -> _Means:
        """Of the output before its own quantizer rounds and clips it."""
        return self._of(self._sums(quantized=False))

    def _of(self, sums: tuple[Tensor, Tensor, Tensor]) -> _Means:
        errors, counts, squared = sums
        if not bool(errors.isfinite().all()):
            layer = self.visit.layer
            what = f"{layer.path} puts out NaN or infinity"
            raise CalibrationError("FXQ456", what, at=layer.node, fix="clean the data")
        index = torch.arange(len(errors), device=errors.device)
        held = index % self.held_out == self.held_out - 1
        seen = ~held
        if not bool(held.any()):  # too few to hold one out
            held = seen
        judged = errors[held].sum(0) / counts[held].sum()
        return _Means(_shrunk_means(errors[seen], counts[seen]), judged, squared)

    def _sums(self, *, quantized: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Sums of errors by sample and channel, float64 `[S, C]`, counts `[S]`, squares `[C]`."""
        visit, layer = self.visit, self.visit.layer
        found: list[Tensor] = []
        counts: list[Tensor] = []
        squares: list[Tensor] = []
        for batch, samples in enumerate(visit.walk.samples):
            with visit.walk.store.reserving(
                _AROUND * visit.walk.store.size_of((visit.float.name, layer.node, batch))
            ):
                ours, real = self._outputs(batch, quantized=quantized)
                squares.append(self._squared(ours, real))
                rows = layer.product.by_channels(ours - real)
                parts = samples if rows.shape[0] % samples == 0 else 1
                rows = rows.reshape(parts, -1, rows.shape[-1])
                found.append(rows.sum(1, dtype=torch.float64))
                counts.append(rows.new_full((parts,), rows.shape[1], dtype=torch.float64))
        return torch.cat(found), torch.cat(counts), torch.stack(squares).sum(0)

    def _outputs(self, batch: int, *, quantized: bool) -> tuple[Tensor, Tensor]:
        """The layer's output for one batch, in the simulation and in the float model."""
        visit, node = self.visit, self.visit.layer.node
        args, kwargs = visit.walk.operands(node, visit.sim, batch)
        with ExitStack() as stack:
            if not quantized:
                stack.enter_context(visit.layer.module._remove_output_quantizers())
            y = visit.sim.compute(node, args, kwargs)
        return plain(y), plain(visit.walk.value(node, visit.float, batch))

    def _squared(self, ours: Tensor, real: Tensor) -> Tensor:
        """Sums of squared errors behind the activation, float64 `[C]`."""
        if self.activation is not None:
            ours, real = plain(self.activation(ours)), plain(self.activation(real))
        rows = self.visit.layer.product.by_channels(ours - real)
        return rows.reshape(-1, rows.shape[-1]).square().sum(0, dtype=torch.float64)


def _shrunk_means(sums: Tensor, counts: Tensor) -> Tensor:
    """Means of channels as far as independent samples tell them: `[S, C]`, `[S]` -> `[C]`.

    Of a mean `m` with a standard error `e` the share `1 - e^2 / m^2` is taken, none if that is
    negative: a few samples say little of the others, and one sample nothing.

    Source: James & Stein 1961, "Estimation with Quadratic Loss", the positive part, by channel.
    """
    mean, samples = sums.sum(0) / counts.sum(), len(sums)
    if samples < 2:
        return torch.zeros_like(mean)
    weights = counts[:, None] / counts.sum()
    left = sums / counts[:, None].clamp(min=1) - mean
    variance = (weights.square() * left.square()).sum(0) * samples / (samples - 1)
    square = mean.square()
    share = (1 - variance / square.clamp(min=torch.finfo(square.dtype).tiny)).clamp(min=0)
    return mean * share


def _correct(layer: Layer, means: _MeanErrors, before: Tensor) -> None:
    """Choose for every channel, among some biases, the one with the smallest mean error.

    The error before the layer's own quantizer tells the bias in one step. What rounding and
    clipping of the output add is taken off in a second one, which may go too far where a channel
    is clipped.
    """
    tried = [layer.bias().reshape(-1)]
    errors = [before.abs()]
    shifts = (means.of_sum, means.of_output)
    for shift in shifts:
        tried.append(tried[-1] - shift().seen)
        set_bias(layer, tried[-1])
        errors.append(means.of_output().seen.abs())
    best = torch.stack(errors).argmin(0)
    set_bias(layer, torch.stack(tried).gather(0, best[None])[0])
