"""Typed access to the modules of a simulation, and a network that several tests simulate."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.nn import QuantizationMixin

if TYPE_CHECKING:
    from fxquant import QuantizationSimModel


def quantized(sim: QuantizationSimModel, path: str) -> QuantizationMixin:
    """The quantized module at `path`."""
    found = sim.model.get_submodule(path)
    assert isinstance(found, QuantizationMixin), f"{path} is a {type(found).__name__}"
    return found


class Branches(nn.Module):
    """Moves between producer and consumer, a shared grid, a sum, a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2))
        self.left, self.right = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.join, self.fc = nn.Conv2d(16, 8, 1), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.join(torch.cat((self.left(x), self.right(x)), 1)) + x
        return self.fc(F.relu(y).mean((2, 3)))  # type: ignore[no-any-return]
