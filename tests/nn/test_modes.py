"""Arguments that are constant and arguments that follow the mode are told apart."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel, prepare_model
from fxquant.prepare import SpecialisationWarning

X = torch.randn(4, 3, 8, 8)
Call = Callable[[Any, Tensor], Tensor]


class Net(nn.Module):
    """A convolution and a function that is given a flag."""

    mean: Tensor
    var: Tensor

    def __init__(self, call: Call, *, track: bool = True) -> None:
        super().__init__()
        self.conv, self.call = nn.Conv2d(3, 4, 3), call
        self.register_buffer("mean", torch.randn(4))
        self.register_buffer("var", torch.rand(4) + 0.5)
        self.gain, self.p, self.track = nn.Parameter(torch.rand(4) + 0.5), 0.3, track

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, self.conv(x))


class Asking(Net):
    """The same, with a flag of its own."""

    def forward(self, x: Tensor) -> Tensor:
        return self.call(self, self.conv(x)) if self.training else super().forward(x)


def norm(net: Any, x: Tensor, flag: bool) -> Tensor:
    return F.batch_norm(x, net.mean, net.var, net.gain, None, flag)


def instances(net: Any, x: Tensor, flag: bool) -> Tensor:
    return F.instance_norm(x, net.mean, net.var, net.gain, None, flag)


def attention(net: Any, x: Tensor, p: float) -> Tensor:
    x = x.flatten(2)
    return F.scaled_dot_product_attention(x, x, x, dropout_p=p)


CALLS: dict[str, Call] = {
    "norm-frozen": lambda net, x: norm(net, x, False),
    "norm-follows": lambda net, x: norm(net, x, net.training),
    "norm-batch": lambda net, x: norm(net, x, True),
    "norm-or": lambda net, x: norm(net, x, net.training or not net.track),
    "norm-and": lambda net, x: norm(net, x, net.training and not net.track),
    "norm-computed-gain": lambda net, x: F.batch_norm(
        x, net.mean, net.var, net.gain * 2, None, net.training
    ),
    "norm-computed-gain-frozen": lambda net, x: F.batch_norm(x, net.mean, net.var, net.gain * 2),
    "torch-norm-frozen": lambda net, x: torch.batch_norm(
        x, net.gain, None, net.mean, net.var, False, 0.1, 1e-5, False
    ),
    "instances-frozen": lambda net, x: instances(net, x, False),
    "instances-follow": lambda net, x: instances(net, x, net.training),
    "instances-own": lambda net, x: instances(net, x, True),
    "dropout-never": lambda net, x: F.dropout(x, 0.5, False),
    "dropout-follows": lambda net, x: F.dropout(x, training=net.training),
    "dropout-always": lambda net, x: F.dropout(x),
    "dropout-by-p": lambda net, x: F.dropout(x, net.p if net.training else 0.0),
    "dropout-inverted": lambda net, x: F.dropout(x, 0.5, not net.training),
    "dropout-method": lambda net, x: torch.dropout(x, 0.5, net.training),
    "dropout1d": lambda net, x: F.dropout1d(x.flatten(2), 0.5, net.training),
    "dropout2d-never": lambda net, x: F.dropout2d(x, 0.5, False),
    "dropout3d": lambda net, x: F.dropout3d(x[:, None], 0.5, net.training),
    "alpha-follows": lambda net, x: F.alpha_dropout(x, 0.5, net.training),
    "alpha-never": lambda net, x: F.alpha_dropout(x, 0.5, False),
    "torch-alpha": lambda net, x: torch.alpha_dropout(x, 0.5, net.training),
    "feature-alpha": lambda net, x: F.feature_alpha_dropout(x, 0.5, net.training),
    "feature-alpha-never": lambda net, x: F.feature_alpha_dropout(x, 0.5, training=False),
    "rrelu-follows": lambda net, x: F.rrelu(x, training=net.training),
    "rrelu-never": lambda net, x: F.rrelu(x, 0.1, 0.4, False),
    "rrelu-always": lambda net, x: F.rrelu(x, training=True),
    "attention-follows": lambda net, x: attention(net, x, 0.4 if net.training else 0.0),
    "attention-always": lambda net, x: attention(net, x, 0.4),
}


def assert_same_in_both_modes(net: nn.Module, gm: nn.Module, x: Tensor = X) -> None:
    """Results, gradients and statistics."""
    for mode in (True, False):
        found = []
        for model in (net, gm):
            model.train(mode)
            model.zero_grad()
            torch.manual_seed(3)
            y = model(x)
            y.square().sum().backward()
            found.append((y, [(n, p.grad) for n, p in model.named_parameters()]))
        assert torch.equal(found[0][0], found[1][0]), mode
        theirs: dict[str, Any] = dict(found[0][1])
        ours: dict[str, Any] = dict(found[1][1])
        for name, gradient in theirs.items():
            other = ours[name]
            assert (gradient is None) == (other is None), name
            assert gradient is None or torch.equal(gradient, other), name
        buffers = dict(gm.named_buffers())
        assert all(torch.equal(b, buffers[n]) for n, b in net.named_buffers()), mode


@pytest.mark.parametrize("kind", [Net, Asking])
@pytest.mark.parametrize("name", CALLS)
def test_trains_and_evaluates_like_the_model(kind: type[Net], name: str) -> None:
    net = kind(CALLS[name]).eval()
    assert_same_in_both_modes(net, prepare_model(net, X))


def test_a_flag_that_no_row_knows_is_told() -> None:
    net = Net(lambda net, x: torch.feature_dropout(x, 0.5, net.training)).eval()
    with pytest.warns(SpecialisationWarning, match="while it trains"):
        prepare_model(net, X)


class FrozenPart(nn.Module):
    """Keeps its batch norms frozen, one a module and one a function."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net(CALLS["norm-follows"])
        self.norm, self.drop = nn.BatchNorm2d(4), nn.Dropout(0.5)

    def train(self, mode: bool = True) -> FrozenPart:
        super().train(mode)
        self.net.eval()
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.norm(self.net(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("wrap", [lambda net: net, nn.Sequential])
def test_an_overridden_train_goes_on_counting(wrap: Callable[[nn.Module], nn.Module]) -> None:
    net = wrap(FrozenPart()).eval()
    gm = prepare_model(net, X)
    assert_same_in_both_modes(net, gm)
    copied = QuantizationSimModel(gm, X).get_original_model().train()
    flags = {n: m.training for n, m in net.train().named_modules()}
    assert {n: m.training for n, m in copied.named_modules() if n in flags} == flags


def test_flags_set_by_hand_come_back() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    net[1].eval()
    gm = prepare_model(net, X)
    assert [m.training for m in (gm, *net)] == [True, True, False, True]
    assert not gm.get_submodule("1").training


@pytest.mark.parametrize("name", ["norm-frozen", "norm-follows"])
def test_either_batch_norm_is_folded(name: str) -> None:
    net = Net(CALLS[name]).eval()
    sim = QuantizationSimModel(net, X)
    kinds = [type(m).__name__ for m in sim.qmodules()]
    assert not any("BatchNorm" in kind for kind in kinds)


def test_a_frozen_norm_that_is_not_folded_is_simulated_and_trained() -> None:
    net = Net(lambda net, x: norm(net, torch.relu(x), False)).eval()
    sim = QuantizationSimModel(net, X)
    sim.compute_encodings([X])
    with torch.no_grad():
        assert torch.equal(sim.model.eval()(X), sim.model.train()(X))


def test_what_is_never_seen_in_training_is_said() -> None:
    class Fails(Net):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                raise NotImplementedError
            return super().forward(x)

    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        prepare_model(Fails(CALLS["norm-frozen"]).eval(), X)
    assert "cannot be recorded" in str(found[-1].message)
