"""Cross-layer equalization: the same function, with channels that lose less on their grids."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx, nn

from fxquant.calibrate import using_threads
from fxquant.config import QuantConfig
from fxquant.flags import require_flags
from fxquant.graph.rewriter import Rewriter, label
from fxquant.nn.modes import evaluating
from fxquant.ptq.cross_layer.channel_spaces import ChannelSpaces, Space
from fxquant.ptq.cross_layer.channel_statistics import (
    expected_channels,
    measured_channels,
)
from fxquant.ptq.cross_layer.factor_choice import Balance, FactorChoice, has_norm
from fxquant.ptq.cross_layer.factor_trials import best_factors
from fxquant.ptq.cross_layer.high_bias import Absorbed, absorb_high_biases
from fxquant.ptq.float_graphs.float_models import folded_graph, write_back
from fxquant.ptq.float_graphs.planned_grids import GridRequest
from fxquant.ptq.walking.walk import bound_batches
from fxquant.quantization import QuantScheme

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fxquant.sim import QuantizationSimModel
    from fxquant.targets import Target

_FEW_BITS = 4  # of weights where nothing is said of them
_SAMPLES = 128


@dataclass(frozen=True)
class Equalized:
    """What became of the channels between layers.

    Attributes:
        producers: paths of the layers that make the channels.
        consumers: paths of the layers that read them.
        scaled: how many channels were scaled.
        channels: how many there are.
        spread: largest divided by smallest factor.
        reasons: why channels were left as they were.
    """

    producers: tuple[str, ...]
    consumers: tuple[str, ...]
    scaled: int
    channels: int
    spread: float
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        head = f"{', '.join(self.producers)} -> {', '.join(self.consumers) or 'nothing'}: "
        text = f"{head}{self.scaled} of {self.channels} channels scaled"
        text += f", factors differ by {self.spread:.3g}" if self.scaled else ""
        return text + (f" ({'; '.join(self.reasons)})" if self.reasons else "")


@dataclass(frozen=True)
class EqualizationReport:
    """What `equalize_model` did; `str()` says it for people.

    Attributes:
        spaces: channels between layers, in the order of the graph.
        changed: paths of the layers whose parameters were changed.
        replaced: paths of ReLU6 modules that are ReLU now: the model's output may differ there.
        absorbed: high biases that went into the layers behind; the output may differ there, too.
    """

    spaces: tuple[Equalized, ...] = ()
    changed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = field(default=())
    absorbed: tuple[Absorbed, ...] = field(default=())

    def __str__(self) -> str:
        lines = [*map(str, self.spaces), *map(str, self.absorbed)]
        return "\n".join([*lines, *(f"{p}: ReLU6 was replaced by ReLU" for p in self.replaced)])


def equalize_model(
    model: nn.Module,
    input_shapes: Sequence[Any] | None = None,
    dummy_input: Any = None,
    *,
    replace_relu6: bool = False,
    absorb_high_bias: bool = False,
    data: Any = None,
    activations: bool = True,
    param_bw: int | None = None,
    output_bw: int | None = None,
    per_channel: bool | None = None,
    target: Target | str = "onnxruntime_x86",
    quant_scheme: QuantScheme | str = QuantScheme.post_training_tf_enhanced,
    config: QuantConfig | dict[str, Any] | str | Path | None = None,
    like: QuantizationSimModel | None = None,
) -> EqualizationReport:
    """Scale channels between layers so that rounding costs less, in place; batch norms are folded.

    Output channel i of a layer is divided by s_i, with its bias, and input channel i of the layers
    that read it is multiplied by s_i. Every operator between them has to be positively homogeneous
    or move values only: ReLU, LeakyReLU, PReLU, poolings, reshapes, concatenations, additions.
    Where several layers make or read a channel, all of them are scaled or none is.

    Equal weight ranges are what weights with one grid for a tensor need; they leave the ranges of
    activations as uneven as they may be. Where every output channel of a weight has its own grid,
    the layers that make channels gain nothing and those that read them may lose. So the factors
    depend on what is known:

    - With `data` those are taken that make the estimated noise of rounding weights and activations
      least, if the outputs on other samples confirm it against equal ranges and against no factors.
    - Without, where batch norms tell the ranges of activations, the same estimate is made with
      these and not measured. With no word of the simulation it is that of weights with 4 bits and
      a grid for every channel, and of 8 bits and one grid for a tensor, both together.
    - Where nothing tells them, or with `activations=False`, ranges of weights are made equal.
      Channels are left as they are if a guess says that on grids for every channel layers lose.

    Args:
        model: a prepared float model, or any float model in evaluation.
        input_shapes: shape of the input, or a sequence of shapes, if there is no dummy input.
        dummy_input: a tensor, a tuple of positional inputs or a dict of keyword inputs; not needed
            for a prepared model.
        replace_relu6: put ReLU in the place of ReLU6, as the paper does; that changes what the
            model computes where 6 is exceeded.
        absorb_high_bias: let the layers behind a ReLU take in what nearly every value exceeds; that
            changes what the model computes for the values below, about one in 700. The batch norms
            have to be folded by this call, which reads the distribution of the values from them.
        data: an iterable of batches, as for `compute_encodings`; 128 samples are used.
        activations: without data, balance ranges of activations, too, where batch norms tell them.
        param_bw: bits of the weights that the simulation will have.
        output_bw: bits of its activations.
        per_channel: whether every output channel of a weight will have a grid; False: ranges are
            made equal wherever that can be done.
        target: the target of the simulation.
        quant_scheme: how it finds ranges; looked at with data.
        config: its configuration.
        like: instead of all these a simulation of the same model.

    Returns:
        What was scaled, what was not, and why.

    Raises:
        ConfigError: FXQ212 neither input shapes nor a dummy input, FXQ236 a switch is no flag,
            FXQ292 the model is a simulation, FXQ217 `like` does not fit.
        CalibrationError: FXQ442 to FXQ445 the data are no batches or hold NaN, FXQ475 the model
            does not take a batch, FXQ485 a layer's input is not finite.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1.3 for high biases and equation 11:
    s_i = sqrt(r1_i r2_i) / r2_i, repeated layer by layer until nothing changes; r is the largest
    magnitude of a channel's weights. Between the three layers of a depthwise block that ends in
    r = (r1 r2 r3)^(1/3). Factors by data are least by the noise of `rounding_noise.py`.

    Example:
        >>> import torch
        >>> net = nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1)).eval()
        >>> _ = net[0].weight.data.copy_(torch.tensor([[4.0, 0.0], [0.0, 1.0]]))
        >>> _ = net[2].weight.data.copy_(torch.tensor([[1.0, 4.0]]))
        >>> print(equalize_model(net, (1, 2)).spaces[0])
        0 -> 2: 2 of 2 channels scaled, factors differ by 4
        >>> net[2].weight
        Parameter containing:
        tensor([[2., 2.]], requires_grad=True)
    """
    flags = {"replace_relu6": replace_relu6, "absorb_high_bias": absorb_high_bias}
    require_flags(
        **flags, activations=activations, per_channel=False if per_channel is None else per_channel
    )
    told = any(v is not None for v in (param_bw, output_bw, per_channel, config, like))
    request = GridRequest(target, config, quant_scheme, output_bw, param_bw, per_channel, like)
    gm, folded = folded_graph(model, input_shapes, dummy_input)
    replaced = _replace_relu6(gm, model) if replace_relu6 else ()
    spaces = ChannelSpaces(gm)
    with using_threads(1), evaluating(gm):
        if data is not None:
            factors, refused = _on_data(gm, spaces, request, data)
        else:
            known = expected_channels(gm, spaces)
            known = replace(known, known=known.known and activations)
            several = request if told else replace(request, param_bw=_FEW_BITS)
            single = None if told else replace(request, per_channel=False).of(gm)
            factors, refused = FactorChoice(spaces, known, several.of(gm), single).run()
    changed = spaces.apply(factors)
    absorbed: tuple[Absorbed, ...] = ()
    if absorb_high_bias:
        made = {y.path: 1 / factors[o] for y, o in zip(spaces.layers, spaces.outputs, strict=True)}
        absorbed = absorb_high_biases(gm, folded.direct, made)
    write_back(gm, model)
    found = tuple(
        _told(spaces, space, factors, refused.get(number, ""))
        for number, space in enumerate(spaces.spaces)
    )
    return EqualizationReport(found, tuple(changed), replaced, absorbed)


def _on_data(
    gm: fx.GraphModule, spaces: ChannelSpaces, request: GridRequest, data: Any
) -> tuple[Tensor, dict[int, str]]:
    """The factors with the least noise of the outputs, and why spaces are not scaled."""
    batches = [values for values, _ in bound_batches(gm, data, _SAMPLES)]
    choice = FactorChoice(spaces, measured_channels(gm, spaces, batches), request.of(gm))
    least, refused = choice.run()
    tried = [f for f in (Balance(spaces).run(), least) if bool((f != 1).any())]
    if not tried:
        return choice.ones, refused
    best = best_factors(gm, request, batches, [choice.ones, *tried])
    if best is choice.ones:
        refused = dict.fromkeys(range(len(spaces.spaces)), "the outputs do not gain on data")
    return best, refused


def _replace_relu6(gm: fx.GraphModule, model: nn.Module) -> tuple[str, ...]:
    rw = Rewriter(gm, "equalize_model")
    found = [n for n in rw.nodes if (row := rw.op(n)) is not None and row.name == "relu6"]
    paths = tuple(label(n) for n in found if rw.module(n) is not None)
    for path in paths:
        rw.set_module(path, nn.ReLU())
        owner, _, name = path.rpartition(".")
        if model is not gm and path in dict(model.named_modules(remove_duplicate=False)):
            model.get_submodule(owner)._modules[name] = nn.ReLU()
    rw.finish()
    return paths


def _told(spaces: ChannelSpaces, space: Space, factors: Tensor, refused: str) -> Equalized:
    reasons = space.reasons
    if refused:
        reasons = (*reasons, refused)
    if len(space.factors) and has_norm(spaces, space):
        reasons = (*reasons, "a norm makes it: its scale is not a matter of two layers")
    chosen = factors[space.factors]
    chosen = chosen[chosen != 1]
    spread = float(chosen.max() / chosen.min()) if len(chosen) else 1.0
    producers, consumers = (
        tuple(spaces.layers[i].path for i in group) for group in (space.producers, space.consumers)
    )
    return Equalized(producers, consumers, len(chosen), space.channels, spread, reasons)


class CrossLayerScaling:
    """`equalize_model` under its documented name."""

    @staticmethod
    def scale_model(
        model: nn.Module, input_shapes: Sequence[Any] | None = None, dummy_input: Any = None
    ) -> EqualizationReport:
        """Scale every pair and triple of layers that can be scaled, by the paper's factors."""
        return equalize_model(model, input_shapes, dummy_input, activations=False)
