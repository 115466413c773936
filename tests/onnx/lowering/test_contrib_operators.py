"""onnxruntime's own operators: only where the target has them, and exact in the executor."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.session import Level, open_session


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(nn.functional.silu(self.conv(x)))  # type: ignore[no-any-return]


def _sim(target: str = "onnxruntime_x86") -> QuantizationSimModel:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 20, 20)
    sim = QuantizationSimModel(Net().eval(), x, quant_scheme="min_max", target=target)
    sim.compute_encodings([x])
    return sim


def _kinds(path: Path) -> set[str]:
    return {node.op_type for node in ir.load(path).graph}


@pytest.mark.parametrize(
    ("target", "contrib", "whole"),
    [
        ("onnxruntime_x86", None, True),
        ("onnxruntime_x86", False, False),
        ("generic_pof2", None, False),
        ("generic_pof2", True, True),
    ],
)
def test_the_target_decides_unless_the_user_does(
    target: str, contrib: bool | None, whole: bool, tmp_path: Path
) -> None:
    assert _sim(target).export(tmp_path, "net", contrib=contrib)  # proven
    kinds = _kinds(tmp_path / "net.onnx")
    assert ("QuickGelu" in kinds, "Sigmoid" in kinds) == (whole, not whole)


@pytest.mark.parametrize("islands", ["own", "onnxruntime"])
def test_the_executor_knows_it_bit_for_bit(islands: str, tmp_path: Path) -> None:
    sim = _sim()
    sim.export(tmp_path, "net", prove=False)
    model = IntegerModel(tmp_path / "net.onnx", islands=islands)
    feeds = {"x": sim.example[0][0].numpy()}
    names = [n for n in model.visible_names if "silu" in n]
    assert names
    found = model.run(feeds, [*names, *model.output_names])
    theirs = open_session(tmp_path / "net.onnx", Level.ALL).run(feeds)
    for name in model.output_names:
        assert np.array_equal(found[name], theirs[name])
    assert torch.equal(
        sim.integer_model(islands=islands)(*sim.example[0]), torch.from_numpy(theirs["output"])
    )
