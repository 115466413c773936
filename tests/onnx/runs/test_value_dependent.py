"""Sizes that depend on values: dynamic, and files are right on inputs that choose others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import ops
from fxquant.errors import ExportError
from fxquant.onnx import lower
from fxquant.onnx.runs.observed import Dim, Recorded, Shaped, record
from fxquant.onnx.runs.value_dependent import SizeSource
from tests.helpers.lowering import assert_equal, run
from tests.helpers.nets import prepared


def function_net(forward: Callable[..., Any]) -> nn.Module:
    net: nn.Module = type("Net", (nn.Module,), {"forward": staticmethod(forward)})()
    return net


def recorded(forward: Callable[..., Any], *inputs: Tensor) -> Recorded:
    return record(prepared(function_net(forward), *inputs), (inputs, {}))


def positive(x: Tensor) -> Tensor:
    return x[:, 0] > 0


def write_by_mask(x: Tensor) -> Tensor:
    out, chosen = torch.zeros_like(x), positive(x)
    out[chosen] = x[chosen] * 2
    return out


def routed(x: Tensor) -> Tensor:
    """A mixture of three experts."""
    out = torch.zeros_like(x)
    best = x[:, :3].argmax(-1)
    for k in range(3):
        rows = (best == k).nonzero().squeeze(-1)
        out = out.index_add(0, rows, x[rows] * (k + 1.5))
    return out


# forward, and how many sizes of the result depend on values
FORWARDS: dict[str, tuple[Callable[[Tensor], Any], int]] = {
    "rows by a mask": (lambda x: x[positive(x)], 1),
    "elements by a mask": (lambda x: x[x > 0] + 1, 1),
    "a mask and a slice": (lambda x: x[positive(x)][:, :2], 1),
    "nonzero": (lambda x: x[torch.nonzero(positive(x)).squeeze(1)], 1),
    "nonzero of floats": (lambda x: F.relu(x).nonzero(), 1),
    "nonzero as a tuple": (lambda x: x[positive(x).nonzero(as_tuple=True)[0]], 1),
    "where of one argument": (lambda x: torch.where(positive(x))[0], 1),
    "argwhere": (lambda x: x[torch.argwhere(positive(x)).flatten()], 1),
    "masked_select": (lambda x: torch.masked_select(x, x > 0.2), 1),
    "unique": (lambda x: torch.unique((x * 2).round().long()), 1),
    "unique_consecutive": (lambda x: torch.unique_consecutive((x.flatten() > 0).long()), 1),
    "bincount": (lambda x: torch.bincount(x.argmax(1)), 1),
    "one_hot of all classes": (lambda x: F.one_hot(x.argmax(1)), 1),
    "repeat_interleave": (lambda x: torch.repeat_interleave(x, x.argmax(1), dim=0), 1),
    "a choice among chosen": (lambda x: (lambda y: y[y[:, 1] > 0])(x[positive(x)]), 1),
    "a size of chosen rows": (lambda x: x[positive(x)].sum(0) / x[positive(x)].shape[0], 0),
    "chosen and others": (lambda x: torch.cat([x[positive(x)], x[~positive(x)]]), 0),
    "a mask written to": (write_by_mask, 0),
    "masked_scatter": (lambda x: torch.zeros_like(x).masked_scatter(x > 0, x.abs()), 0),
    "experts": (routed, 0),
    "sorted, then chosen": (lambda x: (lambda y: y[y > 0])(x[:, 0].sort().values), 1),
    "zeros like chosen": (lambda x: torch.zeros_like(x[positive(x)]) + 1, 1),
    "padded to the chosen": (lambda x: F.pad(x[positive(x)], (1, 1)), 1),
    "flattened": (lambda x: x[positive(x)].reshape(-1) * 2, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", FORWARDS)
def test_what_values_choose_is_right_on_other_values(name: str) -> None:
    """The file computes what PyTorch computes, also on values and batches that choose otherwise."""
    forward, sizes = FORWARDS[name]
    rng = torch.Generator().manual_seed(3)
    inputs = [torch.randn(rows, 4, generator=rng) for rows in (10, 10, 7, 13)]
    gm = prepared(function_net(forward), inputs[0])
    spec = next(s for n, s in record(gm, ((inputs[0],), {})).specs.items() if n.op == "output")
    spec = spec[0] if isinstance(spec, tuple) else spec
    assert sum(isinstance(s, Dim) and s.by_value for s in spec.shape) == sizes
    lowered = lower(gm, ((inputs[0],), {}))
    for x in inputs:
        for optimized in (False, True):
            assert_equal(run(lowered, [x], optimized=optimized), gm(x))


def test_what_follows_a_choice_has_its_size() -> None:
    def forward(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        chosen, others = x[positive(x)], x[x[:, 1] > 0]
        return chosen * 2, others + 1, torch.cat([chosen, others])

    specs = {n.name: s for n, s in recorded(forward, torch.randn(10, 4)).specs.items()}
    first, second, both = specs["mul"].shape[0], specs["add"].shape[0], specs["cat"].shape[0]
    assert len({first, second, both}) == 3
    assert all(size.by_value for size in (first, second, both))
    assert specs["x"].shape == (Dim(1, 0), 4)


@pytest.mark.parametrize("rows", [1, 2, 5, 40])
def test_an_example_that_chooses_everything(rows: int) -> None:
    """Whatever the example happens to choose, the number of chosen rows is no constant."""
    found = recorded(lambda x: x[positive(x.abs() + 1)], torch.rand(rows, 4))
    spec = next(s for n, s in found.specs.items() if n.op == "output")
    assert spec.shape[0].by_value
    assert found.varying.insisted == ()


def test_a_mask_that_is_an_input() -> None:
    """As many rows as the mask has ones, of every row of it as many."""
    keep = torch.zeros(3, 6, dtype=torch.bool)
    keep[:, ::2] = True
    found = recorded(lambda x, keep: x[keep].reshape(x.shape[0], -1, 4), torch.randn(3, 6, 4), keep)
    spec = next(s for n, s in found.specs.items() if n.op == "output")
    assert spec.shape[0] == Dim(1, 0)
    assert spec.shape[1].by_value
    assert found.varying.followers == {0, 1}


def test_classes_that_the_model_insists_on_are_fixed_and_said() -> None:
    weight = torch.randn(4, 4)
    found = recorded(lambda x: F.one_hot(x.argmax(1)).float() @ weight, torch.eye(4) * 2)
    assert found.varying.insisted == ("one_hot",)


def test_positions_decide_no_size() -> None:
    """Computed places: rows that grow in number keep them valid, a cut to two does not."""
    found = recorded(lambda x: x[x.argmax(1)], torch.eye(5).flip(0))
    assert found.varying.by_value == ()
    assert found.varying.sizes == (5, 6)


def test_as_many_outputs_as_values_say_are_refused_by_name() -> None:
    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    chosen = graph.call_function(torch.masked_select, (x, graph.call_method("gt", (x, 0))))
    graph.output(graph.call_method("unbind", (chosen, 0)))
    gm = torch.fx.GraphModule(nn.Module(), graph)
    with pytest.raises(ExportError, match="unbind has depends on values") as caught:
        record(gm, ((torch.randn(8, 4),), {}))
    assert caught.value.code == "FXQ535"


def source(how: ops.Sized) -> SizeSource:
    graph = torch.fx.Graph()
    node = graph.placeholder("x")
    return SizeSource(node, node, how)


@pytest.mark.parametrize("variant", range(4))
@pytest.mark.parametrize(("how", "value"), [
    (ops.Sized.MASK, torch.tensor([True, False, False, True, True])),
    (ops.Sized.MASK, torch.ones(3, 4, dtype=torch.bool)),
    (ops.Sized.NONZERO, torch.zeros(2, 5)),
    (ops.Sized.NONZERO, torch.tensor([True])),
    (ops.Sized.SUM, torch.tensor([0, 2, 1])),
    (ops.Sized.DISTINCT, torch.tensor([[3, 1], [1, 2]])),
    (ops.Sized.LARGEST, torch.tensor([0, 4, 2])),
])  # fmt: skip
def test_other_values_decide_another_size(how: ops.Sized, value: Tensor, variant: int) -> None:
    other = source(how).other(value, variant)
    assert (other.shape, other.dtype) == (value.shape, value.dtype)
    assert source(how).count(other) != source(how).count(value)


def test_a_size_that_depends_on_values_is_written_as_one() -> None:
    assert str(Dim(1, 0, "nonzero_0")) == "nonzero_0"
    assert str(Dim(3, 1, "nonzero_0")) == "3*nonzero_0+1"
    assert Shaped((Dim(1, 0, "a"),), torch.float32) != Shaped((Dim(1, 0, "b"),), torch.float32)
