"""A batch norm that is folded into the layer before it and goes on learning.

What a target computes after training is the layer with the batch norm folded in. So training must
see the rounding of the folded weight, while the statistics of the batch normalize as they do in
floating point (Krishnamoorthi 2018, arXiv:1806.08342, section 3.2.2):

    weight   = quantize(W * gamma / sigma_running)
    training   y = norm(conv(x, weight) * sigma_running / gamma + b)
    evaluation y = conv(x, weight) + quantize(beta + (b - mu_running) * gamma / sigma_running)

With running statistics for those of the batch the two are the same function. The weight that is
rounded does not depend on the batch, so its grid does not jitter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.nn.norm_folding import folded, norm_as_affine, scale_channels
from fxquant.quantization.traced import snapshot

if TYPE_CHECKING:
    from fxquant.nn.mixin import QuantizationMixin

LIVE_NORM = "live_norm"


class LiveNorm(nn.Module):
    """The batch norm of a layer, as its child `live_norm`.

    Args:
        norm: a batch norm with running statistics.
        axis: output-channel axis of the layer's weight.

    Attributes:
        frozen: True: its statistics stay as they are, also in training.
    """

    def __init__(self, norm: nn.modules.batchnorm._BatchNorm, axis: int) -> None:
        super().__init__()
        self.norm, self.axis, self.frozen = norm, axis, False

    def train(self, mode: bool = True) -> LiveNorm:
        """Train with statistics of the batch, unless they are frozen."""
        super().train(mode and not self.frozen)
        return self

    def freeze(self, frozen: bool = True) -> None:
        """Normalize by the running statistics from now on, which stay as they are."""
        self.frozen = frozen
        if frozen:
            self.eval()

    def folded(self, layer: nn.Module) -> dict[str, Tensor]:
        """Weight and bias of the layer with the batch norm in evaluation folded in."""
        return folded(layer, self.norm, self.axis)

    def unfolded(self, layer: nn.Module, weight: Tensor) -> Tensor:
        """The weight of the layer that gives this one when the batch norm is folded in.

        Args:
            layer: the layer.
            weight: a weight as it is rounded; channels whose gamma is zero have none.
        """
        scale, _ = norm_as_affine(self.norm)
        groups = int(getattr(layer, "groups", 1)) if self.axis == 1 else 1
        inverse = 1.0 / torch.where(scale == 0.0, 1.0, scale)
        return scale_channels(weight, inverse, self.axis, groups)

    def forward_of(self, layer: QuantizationMixin, args: Any, kwargs: Any) -> Any:
        """What the layer and the batch norm compute, on quantized parameters."""
        values = self.folded(layer)
        values |= layer._quantized_parameters(values)
        if not self.norm.training:
            return layer._forward_with(values, args, kwargs)
        zeros = torch.zeros_like(values["bias"])
        y = layer._forward_with({**values, "bias": zeros}, args, kwargs)
        channels = (-1, *[1] * (y.dim() - 2))
        scale, bias = self._scale().reshape(channels), layer.get_parameter("bias")
        return self.norm(y / scale + bias.reshape(channels))

    def _scale(self) -> Tensor:
        """`gamma / sigma_running`, `[C]`; 1 where it is zero, as the channel is zero then."""
        norm: Any = self.norm
        scale = 1.0 / (snapshot(norm.running_var) + norm.eps).sqrt()
        if norm.weight is not None:
            scale = norm.weight * scale
        return torch.where(scale == 0.0, 1.0, scale)


def live_norm_of(module: nn.Module) -> LiveNorm | None:
    """The batch norm that a layer folds in with every call, or None."""
    found = module._modules.get(LIVE_NORM)
    return found if isinstance(found, LiveNorm) else None
