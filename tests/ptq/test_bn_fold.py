"""Folding as a function: on models as the user has them and on prepared ones."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxquant import fold_all_batch_norms, prepare_model
from fxquant.errors import ConfigError

X = torch.randn(2, 3, 6, 6)


def net() -> nn.Sequential:
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.BatchNorm2d(4),
    )
    made(torch.randn(8, 3, 6, 6))
    return made.eval()


def test_the_users_model_is_changed_in_place() -> None:
    model = net()
    want, (conv, norm) = model(X), (model[0], model[1])
    pairs = fold_all_batch_norms(model, (2, 3, 6, 6))
    assert pairs[0] == (conv, norm)
    assert len(pairs) == 2
    assert isinstance(model[1], nn.Identity)
    torch.testing.assert_close(model(X), want)


def test_a_prepared_model_is_changed_in_place() -> None:
    model = prepare_model(net(), X)
    want = model(X)
    assert len(fold_all_batch_norms(model)) == 2
    torch.testing.assert_close(model(X), want)
    assert len([n for n in model.graph.nodes if n.op == "call_module"]) == 3


def test_shapes_of_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.bn = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return self.bn(self.conv(x)) + y  # type: ignore[no-any-return]

    assert len(fold_all_batch_norms(Two().eval(), [(1, 3, 2, 2), (1, 3, 2, 2)])) == 1


def test_an_input_is_needed() -> None:
    with pytest.raises(ConfigError, match="FXQ212"):
        fold_all_batch_norms(net())
