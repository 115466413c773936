"""The file itself: opened and run at every level, on the example and on other inputs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import torch

from fxquant.errors import ParityError
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.lowering.result import Lowered
from fxquant.onnx.parity.prove import prove
from fxquant.onnx.parity.report import ParityReport
from fxquant.onnx.parity.shipped_file import ALL_LEVELS, check_same, run_shipped
from fxquant.onnx.session import Level
from fxquant.sim import QuantizationSimModel
from tests.helpers.nets import Attention, Residual, image, simulated


def attention() -> tuple[QuantizationSimModel, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(4, 6, 8)
    return simulated(Attention(), x), x


def _at(size: int | ir.SymbolicDim, batch: int) -> int:
    """A size such as `6*batch` at a batch size."""
    if isinstance(size, int):
        return size
    factor, star, _ = str(size.value).partition("*")
    return int(factor) * batch if star else batch


def proof_of(sim: QuantizationSimModel, low: Lowered, x: torch.Tensor, path: Path) -> ParityReport:
    ir.save(low.model, path / "net.onnx")
    return prove(sim.model, low, ((x,), {}), path / "net.onnx")


def test_every_level_is_opened_the_default_first(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = image(5)
    report = simulated(Residual(), x).export(tmp_path, "net", x)
    assert report.shipped == ("all", "extended", "basic", "off")
    assert report.others == ("other values", "a batch of 3", "a batch of 2")
    assert "proven also on other values" in str(report)
    found = run_shipped(tmp_path / "net.onnx", {"x": x.numpy()})
    assert tuple(found) == ALL_LEVELS


def test_a_batch_that_was_written_as_a_constant_is_found(tmp_path: Path) -> None:
    sim, x = attention()
    low = lower(sim.model, ((x,), {}))
    assert proof_of(sim, low, x, tmp_path)
    frozen = 0
    for node in low.model.graph:
        if node.op_type == "Reshape" and node.outputs[0].shape is not None:
            shape = [_at(s, len(x)) for s in node.outputs[0].shape]
            value = ir.Value(name=f"{node.name}.frozen", type=ir.TensorType(ir.DataType.INT64))
            value.const_value = ir.Tensor(np.array(shape, np.int64), name=value.name)
            low.model.graph.register_initializer(value)
            node.replace_input_with(1, value)
            frozen += 1
    assert frozen
    with pytest.raises(ParityError, match=r"FXQ588.*on the example, but not on a batch of"):
        proof_of(sim, low, x, tmp_path)


def test_a_value_that_was_written_as_a_constant_is_found(tmp_path: Path) -> None:
    """On the example it is right at every level; only other values tell."""
    sim, x = attention()
    low = lower(sim.model, ((x,), {}))
    graph = low.model.graph
    quantize = next(
        n for n in graph if n.op_type == "QuantizeLinear" and n.name == "x_stub.output_q"
    )
    scale, zero = (v.const_value.numpy() for v in quantize.inputs[1:3] if v and v.const_value)
    integers = np.clip(np.rint(x.numpy() / scale) + zero, 0, 255).astype(np.uint8)
    value = ir.Value(name="frozen", shape=ir.Shape(x.shape), type=ir.TensorType(ir.DataType.UINT8))
    value.const_value = ir.Tensor(integers, name="frozen")
    graph.register_initializer(value)
    for use in list(quantize.outputs[0].uses()):
        use.node.replace_input_with(use.idx, value)
    with pytest.raises(ParityError, match=r"FXQ588.*on the example, but not on other values"):
        proof_of(sim, low, x, tmp_path)


def test_a_file_that_computes_otherwise_than_its_shown_graph_is_refused() -> None:
    wanted = {"y": np.linspace(-1, 1, 64, dtype=np.float32)}
    near = {"y": wanted["y"] + np.float32(1e-4)}
    far = {"y": wanted["y"] * np.float32(0.9)}
    check_same(wanted, near, wanted, Level.ALL)
    check_same(near, wanted, wanted, Level.ALL)
    check_same(far, far, wanted, Level.ALL)  # the same noise on both sides is the forced proof's
    with pytest.raises(ParityError, match="FXQ587"):
        check_same(far, wanted, wanted, Level.ALL)
    with pytest.raises(ParityError, match="FXQ587"):
        check_same({"y": wanted["y"][:5]}, wanted, wanted, Level.OFF)
