"""Lowering a module, running it in onnxruntime, comparing with PyTorch."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.graph.pytree import leaves, tensors
from fxquant.onnx import Lowered, lower

# a sum over n elements taken in another order differs by a few ulps of its largest term
RTOL, ULPS = 2e-5, 16.0


def graph_of(module: nn.Module, *inputs: Any, **kwargs: Any) -> fx.GraphModule:
    """A graph that calls one module; tensors become placeholders, the rest stays as it is."""
    graph, root = fx.Graph(), nn.Module()
    root.add_module("op", module)
    count = iter(range(100))

    def operand(value: Any) -> Any:
        if isinstance(value, Tensor):
            return graph.placeholder(f"x{next(count)}")
        if isinstance(value, list | tuple):
            return type(value)(operand(v) for v in value)
        return value

    args = tuple(operand(v) for v in inputs)
    kwargs = {k: operand(v) for k, v in kwargs.items()}
    graph.output(graph.call_module("op", args, kwargs))
    return fx.GraphModule(root, graph).eval()


def outputs(value: Any) -> list[Tensor]:
    """Leaves of a result in order, numbers as tensors; None is left out."""
    found = (leaf for _, leaf in leaves(tuple(value) if isinstance(value, torch.Size) else value))
    return [torch.as_tensor(leaf) for leaf in found if leaf is not None]


def row_graph(row: ops.Op, sample: ops.Sample) -> tuple[fx.GraphModule, list[Tensor]]:
    """A graph that calls a row's module as preparation makes it, and its tensor inputs."""
    seeds = iter(range(100))

    def made(value: Any) -> Any:
        if isinstance(value, ops.T):
            return value.make(next(seeds))
        return type(value)(map(made, value)) if isinstance(value, list | tuple) else value

    bound = ops.bind(row.signature, sample.args, dict(sample.kwargs))
    values = {name: made(value) for name, value in bound.items()}
    module, holds = ops.module_for(row, dict(values))
    if holds:
        inputs = [values[name] for name in row.inputs]
        return graph_of(module, *inputs), tensors(inputs)
    args, kwargs = ops.call_arguments(row, values)
    return graph_of(module, *args, **kwargs), tensors([*args, *kwargs.values()])


def run(lowered: Lowered, inputs: list[Tensor], *, optimized: bool = False) -> list[Any]:
    """Outputs of onnxruntime in order."""
    options = onnxruntime.SessionOptions()
    levels = onnxruntime.GraphOptimizationLevel
    options.graph_optimization_level = (
        levels.ORT_ENABLE_ALL if optimized else levels.ORT_DISABLE_ALL
    )
    options.intra_op_num_threads, options.log_severity_level = 1, 3
    content = ir.to_proto(lowered.model).SerializeToString()
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    feeds = {n: t.numpy() for n, t in zip(lowered.input_names, inputs, strict=True)}
    return list(session.run(None, feeds))


def assert_equal(got: list[Any], want: Any) -> None:
    """Shapes and dtypes equal, values within float32 rounding of sums."""
    wanted = outputs(want)
    assert len(got) == len(wanted)
    for g, w in zip(got, (t.detach().numpy() for t in wanted), strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        finite = np.abs(w[np.isfinite(w)]) if w.dtype.kind == "f" else np.zeros(0)
        largest = max(1.0, float(finite.max(initial=0.0)))
        np.testing.assert_allclose(g, w, rtol=RTOL, atol=ULPS * 2**-23 * largest)


def check(
    gm: fx.GraphModule, inputs: list[Tensor], *, opset: int = 21, fallbacks: int = 0
) -> Lowered:
    """Lower, check, run at the example's batch size and at five rows; returns the lowering."""
    lowered = lower(gm, (tuple(inputs), {}), opset=opset)
    assert len(lowered.fallbacks) == fallbacks, lowered.fallbacks
    onnx.checker.check_model(ir.to_proto(lowered.model), full_check=True)
    rows = [lowered.varying.resized(inputs, 5)] if lowered.varying.dynamic else []
    for given in (inputs, *rows):
        with torch.no_grad():
            assert_equal(run(lowered, given), gm(*given))
    return lowered


def text(lowered: Lowered) -> str:
    """The graph as text: operators and names, without numbers."""
    lines = [f"input  {', '.join(lowered.input_names)}"]
    for node in lowered.model.graph:
        inputs = ", ".join(str(v.name) if v is not None else "-" for v in node.inputs)
        outputs = ", ".join(str(v.name) for v in node.outputs)
        lines.append(f"{node.op_type}[{node.name}]({inputs}) -> {outputs}")
    return "\n".join([*lines, f"output {', '.join(lowered.output_names)}"])
