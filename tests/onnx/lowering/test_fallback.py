"""Operators without a lowering: torch's exporter, or an error that says what to do."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant.errors import ExportError
from fxquant.onnx import lower
from fxquant.onnx.lowering import emitters
from tests.helpers.lowering import check, graph_of
from tests.helpers.nets import prepared


class Exotic(nn.Module):
    """An operator that has no row, between two that have one."""

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3] -> [N, 3]."""
        return torch.relu(torch.erfc(x)) + 1


class Own(nn.Module):
    """A module of the user's, kept whole."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 3))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[N, 3] -> [N, 3], [N]."""
        y = x @ self.weight
        return y * torch.sigmoid(y), y.sum(-1)


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnxscript")
def test_a_module_without_a_row_is_exported_and_inlined() -> None:
    x = torch.randn(2, 3)
    lowered = check(graph_of(Own(), x), [x], fallbacks=1)
    assert lowered.fallbacks[0].operator == "Own"
    assert lowered.fallbacks[0].reason == "it has no row"
    assert all(name.startswith("op") for name in lowered.owners)


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnxscript")
def test_a_function_without_a_row_is_exported_and_inlined() -> None:
    x = torch.randn(2, 3)
    lowered = check(prepared(Exotic(), x), [x], fallbacks=1)
    assert [f.operator for f in lowered.fallbacks] == ["erfc"]


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnxscript")
def test_equal_calls_are_exported_once(monkeypatch: pytest.MonkeyPatch) -> None:
    class Twice(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.erfc(torch.erfc(x)) + torch.erfc(x[:, :2]).sum()

    exports: list[object] = []
    export = torch.onnx.export

    def counting(*args: Any, **kwargs: Any) -> Any:
        exports.append(args)
        return export(*args, **kwargs)

    monkeypatch.setattr(torch.onnx, "export", counting)
    x = torch.randn(2, 3)
    check(prepared(Twice(), x), [x], fallbacks=3)
    assert len(exports) == 2


@pytest.mark.skipif(importlib.util.find_spec("onnxscript") is None, reason="needs onnxscript")
def test_a_hook_that_changes_a_value_behind_the_graph_is_refused_by_name() -> None:
    layer = nn.Linear(3, 3)
    gm = graph_of(layer, x := torch.randn(2, 3))

    def doubled(module: nn.Module, args: Any, result: Tensor) -> Tensor:
        return result * 2

    layer.register_forward_hook(doubled)
    with pytest.raises(ExportError, match=r"FXQ532.*doubled.*changes what 'op' computes"):
        lower(gm, ((x,), {}))


def test_a_hook_that_only_looks_costs_nothing() -> None:
    layer = nn.Linear(3, 3)
    seen: list[Tensor] = []
    layer.register_forward_hook(lambda module, args, result: seen.append(result))
    x = torch.randn(2, 3)
    check(graph_of(layer, x), [x], fallbacks=0)
    assert seen


def test_bodies_of_loops_read_the_values_around_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bags of embeddings are a loop of the exporter's that reads a table outside of it."""
    emitters.load()
    monkeypatch.delitem(emitters._BY_ROW, "embedding_bag")

    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.EmbeddingBag(9, 4), nn.EmbeddingBag(9, 4)

        def forward(self, x: Tensor) -> Any:
            return self.first(x) + self.second(x)

    x = torch.arange(6).view(2, 3)
    check(prepared(Bags(), x), [x], fallbacks=2)


def test_without_the_exporter_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ExportError, match="FXQ508") as caught:
        lower(graph_of(Own(), x), ((x,), {}))
    assert "fxquant[exporter]" in str(caught.value)
    assert "op" in str(caught.value.at)


def test_an_old_opset_cannot_use_the_exporter() -> None:
    x = torch.randn(2, 3)
    with pytest.raises(ExportError, match="opset 17"):
        lower(graph_of(Own(), x), ((x,), {}), opset=17)
