"""What may vary: which inputs follow the batch, and what other inputs look like."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant.onnx.runs.observed import Dim, Shaped, record
from fxquant.onnx.runs.varying import Varying, other_values
from tests.helpers.nets import prepared


def decided(forward: Any, *inputs: Any) -> tuple[Varying, dict[str, Any]]:
    net = type("Net", (nn.Module,), {"forward": staticmethod(forward)})()
    found = record(prepared(net, *inputs), (inputs, {}))
    return found.varying, {node.name: spec for node, spec in found.specs.items()}


def test_rows_are_taken_in_turn_from_what_follows_the_batch() -> None:
    x, other = torch.arange(6.0).reshape(2, 3), torch.ones(4)
    values = Varying(2, frozenset({0}), (2, 3)).resized(([x], {"other": other, "n": 2}), 3)
    assert torch.equal(values[0][0], x[[0, 1, 0]])
    assert values[1]["other"] is other


def test_indices_of_rows_are_kept_valid_by_growing() -> None:
    """Cut to two rows, the places 2, 3 ... of the others would be out of range."""
    varying, specs = decided(
        lambda x, col: x - torch.zeros_like(x).index_add(0, col, x[col]),
        torch.randn(6, 4), torch.tensor([5, 1, 1, 2, 3, 4, 5, 0, 2]),
    )  # fmt: skip
    assert varying.sizes == (6, 7)
    assert varying.followers == {0}
    assert not varying.cut
    assert specs["x"].shape == (Dim(1, 0), 4)
    assert specs["col"].shape == (9,)


def test_the_batch_is_that_of_an_input_that_the_outputs_follow() -> None:
    """The two rows of an edge list are no batch; the nodes are."""
    varying, specs = decided(
        lambda edges, x: torch.zeros_like(x).index_add(0, edges[1], x[edges[0]]),
        torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 0]]), torch.randn(5, 3),
    )  # fmt: skip
    assert varying.batch == 5
    assert specs["x"].shape == (Dim(1, 0), 3)
    assert specs["edges"].shape == (2, 5)


@pytest.mark.parametrize("batch", [5, 2, 1])
def test_the_batch_of_a_recurrent_state_is_its_second_axis(batch: int) -> None:
    """Of x [batch, 4] and a state [2, batch, 3]; two layers are no batch, nor is a batch of two."""
    cell = nn.LSTMCell(4, 3)

    def step(x: Tensor, state: Tensor) -> Tensor:
        return torch.stack(cell(x, (state[0], state[1])))

    varying, specs = decided(step, torch.randn(batch, 4), torch.randn(2, batch, 3))
    assert varying.batch == batch
    assert varying.followers == {0, 1}
    assert varying.axes == {1: 1}
    assert specs["x"].shape == (Dim(1, 0), 4)
    assert specs["state"].shape == specs["stack"].shape == (2, Dim(1, 0), 3)


def test_an_axis_behind_the_first_is_the_batch_only_where_outputs_follow_it() -> None:
    """A matrix times x runs with fewer of its columns; that is another network, no batch."""
    column = torch.randn(6, 1)
    varying, _ = decided(lambda m, x: m @ x + column, torch.randn(6, 6), torch.randn(6, 4))
    assert not varying.dynamic


def test_a_batch_that_cannot_be_tried_is_fixed_with_a_reason() -> None:
    varying, specs = decided(lambda x: x.reshape(4, 2, 4), torch.randn(4, 8))
    assert not varying.dynamic
    assert "batch size of its example only" in varying.reason
    assert specs["x"] == Shaped((4, 8), torch.float32)


def test_an_input_without_axes_has_no_batch() -> None:
    varying, _ = decided(lambda x: x * 2, torch.tensor(1.5))
    assert varying.batch is None
    assert varying.reason == "no input has a first dimension"


@pytest.mark.parametrize("variant", range(3))
def test_other_values_are_of_the_same_kind(variant: int) -> None:
    x, ids = torch.randn(6, 3), torch.arange(12).reshape(6, 2) * 10
    edges, mask = torch.tensor([[0, 1, 2], [2, 0, 1]]), torch.tensor([True, False])
    varying = Varying(6, frozenset({0, 1}), (2, 3))
    state = torch.get_rng_state()
    values: list[Tensor] = other_values([x, ids, edges, mask], varying, variant)
    again: list[Tensor] = other_values([x, ids, edges, mask], varying, variant)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(values, again, strict=True))
    assert [(v.shape, v.dtype) for v in values] == [
        (v.shape, v.dtype) for v in (x, ids, edges, mask)
    ]
    assert not torch.equal(values[0], x)
    assert x.min() <= values[0].min()
    assert values[0].max() <= x.max()
    # whole rows of what follows the batch, whole columns of what does not
    assert all((ids == row).all(1).any() for row in values[1])
    assert all((edges.t() == column).all(1).any() for column in values[2].t())


def test_other_values_of_tensors_that_hold_none() -> None:
    """Nothing to choose from, nothing finite, no axis: they stay as they are."""
    given = [torch.zeros(0, 3), torch.tensor(2), torch.full((2, 2), -torch.inf)]
    values = other_values(given, Varying(0), 1)
    assert all(torch.equal(a, b) for a, b in zip(given, values, strict=True))


def test_infinities_of_a_mask_stay_where_they_are() -> None:
    mask = torch.tensor([[0.0, -torch.inf], [0.0, 0.0]])
    (found,) = other_values([mask], Varying(2, frozenset({0}), (2, 3)), 0)
    assert torch.equal(torch.isinf(found), torch.isinf(mask))
    assert not torch.isnan(found).any()
