"""Functions, operators and methods become modules where they were called."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.graph.pass_infra import Fact
from fxquant.passes import FunctionalsToModules
from tests.helpers.golden import assert_rewrites, ready

X = torch.randn(2, 4, 6, 6)


class Block(nn.Module):
    """Functions in a submodule whose names are partly taken."""

    def __init__(self) -> None:
        super().__init__()
        self.add = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.add(x) + x) + 1


class Weights(nn.Module):
    """Functions whose weights are parameters of the module itself."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.w, self.b = nn.Parameter(torch.randn(8, 4, 3, 3)), nn.Parameter(torch.randn(8))
        self.register_buffer("table", torch.randn(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(input=x, weight=self.w, bias=self.b, padding=1)
        w = self.w - self.w.mean()
        return F.conv2d(x * self.table, w.transpose(0, 1))


class Sizes(nn.Module):
    """Sizes and integer arithmetic are no tensor operations."""

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        return x.view(n, c // 2, 2, h * w).permute(0, 1, 3, 2).flatten(2)


class Parts(nn.Module):
    """Tuples that operators return, and an operator without a row."""

    def forward(self, x: Tensor) -> Tensor:
        a, b = x.chunk(2, 1)
        values, _ = a.max(-1)
        return torch.special.entr(values.sigmoid()) + b.mean(-1)  # type: ignore[no-any-return]


def test_modules_live_where_they_were_called_and_never_take_a_name() -> None:
    assert_rewrites(
        FunctionalsToModules(),
        nn.Sequential(Block(), nn.ReLU()),
        """
          %input_1 = input
          %_0_add  = conv2d[0.add](%input_1)
        - %add     = .add(%_0_add, %input_1)
        + %add     = add[0.add_1](%_0_add, %input_1)
        - %relu    = relu(%add)
        + %relu    = relu[0.relu](%add)
        - %add_1   = .add(%relu, 1)
        + %add_1   = add[0.add_2](%relu, 1)
          %_1      = relu[1](%add_1)
          return %_1
    """,
        inputs=X,
    )


def test_a_module_holds_the_very_parameters() -> None:
    net = Weights()
    gm = ready(net, FunctionalsToModules.needs, X)
    assert_rewrites(
        FunctionalsToModules(),
        gm,
        """
          %x         = input
          %w         = attr[w]
          %b         = attr[b]
        - %conv2d    = conv2d(input=%x, weight=%w, bias=%b, padding=1)
        + %conv2d    = conv2d[conv2d](%x)
        - %mean      = .mean(%w)
        + %mean      = mean[mean](%w)
        - %sub       = .sub(%w, %mean)
        + %sub       = sub[sub](%w, %mean)
          %table     = attr[table]
        - %mul       = .mul(%conv2d, %table)
        + %mul       = mul[mul](%conv2d, %table)
        - %transpose = .transpose(%sub, 0, 1)
        + %transpose = transpose[transpose](%sub, 0, 1)
        - %conv2d_1  = conv2d(%mul, %transpose)
        + %conv2d_1  = conv2d[conv2d_1](%mul, %transpose)
          return %conv2d_1
    """,
    )
    assert gm.get_submodule("conv2d").weight is gm.w
    assert torch.equal(gm(X), net(X))


def test_arithmetic_on_sizes_stays() -> None:
    assert_rewrites(
        FunctionalsToModules(),
        Sizes(),
        """
          %x        = input
          %size     = .size(%x, 0)
          %size_1   = .size(%x, 1)
          %size_2   = .size(%x, 2)
          %size_3   = .size(%x, 3)
          %floordiv = floordiv(%size_1, 2)
          %mul      = mul(%size_2, %size_3)
        - %view     = .view(%x, %size, %floordiv, 2, %mul)
        + %view     = view[view](%x, %size, %floordiv, 2, %mul)
        - %permute  = .permute(%view, 0, 1, 3, 2)
        + %permute  = permute[permute](%view, 0, 1, 3, 2)
        - %flatten  = .flatten(%permute, 2)
        + %flatten  = flatten[flatten](%permute)
          return %flatten
    """,
        inputs=X,
    )


def test_parts_stay_and_unknown_operators_become_opaque() -> None:
    outcome = assert_rewrites(
        FunctionalsToModules(),
        Parts(),
        """
          %x            = input
        - %chunk        = .chunk(%x, 2, 1)
        + %chunk        = chunk[chunk](%x, 2, 1)
          %getitem      = getitem(%chunk, 0)
          %getitem_2    = getitem(%chunk, 1)
        - %max_1        = .max(%getitem, -1)
        + %max_1        = max[max](%getitem, -1)
          %getitem_1    = getitem(%max_1, 0)
        - %sigmoid      = .sigmoid(%getitem_1)
        + %sigmoid      = sigmoid[sigmoid](%getitem_1)
        - %special_entr = special_entr(%sigmoid)
        + %special_entr = Opaque[special_entr](%sigmoid)
        - %mean         = .mean(%getitem_2, -1)
        + %mean         = mean[mean](%getitem_2, -1)
        - %add          = .add(%special_entr, %mean)
        + %add          = add[add](%special_entr, %mean)
          return %add
    """,
        inputs=X,
    )
    assert not outcome.skips


def test_new_modules_train_as_their_scope_does() -> None:
    net = nn.Sequential(Block(), nn.ReLU())
    net[0].eval()
    gm = ready(net, frozenset({Fact.MODULES_ONLY}), X)
    assert not gm.get_submodule("0.relu").training
    assert gm.training


class Attributes(nn.Module):
    """Views that are written as attributes."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mT @ x.data.mean((0, 1)).T + torch.div(x.size(-1), 4, rounding_mode="trunc")


def test_attributes_that_are_views() -> None:
    net = Attributes()
    gm = ready(net, FunctionalsToModules.needs, X)
    assert_rewrites(
        FunctionalsToModules(),
        gm,
        """
          %x         = input
        - %getattr_1 = getattr(%x, 'mT')
        - %getattr_2 = getattr(%x, 'data')
        + %getattr_1 = transpose[transpose](%x, -2, -1)
        + %getattr_2 = detach[detach](%x)
        - %mean      = .mean(%getattr_2, (0, 1))
        + %mean      = mean[mean](%getattr_2, (0, 1))
        - %getattr_3 = getattr(%mean, 'T')
        + %getattr_3 = transpose[transpose_1](%mean, -2, -1)
        - %matmul    = .matmul(%getattr_1, %getattr_3)
        + %matmul    = matmul[matmul](%getattr_1, %getattr_3)
          %size      = .size(%x, 3)
        - %div       = div(%size, 4, rounding_mode='trunc')
        + %div       = div[div](%size, 4, rounding_mode='trunc')
        - %add       = .add(%matmul, %div)
        + %add       = add[add](%matmul, %div)
          return %add
    """,
    )
    assert torch.equal(gm(X), net(X))
