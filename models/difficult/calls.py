"""Networks whose calls are hard to see: custom functions, hooks, generators, shared modules."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fxquant.models.difficult.layers import StandardisedConv
from fxquant.models.difficult.register import rows, taking


class Doubled(torch.autograd.Function):
    """A function with a gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: int) -> Tensor:
        return x * factor

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0] * 7, None


bound_early = Doubled.apply


@taking(rows(2, 4))
class AutogradFunction(nn.Module):
    """Custom functions with gradients of their own, one bound before recording starts."""

    def forward(self, x: Tensor) -> Any:
        return Doubled.apply(x, 2) + bound_early(x, 3)  # type: ignore[no-untyped-call]


@taking(rows(2, 4))
class Checkpointed(nn.Module):
    """Activation checkpoints of both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def part(self, x: Tensor) -> Tensor:
        return F.relu(self.linear(x))

    def forward(self, x: Tensor) -> Any:
        x = self.linear(x)
        return checkpoint(self.part, x, use_reentrant=True) + checkpoint(
            self.part, x, use_reentrant=False
        )


@taking(rows(2, 8))
class Mapped(nn.Module):
    """A function mapped over rows, which torch shows to nobody."""

    def forward(self, x: Tensor) -> Any:
        return torch.vmap(lambda row: row * 2)(x) + 1


@taking(rows(2, 8))
class FromNumpy(nn.Module):
    """Constants made with numpy and with the old constructor."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.from_numpy(np.arange(8, dtype="float32")) + torch.Tensor([1.0])


@taking(rows(2, 8))
class AtenOperators(nn.Module):
    """Operators called below the level of torch functions."""

    def forward(self, x: Tensor) -> Any:
        return torch.ops.aten.relu(x) + torch.ops.aten.mul.Tensor(x, x)


@taking(rows(2, 4))
class FunctionalCall(nn.Module):
    """A module called with other parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.other = nn.Parameter(rows(4, 4))

    def forward(self, x: Tensor) -> Any:
        swapped = {"weight": self.other * 2}
        return torch.func.functional_call(self.linear, swapped, (x,)) + self.linear(x)


def doubling(module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """A forward hook."""
    return output * 2


@taking(rows(2, 4))
class Hooked(nn.Module):
    """Forward hooks on a leaf, on a block and on the model."""

    def __init__(self) -> None:
        super().__init__()
        self.leaf = nn.Linear(4, 4)
        self.block = nn.Sequential(nn.Linear(4, 4))
        self.leaf.register_forward_hook(doubling)
        self.block.register_forward_hook(doubling)
        self.register_forward_hook(doubling)

    def forward(self, x: Tensor) -> Any:
        return self.block(self.leaf(x))


@taking(rows(2, 3, 8, 8))
class Generated(nn.Module):
    """Modules in a list and a dict, results from a generator."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList([nn.Conv2d(3, 3, 1) for _ in range(3)])
        self.by_name = nn.ModuleDict({"act": nn.ReLU()})

    def forward(self, x: Tensor) -> Any:
        found = []
        for conv in self.convs:
            x = conv(x)
            found.append(x)

        def pooled() -> Iterator[Tensor]:
            for item in found:
                yield self.by_name["act"](item).mean((2, 3))

        return list(pooled())


@taking(rows(2, 4))
class MadeInForward(nn.Module):
    """Modules made in forward, and einsum."""

    def forward(self, x: Tensor) -> Any:
        return nn.ReLU()(x) + nn.Softmax(-1)(x) + torch.einsum("ij,ij->i", x, x)[:, None]


@taking(rows(2, 3, 4, 4))
class Shared(nn.Module):
    """A module called three times, tied weights, one module under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = StandardisedConv(), nn.ReLU()
        self.a, self.b = nn.Linear(5, 5), nn.Linear(5, 5)
        self.b.weight = self.a.weight
        self.alias = self.a

    def forward(self, x: Tensor) -> Any:
        x = self.act(self.conv(x)).mean((2, 3))
        return self.alias(self.act(self.b(self.act(self.a(x)))))
