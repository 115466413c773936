"""Functions as modules: `aimet_torch.nn.custom` and `aimet_torch.elementwise_ops`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fxquant.errors import FxQuantError
from fxquant.nn import functional, generate
from fxquant.nn.functional import *  # noqa: F403  # one class a function, listed there
from fxquant.nn.mixin import PREFIX, quantized_class

# names that AIMET has for the same function
_SPELLINGS = {
    "Argmax": "ArgMax",
    "Argmin": "ArgMin",
    "AvgPool2d": "DynamicAvgPool2d",
    "AdaptiveAvgPool2d": "DynamicAdaptiveAvgPool2d",
    "BatchNorm": "DynamicBatchNorm",
    "ElementwiseCeil": "Ceil",
    "ElementwiseFloor": "Floor",
    "ElementwiseUnarySign": "Sign",
    "GroupNorm": "DynamicGroupNorm",
    "MaxPool2d": "DynamicMaxPool2d",
}
# modules that stand for one operator of one accelerator or format
_ABSENT = {
    "CustomGather": "torch.gather or x[index]",
    "DepthToSpaceCRDMode": "nn.PixelShuffle",
    "DepthToSpaceDCRMode": "reshape and permute",
    "GatherNd": "x[index]",
    "HadamardRotation": "a linear layer",
    "NonMaxSuppression": "torchvision.ops.nms",
    "NullRequant": "nothing: the grid of a value is its producer's",
    "RmsNorm": "nn.RMSNorm",
    "RoiAlign": "torchvision.ops.roi_align",
    "RotaryEmbedding": "the model's own multiplications",
    "ScatterElements": "torch.scatter",
    "ScatterND": "x[index] = value",
    "Shape": "x.shape",
    "StridedSlice": "x[a:b:step]",
}


class AbsentError(FxQuantError, ImportError):
    """A name that AIMET documents and that is not here; it says why and what to do instead."""


class Concat(nn.Module):
    """`torch.cat` of all arguments.

    Args:
        axis: along which.
    """

    def __init__(self, axis: int = 0) -> None:
        super().__init__()
        self.axis = axis

    def forward(self, *x: Tensor) -> Tensor:
        """Join the tensors."""
        return torch.cat(x, dim=self.axis)


class CustomSiLU(nn.Module):
    """`x * sigmoid(x)`."""

    def forward(self, x: Tensor) -> Tensor:
        """The product."""
        return x * torch.sigmoid(x)


_OWN = {"Concat": Concat, "CustomSiLU": CustomSiLU}


def __getattr__(name: str) -> Any:
    wanted = name.removeprefix(PREFIX)
    if wanted in _ABSENT:
        what = f"nn.custom.{name} is not here: a model is recorded with its own operations"
        raise AbsentError("FXQ902", what, fix=f"write {_ABSENT[wanted]} in the model")
    found = _OWN.get(wanted) or functional.CLASSES.get(_SPELLINGS.get(wanted, wanted))
    found = found or getattr(nn, wanted, None)
    if not isinstance(found, type) or not issubclass(found, nn.Module):
        return generate.by_name(name)
    return quantized_class(found) if name.startswith(PREFIX) else found


__all__ = [n for n in functional.__all__ if n != "CLASSES"]
