"""Float models that are written as torch's eager quantization wants them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.ao.nn.quantized import FloatFunctional, FXFloatFunctional, QFunctional
from torch.ao.quantization import DeQuantStub, QuantStub

from fxquant import QuantizationSimModel, prepare_model
from fxquant.errors import TraceError

if TYPE_CHECKING:
    from pathlib import Path

X = torch.rand(2, 3, 9, 9)

CALLS: dict[str, Callable[[Any, Tensor, Tensor], Tensor]] = {
    "add": lambda f, x, y: f.add(x, y),
    "mul": lambda f, x, y: f.mul(x, y),
    "cat": lambda f, x, y: f.cat([x, y], 1),
    "add_relu": lambda f, x, y: f.add_relu(x, y),
    "matmul": lambda f, x, y: f.matmul(x, y),
    "add_scalar": lambda f, x, y: f.add_scalar(x, 2.0) - y,
    "mul_scalar": lambda f, x, y: f.mul_scalar(x, 3.0) - y,
    "twice": lambda f, x, y: f.add(f.add(x, y), y),
}


class Net(nn.Module):
    """A block between stubs."""

    def __init__(self, f: Any, call: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.quant, self.dequant = QuantStub(), DeQuantStub()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.f, self.call = f, call

    def forward(self, x: Tensor) -> Any:
        x = self.quant(x)
        return self.dequant(self.call(self.f, torch.relu(self.a(x)), self.b(x)))


@pytest.mark.parametrize("kind", [FloatFunctional, FXFloatFunctional])
@pytest.mark.parametrize("name", CALLS)
def test_a_place_for_sums_is_a_float_module(name: str, kind: Any, tmp_path: Path) -> None:
    net = Net(kind(), CALLS[name]).eval()
    gm = prepare_model(net, X)
    assert torch.equal(gm(X), net(X))
    sim = QuantizationSimModel(gm, X)
    sim.compute_encodings([X])
    assert sim.export(tmp_path, "net")


def test_a_place_for_quantized_sums_is_refused() -> None:
    with pytest.raises(TraceError, match="FXQ106"):
        prepare_model(Net(QFunctional(), CALLS["add"]), X)
