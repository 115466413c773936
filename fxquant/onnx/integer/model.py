"""`IntegerModel`: a QDQ model as onnxruntime's default CPU run computes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from fxquant.errors import ExportError
from fxquant.onnx.integer.interpreter import Interpreter, as_array
from fxquant.onnx.integer.kernels.arithmetic import Array
from fxquant.onnx.integer.kernels.kernel_graph import Source, dtype_of, load
from fxquant.onnx.integer.kernels.lane_probe import lanes_here
from fxquant.onnx.integer.kernels.lanes import AVX2
from fxquant.onnx.integer.rewrite.canonicalize import normalize
from fxquant.onnx.integer.rewrite.fuse import fuse
from fxquant.onnx.integer.saturation import Saturation, saturations
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.ort.fusion_rules import reason

_INTEGERS = frozenset(
    (ir.DataType.INT8, ir.DataType.UINT8, ir.DataType.INT16, ir.DataType.UINT16,
     ir.DataType.INT4, ir.DataType.UINT4)
)  # fmt: skip
_PAIR = frozenset(("QuantizeLinear", "DequantizeLinear"))


@dataclass(frozen=True)
class Placed:
    """Where one operator runs.

    Attributes:
        node: name of the ONNX node.
        operator: its type.
        kernel: what runs in its place.
        integer: whether that computes on integers.
        covers: names of all nodes that the kernel stands for, quantizers among them.
        reason: why it stays in floating point; empty for integer kernels.
    """

    node: str
    operator: str
    kernel: str
    integer: bool
    covers: tuple[str, ...]
    reason: str


class IntegerModel:
    """The exact simulation of a QDQ model on onnxruntime's default CPU run (x86).

    It decides from the graph which groups become integer kernels, and runs those with the kernels'
    own arithmetic: exact 32-bit sums, float32 multipliers, ties to even, the zero point added
    before or after rounding as each kernel does. Nothing of onnxruntime takes part in that.

    What stays in floating point is computed here, too. Softmax, layer norm, GELU, pools, sums over
    axes and the other functions have the steps of the kernels for the CPU and were equal bit for
    bit on x86 CPUs with AVX-512, with AVX2 and with neither. The last bits of float convolutions,
    matrix products and LogSoftmax depend on the library; with `islands="onnxruntime"` it runs these
    operators, one at a time. It also runs the rare operators that have no kernel here;
    `placement()` names them. Of a session with more than two threads, sums over a middle axis may
    differ in the last bits (`reductions`).

    Args:
        source: `onnx_ir.Model`, `onnx.ModelProto` or path; it is not changed.
        islands: who computes floating-point operators whose last bits depend on the
            implementation: "own" or "onnxruntime".
        cpu: whose arithmetic: "exact", integer products as on x86 CPUs with VNNI and on ARM, float
            operators as on this CPU; "avx2", both as on x86 CPUs without VNNI, where products
            saturate; "here", both as on this CPU.

    Raises:
        ExportError: FXQ580 an input is missing or unknown; FXQ582 `islands` or `cpu` is unknown.

    Example:
        >>> import numpy as np, onnx.helper as h, onnx.numpy_helper as n
        >>> stored = [n.from_array(np.float32(0.5), "s"), n.from_array(np.uint8(3), "z")]
        >>> nodes = [h.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        ...          h.make_node("DequantizeLinear", ["q", "s", "z"], ["y"])]
        >>> x, y = (h.make_tensor_value_info(k, 1, [2]) for k in "xy")
        >>> graph = h.make_graph(nodes, "g", [x], [y], stored)
        >>> model = h.make_model(graph, opset_imports=[h.make_opsetid("", 21)])
        >>> IntegerModel(model)(np.float32([0.7, -9.0]))
        array([ 0.5, -1.5], dtype=float32)
    """

    def __init__(self, source: Source, *, islands: str = "own", cpu: str = "exact") -> None:
        _check_choice("islands", islands, ("own", "onnxruntime"))
        _check_choice("cpu", cpu, ("exact", "avx2", "here"))
        model = load(source)
        graph = model.graph
        self.input_names = tuple(str(v.name) for v in graph.inputs if v.const_value is None)
        self.output_names = tuple(str(v.name) for v in graph.outputs)
        quantized = _integer_values(graph)
        self._operators = [n for n in model.clone().graph if n.op_type not in _PAIR]
        self._run = Interpreter(
            graph, model.opset_imports, runtime_islands=islands == "onnxruntime",
            lanes=AVX2 if cpu == "avx2" else lanes_here(),
            saturates=cpu == "avx2" or (cpu == "here" and not this_cpu().exact),
        )  # fmt: skip
        self._merged = normalize(graph, self._run.compute)
        self._fused, self._shifted = fuse(graph)
        self._made = {str(n.name): n for n in graph}
        # pairs of pairs are merged: the inner integers exist nowhere
        kept = {v.name for n in graph for v in n.outputs} | set(graph.initializers)
        self.quantized_names = tuple(
            name for name in quantized if self._merged.values.get(name, name) in kept
        )

    # --- running -------------------------------------------------------------------------------

    def run(
        self, feeds: Mapping[str, Any], wanted: Sequence[str] | None = None
    ) -> dict[str, Array]:
        """Values by name: the outputs, or the named ones, quantized tensors among them.

        Args:
            feeds: arrays or tensors by the names of the graph inputs.
            wanted: names of values; default: the outputs.

        Raises:
            ExportError: FXQ580, the names of the feeds are not those of the inputs.
        """
        given = {name: as_array(x) for name, x in feeds.items()}
        missing = [n for n in self.input_names if n not in given]
        unknown = [n for n in given if n not in self.input_names]
        if missing or unknown:
            what = f"inputs are missing: {missing}" if missing else f"no inputs: {unknown}"
            fix = f"the inputs are {', '.join(self.input_names)}"
            raise ExportError("FXQ580", what, fix=fix)
        names = self.output_names if wanted is None else tuple(wanted)
        places = {n: self._merged.values.get(n, n) for n in names}
        found = self._run.run(given, set(places.values()))
        return {n: self._given_type(p, found[p]) for n, p in places.items() if p in found}

    def _given_type(self, name: str, array: Array) -> Array:
        """The integers of the file where the runtime turned int8 into uint8."""
        if name not in self._shifted:
            return array
        return (array.astype(np.int16) - 128).astype(np.int8)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Outputs as the model returns them: torch tensors where torch tensors are given.

        A single output comes alone, several as a tuple.
        """
        feeds = self.feeds(args, kwargs)
        found = self.run(feeds)
        results: list[Any] = [found[n] for n in self.output_names]
        if any(isinstance(x, torch.Tensor) for x in feeds.values()):
            results = [torch.from_numpy(np.array(x)) for x in results]
        return results[0] if len(results) == 1 else tuple(results)

    def feeds(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Positional inputs in the order of the graph inputs, and named ones, as one dict.

        Raises:
            ExportError: FXQ580, there are more than the model has.
        """
        if len(args) == 1 and isinstance(args[0], Mapping) and not kwargs:
            return dict(args[0])
        if len(args) > len(self.input_names):
            what = f"{len(args)} inputs are given, the model has {len(self.input_names)}"
            raise ExportError("FXQ580", what, fix=f"the inputs are {', '.join(self.input_names)}")
        return dict(zip(self.input_names, args, strict=False)) | dict(kwargs)

    def tensors(self, *args: Any, **kwargs: Any) -> dict[str, Array]:
        """Every quantized tensor by its name in the file, for these inputs."""
        return self.run(self.feeds(args, kwargs), self.quantized_names)

    @property
    def graph(self) -> ir.Graph:
        """The graph of kernels that is run."""
        return self._run.graph

    @property
    def visible_names(self) -> tuple[str, ...]:
        """Quantized tensors that may be made outputs without changing what onnxruntime runs.

        It leaves int8 pairs signed and equal quantizers apart where their integers are outputs.
        """
        merged = {*self._merged.values, *self._merged.values.values()}
        return tuple(n for n in self.quantized_names if n not in self._shifted | merged)

    # --- looking -------------------------------------------------------------------------------

    def placement(self) -> tuple[Placed, ...]:
        """Where each operator of the file runs, in graph order.

        After a run it also tells which nodes onnxruntime itself had to run.
        """
        return tuple(self._placed(node) for node in self._operators)

    def saturations(self) -> tuple[Saturation, ...]:
        """Kernels whose weights can overflow on x86 CPUs without VNNI."""
        return saturations(self._run.graph)

    def _placed(self, node: ir.Node) -> Placed:
        name = str(node.name)
        known = self._merged.nodes.get(name, name)
        fused = self._fused.get(known)
        if fused is not None:
            return Placed(name, node.op_type, fused.kernel, True, fused.covers, "")
        made = self._made.get(known)
        if made is None:
            return Placed(name, node.op_type, "folded away", True, (name,), "")
        if any(_holds_integers(v) for v in made.inputs):
            return Placed(name, node.op_type, made.op_type, True, (name,), "")
        outside = self._run.outside.get(name)
        kernel = f"{made.op_type} in onnxruntime" if outside else made.op_type
        why = reason(node) if _is_float(node.outputs[0]) else ""
        return Placed(name, node.op_type, kernel, False, (name,), why)


def _check_choice(name: str, given: str, known: tuple[str, ...]) -> None:
    if given not in known:
        fix = f"use one of {', '.join(repr(k) for k in known)}"
        raise ExportError("FXQ582", f"{name}={given!r} is unknown", fix=fix)


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _holds_integers(value: ir.Value | None) -> bool:
    """Whether a value holds integers of a grid, and is no constant beside them."""
    return value is not None and value.const_value is None and dtype_of(value) in _INTEGERS


def _is_narrow(value: ir.Value) -> bool:
    """Whether it holds the codes of narrow floats: a QuantizeLinear may make these, too."""
    dtype = dtype_of(value)
    return dtype is not None and dtype.is_floating_point()


def _integer_values(graph: ir.Graph) -> list[str]:
    """Names of what nodes write as integers of a grid."""
    names = []
    for node in graph:
        quantizes = node.op_type == "QuantizeLinear" or node.op_type.startswith("QLinear")
        for value in node.outputs:
            if value.name and (quantizes or value.dtype in _INTEGERS) and not _is_narrow(value):
                names.append(value.name)
    return names
