"""The arithmetic of a batch norm that is folded into the layer before it; differentiable."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fxquant.errors import QuantizationError


def folded(
    layer: nn.Module,
    norm: nn.modules.batchnorm._BatchNorm,
    axis: int,
    channels: Tensor | None = None,
) -> dict[str, Tensor]:
    """Weight and bias with which a layer computes what it and the batch norm do in evaluation.

    Args:
        layer: convolution (also transposed) or linear layer.
        norm: batch norm with running statistics.
        axis: output-channel axis of the layer's weight.
        channels: the norm's channel for each of the layer's, int64 `[O]`; default: the same.
    """
    weight: nn.Parameter = layer.get_parameter("weight")
    bias = layer._parameters.get("bias")
    scale, shift = norm_as_affine(norm)
    if channels is not None:
        scale, shift = (t[channels.to(t.device)] for t in (scale, shift))
    groups = int(getattr(layer, "groups", 1)) if axis == 1 else 1
    scaled = scale_channels(weight, scale, axis, groups)
    moved = shift if bias is None else bias.double() * scale + shift
    return {"weight": scaled, "bias": moved.to(weight.dtype)}


def folded_behind(
    layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm, axis: int, channels: Tensor
) -> dict[str, Tensor]:
    """Weight and bias with which a layer computes what it and the norm before it do in evaluation.

    Args:
        layer: convolution (also transposed) or linear layer, without zeros around its input.
        norm: batch norm with running statistics.
        axis: output-channel axis of the layer's weight.
        channels: the norm's channel for each of the layer's input channels, int64 `[I]`.
    """
    weight: nn.Parameter = layer.get_parameter("weight")
    bias = layer._parameters.get("bias")
    scale, shift = (t[channels.to(t.device)] for t in norm_as_affine(norm))
    groups = int(getattr(layer, "groups", 1))
    # [G, O / G, I / G, K]
    grouped = weight.double().reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)
    grouped = grouped.transpose(1, 2) if axis == 1 else grouped
    added = (grouped.sum(-1) * shift.reshape(groups, 1, -1)).sum(-1).reshape(-1)
    scaled = grouped * scale.reshape(groups, 1, -1, 1)
    scaled = (scaled.transpose(1, 2) if axis == 1 else scaled).reshape(weight.shape)
    moved = added if bias is None else bias.double() + added
    return {"weight": scaled.to(weight.dtype), "bias": moved.to(weight.dtype)}


def norm_as_affine(norm: nn.modules.batchnorm._BatchNorm) -> tuple[Tensor, Tensor]:
    """The batch norm in evaluation as `x * scale + shift`; both [C], double."""
    if norm.running_mean is None or norm.running_var is None:
        what = "the batch norm keeps no running statistics"
        fix = "train it with track_running_stats=True; without them it normalizes each batch"
        raise QuantizationError("FXQ305", what, fix=fix)
    sigma = (norm.running_var.double() + norm.eps).sqrt()
    weight, bias = norm._parameters["weight"], norm._parameters["bias"]
    gamma = torch.ones_like(sigma) if weight is None else weight.double()
    beta = torch.zeros_like(sigma) if bias is None else bias.double()
    scale = gamma / sigma
    return scale, beta - norm.running_mean.double() * scale


def scale_channels(weight: Tensor, scale: Tensor, axis: int, groups: int) -> Tensor:
    """Multiply each output channel of a weight; computed in double.

    Args:
        weight: [O, I / groups, ...] for axis 0; [I, O / groups, ...] for axis 1.
        scale: [O].
        axis: where the output channels are.
        groups: groups of a transposed convolution; 1 for axis 0.
    """
    if axis == 0:
        shape = (-1, *[1] * (weight.dim() - 1))
        return (weight.double() * scale.reshape(shape)).to(weight.dtype)
    # the inputs of group g make the outputs of group g only
    grouped = weight.double().reshape(groups, -1, *weight.shape[1:])
    factors = scale.reshape(groups, 1, -1, *[1] * (weight.dim() - 2))
    return (grouped * factors).reshape(weight.shape).to(weight.dtype)
