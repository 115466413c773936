"""`IntegerModel`: calling it, looking into it, and what it says where it cannot run something."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from fxquant.errors import ConfigError, ExportError
from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.integer.saturation import saturations
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.sim import QuantizationSimModel
from tests.helpers.integers import assert_equal
from tests.helpers.qdq import Graph
from tests.onnx.integer.test_kernels import normal

SHAPE = (2, 8, 6, 6)


def two_inputs() -> ir.Model:
    """`add(quantized x, quantized y)` and the float tanh of y."""
    g = Graph(x=("batch", 4), y=("batch", 4))
    x, y = g.quantized("qx", g["x"], 0.02, 100), g.quantized("qy", g["y"], 0.03, 90)
    z = g.quantized("qz", g.op("Add", "add", x, y), 0.04, 80)
    return g.model(z, g.op("Tanh", "tanh", y))


# --- calling -------------------------------------------------------------------------------------


def test_inputs_by_position_by_name_and_as_a_mapping() -> None:
    model, feeds = IntegerModel(two_inputs()), normal(x=(3, 4), y=(3, 4))
    assert model.input_names == ("x", "y")
    results = [
        model(feeds["x"], feeds["y"]),
        model(feeds["x"], y=feeds["y"]),
        model(feeds),
    ]
    for first, second in results:
        assert np.array_equal(first, results[0][0])
        assert np.array_equal(second, results[0][1])


def test_torch_in_torch_out() -> None:
    feeds = normal(x=(3, 4), y=(3, 4))
    result = IntegerModel(two_inputs())(torch.from_numpy(feeds["x"]), feeds["y"])
    assert isinstance(result, tuple)
    assert all(isinstance(r, torch.Tensor) for r in result)


def test_a_file_a_proto_and_a_model_are_the_same(tmp_path: Path) -> None:
    ir.save(two_inputs(), tmp_path / "model.onnx")
    feeds = normal(x=(3, 4), y=(3, 4))
    sources = (two_inputs(), tmp_path / "model.onnx", str(tmp_path / "model.onnx"),
               onnx.load(tmp_path / "model.onnx"))  # fmt: skip
    found = [IntegerModel(s)(feeds)[0] for s in sources]
    assert all(np.array_equal(f, found[0]) for f in found)


def test_the_model_that_is_handed_in_is_not_changed() -> None:
    model = two_inputs()
    before = [(n.op_type, n.name) for n in model.graph]
    IntegerModel(model)(normal(x=(3, 4), y=(3, 4)))
    assert [(n.op_type, n.name) for n in model.graph] == before


@pytest.mark.parametrize("feeds", [{"x": 0}, {"x": 0, "y": 0, "w": 0}])
def test_wrong_inputs_are_named(feeds: dict[str, int]) -> None:
    given = {k: np.zeros((1, 4), np.float32) for k in feeds}
    with pytest.raises(ExportError, match="FXQ580") as error:
        IntegerModel(two_inputs())(given)
    assert "x, y" in str(error.value)


def test_too_many_inputs() -> None:
    x = np.zeros((1, 4), np.float32)
    with pytest.raises(ExportError, match="FXQ580"):
        IntegerModel(two_inputs())(x, x, x)


def test_islands_are_one_of_two() -> None:
    with pytest.raises(ExportError, match="FXQ582"):
        IntegerModel(two_inputs(), islands="mine")


@pytest.mark.parametrize("islands", ["own", "onnxruntime"])
def test_both_kinds_of_islands_run(islands: str) -> None:
    assert_equal(two_inputs(), normal(x=(3, 4), y=(3, 4)), islands=islands)


# --- looking -------------------------------------------------------------------------------------


def test_tensors_are_the_integers_of_the_file() -> None:
    found = IntegerModel(two_inputs()).tensors(normal(x=(3, 4), y=(3, 4)))
    assert list(found) == ["qx_q", "qy_q", "qz_q"]
    assert all(x.dtype == np.uint8 for x in found.values())


def test_placement_tells_kernel_cover_and_reason() -> None:
    rows = {p.node: p for p in IntegerModel(two_inputs()).placement()}
    add, tanh = rows["add"], rows["tanh"]
    assert (add.kernel, add.integer, add.reason) == ("QLinearAdd", True, "")
    assert set(add.covers) >= {"add", "qx.dq", "qz.q"}
    assert not tanh.integer
    assert tanh.reason == "onnxruntime's CPU provider has no integer Tanh"


def test_what_has_no_kernel_runs_alone_in_onnxruntime() -> None:
    g = Graph(x=(3, 4))
    x = g.quantized("qx", g["x"], 0.02, 100)
    y = g.op("CumSum", "sum", x, g.constant("axis", np.array(1, np.int64)))
    model = g.model(g.quantized("qy", y, 0.05, 100))
    assert_equal(model, normal(x=(3, 4)))
    executor = IntegerModel(model)
    executor(normal(x=(3, 4)))
    row = next(p for p in executor.placement() if p.node == "sum")
    assert row.kernel == "CumSum in onnxruntime"


def test_four_bit_weights_are_unpacked() -> None:
    g, rng = Graph(x=(3, 32)), np.random.default_rng(0)
    integers = ir.Tensor(rng.integers(-8, 8, (32, 6)).astype(np.int8), name="w")
    stored = g.constant("w", rng.integers(-8, 8, (32, 6)).astype(np.int8))
    stored.const_value = ir.Tensor(integers.numpy(), ir.DataType.INT4, name="w")
    stored.type = ir.TensorType(ir.DataType.INT4)
    weight = g.op("DequantizeLinear", "w.dq", stored, g.constant("s", np.float32(0.1)))
    x = g.quantized("qx", g["x"], 0.02, 100)
    model = g.model(g.quantized("qy", g.op("MatMul", "mm", x, weight), 0.2, 100))
    assert IntegerModel(model).placement()[0].kernel == "MatMul"
    assert_equal(model, normal(x=(3, 32)))


def test_constants_that_do_not_fit_fail_where_the_model_is_run() -> None:
    g = Graph(x=(2, 3))
    bad = g.op("Concat", "cat", g.constant("a", np.ones((1, 3), np.float32)),
               g.constant("b", np.ones((1, 4), np.float32)), axis=0)  # fmt: skip
    model = IntegerModel(g.model(g.op("Add", "add", g["x"], bad)))
    assert model.saturations() == ()
    with pytest.raises((ExportError, ValueError)):
        model(np.ones((2, 3), np.float32))


# --- saturation ----------------------------------------------------------------------------------


def weighted(low: int, high: int, group: int = 1) -> IntegerModel:
    """A convolution with weights between these bounds."""
    g, rng = Graph(x=SHAPE), np.random.default_rng(0)
    integers = rng.integers(low, high, (8, 8 // group, 3, 3), endpoint=True).astype(np.int8)
    weight = g.op("DequantizeLinear", "w.dq", g.constant("w", integers),
                  g.constant("s", np.float32(0.01)), g.constant("z", np.int8(0)))  # fmt: skip
    y = g.op("Conv", "conv", g.quantized("qx", g["x"], 0.02, 100), weight, group=group)
    return IntegerModel(g.model(g.quantized("qy", y, 0.2, 100)))


def test_large_weights_can_saturate_and_seven_bits_cannot() -> None:
    (risk,) = saturations(weighted(-127, 127).graph)
    assert (risk.node, risk.of) == ("conv", 8)
    assert 0 < risk.channels <= 8
    assert risk.peak > 32767
    assert weighted(-64, 64).saturations() == ()


def test_depthwise_kernels_do_not_saturate() -> None:
    assert weighted(-127, 127, group=8).saturations() == ()


# --- simulations ---------------------------------------------------------------------------------


class Named(nn.Module):
    """Returns a dict with a tuple, a number and None in it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 5)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> dict[str, object]:
        y = self.conv(x).relu() + shift
        return {"map": y, "rest": (self.head(y.mean((2, 3))), None, x.shape[0])}


