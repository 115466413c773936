"""torch's control flow operators are recorded as the Python that they stand for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.map import map as map_rows

from fxquant import QuantizationSimModel, prepare_model
from fxquant.errors import TraceError
from fxquant.onnx import lower
from fxquant.prepare import SpecialisationWarning

X = torch.randn(2, 4)


class Branch(nn.Module):
    """A branch on a value; its branches use layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Any:
        return torch.cond(x.square().sum() > 0, self.first, self.second, (x,))


class Loop(nn.Module):
    """A loop that ends by a value."""

    def forward(self, x: Tensor) -> Any:
        state = (x.abs() + 1,)
        return torch.while_loop(lambda v: v.sum() < 100, lambda v: (v * 2,), state)[0]


class Rows(nn.Module):
    """A function mapped over the rows of a batch."""

    def forward(self, x: Tensor) -> Any:
        def scaled(row: Tensor, *others: Any) -> Tensor:
            return row.softmax(0)

        return map_rows(scaled, x)


def test_a_branch_is_a_decision_on_a_value() -> None:
    net = Branch().eval()
    with pytest.warns(SpecialisationWarning, match=r"looked at by torch.cond"):
        gm = prepare_model(net, X)
    assert torch.equal(gm(X), net(X))
    assert [str(n.target) for n in gm.graph.nodes if n.op == "call_module"] == ["first"]
    gm(X).sum().backward()
    assert gm.get_submodule("first").weight.grad is not None


def test_a_loop_on_values_is_refused_with_its_line() -> None:
    with pytest.raises(TraceError, match="FXQ122") as caught:
        prepare_model(Loop(), X)
    assert "test_handlers.py" in str(caught.value)


def test_a_mapped_function_holds_for_one_batch_and_says_so() -> None:
    with pytest.warns(SpecialisationWarning, match="number of items"):
        gm = prepare_model(Rows(), X)
    sim = QuantizationSimModel(gm, X, "tf")
    sim.compute_encodings(lambda model, _: model(X), None)
    assert "number of items" in lower(sim.model, ((X,), {})).batch_note


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning")
def test_other_operators_that_take_functions_are_refused() -> None:
    from torch.nn.attention.flex_attention import flex_attention

    class Flexible(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return flex_attention(x, x, x)

    with pytest.raises(TraceError, match=r"FXQ114.*flex_attention"):
        prepare_model(Flexible(), torch.randn(1, 2, 16, 16))
