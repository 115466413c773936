"""How a difficult network is registered."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Case(NamedTuple):
    """A network class and its example inputs."""

    network: type[nn.Module]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


NETWORKS: dict[str, Case] = {}


def taking(*args: Any, **kwargs: Any) -> Any:
    """Register a network with the inputs it takes."""

    def register(network: type[nn.Module]) -> type[nn.Module]:
        NETWORKS[network.__name__] = Case(network, args, kwargs)
        return network

    return register


def rows(*shape: int) -> Tensor:
    """Random floats that are the same in every process."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
