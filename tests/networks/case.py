"""What a small network needs to be exported and run: how it is built, inputs of any batch size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Case:
    """One network.

    Attributes:
        build: makes it.
        inputs: inputs of a batch of so many, other values in every call.
        sizes: of the example, then of other inputs that the file has to take.
        choosing: values choose rows, or every output is mixed of all: one tie may change each.
    """

    build: Callable[[], nn.Module]
    inputs: Callable[[int], tuple[Any, ...]]
    sizes: tuple[int, ...] = (4, 3, 7)
    choosing: bool = False


def floats(*shape: int) -> Callable[[int], tuple[Any, ...]]:
    """One input of random numbers behind the batch."""
    return lambda n: (torch.randn(n, *shape),)


def mlp(a: int, b: int, c: int) -> nn.Module:
    """Two layers."""
    return nn.Sequential(nn.Linear(a, b), nn.ReLU(), nn.Linear(b, c))
