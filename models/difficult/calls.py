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


class Squashed(torch.autograd.Function):
    """A function that computes with numpy."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.from_numpy(np.tanh(x.detach().numpy()))

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        return grads[0]


@taking(rows(2, 4))
class NumpyFunction(nn.Module):
    """A custom function that computes with numpy, between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return self.after(Squashed.apply(self.before(x)))  # type: ignore[no-untyped-call]


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


def shifting(module: nn.Module, args: Any) -> Any:
    """A pre-hook."""
    return (args[0] + 1,)


def keeping(module: nn.Module, args: Any, output: Tensor) -> None:
    """A hook that only looks."""
    module.last_peak = output.detach().abs().max()


@taking(rows(2, 4))
class HookedInputs(nn.Module):
    """Pre-hooks that change what a leaf gets, and a hook that only looks."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.act = nn.Linear(4, 4), nn.ReLU()
        self.linear.register_forward_hook(keeping)
        self.act.register_forward_pre_hook(shifting)

    def forward(self, x: Tensor) -> Any:
        return self.act(self.linear(x)) + self.act(x)


@taking(rows(2, 4))
class Branches(nn.Module):
    """torch's control flow operators: a branch on a value, a loop that counts, a map."""

    def forward(self, x: Tensor) -> Any:
        positive = x.square().sum() >= 0
        y = torch.cond(positive, lambda v: v.sin(), lambda v: v * 2, (x,))
        count = torch.zeros((), dtype=torch.long)
        body = lambda i, v: (i + 1, v * 2)  # noqa: E731 - the form the operator is called in
        return torch.while_loop(lambda i, v: i < 3, body, (count, y))[1]


class Overridden(nn.Linear):
    """A layer whose call is not its forward."""

    def __call__(self, x: Tensor) -> Any:
        return super().__call__(x * 2) + 1


@taking(rows(2, 4))
class CalledOtherwise(nn.Module):
    """Overridden `__call__`, of a layer and of the model, and a method that is not forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = Overridden(4, 4)

    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args) - 1

    def encode(self, x: Tensor) -> Any:
        return self.layer(x) + self.layer.forward(x)

    def forward(self, x: Tensor) -> Any:
        return self.encode(x)


class Forgetful(nn.Module):
    """A module that is copied by what it was made of."""

    def __getstate__(self) -> Any:
        return {}

    def __setstate__(self, state: Any) -> None:
        Forgetful.__init__(self)

    def forward(self, x: Tensor) -> Any:
        return x.abs() * 2


@taking(rows(2, 4))
class CopiedOtherwise(nn.Module):
    """A module with its own way of being copied, as the layers of `einops` have."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 4), Forgetful(), nn.Linear(4, 4))

    def forward(self, x: Tensor) -> Any:
        return self.layers(x)


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
