"""What a batch norm says of its outputs, kept with the layer that it was folded into.

Its bias and weight are means and standard deviations of what it puts out; techniques without data
need them, and nothing of them is left in the folded weight. They hold for the weight as it was
folded: a digest tells whether something else has changed it since.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fxquant.quantization.digest import tensor_digest

_ATTRIBUTE = "_folded_norm"


@dataclass(frozen=True)
class FoldedNorm:
    """Statistics of the outputs of a batch norm.

    Attributes:
        mean: of every channel, float64 `[C]`.
        deviation: standard deviation of every channel, float64 `[C]`.
        weight: digest of the weight that the batch norm was folded into.
        measured: whether it has statistics of data, and not those that it was made with.
    """

    mean: Tensor
    deviation: Tensor
    weight: str = ""
    measured: bool = True


def norm_statistics(norm: nn.modules.batchnorm._BatchNorm, weight: str = "") -> FoldedNorm:
    """What a batch norm says of its outputs."""
    gamma, beta = norm._parameters["weight"], norm._parameters["bias"]
    zeros = torch.zeros(norm.num_features, dtype=torch.float64)
    mean = zeros if beta is None else beta.detach().double().clone()
    deviation = zeros + 1 if gamma is None else gamma.detach().double().abs()
    return FoldedNorm(mean, deviation, weight, _is_measured(norm))


def _is_measured(norm: nn.modules.batchnorm._BatchNorm) -> bool:
    center, spread = norm.running_mean, norm.running_var
    if center is None or spread is None:
        return False
    return bool((center != 0).any()) or bool((spread != 1).any())


def keep_norm(layer: nn.Module, norm: nn.modules.batchnorm._BatchNorm) -> None:
    """Keep the statistics of a batch norm that was just folded into a layer."""
    digest = tensor_digest(layer.get_parameter("weight"))
    layer.__dict__[_ATTRIBUTE] = norm_statistics(norm, digest)


def kept_norm(layer: nn.Module, weight: Tensor) -> FoldedNorm | None:
    """The statistics that a layer keeps, if its float weight is what it was when they were kept."""
    found = layer.__dict__.get(_ATTRIBUTE)
    if not isinstance(found, FoldedNorm) or found.weight != tensor_digest(weight):
        return None
    return found
