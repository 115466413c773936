"""Files for CPUs with and without VNNI: the same real numbers, in the integers that suit them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from fxquant.errors import ConfigError, ExportError
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.lowering.result import Lowered
from fxquant.onnx.lowering.unsigned_products import make_unsigned
from fxquant.onnx.ort.fusion_rules import SUMS
from fxquant.onnx.session import Level, open_session, packed
from fxquant.sim import QuantizationSimModel
from fxquant.targets import load_target
from tests.helpers.nets import Attention, Residual, image, simulated
from tests.random_networks import network
from tests.test_random_graphs import _simulated

X64_PRECISION = {"session.x64quantprecision": "1"}


class SharedWeight(nn.Module):
    """One weight in two products and, transposed, in a third."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        """[N, 16] -> [N, 16]."""
        y = torch.relu(self.first(x))
        return torch.matmul(torch.relu(self.second(y)), self.first.weight)


class Tied(nn.Module):
    """An embedding whose table is the weight of the head."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.body = nn.Embedding(12, 16), nn.Linear(16, 16)
        self.head = nn.Linear(16, 12, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, L] -> [N, L, 12]."""
        return self.head(torch.relu(self.body(self.table(tokens))))  # type: ignore[no-any-return]


class TiedTwice(nn.Module):
    """One table for an embedding, two heads on sequences and one on rows, which comes first."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(12, 16), nn.LayerNorm(16)
        self.rows, self.first, self.second = (nn.Linear(16, 12, bias=False) for _ in range(3))
        for head in (self.rows, self.first, self.second):
            head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """[N, L] -> [N, L, 12]."""
        x = self.norm(self.table(tokens))
        y = torch.relu(x)
        return self.first(y) + self.second(x) + self.rows(y[:, 0])[:, None]  # type: ignore[no-any-return]


class Depthwise(nn.Module):
    """A depthwise convolution between two dense ones, and one with two channels a group."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(),
            nn.Conv2d(8, 16, 3, groups=8), nn.ReLU(), nn.Conv2d(16, 4, 1, groups=2),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 4, H - 4, W - 4]."""
        return self.body(x)  # type: ignore[no-any-return]


NETS: dict[str, tuple[Any, Any]] = {
    "residual": (Residual, lambda: image(3)),
    "attention": (Attention, lambda: torch.randn(2, 6, 8)),
    "shared": (SharedWeight, lambda: torch.randn(4, 16)),
    "tied": (Tied, lambda: torch.randint(0, 12, (3, 5))),
    "tied twice": (TiedTwice, lambda: torch.randint(0, 12, (3, 5))),
    "depthwise": (Depthwise, lambda: image(2)),
}


def sim_of(name: str) -> tuple[QuantizationSimModel, Tensor]:
    """A calibrated network and its input."""
    torch.manual_seed(0)
    make, inputs = NETS[name]
    x = inputs()
    # a sum of floats may differ in its last bit: what is compared is rounded to integers
    return simulated(make(), x, config={"quantize_outputs": True}), x


def lowered_for(sim: QuantizationSimModel, x: Tensor, deploy: Any) -> Lowered:
    """The lowering of a simulation."""
    return lower(sim.model, ((x,), {}), contrib=True, deploy=deploy)


def ran(lowered: Lowered, x: Tensor, level: Level, **entries: Any) -> dict[str, Any]:
    """What onnxruntime computes."""
    with packed(lowered.model) as source:
        return open_session(source, level, **entries).run({lowered.input_names[0]: x.numpy()})


def second_operands(lowered: Lowered) -> list[str]:
    """`operator: type` of the second operands of products, as far as they are integers."""
    found = []
    for node in lowered.model.graph:
        second = node.inputs[1].producer() if node.op_type in SUMS and node.inputs[1] else None
        while second is not None and second.op_type in ("Transpose", "Reshape"):
            second = second.inputs[0].producer() if second.inputs[0] else None
        if second is not None and second.op_type == "DequantizeLinear" and second.inputs[2]:
            zero = second.inputs[2].const_value
            found.append(f"{node.op_type}: {zero.dtype.name if zero is not None else None}")
    return found


def test_depthwise_weights_stay_signed() -> None:
    sim, x = sim_of("depthwise")
    assert second_operands(lowered_for(sim, x, "avx2")) == [
        "Conv: UINT8", "Conv: INT8", "Conv: UINT8", "Conv: UINT8",
    ]  # fmt: skip
    assert second_operands(lowered_for(sim, x, "any")) == ["Conv: INT8"] * 4


