"""What draws random numbers in evaluation is refused with its line, whatever draws."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.errors import ExportError, TraceError
from fxquant.nn.modes import evaluating

X = torch.randn(4, 3, 8, 8)
RNG = torch.Generator().manual_seed(0)


class Net(nn.Module):
    """A convolution before what draws."""

    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.call = nn.Conv2d(3, 4, 3), call

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.call(self.conv(x)))


def attention(x: Tensor) -> Tensor:
    x = x.flatten(2)
    return F.scaled_dot_product_attention(x, x, x, dropout_p=0.4)


DRAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "dropout": F.dropout,
    "dropout_": lambda x: F.dropout(x, inplace=True),
    "torch-dropout": lambda x: torch.dropout(x, 0.5, True),
    "dropout1d": lambda x: F.dropout1d(x.flatten(2)),
    "dropout2d": F.dropout2d,
    "dropout3d": lambda x: F.dropout3d(x[:, None]),
    "alpha_dropout": lambda x: F.alpha_dropout(x, 0.5, True),
    "feature_alpha_dropout": lambda x: F.feature_alpha_dropout(x, 0.5, True),
    "feature_dropout": lambda x: torch.feature_dropout(x, 0.5, True),
    "rrelu": lambda x: F.rrelu(x, training=True),
    "rrelu_": lambda x: F.rrelu_(x, training=True),
    "attention": attention,
    "bernoulli": lambda x: x * torch.bernoulli(x.sigmoid()),
    "bernoulli_": lambda x: x * torch.empty_like(x).bernoulli_(0.5),
    "rand": lambda x: x + torch.rand(1, 4, 1, 1),
    "randn": lambda x: x + torch.randn(x.shape),
    "rand_like": lambda x: x + torch.rand_like(x),
    "randn_like": lambda x: x + torch.randn_like(x),
    "randint": lambda x: x + torch.randint(0, 2, (4, 1, 1)),
    "randint_like": lambda x: x + torch.randint_like(x, 3),
    "randperm": lambda x: x[:, torch.randperm(4)],
    "normal": lambda x: torch.normal(x, 1.0),
    "normal_": lambda x: x + torch.zeros(1, 4, 1, 1).normal_(),
    "uniform_": lambda x: x + torch.empty_like(x).uniform_(),
    "exponential_": lambda x: x + torch.empty_like(x).exponential_(),
    "multinomial": lambda x: x * torch.multinomial(x.mean((2, 3)).softmax(1), 1)[:, :, None, None],
    "poisson": lambda x: x + torch.poisson(x.abs()),
    "gumbel_softmax": lambda x: F.gumbel_softmax(x, dim=1),
    "distribution": lambda x: torch.distributions.Normal(x, 1.0).rsample(),
    "fractional": lambda x: F.fractional_max_pool2d(x, 2, output_size=3),
    "init": lambda x: x + nn.init.normal_(torch.empty(4, 1, 1)),
}


def exported(net: nn.Module, folder: Path) -> Any:
    sim = QuantizationSimModel(net, X)
    sim.compute_encodings([X])
    return sim.export(folder, "net")


@pytest.mark.filterwarnings("ignore::fxquant.prepare.SpecialisationWarning")
@pytest.mark.parametrize("name", DRAWS)
def test_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="FXQ533") as found:
        exported(Net(DRAWS[name]).eval(), tmp_path)
    assert "draws random numbers" in str(found.value)
    assert "test_randomness.py" in str(found.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "call",
    [
        lambda x: x + torch.rand(1, 4, 1, 1, generator=RNG),
        lambda x: x + torch.empty(4, 1, 1).uniform_(generator=RNG),
        lambda x: x * random.random(),
        lambda x: x + torch.from_numpy(np.random.default_rng().normal(size=(4, 1, 1))).float(),
    ],
)
def test_generators_of_the_models_own_are_refused_by_preparation(
    call: Callable[[Tensor], Tensor],
) -> None:
    with pytest.raises(TraceError, match=r"FXQ116.*draws random numbers") as found:
        QuantizationSimModel(Net(call).eval(), X)
    assert "test_randomness.py" in str(found.value)


def test_the_integer_model_refuses_too() -> None:
    sim = QuantizationSimModel(Net(F.dropout).eval(), X)
    sim.compute_encodings([X])
    with pytest.raises(ExportError, match="FXQ533"):
        sim.integer_model()


class StaysOn(nn.Module):
    """Dropout that its owner keeps alive."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.conv, self.drop = nn.Conv2d(3, 4, 3), drop

    def train(self, mode: bool = True) -> StaysOn:
        super().train(mode)
        self.drop.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.drop(self.conv(x)))


class Noise(nn.Module):
    """Draws while it trains."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x) if self.training else x


DROPS = [nn.Dropout(), nn.Dropout2d(), nn.AlphaDropout(), nn.RReLU(), Noise()]


@pytest.mark.parametrize("wrap", [lambda net: net, nn.Sequential])
@pytest.mark.parametrize("drop", DROPS, ids=lambda d: type(d).__name__)
def test_a_module_that_is_kept_on_is_refused(
    drop: nn.Module, wrap: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"FXQ533.*draws random numbers") as found:
        exported(wrap(StaysOn(drop)).eval(), tmp_path)
    assert "test_randomness.py" in str(found.value)


def test_a_flag_that_was_set_by_hand_is_refused(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.ReLU()).eval()
    net[1].train()
    with pytest.raises(ExportError, match="FXQ533"):
        exported(net, tmp_path)


def test_a_module_that_is_kept_on_is_calibrated_without_noise() -> None:
    net = StaysOn(Noise()).eval()
    sim = QuantizationSimModel(net, X, "min_max")
    sim.compute_encodings([X])
    conv: Any = sim.model.get_submodule("conv")
    grid = conv.output_quantizers[0]
    # the range moves by at most half a step to put zero on the grid, and weights are rounded
    assert torch.allclose(grid.get_max(), net.conv(X).max(), rtol=2e-2)


@pytest.mark.parametrize(
    "call",
    [
        lambda x: F.dropout(x, 0.0),
        lambda x: F.dropout(x, training=False),
        lambda x: (torch.rand_like(x), x)[1],
        lambda x: F.gumbel_softmax(x, dim=1) * 0 if x.dim() == 2 else x,
    ],
)
def test_what_draws_nothing_that_is_used_is_exported(
    call: Callable[[Tensor], Tensor], tmp_path: Path
) -> None:
    assert exported(Net(call).eval(), tmp_path)


def test_a_model_in_training_is_exported_as_it_evaluates(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.ReLU()).train()
    net[1].eval()  # frozen
    assert exported(net, tmp_path)
    assert [m.training for m in net] == [True, False, True, True]


def test_every_layer_evaluates_and_comes_back() -> None:
    net = StaysOn(nn.Dropout()).train()
    net.conv.eval()
    flags = {n: m.training for n, m in net.named_modules()}
    with contextlib.suppress(KeyError), evaluating(net):
        assert not any(m.training for m in net.modules())
        raise KeyError
    assert {n: m.training for n, m in net.named_modules()} == flags
