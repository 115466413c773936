"""Cross-layer equalization: the same function, with weights whose channels have equal ranges."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant.config import QuantConfig
from fxquant.flags import require_flags
from fxquant.graph.rewriter import Rewriter, label
from fxquant.ptq.cross_layer.channel_spaces import ChannelSpaces, Space
from fxquant.ptq.cross_layer.data_free_error import DataFreeError
from fxquant.ptq.cross_layer.high_bias import Absorbed, absorb_high_biases
from fxquant.ptq.float_graphs.float_models import folded_graph, write_back
from fxquant.ptq.float_graphs.planned_grids import GridRequest

if TYPE_CHECKING:
    from collections.abc import Container, Sequence
    from pathlib import Path

    from fxquant.ptq.float_graphs.planned_grids import PlannedGrids
    from fxquant.sim import QuantizationSimModel
    from fxquant.targets import Target

# factors that change ranges by less than a thousandth gain nothing on a grid of 8 bits
_SETTLED, _SWEEPS = 1e-3, 100
# how many times the error of layers may be where the simulation is known, and where it is guessed
_KNOWN, _GUESSED = 0.95, 1.5
_FEW_BITS = 4  # of weights where nothing is said of them
# a channel this much smaller than the largest one computes nothing
_DEAD = 1e-12


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
    param_bw: int | None = None,
    per_channel: bool | None = None,
    target: Target | str = "onnxruntime_x86",
    config: QuantConfig | dict[str, Any] | str | Path | None = None,
    like: QuantizationSimModel | None = None,
) -> EqualizationReport:
    """Give the channels between layers equal weight ranges, in place; batch norms are folded first.

    Output channel i of a layer is divided by s_i, with its bias, and input channel i of the layers
    that read it is multiplied by s_i. Every operator between them has to be positively homogeneous
    or move values only: ReLU, LeakyReLU, PReLU, poolings, reshapes, concatenations, additions.
    Where several layers make or read a channel, all of them are scaled or none is.

    Equal ranges are what weights with one grid for a tensor need. Where every output channel of a
    weight has its own grid, the layers that make channels gain nothing and those that read them may
    lose, the more, the fewer bits they have. So channels are left as they are if an estimate
    without data, that of `data_free_error.py`, says that the errors of the layers around them would
    grow by half with weights of 4 bits; and if the simulation is described by an argument below,
    unless it says that they fall.

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
        param_bw: bits of the weights that the simulation will have.
        per_channel: whether every output channel of a weight will have a grid; False: ranges are
            made equal wherever that can be done.
        target: the target of the simulation.
        config: its configuration.
        like: instead of all these a simulation of the same model.

    Returns:
        What was scaled, what was not, and why.

    Raises:
        ConfigError: FXQ212 neither input shapes nor a dummy input, FXQ236 a switch is no flag,
            FXQ292 the model is a simulation, FXQ217 `like` does not fit.

    Source: Nagel et al. 2019, arXiv:1906.04721, section 4.1.3 for high biases and equation 11:
    s_i = sqrt(r1_i r2_i) / r2_i, repeated layer by layer until nothing changes; r is the largest
    magnitude of a channel's weights. Between the three layers of a depthwise block that ends in
    r = (r1 r2 r3)^(1/3).

    Example:
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
    require_flags(**flags, per_channel=False if per_channel is None else per_channel)
    told = any(v is not None for v in (param_bw, per_channel, config, like))
    request = GridRequest(
        target, config, param_bw=param_bw if told else _FEW_BITS, per_channel=per_channel, like=like
    )
    gm, folded = folded_graph(model, input_shapes, dummy_input)
    replaced = _replace_relu6(gm, model) if replace_relu6 else ()
    spaces = ChannelSpaces(gm)
    single = per_channel is False and like is None
    grids = None if single else request.of(gm)
    factors, refused = _chosen(spaces, grids, _KNOWN if told else _GUESSED)
    changed = spaces.apply(factors)
    absorbed: tuple[Absorbed, ...] = ()
    if absorb_high_bias:
        made = {y.path: 1 / factors[o] for y, o in zip(spaces.layers, spaces.outputs, strict=True)}
        absorbed = absorb_high_biases(gm, folded.direct, made)
    write_back(gm, model)
    found = tuple(
        _told(spaces, space, factors, refused.get(number, 0.0))
        for number, space in enumerate(spaces.spaces)
    )
    return EqualizationReport(found, tuple(changed), replaced, absorbed)


