"""Two runs: which sizes follow the batch, and what no input can change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant.onnx.runs.observed import Dim, Shaped, record
from tests.helpers.nets import Residual, image, prepared


def specs(forward: Any, *inputs: Tensor) -> dict[str, Any]:
    net = type("Net", (nn.Module,), {"forward": staticmethod(forward)})()
    found = record(prepared(net, *inputs), (inputs, {}))
    return {node.name: spec for node, spec in found.specs.items()}


@pytest.mark.parametrize(("dim", "text"), [
    (Dim(1, 0), "batch"), (Dim(4, 0), "4*batch"), (Dim(1, 1), "batch+1"), (Dim(2, -3), "2*batch-3"),
])  # fmt: skip
def test_names_of_sizes(dim: Dim, text: str) -> None:
    assert str(dim) == text


def test_sizes_that_follow_the_batch() -> None:
    found = specs(lambda x: x.reshape(x.shape[0] * 3, 4), torch.randn(5, 3, 4))
    assert found["x"] == Shaped((Dim(1, 0), 3, 4), torch.float32)
    assert found["reshape"] == Shaped((Dim(3, 0), 4), torch.float32)
    assert found["mul"] == Dim(3, 0)


def test_constants_are_what_depends_on_no_value() -> None:
    net = type("Net", (nn.Module,), {"forward": staticmethod(
        lambda x: x + torch.arange(x.shape[1]) + torch.zeros(x.shape[0], 1))})()  # fmt: skip
    gm = prepared(net, torch.randn(2, 3))
    found = record(gm, ((torch.randn(2, 3),), {}))
    names = {node.name for node in found.constants}
    assert "arange" in names
    assert "zeros" not in names
    assert "x" not in names


def test_a_model_that_refuses_another_batch_is_run_once() -> None:
    net = type("Net", (nn.Module,), {"forward": staticmethod(lambda x: x.reshape(2, 6))})()
    found = record(prepared(net, torch.randn(2, 3, 2)), ((torch.randn(2, 3, 2),), {}))
    assert not found.varying.dynamic
    assert "batch size of its example" in found.varying.reason


def test_flags_and_statistics_are_as_before() -> None:
    gm = prepared(Residual(), image())
    gm.train()
    before = gm.get_buffer("bn1.running_mean").clone()
    record(gm, ((image(),), {}))
    assert all(m.training for m in gm.modules())
    assert torch.equal(before, gm.get_buffer("bn1.running_mean"))
