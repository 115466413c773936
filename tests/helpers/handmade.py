"""A small simulated model and its QDQ graph, both written by hand: what the proof compares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray
from torch import Tensor, fx, nn

from fxquant import nn as qnn
from fxquant.nn import QuantizationMixin
from fxquant.onnx.lowering.result import Lowered, LoweredTensor
from fxquant.quantization import QuantizerBase, affine
from tests.helpers.qdq import Graph


def example(batch: int = 4) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
    """Inputs of the hand-made model."""
    return (torch.randn(batch, 3, 8, 8, generator=torch.Generator().manual_seed(1)),), {}


def simulated() -> fx.GraphModule:
    """`x → stub → conv → relu → pool → flatten → fc`: relu's grid is moved by pool and flatten."""
    modules: dict[str, nn.Module] = {
        "stub": qnn.QuantStub(), "conv": nn.Conv2d(3, 8, 3, padding=1), "relu": nn.ReLU(),
        "pool": nn.MaxPool2d(2), "flat": nn.Flatten(1), "fc": nn.Linear(128, 5),
    }  # fmt: skip
    root = nn.Module()
    graph = fx.Graph()
    value = graph.placeholder("x")
    for name, module in modules.items():
        root.add_module(name, QuantizationMixin.from_module(module))
        value = graph.call_module(name, (value,))
    graph.output(value)
    gm = fx.GraphModule(root, graph).eval()
    _place(gm)
    with torch.no_grad(), qnn.compute_encodings(gm):
        gm(*example(16)[0])
    return gm


def _place(gm: fx.GraphModule) -> None:
    for name in ("stub", "relu", "fc"):
        part: Any = gm.get_submodule(name)
        part.output_quantizers[0] = affine.QuantizeDequantize((), 8, symmetric=False)
    for name, source in (("conv", "stub"), ("fc", "relu")):
        part = gm.get_submodule(name)
        weight = affine.QuantizeDequantize(
            (part.weight.shape[0], *[1] * (part.weight.dim() - 1)), 8, symmetric=True
        )
        grid: Any = gm.get_submodule(source).output_quantizers
        part.param_quantizers["weight"] = weight
        part.param_quantizers["bias"] = affine.BiasQuantizeDequantize(grid[0], weight)


def lowered(gm: fx.GraphModule) -> Lowered:
    """What lowering makes of it."""
    g, tensors = Graph(x=("batch", 3, 8, 8)), []

    def quantized(node: str, value: ir.Value, owner: str) -> ir.Value:
        part: Any = gm.get_submodule(owner)
        scale, zero = _grid(part.output_quantizers[0])
        real = g.quantized(node, value, float(scale), int(zero))
        tensors.append(
            LoweredTensor(
                node=node, index=0, module=node, float_name=value.name or "",
                quantized_name=f"{node}_q", dequantized_name=f"{node}.dq.out",
                scale=scale.reshape(()), zero_point=zero.reshape(()).astype(np.uint8), axis=None,
                block=None, dtype=ir.DataType.UINT8, bits=8, symmetric=False, kind="activation",
            )
        )  # fmt: skip
        return real

    value = quantized("stub", g["x"], "stub")
    conv = g.op("Conv", "conv", value, _stored(g, gm, "conv.weight"), _stored(g, gm, "conv.bias"),
                pads=[1, 1, 1, 1])  # fmt: skip
    value = quantized("relu", g.op("Relu", "relu", conv), "relu")
    pool = g.op("MaxPool", "pool", value, kernel_shape=[2, 2], strides=[2, 2])
    value = quantized("pool", pool, "relu")
    value = quantized("flat", g.op("Flatten", "flat", value, axis=1), "relu")
    fc = g.op("Gemm", "fc", value, _stored(g, gm, "fc.weight"), _stored(g, gm, "fc.bias"), transB=1)
    value = quantized("fc", fc, "fc")
    return Lowered(g.model(value), tuple(tensors), ("x",), (value.name or "",))


def _grid(quantizer: QuantizerBase) -> tuple[NDArray[np.float32], NDArray[Any]]:
    scale, offset = quantizer.get_scale(), quantizer.get_offset()
    assert scale is not None
    assert offset is not None
    return scale.detach().numpy(), -offset.detach().numpy()


def _stored(g: Graph, gm: fx.GraphModule, name: str) -> ir.Value:
    """Integers of a parameter behind a DequantizeLinear."""
    owner, _, key = name.partition(".")
    part: Any = gm.get_submodule(owner)
    scale, _ = _grid(part.param_quantizers[key])
    dtype = np.int8 if key == "weight" else np.int32
    real = part.param_quantizers[key](getattr(part, key)).detach().as_subclass(Tensor).numpy()
    flat = scale.reshape(-1).astype(np.float32)
    return g.op(
        "DequantizeLinear", f"{name}.dq",
        g.constant(name, np.rint(real / scale).astype(dtype)),
        g.constant(f"{name}_scale", flat),
        g.constant(f"{name}_zero", np.zeros(flat.shape, dtype)),
        axis=0,
    )  # fmt: skip


def written(lowered: Lowered, folder: Path) -> Path:
    """The file of a lowering."""
    path = folder / "model.onnx"
    ir.save(lowered.model, path)
    return path


def changed(lowered: Lowered, name: str, array: NDArray[Any]) -> None:
    """Damage: another array for an initializer."""
    value = lowered.model.graph.initializers[name]
    value.const_value = ir.Tensor(array, name=name)


def array(lowered: Lowered, name: str) -> NDArray[Any]:
    """A copy of an initializer's array."""
    tensor = lowered.model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy().copy()
