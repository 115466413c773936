"""Long sums and cancellation are rounding; a wrong number in the file is not."""

from __future__ import annotations

import math
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
from fxquant.onnx.parity.error_bounds import UNIT
from fxquant.onnx.parity.error_rules import (
    Valued,
    add,
    divide,
    multiply,
    products,
    roundings,
    summed,
)
from fxquant.onnx.parity.prove import prove
from fxquant.onnx.parity.report import ParityReport
from tests.helpers.qdq import Graph


class Apply(nn.Module):
    """A linear layer, then a function."""

    def __init__(self, function: Callable[[Tensor], Tensor], inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(inputs, outputs), function

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.function(self.linear(x))
        return result


class Centred(nn.Module):
    """The mean of what was centred is nothing but rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.out, self.gain = nn.Linear(16, 64), nn.Linear(64, 4), nn.Linear(1, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        y = y - y.mean(1, keepdim=True)
        result: Tensor = self.out(y) + self.gain(y.mean(1, keepdim=True))
        return result


def one_signed() -> nn.Module:
    conv = nn.Conv1d(512, 4, 32)
    with torch.no_grad():
        conv.weight.abs_()
    return conv


def simulated(model: nn.Module, x: Tensor, bits: int = 8) -> QuantizationSimModel:
    sim = QuantizationSimModel(model.eval(), x, "min_max", default_output_bw=bits)
    sim.compute_encodings([x])
    return sim


def proof(
    sim: QuantizationSimModel, x: Tensor, folder: Path, change: Callable[[ir.Model], None]
) -> ParityReport:
    lowered = lower(sim.model, ((x,), {}))
    change(lowered.model)
    ir.save(lowered.model, folder / "net.onnx")
    return prove(sim.model, lowered, ((x,), {}), folder / "net.onnx")


def nothing(_model: ir.Model) -> None:
    pass


RIGHT: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor], int]] = {
    "centred": (Centred, lambda: torch.randn(64, 16), 8),
    "long sum": (one_signed, lambda: torch.rand(2, 512, 600), 8),
    "constant": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1)),
        lambda: torch.full((2, 1, 400, 400), 0.1) + torch.rand(2, 1, 1, 1),
        16,
    ),
    "large mean": (
        lambda: nn.Sequential(nn.Identity(), nn.LayerNorm(64), nn.Linear(64, 4)),
        lambda: torch.randn(64, 64) * 0.01 + 100,
        16,
    ),
    "quotient by a small mean": (
        lambda: Apply(lambda y: y / y.mean(1, keepdim=True), 16, 16),
        lambda: torch.randn(64, 16),
        16,
    ),
}


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_file_is_proven(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    make, data, bits = RIGHT[name]
    model, x = make(), data()
    report = proof(simulated(model, x, bits), x, tmp_path, nothing)
    assert report.proven, report
    for row in report.tensors:
        assert row.exact + row.tie + row.drift + row.noise >= row.elements - row.defect
    if any(r.noise for r in report.tensors):
        assert "float32 rounding" in str(report)


def test_noise_is_counted_with_its_size(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 16)
    report = proof(simulated(Centred(), x), x, tmp_path, nothing)
    noisy = [r for r in report.tensors if r.noise]
    assert noisy
    assert max(r.noise_steps for r in noisy) > 1
    assert all(r.unexplained == 0 for r in noisy)


# --- a wrong number is found ---------------------------------------------------------------------


def _replaced(model: ir.Model, name: str, array: np.ndarray) -> None:
    model.graph.initializers[name].const_value = ir.Tensor(array, name=name)


def _last(model: ir.Model, kind: str, position: int) -> str:
    """The stored operand of the last DequantizeLinear of a weight (int8) or bias (int32)."""
    for node in reversed(list(model.graph)):
        stored = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        tensor = stored.const_value if stored is not None else None
        if tensor is not None and tensor.dtype.name == kind:
            value = node.inputs[position]
            assert value is not None
            return value.name or ""
    raise AssertionError(kind)


def _changed(model: ir.Model, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    _replaced(model, name, change(tensor.numpy().copy()))


def weight_scale(model: ir.Model) -> None:
    _changed(model, _last(model, "INT8", 1), lambda a: (a * 1.01).astype(a.dtype))


def one_weight(model: ir.Model) -> None:
    def change(a: np.ndarray) -> np.ndarray:
        flat = a.reshape(-1)
        flat[0] += 1 if flat[0] < 0 else -1
        return a

    _changed(model, _last(model, "INT8", 0), change)


def activation_scale(model: ir.Model) -> None:
    node = next(n for n in model.graph if n.op_type == "QuantizeLinear")
    name = node.inputs[1].name or ""  # type: ignore[union-attr]
    _changed(model, name, lambda a: (a * 1.01).astype(a.dtype))


def zero_point(model: ir.Model) -> None:
    last = [n for n in model.graph if n.op_type == "QuantizeLinear"][-1]
    name = last.inputs[2].name or ""  # type: ignore[union-attr]
    _changed(model, name, lambda a: (a + 1).astype(a.dtype))


def bias(model: ir.Model) -> None:
    _changed(model, _last(model, "INT32", 0), lambda a: a + 20)


WRONG = (weight_scale, one_weight, activation_scale, zero_point, bias)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "linear": (
        lambda: nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)), (512, 16)
    ),
    "conv": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), (8, 3, 24, 24)
    ),
    "normalized": (
        lambda: nn.Sequential(nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 8)), (512, 16)
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", WRONG)
@pytest.mark.parametrize("name", NETS)
def test_a_wrong_number_is_no_noise(
    name: str, damage: Callable[[ir.Model], None], tmp_path: Path
) -> None:
    torch.manual_seed(1)
    make, shape = NETS[name]
    model, x = make(), torch.randn(*shape)
    sim = simulated(model, x)
    assert proof(sim, x, tmp_path, nothing).proven
    assert not proof(sim, x, tmp_path, damage).proven


# --- the rules against float32 programs ----------------------------------------------------------


def test_no_order_of_a_sum_leaves_its_bound() -> None:
    rng = np.random.default_rng(0)
    for terms in (16, 1024, 65536):
        for shift in (0.0, 1.0):
            x = (rng.normal(size=(terms, 8)) + shift).astype(np.float32)
            found = summed(Valued.exact(x), (0,), keep=False, mean=False)
            for order in (x, x[::-1], np.sort(x, axis=0)):
                off = np.abs(np.cumsum(order, axis=0, dtype=np.float32)[-1] - found.value)
                assert (off <= found.error).all()
            assert (found.error <= 300 * math.sqrt(terms) * UNIT * np.abs(x).sum(0)).all()


def test_equal_terms_are_rounded_one_way() -> None:
    x = np.full((200_000, 1), 0.1, np.float32)
    found = summed(Valued.exact(x), (0,), keep=False, mean=True)
    off = abs(float(np.cumsum(x, dtype=np.float32)[-1]) / len(x) - float(found.value[0]))
    assert off > roundings(len(x)) * 0.1, "more than independent roundings would give"
    assert off <= found.error[0]


def test_cancellation_keeps_the_error_of_the_terms() -> None:
    a = Valued(np.array([1000.0]), np.array([1e-3]))
    difference = add(a, Valued.exact(np.array([999.0])), -1.0)
    assert difference.value[0] == 1.0
    assert difference.error[0] == pytest.approx(1e-3, rel=1e-3)
    quotient = divide(Valued.exact(np.array([1.0])), difference)
    assert quotient.error[0] == pytest.approx(1e-3, rel=2e-3)
    assert multiply(a, a).error[0] == pytest.approx(2 * 1000 * 1e-3 + UNIT * 1e6, rel=1e-3)
    assert np.isinf(divide(a, Valued(np.array([1e-4]), np.array([1e-3]))).error[0])


def test_products_are_bounded_by_the_magnitudes_of_their_terms() -> None:
    a, b = (Valued.exact(np.array(v, np.float64)) for v in ([[1.0, 2.0]], [[3.0], [-1.5]]))
    found = products(a, b, np.matmul, 2)
    assert found.value[0, 0] == 0.0
    assert found.error[0, 0] == pytest.approx(roundings(2) * 6.0)


def test_integers_beyond_their_error_are_not_explained() -> None:
    g = Graph(x=("batch", 2))
    g.quantized("y", g.op("Relu", "relu", g["x"]), 0.5, 10)
    model = g.model(g.nodes[-1].outputs[0])
    rounding = Rounding(model, {"x": np.array([[1.25, 3.0]], np.float32)})
    ours = np.array([[12, 16]], np.uint8)
    found = rounding.of_integers("y_q", ours, np.array([[13, 17]], np.uint8))
    assert found is not None
    assert found.explained.tolist() == [[True, False]], "2.5 steps is a tie, 6 is not"


# --- what the rules give is neither nothing nor everything ---------------------------------------


@pytest.mark.parametrize("kind", ["Add", "Sub", "Mul", "Div"])
def test_the_error_of_an_operator_holds_float32_and_no_more(kind: str) -> None:
    """Wide enough for what numpy computes in float32, and within twice the worst of it."""
    rng = np.random.default_rng(1)
    a, b = (rng.uniform(1, 2, (1, 20_000)).astype(np.float32) for _ in range(2))
    g = Graph(a=("batch", 20_000), b=("batch", 20_000))
    model = g.model(g.op(kind, "y", g["a"], g["b"]))
    found = Rounding(model, {"a": a, "b": b}).at("y.out")
    assert found is not None
    run = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}[kind]
    assert np.array_equal(found.value, run(a.astype(np.float64), b.astype(np.float64)))
    off = np.abs(run(a, b) - found.value)
    assert (off <= found.error).all()
    assert (found.error <= UNIT * np.abs(found.value) * (1 + 1e-9)).all()
    if kind != "Sub":  # of two neighbours, a difference is exact
        assert off.max() > 0.9 * UNIT


def test_errors_of_operands_are_carried_at_their_rate() -> None:
    a, b = Valued(np.array([3.0]), np.array([1e-2])), Valued(np.array([-5.0]), np.array([2e-2]))
    assert add(a, b).error[0] == pytest.approx(3e-2 + 2 * UNIT, rel=1e-9)
    assert add(a, b, -1.0).value[0] == 8.0
    assert multiply(a, b).error[0] == pytest.approx(3 * 2e-2 + 5 * 1e-2 + 2e-4 + 15 * UNIT)
    assert divide(a, b).error[0] == pytest.approx((1e-2 + 0.6 * 2e-2) / 4.98 + 0.6 * UNIT)
    with np.errstate(invalid="ignore"):
        zero = multiply(Valued.exact(np.zeros(1)), Valued(np.ones(1), np.array([np.inf])))
    assert np.isinf(zero.error[0])


def test_roundings_grow_with_the_root_of_the_terms() -> None:
    assert roundings(1) == 3 * UNIT
    assert roundings(4) == 6 * UNIT
    assert roundings(10_000) == 202 * UNIT


def test_the_mean_of_a_sum_is_divided_with_its_error() -> None:
    x = Valued(np.arange(1.0, 9.0).reshape(8, 1), np.full((8, 1), 1e-3))
    total = summed(x, (0,), keep=False, mean=False)
    mean = summed(x, (0,), keep=True, mean=True)
    assert total.value.tolist() == [36.0]
    assert mean.value.tolist() == [[4.5]]
    assert total.error[0] == pytest.approx(8e-3 + 36 * (roundings(8) + UNIT), rel=1e-9)
    assert mean.error[0, 0] == pytest.approx(1e-3 + 4.5 * (roundings(8) + UNIT), rel=1e-9)
