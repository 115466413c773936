"""What the CPU of this process makes of integer products, found by asking onnxruntime.

Why a probe: flags of a CPU are told differently on every system, are wrong under emulation, and say
nothing about the kernels that onnxruntime takes.
"""

from __future__ import annotations

import functools
import platform
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from fxquant.onnx.session import Level, open_session, packed

Products = Literal["exact", "saturating"]


@dataclass(frozen=True)
class Cpu:
    """A CPU as onnxruntime uses it.

    Attributes:
        machine: its architecture, e.g. "x86_64" or "aarch64".
        products: whether sums of products of an unsigned and a signed byte are exact, or saturate
            in 16 bits two by two, as on x86 CPUs without VNNI.
    """

    machine: str
    products: Products

    @property
    def exact(self) -> bool:
        """Whether its integer products are exact."""
        return self.products == "exact"

    def __str__(self) -> str:
        kind = "exact" if self.exact else "saturating (no VNNI)"
        return f"{self.machine}, u8·s8 products {kind}"


@functools.cache
def this_cpu() -> Cpu:
    """The CPU of this process; onnxruntime is asked once.

    Raises:
        ExportError: FXQ550, onnxruntime is not installed.
    """
    # four products of 255 and 127 are 129540; two by two in 16 bits they are 2 · 32767
    a, b = np.full((1, 4), 255, np.uint8), np.full((4, 1), 127, np.int8)
    with packed(probe_model()) as source:
        found = open_session(source, Level.ALL).run({"a": a, "b": b})["y"]
    exact = int(found[0, 0]) == 4 * 255 * 127
    return Cpu(platform.machine(), "exact" if exact else "saturating")


def probe_model() -> ir.Model:
    """A product of u8 [1, 4] and s8 [4, 1] in one node."""
    kinds = {"a": ir.DataType.UINT8, "b": ir.DataType.INT8}
    a, b = (ir.Value(name=n, type=ir.TensorType(t)) for n, t in kinds.items())
    a.shape, b.shape = ir.Shape([1, 4]), ir.Shape([4, 1])
    node = ir.node("MatMulInteger", [a, b], name="product")
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", ir.TensorType(ir.DataType.INT32), ir.Shape([1, 1])
    graph = ir.Graph([a, b], [y], nodes=[node], opset_imports={"": 21}, name="probe")
    return ir.Model(graph, ir_version=10)