def test_keys_and_values_become_unsigned_with_all_that_moves_them() -> None:
    sim, x = sim_of("attention")
    before, after = (second_operands(lowered_for(sim, x, d)) for d in ("any", "avx2"))
    assert before.count("MatMul: INT8") == 2  # the scores' keys and the values
    assert {kind.partition(": ")[2] for kind in after} == {"UINT8"}


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("deploy", ["vnni", "avx2", "arm"])
def test_every_deployment_stands_for_the_same_numbers(name: str, deploy: str) -> None:
    sim, x = sim_of(name)
    wanted = ran(lowered_for(sim, x, "any"), x, Level.OFF)
    got = ran(lowered_for(sim, x, deploy), x, Level.OFF)
    for key, value in wanted.items():
        np.testing.assert_array_equal(got[key], value)


@pytest.mark.parametrize("name", NETS)
def test_unsigned_products_are_what_the_executor_computes_exactly(name: str) -> None:
    """On every CPU: the executor is exact, and so are the kernels of two unsigned bytes."""
    sim, x = sim_of(name)
    exact = sim.integer_model(deploy="avx2", islands="onnxruntime")(x)
    got = next(iter(ran(lowered_for(sim, x, "avx2"), x, Level.ALL).values()))
    np.testing.assert_array_equal(got, exact.numpy())


@pytest.mark.parametrize("name", NETS)
def test_the_precision_option_makes_files_for_any_cpu_exact(name: str) -> None:
    sim, x = sim_of(name)
    lowered = lowered_for(sim, x, "any")
    got = ran(lowered, x, Level.ALL, entries=X64_PRECISION)  # refuses weights that are shared
    if name == "attention":
        return  # its keys and values are no weights: the option leaves them as they are
    exact = sim.integer_model(islands="onnxruntime")(x)
    np.testing.assert_array_equal(next(iter(got.values())), exact.numpy())


def test_the_precision_option_refuses_shared_weights() -> None:
    """Else copies of weights would be of no use."""
    sim, x = sim_of("shared")
    with pytest.raises(ExportError, match="replace the existing tensor"):
        ran(lowered_for(sim, x, "vnni"), x, Level.ALL, entries=X64_PRECISION)


def test_weights_are_stored_once_where_nobody_needs_copies() -> None:
    sim, x = sim_of("shared")
    sizes = {}
    for deploy in ("any", "vnni", "avx2", "arm"):
        lowered = lowered_for(sim, x, deploy)
        stored = lowered.model.graph.initializers.values()
        sizes[deploy] = sum(v.const_value.size == 256 for v in stored if v.const_value)
        assert bool(lowered.notes) == (deploy == "any")
    # the third product reads the weight in another form
    assert sizes == {"any": 3, "vnni": 2, "avx2": 2, "arm": 2}


@pytest.mark.parametrize("name", ["tied", "tied twice"])
def test_a_table_that_is_a_head_is_stored_once(name: str, tmp_path: Path) -> None:
    sim, x = sim_of(name)
    layers: list[Any] = [m for m in sim.model.modules() if hasattr(m, "param_quantizers")]
    readers = [
        m for m in layers if getattr(m, "weight", None) is sim.model.get_parameter("table.weight")
    ]
    (quantizer,) = {m.param_quantizers["weight"] for m in readers}
    assert quantizer.shape == (12, 1)
    for deploy in ("any", "vnni", "avx2", "arm"):
        lowered = lowered_for(sim, x, deploy)
        stored = lowered.model.graph.initializers
        tables = [k for k, v in stored.items() if v.const_value and v.const_value.size == 192]
        copies = 2 if (name, deploy) == ("tied twice", "any") else 0  # its heads want their own
        assert len(tables) == 1 + copies, tables
        assert stored["table.weight"].dtype is ir.DataType["UINT8" if deploy == "avx2" else "INT8"]
        records = {t.float_name: t.quantized_name for t in lowered.tensors if t.kind == "weight"}
        assert records["table.weight"] == "table.weight"
        assert set(records.values()) <= set(stored)
        assert records.get("head.weight", "table.weight") == "table.weight"
        assert sim.export(tmp_path, deploy, x, deploy=deploy)


def test_the_records_of_a_lowering_follow_its_integers(tmp_path: Path) -> None:
    sim, x = sim_of("attention")
    for deploy in ("any", "avx2"):
        lowered = lowered_for(sim, x, deploy)
        zeros = {
            v.name: v.producer().inputs[2].const_value.numpy()  # type: ignore[union-attr]
            for node in lowered.model.graph
            for v in node.outputs
            if node.op_type == "QuantizeLinear"
        }
        for tensor in lowered.tensors:
            if tensor.quantized_name in zeros:
                np.testing.assert_array_equal(tensor.zero_point, zeros[tensor.quantized_name])
        assert sim.export(tmp_path, deploy, x, deploy=deploy)
    files = [(tmp_path / f"{d}.encodings").read_text() for d in ("any", "avx2")]
    assert files[0] == files[1]  # encodings are the quantizers', whatever the file stores


