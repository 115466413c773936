"""Modules that act in training only are kept, and count as dropout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import prepare_model
from fxquant.graph.pass_infra import state_of
from fxquant.tracing.training_mode import asks_for_training
from tests.helpers.golden import assert_dump

X = torch.randn(4, 3)


class DropPath(nn.Module):
    """Drops whole rows while training."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * torch.bernoulli(torch.full((x.shape[0], 1), 0.5))


class Noise(nn.Module):
    """Adds learned noise while training; its parameter's name must stay."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * torch.randn(3) if self.training else x


class Net(nn.Module):
    """A residual block with a module that acts in training only."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.fc, self.drop = nn.Linear(3, 3), drop

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(self.drop(self.fc(x)))  # type: ignore[no-any-return]


def hooked() -> DropPath:
    made = DropPath()
    made.register_forward_hook(lambda *_: None)
    return made


def test_the_module_is_wrapped_where_it_is() -> None:
    assert_dump(
        prepare_model(Net(DropPath()).eval(), X),
        """
        %x      = input
        %fc     = linear[fc](%x)
        %drop   = dropout[drop](%fc)
        %drop_1 = dropout[drop_1](%drop)
        %add    = add[add](%x, %drop_1)
        return %add
    """,
    )


@pytest.mark.parametrize("drop", [DropPath(), Noise(), hooked()])
def test_training_is_the_same(drop: nn.Module) -> None:
    net: Any = Net(drop).eval()
    gm: Any = prepare_model(net, X)
    for module in (net, gm):
        module.train()
        torch.manual_seed(0)
        module.result = module(X)
        module.result.sum().backward()
    assert torch.equal(net.result, gm.result)
    assert torch.equal(net.fc.weight.grad, gm.fc.weight.grad)
    assert set(net.state_dict()) <= set(gm.state_dict())


@pytest.mark.parametrize(
    ("drop", "reason"), [(Noise(), "parameters or buffers"), (hooked(), "has hooks")]
)
def test_a_module_that_is_left_alone_leaves_a_reason(drop: nn.Module, reason: str) -> None:
    skips = state_of(prepare_model(Net(drop).eval(), X)).skips
    assert reason in skips[0].reason


def test_classes_that_ask() -> None:
    assert asks_for_training(DropPath)
    assert not asks_for_training(Net)
    assert not asks_for_training(nn.BatchNorm2d)
