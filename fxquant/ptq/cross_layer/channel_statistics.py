"""What is known of the channels that layers read and make: from data, or from batch norms.

Without data, what a batch norm puts out is normal, channel by channel, with its bias as mean and
its weight as standard deviation. Other layers are computed on means and variances, with channels
taken for uncorrelated, and inputs of the model for standard normal.

Source: Nagel et al. 2019, arXiv:1906.04721, section 4.2 (clipped normal variables) and 5 (ranges
of six standard deviations).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.func import functional_call

from fxquant import ops
from fxquant.errors import CalibrationError
from fxquant.nn.folded_norm import kept_norm
from fxquant.ptq.layers.columns import product_of
from fxquant.ptq.walking.output_gradients import OutputGradients

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import fx

    from fxquant.ptq.cross_layer.channel_spaces import ChannelSpaces
    from fxquant.ptq.cross_layer.scalable_layers import ScalableLayer

_DEVIATIONS = 6.0
# a batch is looked at in so many parts, each of which tells the gradient of a weight once
_PARTS = 8
NOTHING = 1e-30


@dataclass
class LayerChannels:
    """Of one layer, float64.

    Attributes:
        low: smallest value of every input channel, not above zero, `[I]`.
        high: largest value, not below zero, `[I]`.
        energy: what squared errors of the weights that read an input channel cost, `[I]`, where
            those of an output channel cost `rows` times as much.
        importance: what a unit of squared error of every output channel costs, `[O]`.
        rows: see `energy`, `[O]`.
    """

    low: Tensor
    high: Tensor
    energy: Tensor
    importance: Tensor
    rows: Tensor


@dataclass(frozen=True)
class ChannelStatistics:
    """Of all layers of a graph.

    Attributes:
        layers: by number of the layer among those of the spaces; norms are left out, and with
            data what these do not reach.
        known: whether data or batch norms tell them; False: they are guessed from weights alone.
    """

    layers: dict[int, LayerChannels]
    known: bool


def measured_channels(
    gm: fx.GraphModule, spaces: ChannelSpaces, batches: Sequence[list[Any]]
) -> ChannelStatistics:
    """Statistics on data; errors of outputs count by the squared gradients of the model's output.

    An error of a weight is the same at all positions of a sample. What it costs is the squared
    gradient of the weight, of which sums over rows and columns are kept.

    Args:
        gm: the graph, in evaluation.
        spaces: its layers.
        batches: values of the graph's inputs.

    Raises:
        CalibrationError: FXQ475 the model does not take a batch, FXQ485 a layer's input is not
            finite.
    """
    weighted = {i: x.node for i, x in enumerate(spaces.layers) if not x.is_norm}
    operands = {i: ops.arguments(node, gm)["input"] for i, node in weighted.items()}
    run = OutputGradients(
        gm, {*weighted.values(), *operands.values()}, list(weighted.values()), seed=0
    )
    found: dict[int, LayerChannels] = {}
    for number, values in enumerate(batches):
        gradients = run.of(values, number)
        for i, node in weighted.items():
            x, y = run.values[operands[i]].detach(), run.values[node].detach()
            own = _measured(spaces.layers[i], x, y, gradients.get(node))
            found[i] = _merged(found[i], own) if i in found else own
    for i, seen in found.items():
        groups = spaces.layers[i].groups
        shares = seen.energy.reshape(groups, -1).sum(1, keepdim=True).clamp(min=NOTHING)
        seen.rows = (seen.rows.reshape(groups, -1) / shares).reshape(-1)
    return ChannelStatistics(found, known=True)


def _measured(layer: ScalableLayer, x: Tensor, y: Tensor, gradient: Tensor | None) -> LayerChannels:
    product = product_of(layer.module)
    if product is None or not bool(x.isfinite().all()):
        what = f"input of {layer.path} holds NaN or infinity"
        raise CalibrationError("FXQ485", what, at=layer.node, fix="clean the data")
    if gradient is None:  # no output depends smoothly on it: a share of what the layer puts out
        signs = torch.randint(0, 2, y.shape, generator=torch.Generator().manual_seed(0))
        gradient = (signs.to(y) * 2 - 1) / y.square().sum().sqrt().clamp(min=NOTHING)

    def by_channel(value: Tensor) -> Tensor:
        channels = product.by_channels(value)
        return channels.reshape(-1, channels.shape[-1]).double().cpu()

    given = by_channel(x)
    parts = min(len(x), _PARTS) if x.dim() > product.dims + 1 and len(x) == len(y) else 1
    squares = _squared_gradients(layer, x, gradient, parts)
    rows, columns = squares.sum(2).reshape(-1), squares.sum(1).reshape(-1)
    importance = by_channel(gradient).square().sum(0)
    low, high = given.amin(0).clamp(max=0), given.amax(0).clamp(min=0)
    return LayerChannels(low, high, columns, importance, rows)


def _squared_gradients(layer: ScalableLayer, x: Tensor, gradient: Tensor, parts: int) -> Tensor:
    """Of a weight, summed over parts of a batch and averaged over the kernel: `[G, O, I]`."""
    weight = layer.module.get_parameter("weight").detach().requires_grad_()
    total = torch.zeros_like(layer.grouped(weight.detach())[..., 0], dtype=torch.float64)
    with torch.enable_grad():
        for given, wanted in zip(x.tensor_split(parts), gradient.tensor_split(parts), strict=True):
            made = functional_call(layer.module, {"weight": weight}, (given,))
            (found,) = torch.autograd.grad(made, weight, wanted)
            total += layer.grouped(found).double().square().mean(-1)
    return total.cpu()


def _merged(one: LayerChannels, other: LayerChannels) -> LayerChannels:
    return LayerChannels(
        torch.minimum(one.low, other.low), torch.maximum(one.high, other.high),
        one.energy + other.energy, one.importance + other.importance, one.rows + other.rows,
    )  # fmt: skip


def expected_channels(gm: fx.GraphModule, spaces: ChannelSpaces) -> ChannelStatistics:
    """Statistics without data."""
    means = torch.zeros(spaces.count, dtype=torch.float64)
    variances = torch.zeros_like(means)
    found: dict[int, LayerChannels] = {}
    known, makes = False, []
    for i, layer in enumerate(spaces.layers):
        weight = layer.module.get_parameter("weight").detach()
        norm = kept_norm(layer.module, weight)
        bias = layer.module._parameters.get("bias")
        shift = 0.0 if bias is None else bias.detach().double().cpu().reshape(-1)
        if layer.is_norm:
            spread = weight.double().cpu().reshape(-1)
            mean, variance = torch.zeros_like(spread) + shift, spread.square()
        else:
            given = _given(spaces, i, (means, variances))
            positive = _is_rectified(ops.arguments(layer.node, gm)["input"], gm)
            found[i], mean = _expected(given, positive=positive)
            grouped = layer.grouped(weight.double().cpu())
            spreads = (found[i].energy - mean.square()).clamp(min=0)
            mean = _summed(grouped.sum(-1), mean) + shift
            variance = _summed(grouped.square().sum(-1), spreads)
        if norm is not None and norm.measured:
            known, mean, variance = True, norm.mean.cpu(), norm.deviation.cpu().square()
        makes.append((mean.square() + variance).sum())
        # of several layers that make a channel, the one with the most energy
        places = spaces.outputs[i]
        more = mean.square() + variance > means[places].square() + variances[places]
        more &= places != 0
        means[places[more]], variances[places[more]] = mean[more], variance[more]
    _weigh(spaces, found, makes)
    return ChannelStatistics(found, known)


def _given(spaces: ChannelSpaces, i: int, made: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Means and variances of a layer's inputs; those that are unknown are as the others."""
    mean, variance = (values[spaces.inputs[i]] for values in made)
    there = mean.square() + variance > 0
    usual = (mean.square() + variance)[there].mean() if bool(there.any()) else mean.new_ones(())
    return mean, torch.where(there, variance, usual)