def test_an_integer_model_returns_the_containers_of_the_simulation() -> None:
    torch.manual_seed(0)
    x, shift = torch.randn(4, 3, 8, 8), torch.rand(4, 4, 1, 1)
    sim = QuantizationSimModel(Named(), {"x": x, "shift": shift}, "min_max")
    sim.compute_encodings([{"x": x, "shift": shift}])
    model = sim.integer_model()
    with torch.no_grad():
        ours = model(x[:3], shift=shift[:3])
        theirs = sim.model(x[:3], shift=shift[:3])
    assert list(ours) == ["map", "rest"]
    assert ours["rest"][1:] == (None, 3)
    assert torch.allclose(ours["map"], theirs["map"], atol=0.05)
    assert len(list(model.parameters())) == 0
    assert {p.kernel for p in model.placement()} >= {"QLinearConv", "QGemm", "QLinearAdd"}
    assert all(v.dtype == np.uint8 for v in model.tensors(x, shift).values())
    arrays = model(x.numpy(), shift=shift.numpy())
    assert torch.equal(arrays["map"], model(x, shift)["map"])


def test_a_simulation_is_run_for_the_cpu_that_is_asked_for() -> None:
    torch.manual_seed(0)
    x = torch.rand(4, 64)
    layer = nn.Linear(64, 8)
    with torch.no_grad():
        layer.weight.abs_()  # pairs of large products
    sim = QuantizationSimModel(layer, x, "min_max")
    sim.compute_encodings([x])
    exact, avx2, here = (sim.integer_model(cpu=c)(x) for c in ("exact", "avx2", "here"))
    assert torch.equal(exact, sim.integer_model()(x))
    assert not torch.equal(exact, avx2)
    assert torch.equal(here, exact if this_cpu().exact else avx2)
    with pytest.raises(ExportError, match="FXQ582"):
        sim.integer_model(cpu="386")


