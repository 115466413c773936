"""Which tensors share memory: checked against storages in a real run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.graph.alias_analysis import aliases, view_of, viewed, written
from fxquant.graph.meta import spec_of
from tests.helpers.golden import recorded
from tests.test_ops import made

X = torch.randn(2, 4, 6)


class Fn(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


@pytest.mark.parametrize(
    "row", [r for r in ops.TABLE.rows.values() if r.samples], ids=lambda r: r.name
)
def test_a_row_that_shares_memory_is_known_to(row: ops.Op) -> None:
    for sample in row.samples:
        values = ops.bind(row.signature, made(sample.args), made(dict(sample.kwargs)))
        target = next((s[1] for s in _functions(row)), None)
        if target is None:
            continue
        args, kwargs = ops.call_arguments(row, values)
        try:
            result = target(*args, **kwargs)
        except TypeError:
            continue
        first = result[0] if isinstance(result, tuple | list) else result
        memory = {t.untyped_storage().data_ptr() for t in args if isinstance(t, Tensor)}
        if isinstance(first, Tensor) and first.untyped_storage().data_ptr() in memory:
            graph = fx.Graph()
            x = graph.placeholder("x")
            x.meta["spec"] = spec_of(args[0])
            node = graph.call_function(target, (x, *args[1:]), kwargs)
            assert viewed(node, fx.GraphModule(nn.Module(), graph)), (
                f"{row.name} may return its input"
            )


def _functions(row: ops.Op) -> list[tuple[str, Any]]:
    found = ops.TABLE._functions.items()
    return [
        ("", k) for k, s in found if s.op is row and not s.inplace and s.signature is row.signature
    ]


def test_aliases_are_walked_up_and_down() -> None:
    gm = recorded(Fn(lambda x: (x * 2).view(-1)[1:].relu() + x.flatten().sum()), X)
    nodes = {n.name: n for n in gm.graph.nodes}
    assert {n.name for n in aliases(nodes["view"], gm)} == {"mul", "view", "getitem"}
    assert nodes["flatten"] in aliases(nodes["x"], gm)


def test_views_that_can_be_written_back_to() -> None:
    gm = recorded(Fn(lambda x: x[0, ..., None, 1:][0] + x[torch.tensor([0])].mean()), X)
    found = {n.name: view_of(n, gm) for n in gm.graph.nodes if n.name.startswith("getitem")}
    assert {k: v and v.name for k, v in found.items()} == {
        "getitem": "x",
        "getitem_1": "getitem",
        "getitem_2": None,
    }


@pytest.mark.parametrize(
    ("function", "shares"),
    [
        (lambda x: x[0], True),
        (lambda x: x[:, 1:3], True),
        (lambda x: x[[0, 1]], False),
        (lambda x: x[:, [0, 2]], False),
        (lambda x: x[torch.tensor([1, 0])], False),
        (lambda x: x[..., torch.tensor([1, 0])], False),
        (lambda x: x[x > 0], False),
    ],
)
def test_an_index_of_tensors_or_lists_copies(
    function: Callable[[Tensor], Tensor], shares: bool
) -> None:
    gm = recorded(Fn(function), X)
    index = [n for n in gm.graph.nodes if n.name == "getitem"]
    assert [bool(viewed(n, gm)) for n in index] == [shares]
    assert (function(X).untyped_storage().data_ptr() == X.untyped_storage().data_ptr()) == shares


@pytest.mark.parametrize(
    ("function", "names"),
    [
        (lambda x: x.mul(2).add_(1), {"add_"}),
        (lambda x: torch.relu_(x + 1), {"relu_"}),
        (lambda x: nn.functional.elu(x * 1, 1.0, True), {"elu"}),
        (lambda x: torch.add(x, 1, out=torch.empty_like(x)), {"add"}),
        (lambda x: x.requires_grad_(False) + 1, set()),
        (lambda x: nn.ReLU(inplace=False)(x), set()),
    ],
)
def test_writes(function: Callable[[Tensor], Tensor], names: set[str]) -> None:
    gm = recorded(Fn(function), X)
    assert {n.name for n in gm.graph.nodes if written(n, gm) is not None} == names
