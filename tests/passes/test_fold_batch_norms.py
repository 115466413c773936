"""A batch norm goes into the layer before it, and only where that is right."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, fx, nn

from fxquant.errors import PassError
from fxquant.nn.norm_folding import folded
from fxquant.passes import FoldBatchNorms, LinearProducts
from fxquant.prepare import prepare_model
from tests.helpers.golden import assert_rewrites

X = torch.randn(2, 4, 6, 6)


def settled(net: nn.Module) -> nn.Module:
    """The network in evaluation, its batch norms with statistics that do something."""
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            assert module.running_var is not None
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return net.eval()


def fold(net: nn.Module, x: Tensor = X) -> tuple[fx.GraphModule, Any]:
    gm = prepare_model(net, x)
    return gm, FoldBatchNorms()(gm)


def test_the_graph_loses_the_batch_norm() -> None:
    net = settled(nn.Sequential(nn.Conv2d(4, 3, 1, bias=False), nn.BatchNorm2d(3), nn.ReLU()))
    gm = prepare_model(net, X)
    assert_rewrites(
        FoldBatchNorms(),
        gm,
        """
          %input_1 = input
          %_0      = conv2d[0](%input_1)
        - %_1      = batch_norm[1](%_0)
        - %_2      = relu[2](%_1)
        + %_2      = relu[2](%_0)
          return %_2
    """,
    )
    assert isinstance(gm.get_submodule("1"), nn.Identity)
    assert gm.get_submodule("0").bias is not None
    torch.testing.assert_close(gm(X), net(X))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(4, 6), (3, 4)),
        (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 8)),
        (nn.Conv2d(4, 6, 3, bias=False), (2, 4, 8, 8)),
        (nn.Conv3d(4, 6, 2), (2, 4, 4, 4, 4)),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 4, 8)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, bias=False), (2, 4, 5, 5)),
        (nn.ConvTranspose3d(4, 6, 2), (2, 4, 3, 3, 3)),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else "",
)
def test_every_layer_computes_the_same_afterwards(layer: nn.Module, shape: tuple[int, ...]) -> None:
    norm = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}[len(shape)]
    net, x = (
        settled(nn.Sequential(copy.deepcopy(layer), norm(6))).double(),
        torch.randn(shape).double(),
    )
    gm, outcome = fold(net, x)
    assert outcome.modified
    assert not [n for n in gm.graph.nodes if n.target == "1"]
    torch.testing.assert_close(gm(x), net(x), rtol=1e-12, atol=1e-12)


def test_a_norm_without_weights_folds() -> None:
    net = settled(nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3, affine=False)))
    gm, _ = fold(net)
    torch.testing.assert_close(gm(X), net(X))


def test_a_chain_of_norms_folds_one_after_the_other() -> None:
    net = settled(nn.Sequential(nn.Conv2d(4, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)))
    gm, _ = fold(net)
    assert len([n for n in gm.graph.nodes if n.op == "call_module"]) == 1
    torch.testing.assert_close(gm(X), net(X))


class Shared(nn.Module):
    """A convolution that is called twice, with a norm after each call."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.conv(self.a(self.conv(x))))  # type: ignore[no-any-return]


