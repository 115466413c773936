"""Parts of a float32 model in float16 or bfloat16: their roundings are no fault, a fault is one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.onnx import lower
from fxquant.onnx.parity.error_analysis import Rounding
from fxquant.onnx.parity.error_bounds import UNIT, Bound, bounds_of
from fxquant.onnx.parity.error_rules import Valued, narrowed
from fxquant.onnx.parity.prove import prove
from tests.helpers.qdq import Graph
from tests.helpers.shipped import Shipped

TYPES = (torch.float16, torch.bfloat16)
UNITS = {ir.DataType.FLOAT16: 2.0**-11, ir.DataType.BFLOAT16: 2.0**-8}

PARTS: dict[str, Callable[[Tensor], Tensor]] = {
    "cast": torch.relu,
    "add": lambda y: y + 1,
    "number": lambda y: y + y * 0.3,
    "mul": lambda y: y * y,
    "matmul": lambda y: (y @ y.t()) @ y,
    "softmax": lambda y: y.softmax(-1),
    "mean": lambda y: y - y.mean(-1, keepdim=True),
    "sum": lambda y: y * y.sum(-1, keepdim=True),
    "norm": lambda y: y / y.norm(dim=-1, keepdim=True),
}


class Island(nn.Module):
    """Two linear layers with something in half precision between them."""

    def __init__(self, part: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.a, self.b, self.part, self.dtype = nn.Linear(16, 16), nn.Linear(16, 4), part, dtype

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.b(self.part(self.a(x).to(self.dtype)).float())
        return y


def simulated(name: str, dtype: torch.dtype) -> tuple[QuantizationSimModel, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    sim = QuantizationSimModel(Island(PARTS[name], dtype).eval(), x, "min_max")
    sim.compute_encodings([x])
    return sim, x


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("name", PARTS)
def test_a_part_in_half_precision_is_proven(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    sim, x = simulated(name, dtype)
    assert sim.export(tmp_path, "net", x)
    (found,) = next(Shipped(tmp_path / "net.onnx").run([x]))
    with torch.no_grad():
        wanted = sim.model(x).numpy()
    # single integers may differ by a step; a lost cast or factor would move all
    assert np.abs(found - wanted).mean() < 0.01 * np.abs(wanted).max()


def test_a_wrong_weight_before_half_precision_is_found(tmp_path: Path) -> None:
    sim, x = simulated("add", torch.float16)
    lowered = lower(sim.model, ((x,), {}))
    scale = lowered.model.graph.initializers["a.weight_scale"]
    assert scale.const_value is not None
    wrong = (scale.const_value.numpy() * 1.05).astype(np.float32)
    scale.const_value = ir.Tensor(wrong, name="a.weight_scale")
    ir.save(lowered.model, tmp_path / "net.onnx")
    assert not prove(sim.model, lowered, ((x,), {}), tmp_path / "net.onnx").proven


@pytest.mark.parametrize("kind", UNITS)
def test_a_result_is_rounded_to_its_type(kind: ir.DataType) -> None:
    g, unit = Graph(x=("batch", 3)), UNITS[kind]
    narrow = g.op("Cast", "narrow", g["x"], to=kind)
    total = g.op("Add", "total", narrow, narrow)
    wide = g.op("Cast", "wide", total, to=ir.DataType.FLOAT)
    model = g.model(wide)
    x = np.array([[1.0, -2.0, 3.0]], np.float32)
    found = Rounding(model, {"x": x}).at("wide.out")
    assert found is not None
    assert np.array_equal(found.value, 2 * x)
    # both operands and the sum are rounded
    assert found.error == pytest.approx(4 * unit * np.abs(x), rel=3 * unit, abs=2.0**-23)
    bound = bounds_of(model, ["wide.out"], {"x": 3.0})["wide.out"]
    assert bound == Bound(6.0, 2 * 2 * unit * 3 + 2 * UNIT * 6 + 2 * unit * 6)


def test_float16_ends_at_both_sides() -> None:
    found = narrowed(Valued.exact(np.array([1e-7, 7e4, np.inf])), 2.0**-11)
    assert found.error[0] == pytest.approx(2.0**-25, rel=1e-2)
    assert np.isinf(found.error[1]), "one program has infinity there, another may not"
    assert found.error[2] == 0
    assert np.isfinite(narrowed(Valued.exact(np.array([7e4])), 2.0**-8).error[0])