@pytest.mark.parametrize(
    "x", [torch.zeros(2, 3, 9, 9), torch.zeros(2, 3, 8, 8).double(), torch.zeros(0, 3, 8, 8), [1.0]]
)  # fmt: skip
def test_an_integer_model_refuses_what_the_file_would(x: object) -> None:
    given = torch.randn(2, 3, 8, 8)
    sim = QuantizationSimModel(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten()), given, "min_max")
    sim.compute_encodings([given])
    with pytest.raises(ConfigError, match="FXQ584"):
        sim.integer_model()(x)


def test_nothing_is_flattened_to_nothing() -> None:
    g = Graph(x=("batch", 3, 4))
    model = IntegerModel(g.model(g.op("Flatten", "flatten", g["x"], axis=1)))
    assert model(np.zeros((0, 3, 4), np.float32)).shape == (0, 12)


# --- weights alone -------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["tensor", "columns", "blocks"])
@pytest.mark.parametrize("biased", [False, True])
def test_a_float_product_with_stored_integers_is_the_runtime_s_own(
    layout: str, biased: bool
) -> None:
    g, rng = Graph(x=(5, 64)), np.random.default_rng(0)
    integers = g.constant("w", rng.integers(-127, 127, (64, 12)).astype(np.int8))
    shape = {"tensor": (), "columns": (12,), "blocks": (2, 12)}[layout]
    scale = g.constant("s", rng.uniform(0.5, 1, shape).astype(np.float32) / 100)
    zero = g.constant("z", np.zeros(shape, np.int8))
    axis = {"tensor": {}, "columns": {"axis": 1}, "blocks": {"axis": 0, "block_size": 32}}[layout]
    weight = g.op("DequantizeLinear", "w.dq", integers, scale, zero, **axis)
    bias = [g.constant("b", rng.standard_normal(12).astype(np.float32))] if biased else []
    model = g.model(g.op("Gemm" if biased else "MatMul", "product", g["x"], weight, *bias))
    row = IntegerModel(model).placement()[0]
    assert row.kernel == "MatMulNBits"
    assert_equal(model, normal(x=(5, 64)), islands="own")