class Fork(nn.Module):
    """A convolution whose output something else reads too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return self.bn(y) + y  # type: ignore[no-any-return]


def hooked() -> nn.Module:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
    net[0].register_forward_hook(lambda m, i, o: None)
    return net


@pytest.mark.parametrize(
    ("net", "x", "reason"),
    [
        (Shared(), X, "shares its weight"),
        (Fork(), X, "also read by add"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), X, "no convolution or linear layer"),
        (nn.BatchNorm2d(4), X, "no layer computes its input"),
        (
            nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)),
            X,
            "no running statistics",
        ),
        (nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(4)), X[:, :, 0], "not the last dimension"),
        (hooked(), X, "a hook"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_near_miss_leaves_a_reason(net: nn.Module, x: Tensor, reason: str) -> None:
    gm, outcome = fold(settled(net), x)
    assert not outcome.modified
    assert any(reason in skip.reason for skip in outcome.skips), outcome.skips
    assert torch.equal(gm(x), net(x))


def test_the_pass_refuses_a_graph_that_is_not_prepared() -> None:
    with pytest.raises(PassError, match="FXQ302"):
        FoldBatchNorms()(fx.symbolic_trace(nn.ReLU()))


@settings(max_examples=25, deadline=None)
@given(
    channels=st.integers(1, 5),
    groups=st.sampled_from([1, 2]),
    transposed=st.booleans(),
    bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_folding_is_exact_in_double(
    channels: int, groups: int, transposed: bool, bias: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    layer = kind(2 * groups, channels * groups, 2, groups=groups, bias=bias).double()
    norm = settled(nn.BatchNorm2d(channels * groups).double())
    x = torch.randn(2, 2 * groups, 4, 4).double()
    want = norm(layer(x))
    assert isinstance(norm, nn.BatchNorm2d)
    for name, value in folded(layer, norm, axis=1 if transposed else 0).items():
        setattr(layer, name, nn.Parameter(value))
    torch.testing.assert_close(layer(x), want, rtol=1e-10, atol=1e-10)


class Rearranged(nn.Module):
    """A linear layer over the last dimension, its batch norm over the second."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 6), nn.BatchNorm1d(6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.bn(self.fc(x).transpose(1, 2)))


class Unflattened(nn.Module):
    """Six outputs of a linear layer are two by three of a batch norm over images."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.bn = nn.Linear(4, 12), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.fc(x).view(-1, 3, 2, 2))  # type: ignore[no-any-return]


class Flattened(nn.Module):
    """A batch norm over images before two linear layers over all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.a, self.b = nn.BatchNorm2d(4), nn.Linear(144, 3), nn.Linear(144, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.bn(torch.relu(x)).view(x.size(0), -1)
        return self.a(y), self.b(y)


@pytest.mark.parametrize(
    ("net", "shape"),
    [
        (Rearranged(), (3, 5, 4)),
        (Unflattened(), (3, 4)),
        (Flattened(), (2, 4, 6, 6)),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 3, bias=False)), (5, 4)),
        (nn.Sequential(nn.BatchNorm1d(4), nn.Conv1d(4, 6, 3, groups=2)), (2, 4, 8)),
        (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 8, 3, groups=4)), (2, 4, 6, 6)),
        (nn.Sequential(nn.BatchNorm3d(4), nn.Conv3d(4, 3, 2)), (2, 4, 4, 4, 4)),
        (nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 6, 1, groups=2)), (2, 4, 3, 3)),
        (
            nn.Sequential(
                nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1, padding_mode="circular")
            ),
            (2, 4, 6, 6),
        ),
        (
            nn.Sequential(nn.BatchNorm2d(4, affine=False), nn.Dropout(), nn.Conv2d(4, 3, 1)),
            (2, 4, 6, 6),
        ),
    ],
    ids=lambda v: "" if isinstance(v, tuple) else type(v).__name__,
)
def test_moves_between_and_layers_behind(net: nn.Module, shape: tuple[int, ...]) -> None:
    net, x = settled(net).double(), torch.randn(shape).double()
    gm, outcome = fold(net, x)
    assert outcome.modified
    assert not outcome.skips
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in gm.modules())
    torch.testing.assert_close(gm(x), net(x), rtol=1e-11, atol=1e-11)


def test_the_layer_behind_takes_the_norm_in() -> None:
    net = settled(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3)))
    gm = prepare_model(net, X)
    assert_rewrites(
        FoldBatchNorms(),
        gm,
        """
              %input_1 = input
              %_0      = relu[0](%input_1)
            - %_1      = batch_norm[1](%_0)
            - %_2      = conv2d[2](%_1)
            + %_2      = conv2d[2](%_0)
              return %_2
        """,
    )
    torch.testing.assert_close(gm(X), net(X), rtol=1e-5, atol=1e-5)


