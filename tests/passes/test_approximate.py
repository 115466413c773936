"""Activations become those that a chip computes instead, and are listed."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.errors import PassError
from fxquant.passes import Approximate
from fxquant.passes.approximate import listed
from tests.helpers.golden import assert_rewrites, ready

X = torch.linspace(-8, 8, 33).reshape(1, 33)
SLOPE = 26 / 256


class Net(nn.Module):
    """One activation, as a module of a sequence."""

    def __init__(self, act: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Identity(), act)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)  # type: ignore[no-any-return]


def test_golden() -> None:
    assert_rewrites(Approximate(operators=("silu",)), Net(nn.SiLU()).eval(), """
          %x      = input
          %body_0 = identity[body.0](%x)
        - %body_1 = silu[body.1](%body_0)
        + %body_1 = hardswish[body.1](%body_0)
          return %body_1
    """, inputs=X)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "act", "wanted"),
    [
        ("relu6", nn.ReLU6(), F.relu),
        ("silu", nn.SiLU(), F.hardswish),
        ("sigmoid", nn.Sigmoid(), F.hardsigmoid),
        ("leaky_relu", nn.LeakyReLU(0.3), lambda x: F.leaky_relu(x, SLOPE)),
    ],
)
def test_every_approximation(name: str, act: nn.Module, wanted: Any) -> None:
    gm = ready(Net(act).eval(), Approximate.needs, X)
    outcome = Approximate(operators=(name,))(gm)
    assert outcome.changes == 1
    assert torch.equal(gm(X), wanted(X))
    assert not torch.equal(gm(X), act(X))
    assert not gm.get_submodule("body.1").training
    (line,) = listed(gm)
    assert line.startswith(f"{name} became ")
    assert "test_approximate.py:" in line or "body.1" in line


def test_what_is_not_asked_for_or_exact_already_stays() -> None:
    for act in (nn.SiLU(), nn.LeakyReLU(SLOPE)):
        gm = ready(Net(act).eval(), Approximate.needs, X)
        outcome = Approximate(operators=("leaky_relu", "sigmoid"))(gm)
        assert not outcome.modified
        assert listed(gm) == ()
        assert torch.equal(gm(X), act(X))


def test_what_has_no_approximation_is_refused() -> None:
    gm = ready(Net(nn.GELU()).eval(), Approximate.needs, X)
    with pytest.raises(PassError, match=r"(?s)FXQ310: there is no approximation of gelu.*relu6"):
        Approximate(operators=("relu6", "gelu"))(gm)