@pytest.mark.parametrize("seed", range(0, 60, 3))
def test_random_networks_are_the_same_in_unsigned_products(seed: int) -> None:
    case = network(seed)
    sim = _simulated(case, seed)
    lowered = lower(sim.model, (case.inputs(4), {}), contrib=True)
    names, inputs = lowered.input_names, case.inputs(6)
    feeds = {n: t.numpy() for n, t in zip(names, inputs, strict=True)}

    def run() -> dict[str, Any]:
        with packed(lowered.model) as source:
            open_session(source, Level.ALL, entries=X64_PRECISION)
            return open_session(source, Level.OFF).run(feeds)

    before = run()
    make_unsigned(lowered.model.graph)
    after = run()
    for name, value in before.items():
        np.testing.assert_array_equal(after[name], value)


def test_integers_that_leave_the_graph_stay_signed() -> None:
    sim, x = sim_of("attention")
    lowered = lowered_for(sim, x, "any")
    values = {v.name: v for node in lowered.model.graph for v in node.outputs}
    signed = [
        t.quantized_name for t in lowered.tensors
        if t.dtype is ir.DataType.INT8 and t.kind == "activation"
    ]  # fmt: skip
    lowered.model.graph.outputs.append(values[signed[0]])
    changed = make_unsigned(lowered.model.graph)
    assert not changed & {signed[0]}
    assert second_operands(lowered).count("MatMul: INT8") == 1  # the other one is unsigned


def test_a_missing_zero_point_is_written() -> None:
    """It means zero, which for unsigned integers lies at 128."""
    quantized = np.arange(-8, 8, dtype=np.int8).reshape(4, 4)
    value = {
        "x": ir.Value(name="x", shape=ir.Shape([2, 4]), type=ir.TensorType(ir.DataType.FLOAT)),
        "s": _stored("s", np.float32(0.5)), "z": _stored("z", np.uint8(3)),
        "w": _stored("w", quantized),
    }  # fmt: skip
    q = ir.node("QuantizeLinear", [value["x"], value["s"], value["z"]], name="q")
    dq = ir.node("DequantizeLinear", [q.outputs[0], value["s"], value["z"]], name="dq")
    dw = ir.node("DequantizeLinear", [value["w"], value["s"]], name="dw")
    product = ir.node("MatMul", [dq.outputs[0], dw.outputs[0]], name="product")
    for node in (q, dq, dw, product):
        node.outputs[0].name = f"{node.name}_out"
    product.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(
        [value["x"]], [product.outputs[0]], nodes=[q, dq, dw, product],
        initializers=[value[k] for k in "szw"], opset_imports={"": 21}, name="g",
    )  # fmt: skip
    model = ir.Model(graph, ir_version=10)
    feeds = {"x": np.linspace(-4, 4, 8, dtype=np.float32).reshape(2, 4)}

    def run() -> Any:
        with packed(model) as source:
            return open_session(source, Level.OFF).run(feeds)["product_out"]

    before = run()
    assert make_unsigned(graph) == {"w"}
    assert dw.inputs[2] is not None
    np.testing.assert_array_equal(run(), before)


def _stored(name: str, array: Any) -> ir.Value:
    tensor = ir.Tensor(np.asarray(array), name=name)
    shape = ir.Shape(tensor.shape.numpy())
    return ir.Value(name=name, shape=shape, type=ir.TensorType(tensor.dtype), const_value=tensor)


def test_the_deployment_is_asked_for_in_three_places(tmp_path: Path) -> None:
    """A call decides before the configuration, that before the target."""
    torch.manual_seed(0)
    x = torch.randn(4, 8)
    net = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))

    def kinds(target: str = "onnxruntime_x86", config: Any = None, **asked: Any) -> set[str]:
        sim = simulated(net, x, target=target, config=config)
        sim.export(tmp_path, "net", x, **asked)
        graph = ir.load(tmp_path / "net.onnx").graph
        stored = (v.const_value for k, v in graph.initializers.items() if k.endswith("weight"))
        return {t.dtype.name for t in stored if t is not None}

    assert load_target("onnxruntime_arm").deploy == "arm"
    assert kinds() == {"INT8"}
    assert kinds(config={"deploy": "avx2"}) == {"UINT8"}
    assert kinds(config={"deploy": "avx2"}, deploy="vnni") == {"INT8"}
    with pytest.raises(ExportError, match=r"FXQ586[^$]*use one of any, vnni, avx2, arm"):
        kinds(deploy="sse")
    with pytest.raises(ConfigError, match="deploy"):
        kinds(config={"deploy": "sse"})
