"""Whole graphs: what they look like in ONNX, and that they compute the same."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, fx, nn

from fxquant.errors import ExportError, UncalibratedError
from fxquant.onnx import Lowered, lower
from fxquant.onnx.lint.verify import verify_model
from fxquant.sim import QuantizationSimModel
from tests.helpers.lowering import check, outputs, run, text
from tests.helpers.nets import (
    Attention,
    Residual,
    image,
    param_quantizers,
    prepared,
    simulated,
)


def lowered_sim(sim: QuantizationSimModel, *inputs: Tensor, **options: Any) -> Lowered:
    lowered = lower(sim.model, (inputs, {}), **options)
    assert verify_model(lowered.model), str(verify_model(lowered.model))
    return lowered


def steps(got: Any, want: Tensor, lowered: Lowered) -> float:
    """Largest difference in steps of the last quantized activation."""
    scale = [t.scale for t in lowered.tensors if t.kind == "activation"][-1]
    return float(np.abs(got - want.detach().numpy()).max() / scale)


def test_a_float_graph_reads_like_the_model() -> None:
    lowered = check(prepared(Residual(), image()), [image()])
    assert text(lowered) == "\n".join([
        "input  x",
        "Conv[conv1](x, conv1.weight) -> conv1.output",
        "BatchNormalization[bn1](conv1.output, bn1.weight, bn1.bias, bn1.running_mean, "
        "bn1.running_var) -> bn1.output",
        "Relu[relu](bn1.output) -> relu.output",
        "Conv[conv2](relu.output, conv2.weight, conv2.bias) -> conv2.output",
        "Add[add](relu.output, conv2.output) -> add.output",
        "Relu[relu_1](add.output) -> relu_1.output",
        "GlobalAveragePool[mean](relu_1.output) -> mean",
        "Squeeze[mean.squeeze](mean, const.int64.2_3) -> mean.output",
        "Gemm[fc](mean.output, fc.weight, fc.bias) -> output",
        "output output",
    ])  # fmt: skip


def test_a_quantized_graph_has_one_pair_a_tensor() -> None:
    sim = simulated(Residual(), image())
    lowered = lowered_sim(sim, image())
    assert text(lowered).splitlines()[1:6] == [
        "QuantizeLinear[x_stub.output_q](x, x_stub.output_scale, x_stub.output_zero_point) "
        "-> x_stub.output_q",
        "DequantizeLinear[x_stub.output_dq](x_stub.output_q, x_stub.output_scale, "
        "x_stub.output_zero_point) -> x_stub.output_dq",
        "DequantizeLinear[conv1.weight_dq](conv1.weight, conv1.weight_scale, "
        "conv1.weight_zero_point) -> conv1.weight_dq",
        "DequantizeLinear[conv1.bias_dq](conv1.bias, conv1.bias_scale, zero_point.int32.8) "
        "-> conv1.bias_dq",
        "Conv[conv1](x_stub.output_dq, conv1.weight_dq, conv1.bias_dq) -> conv1.output",
    ]
    kinds = [n.op_type for n in lowered.model.graph]
    activations = [t for t in lowered.tensors if t.kind == "activation"]
    assert kinds.count("QuantizeLinear") == len(activations)
    names = [n.name for n in lowered.model.graph]
    assert {"conv1", "conv2", "add", "fc"} <= set(names)
    assert len(set(names)) == len(names)


def test_weights_are_integers_and_biases_lie_on_the_accumulators_grid() -> None:
    sim = simulated(Residual(), image())
    lowered = lowered_sim(sim, image())
    stored = lowered.model.graph.initializers
    by_name = {t.float_name: t for t in lowered.tensors}
    weight, bias = by_name["conv2.weight"], by_name["conv2.bias"]
    assert stored["conv2.weight"].dtype is ir.DataType.INT8
    assert stored["conv2.bias"].dtype is ir.DataType.INT32
    assert weight.scale.shape == (8,)
    assert weight.axis == 0
    source = next(t.scale for t in lowered.tensors if t.float_name == "relu.output")
    assert np.array_equal(bias.scale, np.float32(source) * weight.scale)
    module = sim.model.get_submodule("conv2")
    want = param_quantizers(sim.model, "conv2")["weight"](module.weight).quantize()
    got = stored["conv2.weight"].const_value
    assert got is not None
    assert np.array_equal(got.numpy(), want.detach().numpy())


def test_quantized_runs_equal_the_simulation_at_another_batch_size() -> None:
    sim = simulated(Residual(), image(4))
    lowered = lowered_sim(sim, image(4))
    for batch in (1, 5):
        x = image(batch)
        for optimized in (False, True):
            assert steps(run(lowered, [x], optimized=optimized)[0], sim.model(x), lowered) <= 2


def test_attention_moves_signed_keys_as_integers() -> None:
    x = torch.randn(2, 6, 8)
    sim = simulated(Attention(), x)
    lowered = lowered_sim(sim, x)
    signed = [t for t in lowered.tensors if t.dtype is ir.DataType.INT8 and t.kind == "activation"]
    producers = {v.name: n.op_type for n in lowered.model.graph for v in n.outputs}
    assert signed
    assert {producers[t.quantized_name] for t in signed} > {"Transpose"}
    for optimized in (False, True):
        got = run(lowered, [x], optimized=optimized)[0]
        assert np.allclose(got, sim.model(x).detach().numpy(), atol=0.02)


def test_lowering_twice_gives_the_same_bytes() -> None:
    sim = simulated(Residual(), image())
    first, second = (ir.to_proto(lower(sim.model, ((image(),), {})).model) for _ in range(2))
    assert first.SerializeToString() == second.SerializeToString()


def test_the_model_is_left_as_it_was() -> None:
    gm = prepared(Residual(), image())
    gm.train()
    before = {k: v.clone() for k, v in gm.state_dict().items()}
    lower(gm, ((image(),), {}))
    assert all(m.training for m in gm.modules())
    assert all(torch.equal(before[k], v) for k, v in gm.state_dict().items())


@pytest.mark.parametrize("opset", [13, 17, 19, 21, 23])
def test_quantized_in_every_opset(opset: int) -> None:
    x = torch.randn(2, 6, 8)
    sim = simulated(Attention(), x)
    lowered = lowered_sim(sim, x, opset=opset)
    assert lowered.model.opset_imports[""] == opset
    assert np.allclose(run(lowered, [x])[0], sim.model(x).detach().numpy(), atol=0.02)


def test_an_opset_that_is_not_supported() -> None:
    with pytest.raises(ExportError, match="FXQ500"):
        lower(prepared(Residual(), image()), ((image(),), {}), opset=12)


def test_a_missing_input_is_named() -> None:
    with pytest.raises(ExportError, match="'x'") as caught:
        lower(prepared(Residual(), image()), ((), {}))
    assert caught.value.code == "FXQ501"


def test_an_uncalibrated_model_is_refused() -> None:
    sim = QuantizationSimModel(Residual().eval(), image())
    with pytest.raises(UncalibratedError):
        lower(sim.model, ((image(),), {}))


# --- inputs and outputs --------------------------------------------------------------------------


class Many(nn.Module):
    """Nested inputs and outputs."""

    def forward(self, a: Tensor, pair: tuple[Tensor, Tensor], *, scale: Tensor) -> dict[str, Any]:
        """Anything."""
        return {"sum": a + pair[0], "rest": (pair[1] * scale, a), "none": None}


def test_inputs_and_outputs_are_named_after_the_model() -> None:
    a, b, c, s = (torch.randn(2, 3) for _ in range(4))
    gm = prepared_call(Many(), (a, (b, c)), {"scale": s})
    lowered = lower(gm, ((a, (b, c)), {"scale": s}))
    assert lowered.input_names == ("a", "pair_0", "pair_1", "scale")
    assert lowered.output_names == ("sum", "rest_0", "rest_1")
    got = run(lowered, [a, b, c, s])
    for g, w in zip(got, (a + b, c * s, a), strict=True):
        assert np.allclose(g, w.numpy())


def prepared_call(net: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.GraphModule:
    from fxquant.tracing.record import record

    return record(net.eval(), args, kwargs).graph_module


def _net(forward: Callable[..., Any]) -> nn.Module:
    made: nn.Module = type("Net", (nn.Module,), {"forward": staticmethod(forward)})()
    return made


def _traced(forward: Callable[..., Any], *inputs: Tensor) -> fx.GraphModule:
    return prepared(_net(forward), *inputs)


@dataclass
class Answer:
    """A result of a model."""

    first: Tensor
    second: Any


class Pair(NamedTuple):
    """Another one."""

    a: Tensor
    b: Tensor


x = torch.randn(2, 4, 6)
_GRAPHS: dict[str, Callable[[Tensor], Any]] = {
    "sizes": lambda x: x.reshape(x.shape[0] * x.shape[1], -1) * x.shape[1],
    "two dynamic sizes": lambda x: x.reshape(x.shape[0], 2, 2, x.numel() // x.shape[0] // 4),
    "named bounds": lambda x: x + torch.arange(start=1, end=x.shape[0] + 1)[:, None, None],
    "a start and a named end": lambda x: x + torch.arange(0, end=x.shape[0])[:, None, None],
    "a named end": lambda x: x + torch.arange(end=x.shape[0])[:, None, None],
    "halves of two batches": lambda x: torch.chunk(torch.cat([x, x + 1]), 2)[1],
    "batch in the middle": lambda x: x.transpose(0, 1).reshape(4, x.shape[0], 6),
    "positions": lambda x: x + torch.arange(x.shape[1])[:, None],
    "positions of the batch": lambda x: x + torch.arange(x.shape[0])[:, None, None],
    "fresh": lambda x: torch.cat([x, torch.zeros(x.shape[0], 1, 6)], 1),
    "like": lambda x: torch.zeros_like(x) + torch.full((x.shape[0], 1, 1), 3.0) + x.new_ones(6),
    "mask": lambda x: x.masked_fill(torch.ones(4, 6).tril() == 0, -1.0),
    "tuple": lambda x: (x + 1, x, x + 1),
    "expand": lambda x: torch.ones(1, 1, 6).expand(x.shape[0], -1, -1) + x,
    "same twice": lambda x: (lambda y: (y, y))(x * 2),
    "split": lambda x: x.split(2, 1)[1] + x.chunk(2, 1)[0],
    "index": lambda x: x[:, 1:-1, ::2] + x[:, :1, None, 0],
    "repeat": lambda x: x[:, 0].repeat(1, 2).view(x.size(0), 2, 6),
    "size as number": lambda x: x / x.shape[0],
    "constant output": lambda x: (x, torch.ones(3)),
    "power of a size": lambda x: x * x.shape[0] ** -0.5 - 2 ** -x.shape[0] + x.shape[0] / 2,
    "rounded size": lambda x: x[:, : math.ceil(x.shape[0] / 2)] + int(x.shape[0] * 0.5),
    "variance of all": lambda x: x.var() + x.std((0, 1)),
    "transposed": lambda x: x[:, 0].T @ x[:, 1] + x.mT.sum(),
    "named results": lambda x: {"answer": Answer(x + 1, (x, 3)), "pair": Pair(x, b=x - 1)},
    "ordered": lambda x: OrderedDict(z=x * 3, nothing=None, shape=x.shape),
}


@pytest.mark.parametrize("name", list(_GRAPHS))
def test_graph(name: str) -> None:
    check(_traced(_GRAPHS[name], x), [x])


class Stateful(nn.Module):
    """Counts its calls, and may use the count."""

    count: Tensor

    def __init__(self, *, used: bool) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.used = used

    def forward(self, x: Tensor) -> Tensor:
        """[...] -> [...]."""
        self.count += 1
        return x + self.count if self.used else x * 2


def test_a_model_that_reads_what_it_writes_is_refused_and_left_alone() -> None:
    gm = prepared(Stateful(used=True), x)
    before = gm.get_buffer("count").clone()
    with pytest.raises(ExportError, match="count") as caught:
        lower(gm, ((x,), {}))
    assert caught.value.code == "FXQ529"
    assert "test_lower.py" in str(caught.value)
    assert torch.equal(before, gm.get_buffer("count"))


def test_what_is_written_and_never_read_does_not_matter() -> None:
    gm = prepared(Stateful(used=False), x)
    lowered = lower(gm, ((x,), {}))
    assert [n.op_type for n in lowered.model.graph] == ["Mul"]
    assert not gm.get_buffer("count").any()


def test_a_write_that_is_read_later_is_refused() -> None:
    graph = fx.Graph()
    given = graph.placeholder("x")
    doubled = graph.call_function(torch.mul, (given, 2))
    graph.call_method("add_", (doubled, 1))
    graph.output(graph.call_function(torch.relu, (doubled,)))
    with pytest.raises(ExportError, match="FXQ529"):
        lower(fx.GraphModule(nn.Module(), graph), ((x,), {}))


def test_random_numbers_of_a_dynamic_size_are_refused() -> None:
    graph = fx.Graph()
    given = graph.placeholder("x")
    size = graph.call_method("size", (given, 0))
    noise = graph.call_function(torch.rand, (size, 1, 1))
    graph.output(graph.call_function(torch.add, (given, noise)))
    with pytest.raises(ExportError, match="FXQ533"):
        lower(fx.GraphModule(nn.Module(), graph), ((x,), {}))


def test_what_no_input_changes_is_a_constant() -> None:
    def masked(x: Tensor) -> Tensor:
        mask = torch.ones(4, 4, dtype=torch.bool).tril()
        bias = torch.zeros(4, 4).masked_fill(~mask, -1e4)
        return x @ x.transpose(1, 2) + bias

    lowered = check(_traced(masked, x), [x])
    assert [n.op_type for n in lowered.model.graph] == ["Transpose", "MatMul", "Add"]


def test_shapes_say_which_sizes_follow_the_batch() -> None:
    lowered = check(_traced(lambda x: x.reshape(x.shape[0] * 4, 6), x), [x])
    shapes = [[str(s) for s in v.shape or ()] for v in lowered.model.graph.outputs]
    assert shapes == [["4*batch", "6"]]
    assert [str(s) for s in lowered.model.graph.inputs[0].shape or ()] == ["batch", "4", "6"]


def test_a_model_that_insists_on_its_batch_becomes_static() -> None:
    gm = _traced(lambda x: x.reshape(2, 24), x)
    lowered = lower(gm, ((x,), {}))
    assert "batch size of its example" in lowered.batch_note
    assert np.array_equal(run(lowered, [x])[0], x.reshape(2, 24).numpy())


def test_shared_weights_are_stored_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
            self.second.weight = self.first.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))  # type: ignore[no-any-return]

    lowered = check(prepared(Tied(), x[:, 0]), [x[:, 0]])
    assert [n for n in lowered.model.graph.initializers if n.endswith("weight")] == ["first.weight"]


def test_owners_lead_from_onnx_to_the_graph() -> None:
    gm = prepared(Residual(), image())
    lowered = lower(gm, ((image(),), {}))
    names = {n.name for n in gm.graph.nodes}
    assert set(lowered.owners) == {n.name for n in lowered.model.graph}
    assert set(lowered.owners.values()) <= names


def test_outputs_equal_the_graphs_leaves() -> None:
    gm = _traced(lambda x: {"a": x, "b": [x * 2, x.sum()]}, x)
    lowered = lower(gm, ((x,), {}))
    assert lowered.output_names == ("a", "b_0", "b_1")
    for got, want in zip(run(lowered, [x]), outputs(gm(x)), strict=True):
        assert np.allclose(got, want.numpy(), atol=1e-5)
