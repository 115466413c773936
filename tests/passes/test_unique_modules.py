"""Every call has its own module, and what was one thing stays one thing."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from fxquant.graph.pass_infra import Fact
from fxquant.graph.recorded_module import shared_copy
from fxquant.passes import UniqueModules
from tests.helpers.golden import assert_rewrites, ready

X = torch.randn(4, 3)


class Reused(nn.Module):
    """A layer, a batch norm and an activation that are called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn, self.act = nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(2):
            x = self.act(self.bn(self.fc(x)))
        return x


class TwoNames(nn.Module):
    """One activation under two names, both of which are called."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.ReLU()
        self.second = self.first

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x) - 1)  # type: ignore[no-any-return]


def unique(net: nn.Module) -> Any:
    return ready(net, frozenset({Fact.UNIQUE_MODULES}), X)


def test_further_calls_get_twins() -> None:
    assert_rewrites(
        UniqueModules(),
        Reused(),
        """
          %x     = input
          %fc    = linear[fc](%x)
          %bn    = batch_norm[bn](%fc)
          %act   = relu[act](%bn)
        - %fc_1  = linear[fc](%act)
        + %fc_1  = linear[fc_1](%act)
        - %bn_1  = batch_norm[bn](%fc_1)
        + %bn_1  = batch_norm[bn_1](%fc_1)
        - %act_1 = relu[act](%bn_1)
        + %act_1 = relu[act_1](%bn_1)
          return %act_1
    """,
        inputs=X,
    )


def test_one_module_under_two_names() -> None:
    gm = unique(TwoNames())
    called = [gm.get_submodule(n.target) for n in gm.graph.find_nodes(op="call_module")]
    assert len({id(m) for m in called}) == len(called)


def test_twins_train_the_same_parameters_and_statistics() -> None:
    net: Any = Reused().train()
    gm = unique(Reused())
    gm.load_state_dict(net.state_dict(), strict=False)
    gm.train()
    assert gm.fc.weight is gm.fc_1.weight
    for module in (net, gm):
        module(X).sum().backward()
    assert torch.equal(net.fc.weight.grad, gm.fc.weight.grad)
    assert torch.equal(net.bn.running_mean, gm.bn.running_mean)
    assert gm.bn_1.num_batches_tracked is gm.bn.num_batches_tracked
    assert gm.bn.num_batches_tracked == 2


def test_twins_stay_tied_through_conversion_and_copies() -> None:
    gm = unique(Reused()).to(torch.float64)
    for module in (gm, copy.deepcopy(gm)):
        assert module.bn_1.running_mean is module.bn.running_mean
        assert module.bn_1.running_mean.dtype is torch.float64
        assert module.fc_1.weight is module.fc.weight


def test_keys_that_existed_stay() -> None:
    net = Reused()
    assert set(net.state_dict()) <= set(unique(net).state_dict())


def test_a_twin_keeps_flags_hooks_and_children() -> None:
    calls = []
    block = nn.Sequential(nn.Linear(3, 3), nn.Dropout()).eval()
    block[0].register_forward_hook(lambda *_: calls.append(1))
    block[1].train()
    other = shared_copy(block)
    other(X)
    assert calls == [1]
    assert (other.training, other[1].training) == (False, True)
    assert other[0] is not block[0]
    assert other[0].weight is block[0].weight
    other[0].register_forward_hook(lambda *_: calls.append(2))
    block(X)
    assert calls == [1, 1]
