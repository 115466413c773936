"""In-place operations become ordinary ones where nobody can tell."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.graph.pass_infra import Fact
from fxquant.passes import RemoveWrites
from fxquant.prepare import prepare_model
from tests.helpers.golden import assert_rewrites, ready

X = torch.randn(2, 4, 3)


class Net(nn.Module):
    """A function as a network, with a linear layer, a buffer and an in-place relu to use."""

    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.function = function
        self.fc, self.act = nn.Linear(3, 3), nn.ReLU(inplace=True)
        self.register_buffer("count", torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def test_later_readers_read_the_result() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.fc(x)
        z = y.relu_()
        return y + z

    assert_rewrites(
        RemoveWrites(),
        Net(forward),
        """
          %x     = input
          %fc    = linear[fc](%x)
        - %relu_ = .relu_(%fc)
        + %relu_ = .relu(%fc)
          %add   = .add(%relu_, %relu_)
          return %add
    """,
        inputs=X,
    )


def test_functions_operators_and_flags() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.fc(x)
        y += 1
        y = F.relu(y, True)
        return torch.clamp_(y, max=2)

    assert_rewrites(
        RemoveWrites(),
        Net(forward),
        """
          %x      = input
          %fc     = linear[fc](%x)
        - %add_   = .add_(%fc, 1)
        + %add_   = .add(%fc, 1)
        - %relu   = relu(%add_, inplace=True)
        + %relu   = relu(%add_)
        - %clamp_ = clamp_(%relu, max=2)
        + %clamp_ = clamp(%relu, max=2)
          return %clamp_
    """,
        inputs=X,
    )


def test_an_inplace_module_writes_nothing_afterwards() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.fc(x)
        z = net.act(y)
        return y * z

    net = Net(forward)
    assert_rewrites(
        RemoveWrites(),
        net,
        """
          %x   = input
          %fc  = linear[fc](%x)
        - %act = relu_[act](%fc)
        + %act = relu[act](%fc)
          %mul = .mul(%act, %act)
          return %mul
    """,
        inputs=X,
    )
    assert net.act.inplace, "the user's module is another object"


def test_item_assignment_makes_a_new_tensor() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.fc(x)
        y[..., 0] = y[..., 1] * 2
        return y

    assert_rewrites(
        RemoveWrites(),
        Net(forward),
        """
          %x       = input
          %fc      = linear[fc](%x)
          %getitem = getitem(%fc, (..., 1))
          %mul     = .mul(%getitem, 2)
        - %setitem = setitem(%fc, (..., 0), %mul)
        + %setitem = setitem[setitem](%fc, (..., 0), %mul)
        - return %fc
        + return %setitem
    """,
        inputs=X,
    )


def test_augmented_item_assignment() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.fc(x)
        y[:, 0] += 1
        return y

    assert_rewrites(
        RemoveWrites(),
        Net(forward),
        """
          %x       = input
          %fc      = linear[fc](%x)
          %getitem = getitem(%fc, (:, 0))
        - %add_    = .add_(%getitem, 1)
        + %add_    = .add(%getitem, 1)
        - %setitem = setitem(%fc, (:, 0), %add_)
        + %setitem = setitem[setitem](%fc, (:, 0), %add_)
        - return %fc
        + return %setitem
    """,
        inputs=X,
    )


def test_a_write_into_a_view_goes_back_to_its_base() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.fc(x)
        y[0][1:].mul_(3)
        return y

    assert_rewrites(
        RemoveWrites(),
        Net(forward),
        """
          %x         = input
          %fc        = linear[fc](%x)
          %getitem   = getitem(%fc, 0)
          %getitem_1 = getitem(%getitem, 1:)
        - %mul_      = .mul_(%getitem_1, 3)
        + %mul_      = .mul(%getitem_1, 3)
        - return %fc
        + %setitem   = setitem[setitem](%getitem, 1:, %mul_)
        + %setitem_1 = setitem[setitem_1](%fc, 0, %setitem)
        + return %setitem_1
    """,
        inputs=X,
    )


def test_a_reshaped_view_goes_back_too() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.fc(x)
        y.view(-1).exp_()
        return y

    assert_rewrites(
        RemoveWrites(),
        Net(forward),
        """
          %x       = input
          %fc      = linear[fc](%x)
          %view    = .view(%fc, -1)
        - %exp_    = .exp_(%view)
        + %exp_    = .exp(%view)
        - return %fc
        + %view_as = view_as[view_as](%exp_, %fc)
        + return %view_as
    """,
        inputs=X,
    )


def test_copy_fill_and_zero_are_assignments() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = torch.zeros(x.shape[0], 4, 5)
        y[:, :, 1:4].copy_(x)
        y[:, 0].fill_(2)
        y[:, 1].zero_()
        return y

    assert_rewrites(
        RemoveWrites(),
        Net(forward),
        """
          %x         = input
          %size      = .size(%x, 0)
          %zeros     = zeros(%size, 4, 5)
          %getitem   = getitem(%zeros, (:, :, 1:4))
        - %copy_     = .copy_(%getitem, %x)
        + %copy_     = setitem[setitem](%getitem, ..., %x)
        + %setitem_1 = setitem[setitem_1](%zeros, (:, :, 1:4), %copy_)
        - %getitem_1 = getitem(%zeros, (:, 0))
        + %getitem_1 = getitem(%setitem_1, (:, 0))
        - %fill_     = .fill_(%getitem_1, 2)
        + %fill_     = setitem[setitem_2](%getitem_1, ..., 2)
        + %setitem_3 = setitem[setitem_3](%setitem_1, (:, 0), %fill_)
        - %getitem_2 = getitem(%zeros, (:, 1))
        + %getitem_2 = getitem(%setitem_3, (:, 1))
        - %zero_     = .zero_(%getitem_2)
        - return %zeros
        + %zero_     = setitem[setitem_4](%getitem_2, ..., 0)
        + %setitem_5 = setitem[setitem_5](%setitem_3, (:, 1), %zero_)
        + return %setitem_5
    """,
        inputs=X,
    )


def test_an_out_argument_is_a_write() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = torch.empty_like(x)
        torch.add(x, 1, out=y)
        return y * 2

    assert_rewrites(
        RemoveWrites(),
        Net(forward),
        """
          %x          = input
          %empty_like = empty_like(%x)
        - %add        = add(%x, 1, out=%empty_like)
        + %add        = add(%x, 1)
          %mul        = .mul(%add, 2)
          return %mul
    """,
        inputs=X,
    )


def test_a_buffer_is_still_written() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        net.count += 1
        return net.fc(x) * net.count

    outcome = assert_rewrites(
        RemoveWrites(),
        Net(forward),
        """
        %x     = input
        %count = attr[count]
        %add_  = .add_(%count, 1)
        %fc    = linear[fc](%x)
        %mul   = .mul(%fc, %add_)
        return %mul
    """,
        inputs=X,
    )
    assert "outlives the call" in outcome.skips[0].reason


def test_a_tensor_seen_through_another_view_is_still_written() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.fc(x)
        turned = y.transpose(1, 2)
        y.relu_()
        return turned

    outcome = assert_rewrites(
        RemoveWrites(),
        Net(forward),
        """
        %x         = input
        %fc        = linear[fc](%x)
        %transpose = .transpose(%fc, 1, 2)
        %relu_     = .relu_(%fc)
        return %transpose
    """,
        inputs=X,
    )
    assert "reads transpose afterwards" in outcome.skips[0].reason


def test_a_write_that_keeps_the_type_stays() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.fc(x)
        y.add_(torch.ones(3, dtype=torch.float64))
        return y

    outcome = assert_rewrites(
        RemoveWrites(),
        Net(forward),
        """
        %x    = input
        %fc   = linear[fc](%x)
        %ones = ones(3, dtype=float64)
        %add_ = .add_(%fc, %ones)
        return %add_
    """,
        inputs=X,
    )
    assert "another type" in outcome.skips[0].reason


def test_elements_of_a_chunk_are_apart() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        with torch.no_grad():
            a, b = x.clone().chunk(2, 1)
            a.relu_()
            return torch.cat([a, b], 1)

    assert_rewrites(
        RemoveWrites(),
        Net(forward),
        """
              %x         = input
              %detach    = .detach(%x)
              %clone     = .clone(%detach)
              %chunk     = .chunk(%clone, 2, 1)
              %getitem   = getitem(%chunk, 0)
              %getitem_1 = getitem(%chunk, 1)
            - %relu_     = .relu_(%getitem)
            + %relu_     = .relu(%getitem)
              %cat       = cat([%relu_, %getitem_1], 1)
              return %cat
        """,
        inputs=X,
    )


def test_elements_of_a_result_are_apart() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        values, index = net.fc(x).topk(2)
        values.mul_(2)
        return values + index

    assert_rewrites(
        RemoveWrites(),
        Net(forward),
        """
          %x         = input
          %fc        = linear[fc](%x)
          %topk      = .topk(%fc, 2)
          %getitem   = getitem(%topk, 0)
          %getitem_1 = getitem(%topk, 1)
        - %mul_      = .mul_(%getitem, 2)
        + %mul_      = .mul(%getitem, 2)
          %add       = .add(%mul_, %getitem_1)
          return %add
    """,
        inputs=X,
    )


def test_numbers_stay() -> None:
    def forward(net: Any, x: Tensor) -> Any:
        y = net.fc(x)
        y[:, 0] += 1
        y[0][1:].mul_(3)
        y.view(-1).exp_()
        z = net.act(y)
        y[..., 1:] = z[..., :1] * 2
        return y + z

    net = Net(forward).eval()
    gm = ready(net, frozenset({Fact.MODULES_ONLY}), X)
    assert torch.equal(gm(X), net(X))


def test_a_view_that_is_written_twice_reaches_its_base() -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            x = x * 1
            view = x[:, 1:3]
            view.mul_(2)
            view += 1
            x[0] = x[0] * 3
            return x

    x = torch.randn(2, 4)
    assert torch.equal(prepare_model(Twice(), x)(x), Twice()(x))
