"""Means of a layer's inputs that follow from batch norms, without data.

What a batch norm puts out has, channel by channel, its bias as mean and its weight as standard
deviation, and is taken for normal. That holds for the output of the layer that it was folded into.

Source: Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction",
arXiv:1906.04721, section 4.2 and appendix C.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.nn.folded_norm import FoldedNorm, kept_norm, norm_statistics
from fxquant.nn.stubs import DeQuantStub, QuantStub
from fxquant.ptq.walking.originals import float_value

if TYPE_CHECKING:
    from collections.abc import Mapping

_AVERAGES = frozenset(f"{kind}avg_pool{n}d" for kind in ("", "adaptive_") for n in (1, 2, 3))


@dataclass(frozen=True)
class _Channels:
    """What is known of a value's channels: means, and deviations where it is normal."""

    mean: Tensor
    deviation: Tensor | None = None


def clipped_normal_mean(mean: Tensor, deviation: Tensor, low: float, high: float) -> Tensor:
    """Mean of a normal variable that is clipped to `[low, high]`: `[C], [C] -> [C]`.

    Args:
        mean: of the variable before it is clipped.
        deviation: its standard deviation; 0 for a constant.
        low: lower end, or -inf.
        high: upper end, or inf.

    Source: arXiv:1906.04721, equation 19 and appendix C, equation 29, with both ends.

    Example:
        >>> zero, one = torch.zeros(1), torch.ones(1)
        >>> clipped_normal_mean(zero, one, 0.0, math.inf)  # 1 / sqrt(2 pi)
        tensor([0.3989], dtype=torch.float64)
    """
    mu, sigma = mean.double(), deviation.double().clamp(min=1e-30)
    below = (low - mu) / sigma if math.isfinite(low) else torch.full_like(mu, -math.inf)
    above = (high - mu) / sigma if math.isfinite(high) else torch.full_like(mu, math.inf)
    inside = _cdf(above) - _cdf(below)
    found = mu * inside + sigma * (_pdf(below) - _pdf(above))
    if math.isfinite(low):
        found = found + low * _cdf(below)
    if math.isfinite(high):
        found = found + high * _cdf(-above)
    return found


def _pdf(x: Tensor) -> Tensor:
    return torch.exp(-0.5 * x.square()) / math.sqrt(2 * math.pi)


def _cdf(x: Tensor) -> Tensor:
    found: Tensor = 0.5 * torch.special.erfc(-x / math.sqrt(2))
    return found


def expected_inputs(gm: fx.GraphModule) -> dict[fx.Node, Tensor]:
    """Layer -> means of its input channels, float64 `[C]`, where batch norms tell them."""
    known: dict[fx.Node, _Channels] = {}
    found: dict[fx.Node, Tensor] = {}
    for node in gm.graph.nodes:
        if node.op != "call_module":
            continue
        source = next(iter(node.all_input_nodes), None)
        channels = None if source is None else known.get(source)
        row = ops.row_of(node, gm)
        if channels is not None and row is not None and row.weight_use is ops.WeightUse.SUMS:
            found[node] = channels.mean
        result = _of(node, gm.get_submodule(str(node.target)), row, channels, gm)
        if result is not None:
            known[node] = result
    return found


def _of(
    node: fx.Node, module: nn.Module, row: ops.Op | None, given: _Channels | None,
    gm: fx.GraphModule,
) -> _Channels | None:  # fmt: skip
    if row is not None and row.weight_use is ops.WeightUse.SUMS:
        return _folded(module)
    if row is not None and row.name == "batch_norm":
        return _normalized(module)
    if given is None or isinstance(module, QuantStub | DeQuantStub):
        return given
    if row is None:
        return None
    if row.name == "identity" or row.effect is ops.Effect.RANDOM:  # a dropout does nothing here
        return given
    if row.clips:
        return _clipped(given, ops.arguments(node, gm), row.name)
    if row.name in _AVERAGES or (row.name == "mean" and _is_spatial(ops.arguments(node, gm), node)):
        return _Channels(given.mean)
    return _flattened(node, given) if row.name == "flatten" else None


def _folded(module: nn.Module) -> _Channels | None:
    """What the batch norm says that was folded into a layer."""
    if "weight" not in module._parameters:
        return None
    weight = float_value(module, "weight")
    return _channels(kept_norm(module, weight), weight.device)


def _normalized(module: nn.Module) -> _Channels | None:
    if not isinstance(module, nn.modules.batchnorm._BatchNorm) or module.running_var is None:
        return None
    return _channels(norm_statistics(module), module.running_var.device)


def _channels(norm: FoldedNorm | None, device: torch.device) -> _Channels | None:
    if norm is None:
        return None
    return _Channels(norm.mean.to(device), norm.deviation.to(device))


def _clipped(given: _Channels, arguments: Mapping[str, Any], name: str) -> _Channels | None:
    if given.deviation is None:
        return None
    ends = {"relu": (0.0, math.inf), "relu6": (0.0, 6.0)}.get(name)
    if ends is None:
        low, high = (arguments.get(k) for k in ("min_val", "max_val"))
        if not isinstance(low, int | float) or not isinstance(high, int | float):
            return None
        ends = float(low), float(high)
    return _Channels(clipped_normal_mean(given.mean, given.deviation, *ends))


def _is_spatial(arguments: Mapping[str, Any], node: fx.Node) -> bool:
    """Whether a mean is over axes behind the channels only."""
    dims = arguments.get("dim")
    rank = len(_shape(node.all_input_nodes[0]))
    axes = [dims] if isinstance(dims, int) else list(dims or ())
    return bool(axes) and rank > 2 and all((a % rank) >= 2 for a in axes)


def _flattened(node: fx.Node, given: _Channels) -> _Channels | None:
    """Every place of a channel has its mean."""
    before, after = _shape(node.all_input_nodes[0]), _shape(node)
    if len(after) != 2 or len(before) < 2 or before[1] != len(given.mean):
        return None
    each = after[1] // before[1]
    deviation = None if given.deviation is None else given.deviation.repeat_interleave(each)
    return _Channels(given.mean.repeat_interleave(each), deviation)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(getattr(node.meta.get("spec"), "shape", ()))