def _expected(given: tuple[Tensor, Tensor], *, positive: bool) -> tuple[LayerChannels, Tensor]:
    """What a layer reads, and its means."""
    mean, variance = given
    spread = variance.sqrt()
    low = (mean - _DEVIATIONS * spread).clamp(max=0)
    high = (mean + _DEVIATIONS * spread).clamp(min=0)
    energy = mean.square() + variance
    if positive:
        ratio = mean / spread.clamp(min=NOTHING)
        above = 0.5 * torch.special.erfc(-ratio / math.sqrt(2))
        density = torch.exp(-0.5 * ratio.square()) / math.sqrt(2 * math.pi)
        energy = (energy * above + mean * spread * density).clamp(min=NOTHING)
        low, mean = torch.zeros_like(low), mean * above + spread * density
    return LayerChannels(low, high, energy, mean, mean), mean


def _summed(matrix: Tensor, values: Tensor) -> Tensor:
    """`[G, O, I]` times `[G I]`, as `[G O]`."""
    return (matrix * values.reshape(len(matrix), 1, -1)).sum(-1).reshape(-1)


def _weigh(spaces: ChannelSpaces, found: dict[int, LayerChannels], makes: list[Tensor]) -> None:
    """Errors count by what the layers behind make of them; at ends, as shares of the energy."""
    counts = torch.zeros(spaces.count, dtype=torch.float64)
    for i in sorted(found, reverse=True):
        layer = spaces.layers[i]
        own = counts[spaces.outputs[i]]
        if not bool((own > 0).any()):
            own = torch.ones_like(own) / makes[i].clamp(min=NOTHING)
        found[i].importance = found[i].rows = own
        grouped = layer.grouped(layer.module.get_parameter("weight").detach().double().cpu())
        behind = (grouped.square().sum(-1) * own.reshape(len(grouped), -1, 1)).sum(1)
        counts.index_add_(0, spaces.inputs[i], behind.reshape(-1))
        counts[0] = 0.0


_AVERAGES = ("AveragePool", "GlobalAveragePool", "ReduceMean")


def _is_rectified(node: Any, gm: fx.GraphModule) -> bool:
    """Whether a value comes from a ReLU through operators that move or average it."""
    while True:
        row = ops.row_of(node, gm)
        if row is None:
            return False
        if row.onnx == "Relu" or row.name == "relu6":
            return True
        moves = row.grid is ops.Grid.SAME or row.onnx in _AVERAGES
        if not moves or len(node.all_input_nodes) != 1:
            return False
        node = node.all_input_nodes[0]
