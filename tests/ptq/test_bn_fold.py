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


class Reused(nn.Module):
    """One batch norm behind two convolutions, another one behind a third."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
        self.bn, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn(self.b(self.bn(self.a(x))))
        return y + self.bn2(self.c(x))  # type: ignore[no-any-return]


def test_the_report_says_what_was_left_and_why() -> None:
    model = Reused()
    model(torch.randn(8, 3, 6, 6))
    model.eval()
    want = model(X)
    found = fold_all_batch_norms(model, dummy_input=X)
    assert found.paths == (("c", "bn2"),)
    assert str(found) == (
        "bn2: folded into c\n"
        "bn: left as it was, it is called more than once: fold in the result of prepare_model\n"
        "bn_1: left as it was, it is called more than once: fold in the result of prepare_model"
    )
    torch.testing.assert_close(model(X), want)


def test_a_norm_before_a_layer_goes_into_it_in_the_users_model() -> None:
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3))
    model(torch.randn(8, 3, 6, 6))
    model.eval()
    want, last = model(X), model[3]
    found = fold_all_batch_norms(model, dummy_input=X)
    assert [pair[0] for pair in found] == [last]
    assert list(found.left) == ["0"]
    assert isinstance(model[2], nn.Identity)
    torch.testing.assert_close(model(X), want, rtol=1e-5, atol=1e-5)


def test_a_layer_takes_all_its_norms_in_or_none() -> None:
    """`bn` cannot go, and what `a` would have become with both is not what it computes."""

    class Between(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn, self.bn2 = nn.BatchNorm2d(3), nn.BatchNorm2d(4)
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            left = self.bn2(self.a(self.bn(x)))
            return left + self.b(self.bn(x.abs()))  # type: ignore[no-any-return]

    model = Between()
    model(torch.randn(8, 3, 6, 6))
    model.eval()
    want = model(X)
    found = fold_all_batch_norms(model, dummy_input=X)
    assert not found
    assert found.left["bn2"] == "a would have to take in bn, too"
    assert torch.equal(model(X), want)


class Products(nn.Module):
    """Batch norms behind products with parameters: with a bias of the network, and without."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(6, 8)), nn.Parameter(torch.randn(8, 4))
        self.bias, self.a, self.b = (
            nn.Parameter(torch.randn(8)),
            nn.BatchNorm1d(8),
            nn.BatchNorm1d(4),
        )
        self(torch.randn(64, 6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.a(torch.addmm(self.bias, x, self.first)).relu()
        return self.b(y @ self.second)  # type: ignore[no-any-return]


def test_products_of_a_network_take_batch_norms_in() -> None:
    torch.manual_seed(0)
    model, x = Products().eval(), torch.randn(16, 6)
    want, norm, names = model(x), model.a, list(model.state_dict())
    found = fold_all_batch_norms(model, dummy_input=x)
    assert found.paths == (("addmm", "a"),)
    assert found.left == {
        "b": "matmul is a layer of the prepared graph only: fold in the result of prepare_model"
    }
    ((layer, gone),) = found
    assert (layer.weight, layer.bias, gone) == (model.first, model.bias, norm)
    assert list(model.state_dict()) == [n for n in names if not n.startswith("a.")]
    torch.testing.assert_close(model(x), want, rtol=1e-4, atol=1e-5)
    prepared = prepare_model(model, x)
    assert len(fold_all_batch_norms(prepared)) == 1
    torch.testing.assert_close(prepared(x), want, rtol=1e-4, atol=1e-5)