class ForkBehind(nn.Module):
    """A batch norm that a convolution and an addition read."""

    def __init__(self) -> None:
        super().__init__()
        self.bn, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        return self.conv(y) + y  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (ForkBehind(), "also read by add"),
        (nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1)), "pads with zeros"),
        (
            nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding="same")),
            "pads with zeros",
        ),
        (nn.Sequential(nn.BatchNorm2d(4), nn.ConvTranspose2d(4, 3, 2)), "zeros between"),
        (
            nn.Sequential(nn.BatchNorm2d(4), nn.Flatten(2), nn.Linear(36, 2)),
            "not those that 2 reads",
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_layer_behind_that_cannot_leaves_a_reason(net: nn.Module, reason: str) -> None:
    gm, outcome = fold(settled(net))
    assert not outcome.modified
    assert any(reason in skip.reason for skip in outcome.skips), outcome.skips
    assert torch.equal(gm(X), net(X))


def test_padding_with_zeros_is_exact_where_the_norm_adds_nothing() -> None:
    net = settled(nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 3, 3, padding=1)))
    norm: Any = net.get_submodule("0")
    norm.running_mean.zero_()
    norm.bias.data.zero_()
    gm, outcome = fold(net)
    assert outcome.modified
    torch.testing.assert_close(gm(X), net(X), rtol=1e-5, atol=1e-5)


def test_another_batch_size_and_length_are_still_right() -> None:
    net = settled(Rearranged())
    gm, _ = fold(net, torch.randn(3, 5, 4))
    x = torch.randn(2, 7, 4)
    torch.testing.assert_close(gm(x), net(x), rtol=1e-5, atol=1e-5)


class Products(nn.Module):
    """Batch norms around products with parameters, one of which has a name of its own, too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(5, 6))
        self.bias, self.before = nn.Parameter(torch.randn(6)), nn.BatchNorm1d(4)
        self.norm, self.behind = nn.BatchNorm1d(6), nn.BatchNorm1d(5)
        self.alias = self.second

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.before(x) @ self.first + self.bias).relu()
        return self.behind(y @ self.second.t())  # type: ignore[no-any-return]


def test_products_with_parameters_are_layers() -> None:
    net, x = settled(Products()), torch.randn(32, 4)
    gm = LinearProducts()(prepare_model(net, x)).graph_module
    assert_rewrites(
        FoldBatchNorms(),
        gm,
        """
              %x        = input
            - %before   = batch_norm[before](%x)
            - %matmul   = linear[matmul](%before)
            + %matmul   = linear[matmul](%x)
            - %norm     = batch_norm[norm](%matmul)
            - %relu     = relu[relu](%norm)
            + %relu     = relu[relu](%matmul)
              %matmul_1 = linear[matmul_1](%relu)
            + return %matmul_1
            - %behind   = batch_norm[behind](%matmul_1)
            - return %behind
        """,
    )
    # what the network registered is what the layers compute with
    assert gm.first is gm.get_submodule("matmul").weight
    assert gm.bias is gm.get_submodule("matmul").bias
    assert gm.alias is gm.second is gm.get_submodule("matmul_1").weight
    torch.testing.assert_close(gm(x), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("tied", ["weight", "bias"])
def test_a_parameter_that_something_else_computes_with_stays(tied: str) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4))
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(x @ self.weight + self.bias)
            return y + (x @ self.weight if tied == "weight" else self.bias)  # type: ignore[no-any-return]

    net, x = settled(Net()), torch.randn(32, 4)
    gm = LinearProducts()(prepare_model(net, x)).graph_module
    outcome = FoldBatchNorms()(gm)
    assert not outcome.modified
    assert "matmul shares its weight with another module" in outcome.skips[0].reason
