"""SmoothQuant: channels with outliers made smaller where they are read, and their weights larger.

A layer that reads activations on one grid for all channels loses the digits of small channels
beside large ones. Dividing channel `j` by `s_j` in front of the layer, and multiplying the weights
that read it by `s_j`, changes nothing in floating point. A norm or layer that makes the channel
takes the division into its own parameters. Where other operators read the channel as well, as in
transformers with norms behind the residual sums, a multiplication is put in front of the layers.

What is gained is measured: the error of the group's outputs on quantized inputs and weights, as the
model's output sees it, on samples held out. Where it does not fall, the group is left as it is.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from fxquant.calibrate import using_threads
from fxquant.errors import ConfigError
from fxquant.flags import require_flags
from fxquant.graph.meta import module_path
from fxquant.graph.rewriter import Rewriter
from fxquant.nn.functional import Multiply
from fxquant.nn.modes import evaluating
from fxquant.ptq.cross_layer.channel_spaces import ChannelSpaces
from fxquant.ptq.float_graphs.float_models import folded_graph, write_back
from fxquant.ptq.float_graphs.planned_grids import GridRequest
from fxquant.ptq.smoothing.reads import Group, groups_of
from fxquant.ptq.smoothing.samples import Samples
from fxquant.ptq.smoothing.smoothing_report import SmoothedGroup, SmoothingReport
from fxquant.ptq.smoothing.strength_search import Choice, choose
from fxquant.quantization import QuantScheme

if TYPE_CHECKING:
    from pathlib import Path

    from torch import fx, nn

    from fxquant.config import QuantConfig
    from fxquant.sim import QuantizationSimModel
    from fxquant.targets import Target

ALPHAS = tuple(i / 10 for i in range(11))


def smooth_model(
    model: nn.Module,
    data: Any,
    *,
    alpha: float | Sequence[float] = ALPHAS,
    dummy_input: Any = None,
    param_bw: int | None = None,
    output_bw: int | None = None,
    per_channel: bool | None = None,
    multiply: bool = True,
    target: Target | str = "onnxruntime_x86",
    quant_scheme: QuantScheme | str = QuantScheme.post_training_tf_enhanced,
    config: QuantConfig | dict[str, Any] | str | Path | None = None,
    like: QuantizationSimModel | None = None,
    samples: int = 128,
    columns: int = 1024,
    held_out: int = 4,
    max_memory: int | None = None,
    seed: int = 0,
    threads: int | None = 1,
) -> SmoothingReport:
    """Move outliers of activations into the weights that read them, in place.

    Layers that read one value share their factors. The factors of a group are
    `s_j = max|X_j|^alpha / max|W_j|^(1 - alpha)`. Of several exponents the one is taken that makes
    the error of the quantized layers smallest on samples that are held out, each part of them in
    turn; a group is changed only if its error falls there. The model's output stays what it was
    but for rounding.

    Args:
        model: a prepared float model, or any float model in evaluation; batch norms are folded,
            which stays if this fails or is interrupted, while nothing else is changed then.
        data: an iterable of batches, as for `compute_encodings`.
        alpha: exponents to try, or one exponent, 0 to 1; the paper's is 0.5.
        dummy_input: a tensor, a tuple of positional inputs or a dict of keyword inputs; not needed
            for a prepared model.
        param_bw: bits of the weights that the simulation will have; None: the configuration's or
            target's.
        output_bw: bits of its activations, likewise.
        per_channel: whether its weights have a grid for every output channel, likewise.
        multiply: put a multiplication in front of layers where nothing takes the factors in; only
            in a prepared model.
        target: the runtime; a multiplication is put only behind what it computes in floats.
        quant_scheme: how the ranges of its weights will be found; those of activations are taken to
            cover all that was seen.
        config: its configuration.
        like: instead of all these a simulation of the same model: layers are judged on its grids,
            also on those that were given to it by hand, such as blocks.
        samples: samples of the data that are used.
        columns: positions of a layer that are looked at, over all samples.
        held_out: in so many parts the samples are judged, each with the ranges of the others.
        max_memory: bytes of batches that are held in memory; the rest lies in files.
        seed: of the choice of positions.
        threads: of torch; 1 gives the same result on every machine.

    Returns:
        What was done, group by group.

    Raises:
        ConfigError: FXQ212 no dummy input, FXQ236 a switch is no flag, FXQ292 the model is a
            simulation, FXQ295 a number is out of its range, FXQ217 `like` does not fit.
        CalibrationError: FXQ442 to FXQ445 the data are no batches or hold NaN, FXQ475 the model
            does not take a batch, FXQ476 a layer's input is not finite.

    Source: Xiao et al. 2023, "SmoothQuant", arXiv:2211.10438, equation 4. Errors are weighed by
    squared gradients as in Li et al. 2021, "BRECQ", arXiv:2102.05426, equation 10.

    Example:
        >>> from fxquant import prepare_model
        >>> net = torch.nn.Sequential(torch.nn.LayerNorm(8), torch.nn.Linear(8, 4)).eval()
        >>> _ = net[0].weight.data[3].mul_(50)
        >>> x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
        >>> gm = prepare_model(net, x)
        >>> report = smooth_model(gm, [x])
        >>> report.groups[0].folded_into, report.groups[0].changed
        (('0',), True)
        >>> report.groups[0].error_after < 0.5 * report.groups[0].error_before
        True
    """
    require_flags(multiply=multiply, per_channel=False if per_channel is None else per_channel)
    request = GridRequest(target, config, quant_scheme, output_bw, param_bw, per_channel, like)
    alphas = _checked(alpha, samples=samples, columns=columns, held_out=held_out - 1)
    begin = time.process_time()
    gm, _ = folded_graph(model, None, dummy_input)
    with using_threads(threads), evaluating(gm):
        spaces = ChannelSpaces(gm)
        groups = groups_of(spaces, gm, request.loaded, multiply=multiply and gm is model)
        live = [g for g in groups if not g.reason]
        found = Samples(gm, live, columns=columns, held_out=held_out, seed=seed)
        found.collect(data, samples, max_memory)
        grids = request.of(gm)
        with torch.no_grad():
            choices = [choose(g, i, found, alphas, grids) for i, g in enumerate(live)]
            _apply(gm, spaces, list(zip(live, choices, strict=True)))
    write_back(gm, model)
    by_group = {id(g): c for g, c in zip(live, choices, strict=True)}
    told = tuple(_told(group, by_group.get(id(group))) for group in groups)
    return SmoothingReport(told, found.count, found.weighed, time.process_time() - begin)


def _checked(alpha: float | Sequence[float], **numbers: int) -> list[float]:
    """The exponents as a list.

    Raises:
        ConfigError: FXQ295.
    """
    alphas = list(alpha) if isinstance(alpha, Sequence) else [alpha]
    for value in alphas:
        if type(value) not in (int, float) or not 0 <= value <= 1:
            fix = "pass exponents from 0 to 1, such as 0.5"
            raise ConfigError("FXQ295", f"alpha is {value!r}", fix=fix)
    if not alphas:
        raise ConfigError("FXQ295", "there is no alpha", fix="pass one exponent, such as 0.5")
    for name, number in numbers.items():
        if type(number) is not int or number < 1:
            what = f"{name} is too small or no whole number"
            raise ConfigError("FXQ295", what, fix=f"pass a larger {name}")
    return sorted(alphas)


def _apply(gm: fx.GraphModule, spaces: ChannelSpaces, found: list[tuple[Group, Choice]]) -> None:
    """Divide where the channels are made, or in front of the layers; multiply the weights."""
    factors = torch.ones(spaces.count, dtype=torch.float64)
    rw = Rewriter(gm, "smooth_model")
    for group, choice in found:
        if choice.alpha is None:
            continue
        if group.folds:
            factors[group.ids] = choice.factors
        else:
            _multiply(rw, group, choice)
    spaces.apply(factors)
    rw.finish()


def _multiply(rw: Rewriter, group: Group, choice: Choice) -> None:
    """Put a multiplication in front of the layers.

    Before: `norm -> linear`. After: `norm -> mul -> linear`.
    """
    operand, first = group.reads[0].operand, group.reads[0].layer
    weight = first.module.get_parameter("weight")
    scope = module_path(operand)
    with rw.before(first.node):
        value = (1 / choice.factors).to(weight)
        constant = rw.new_constant(scope, "smoothing", value, like=operand)
        scaled = rw.new_module(Multiply(), operand, constant, like=operand, name="smooth")
    rw.redirect(operand, scaled, [r.layer.node for r in group.reads])
    rw.explain(scaled, f"it takes outliers from what {', '.join(group.names)} read: smooth_model")
    for read in group.reads:
        layer = read.layer
        outputs = torch.ones(len(layer.outputs), dtype=torch.float64, device=weight.device)
        layer.scale(outputs, choice.factors[read.factors].to(weight.device))


def _told(group: Group, choice: Choice | None) -> SmoothedGroup:
    if choice is None:
        return SmoothedGroup(group.names, (), None, 0.0, 0.0, 1.0, group.reason)
    reason = "" if choice.alpha is not None else "no exponent lowers the error on data held out"
    spread = float(choice.factors.max() / choice.factors.min())
    return SmoothedGroup(
        group.names, group.producers, choice.alpha, choice.before, choice.after, spread, reason
    )