def _chosen(
    spaces: ChannelSpaces, grids: PlannedGrids | None, most: float
) -> tuple[Tensor, dict[int, float]]:
    """The factors, and by how much the error of spaces would have grown that are not scaled."""
    refused: dict[int, float] = {}
    if grids is None:
        return _Balance(spaces).run(), refused
    judge = DataFreeError(spaces, grids)
    while True:
        factors = _Balance(spaces, refused).run()
        growths = {n: _growth(judge, space, factors) for n, space in enumerate(spaces.spaces)}
        found = {number: growth for number, growth in growths.items() if growth > most}
        if not found:
            return factors, refused
        refused |= found  # factors of the others are not what they were


def _growth(judge: DataFreeError, space: Space, factors: Tensor) -> float:
    """How many times the error of the layers around a space is with its factors."""
    scaled = bool((factors[space.factors] != 1).any())
    if not scaled or not all(map(judge.is_per_channel, space.consumers)):
        return 0.0
    layers, without = {*space.producers, *space.consumers}, factors.clone()
    without[space.factors] = 1.0
    return judge.of(layers, factors) / max(judge.of(layers, without), _DEAD)


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


class _Balance:
    """Chooses factors, one group of channels after the other, until they settle."""

    def __init__(self, spaces: ChannelSpaces, refused: Container[int] = ()) -> None:
        self.spaces = spaces
        self.chosen = [
            s
            for number, s in enumerate(spaces.spaces)
            if len(s.factors) and number not in refused and not has_norm(spaces, s)
        ]
        self.factors = torch.ones(spaces.count, dtype=torch.float64)
        self.sizes = [None if m.is_norm else m.magnitudes().cpu() for m in spaces.layers]

    def run(self) -> Tensor:
        """The factors, float64 `[count]`."""
        for _ in range(_SWEEPS):
            moved = [self._balance(space) for space in self.chosen]
            if max(moved, default=0.0) < _SETTLED:
                break
        return self.factors

    def _balance(self, space: Space) -> float:
        made = self._ranges(space.producers, outputs=True)[space.factors]
        read = self._ranges(space.consumers, outputs=False)[space.factors]
        found = (made / read).sqrt()
        alive = (made > _DEAD * made.max()) & (read > _DEAD * read.max()) & found.isfinite()
        steps = torch.where(alive, found, torch.ones_like(found))
        self.factors[space.factors] *= steps
        return float(steps.log().abs().max())

    def _ranges(self, layers: tuple[int, ...], *, outputs: bool) -> Tensor:
        """Largest magnitude of the weights of every factor's channels."""
        ranges = torch.zeros_like(self.factors)
        for index in layers:
            sizes = self.sizes[index]
            if sizes is None:
                continue
            groups = sizes.shape[0]
            made = self.factors[self.spaces.outputs[index]].reshape(groups, -1, 1)
            read = self.factors[self.spaces.inputs[index]].reshape(groups, 1, -1)
            largest = (sizes / made * read).amax(2 if outputs else 1).reshape(-1)
            places = self.spaces.outputs[index] if outputs else self.spaces.inputs[index]
            ranges.scatter_reduce_(0, places, largest, "amax")
        return ranges


def has_norm(spaces: ChannelSpaces, space: Space) -> bool:
    """Whether the affine part of a norm makes some of the channels."""
    return any(spaces.layers[p].is_norm for p in space.producers)


def _told(spaces: ChannelSpaces, space: Space, factors: Tensor, growth: float) -> Equalized:
    reasons = space.reasons
    if growth:
        reasons = (*reasons, f"with a grid for every channel errors would be {growth:.2g} times")
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
        """Scale every pair and triple of layers that can be scaled; see `equalize_model`."""
        return equalize_model(model, input_shapes, dummy_input)
