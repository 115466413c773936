"""The lanes of this process's CPU, found by asking onnxruntime for a softmax.

As with integer products (`fxquant.onnx.ort.cpu`), what a CPU could do tells less than what is done.
"""

from __future__ import annotations

import functools

import numpy as np
import onnx_ir as ir

from fxquant.onnx.integer.kernels.float_functions import softmax
from fxquant.onnx.integer.kernels.lanes import AVX2, AVX512, SSE, Lanes
from fxquant.onnx.session import Level, open_session, packed

_SHAPE = (64, 61)


@functools.cache
def lanes_here() -> Lanes:
    """The lanes of the CPU at hand; onnxruntime is asked once.

    Those of AVX2 where none are right, as may be on ARM, whose lanes have not been measured.

    Raises:
        ExportError: FXQ550, onnxruntime is not installed.
    """
    x = np.random.default_rng(0).standard_normal(_SHAPE).astype(np.float32)
    with packed(_model()) as source:
        found = open_session(source, Level.ALL).run({"x": x})["y"]
    right = (k for k in (AVX512, AVX2, SSE) if np.array_equal(softmax(x, k), found))
    return next(right, AVX2)


def _model() -> ir.Model:
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(_SHAPE))
    node = ir.node("Softmax", [x], {"axis": -1}, name="probe")
    y = node.outputs[0]
    y.name, y.type, y.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [y], nodes=[node], opset_imports={"": 21}, name="probe")
    return ir.Model(graph, ir_version=10)
