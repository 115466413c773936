"""Lowering: from a prepared fx graph, float or quantized, to an ONNX model.

One pass over the nodes in order. What no input can change is a constant (see `record`); every other
node is written by the emitter of its row; quantizers become QuantizeLinear behind the node that
owns them and DequantizeLinear in front of whoever reads real values.

Why not `torch.onnx.export`: it takes ten times as long, loses the names, decomposes operators that
runtimes want whole, and stores float weights behind a QuantizeLinear.
"""

from __future__ import annotations

import operator
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import onnx_ir as ir
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.errors import ExportError
from fxquant.graph import pytree
from fxquant.nn import QuantizationMixin
from fxquant.nn.opaque import Opaque
from fxquant.onnx.lowering import fallback, size_arithmetic
from fxquant.onnx.lowering.assemble import assemble, bind_outputs
from fxquant.onnx.lowering.builder import Builder, describe
from fxquant.onnx.lowering.context import Call, Table, UnsupportedError, path_of
from fxquant.onnx.lowering.deployment import written_for
from fxquant.onnx.lowering.emitters import (
    Emitter,
    emitter_of_class,
    emitter_of_function,
    emitter_of_row,
)
from fxquant.onnx.lowering.int8_moves import move_int8
from fxquant.onnx.lowering.nodes import (
    attribute,
    check_real,
    constant_parts,
    container,
    is_container,
    leaves,
    moves_integers,
    needed,
    operator_name,
)
from fxquant.onnx.lowering.ort_workarounds import fold_scales, separate_norms, shield_float_layers
from fxquant.onnx.lowering.quantize import Quantized
from fxquant.onnx.lowering.result import Fallback, Lowered
from fxquant.onnx.lowering.stored_weights import Arrangement, Weights
from fxquant.onnx.lowering.values import LoweredValue
from fxquant.onnx.runs.observed import Example, Recorded, Shaped, bound_example, record
from fxquant.onnx.runs.randomness import check_draws
from fxquant.onnx.runs.varying import size_notes
from fxquant.onnx.runs.visible_writes import check_writes
from fxquant.placement.dataflow import resolve_grids
from fxquant.quantization.affine import AffineQuantizer
from fxquant.quantization.float import FloatQuantizeDequantize

if TYPE_CHECKING:
    from fxquant.quantization import QuantizerBase
    from fxquant.targets import Deploy

OPSETS = range(13, 24)


def lower(
    gm: fx.GraphModule, example: Example, *, opset: int = 21, contrib: bool = False,
    deploy: Deploy = "any",
) -> Lowered:  # fmt: skip
    """Write a prepared graph as ONNX.

    Args:
        gm: prepared graph, float or quantized and calibrated; it is not changed.
        example: positional and keyword inputs; which dimensions follow the batch is found by
            running the graph on two batch sizes made from it.
        opset: version of the ONNX operators, 13 to 23.
        contrib: write what onnxruntime runs fastest, also in operators of its own.
        deploy: the CPUs that the file is written for, see `fxquant.onnx.lowering.deployment`.

    Returns:
        The model with the correspondence of names.

    Raises:
        ExportError: FXQ500 to FXQ509, the graph has no form in ONNX; node and line are named.
        UncalibratedError: FXQ503, a quantizer has no range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> gm = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(3, 2), nn.ReLU()))
        >>> lowered = lower(gm, ((torch.ones(1, 3),), {}))
        >>> [node.op_type for node in lowered.model.graph]
        ['Gemm', 'Relu']
    """
    if type(opset) is not int or opset not in OPSETS:
        fix = f"use one of {OPSETS.start} to {OPSETS.stop - 1}"
        raise ExportError("FXQ500", f"opset {opset} is not supported", fix=fix)
    recorded = record(gm, example)
    try:
        return _Lowering(gm, example, Builder(opset, contrib=contrib), deploy, recorded).run()
    except fallback.SizesNeededError as error:
        if not recorded.varying.dynamic:
            raise
        # written for the batch of the example, an operator's sizes are plain numbers
        fixed = record(gm, example, fixed=error.what)
    return _Lowering(gm, example, Builder(opset, contrib=contrib), deploy, fixed).run()


class _Lowering:
    def __init__(
        self, gm: fx.GraphModule, example: Example, builder: Builder, deploy: Deploy,
        recorded: Recorded,
    ) -> None:  # fmt: skip
        self.deploy = deploy
        self.gm = gm
        self.example = example
        self.builder = builder
        self.weights = Weights(builder)
        self.quantized = Quantized(builder)
        self.recorded = recorded
        self.grids = resolve_grids(gm) if _is_quantized(gm) else {}
        self.env: dict[fx.Node, Any] = {}
        self.inputs: list[ir.Value] = []
        self.fallbacks: list[Fallback] = []
        self.exported: dict[Any, ir.Model] = {}  # by torch's exporter
        self.owners: dict[ir.Node, fx.Node] = {}
        self.current: fx.Node = next(iter(gm.graph.nodes))

    # --- the walk ------------------------------------------------------------------------------

    def run(self) -> Lowered:
        """Write every node that the outputs need."""
        check_draws(self.gm, self.recorded.drawing)
        wanted = needed(self.gm, self.recorded.constants)
        check_writes(self.gm, wanted)
        check_real(wanted, self.recorded.constants, self.recorded.specs)
        self._placeholders()
        for node in self.gm.graph.nodes:
            if node in wanted and node.op not in ("placeholder", "output"):
                first = len(self.builder.nodes)
                self.current = node
                self.env[node] = self._node(node)
                self.owners |= dict.fromkeys(self.builder.nodes[first:], node)
        output = next(n for n in self.gm.graph.nodes if n.op == "output")
        outputs = bind_outputs(self.builder, self.resolve(output.args[0]), self.inputs)
        inserted = move_int8(self.builder, outputs) | self.weights.join()
        self.owners |= {made: self.owners[by] for made, by in inserted.items() if by in self.owners}
        inserted = shield_float_layers(self.builder) | fold_scales(self.builder, outputs)
        self.owners |= {made: self.owners[by] for made, by in inserted.items() if by in self.owners}
        separate_norms(self.builder)
        model, kept = assemble(self.builder, self.inputs, outputs)
        lowered = Lowered(
            model=model, tensors=tuple(self.quantized.tensors(kept)),
            input_names=tuple(str(v.name) for v in model.graph.inputs),
            output_names=tuple(str(v.name) for v in model.graph.outputs),
            fallbacks=tuple(self.fallbacks), varying=self.recorded.varying,
            batch_note=self.recorded.varying.reason,
            notes=tuple(size_notes(self.gm, self.recorded.varying)),
            owners={str(n.name): self.owners[n].name for n in model.graph if n in self.owners},
            narrow=tuple((str(v.name), q) for v, q in self.quantized.narrow if v in kept),
        )  # fmt: skip
        return written_for(lowered, self.deploy)

    def _placeholders(self) -> None:
        values = bound_example(self.gm, self.example)
        holders = [n for n in self.gm.graph.nodes if n.op == "placeholder"]
        for node, value in zip(holders, values, strict=True):
            name = str(node.target).lstrip("*")
            self.env[node] = self._input(value, self.recorded.specs[node], name)

    def _input(self, value: Any, spec: Any, name: str) -> Any:
        """A placeholder: each tensor of a container becomes an input."""
        if isinstance(value, Tensor):
            made = ir.Value()
            self.builder.name_value(made, name)
            describe(made, spec)
            self.inputs.append(made)
            return LoweredValue(spec, name, real=made)
        found = pytree.parts(value)
        if found is None:
            return value
        inner = {key: self._input(v, spec[key], f"{name}_{key}") for (_, key), v in found}
        return list(inner.values()) if isinstance(value, (tuple, list)) else inner

    def _node(self, node: fx.Node) -> Any:
        if node in self.recorded.constants:
            return self._constant(node)
        if node.target in (operator.getitem, "__getitem__", getattr):
            whole, key = (self.resolve(a) for a in node.args)
            if not isinstance(whole, LoweredValue):
                return whole[key]
        if is_container(node):
            return container(node, self.resolve)
        if not any(isinstance(s, Shaped) for s in leaves(self.recorded.specs[node])):
            return size_arithmetic.emit(node, self.resolve, self.builder)
        return self._operator(node)

    def _constant(self, node: fx.Node) -> Any:
        value, spec = self.recorded.constants[node], self.recorded.specs[node]
        if not isinstance(value, Tensor):
            return constant_parts(value, spec, path_of(node))
        held = LoweredValue(spec, path_of(node), constant=value)
        if node.op == "get_attr":
            # the parameter itself, so that it is stored once whoever reads it
            held.constant = attribute(self.gm, str(node.target))
            return held
        quantizer = next(iter(self.grids.get(node, ())), None)
        if quantizer is not None and value.dtype.is_floating_point:
            self.quantized.constant(node, held, value, quantizer)
        return held

    # --- operators -----------------------------------------------------------------------------

    def _operator(self, node: fx.Node) -> Any:
        row = self._row(node)
        arguments = self._arguments(node, row)
        call = Call(self, node, arguments, self.recorded.specs[node])
        call.primary = row.inputs[0] if row else "input"
        self._replace_operands(call)
        own = self._own_quantizers(node)
        moves = row is not None and row.grid_for(arguments) is ops.Grid.SAME
        quantizers = own or (self.grids.get(node, ()) if moves else ())
        call.inherits = bool(quantizers) and not own
        if quantizers and not own and row is not None:
            call.integer = moves_integers(row, self.resolve(arguments.get(call.primary)))
        with self.builder.scope(path_of(node)):
            emitted = self._emit(call, row)
        return self._results(call, emitted, quantizers)

    def _row(self, node: fx.Node) -> ops.Op | None:
        if node.target in (operator.getitem, "__getitem__"):
            return ops.TABLE.rows["getitem"]
        return ops.row_of(node, self.gm)

    def _arguments(self, node: fx.Node, row: ops.Op | None) -> dict[str, Any]:
        if row is None:
            return {}
        try:
            return ops.arguments(node, self.gm)
        except TypeError as error:
            what = f"the arguments do not fit the operator {row.name!r}: {error}"
            raise ExportError("FXQ506", what, at=node, fix="call it as its row does") from error

    def _emit(self, call: Call, row: ops.Op | None) -> Any:
        emitter, reason = self._emitter(call, row)
        if emitter is not None:
            try:
                return emitter(call)
            except UnsupportedError as unsupported:
                reason = str(unsupported)
        call.integer = False
        name = operator_name(call)
        self.fallbacks.append(Fallback(call.node.name, name, reason))
        return fallback.export_node(call, name, self.recorded, reason)

    def _emitter(self, call: Call, row: ops.Op | None) -> tuple[Emitter | None, str]:
        """An emitter, and why there is none."""
        module = call.module
        if row is not None:
            return emitter_of_row(row.name), f"operator {row.name!r} has no emitter"
        if isinstance(module, Opaque):
            return emitter_of_function(module.function), "it has no row"
        if module is not None:
            return emitter_of_class(type(module)), "it has no row"
        return emitter_of_function(call.node.target), "it has no row"

    def _replace_operands(self, call: Call) -> None:
        """Operands that this consumer reads on a grid of its own (`input_quantizers`)."""
        given = tuple(getattr(call.module, "input_quantizers", nn.ModuleList())._modules.values())
        if all(q is None for q in given):
            return
        found: list[fx.Node] = []
        fx.node.map_arg((call.node.args, call.node.kwargs), found.append)
        operands = [n for n in found if isinstance(self.resolve(n), LoweredValue)]
        for i, (operand, quantizer) in enumerate(zip(operands, given, strict=False)):
            if quantizer is not None:
                held: LoweredValue = self.resolve(operand)
                name = f"{path_of(call.node)}.input_{i}"
                real = held.value(self.builder)
                call.replaced[operand] = self.quantized.value(real, held.spec, quantizer, name)

    def _own_quantizers(self, node: fx.Node) -> tuple[QuantizerBase | None, ...]:
        if node.op != "call_module":
            return ()
        module = self.gm.get_submodule(str(node.target))
        own = tuple(getattr(module, "output_quantizers", ()))
        return own if any(q is not None for q in own) else ()

    # --- results -------------------------------------------------------------------------------

    def _results(self, call: Call, emitted: Any, quantizers: tuple[Any, ...]) -> Any:
        """Name, describe and quantize what an emitter made; the index counts leaves."""
        single = isinstance(call.out, Shaped)
        if single and isinstance(emitted, (tuple, list)):
            emitted = emitted[0]
        count = -1

        def walk(value: Any, spec: Any) -> Any:
            nonlocal count
            if isinstance(spec, Mapping):
                return {k: walk(v, spec[k]) for k, v in zip(spec, value, strict=True)}
            if isinstance(spec, (tuple, list)):
                padded = [*value, *[None] * (len(spec) - len(value))]
                return [walk(v, s) for v, s in zip(padded, spec, strict=True)]
            count += 1
            name = f"{call.path}.output" if single else f"{call.path}.output_{count}"
            quantizer = quantizers[count] if count < len(quantizers) else None
            return self._result(call, count, value, (spec, name), quantizer)

        return walk(emitted, call.out)

    def _result(
        self, call: Call, index: int, value: Any, held_as: tuple[Shaped, str],
        quantizer: QuantizerBase | None,
    ) -> Any:  # fmt: skip
        spec, name = held_as
        if value is None:
            return None
        if isinstance(value, LoweredValue):
            if quantizer is None or quantizer is self.quantized.quantizer_of(value):
                return value
            value = value.value(self.builder)
        if quantizer is None or not spec.dtype.is_floating_point:
            return LoweredValue(spec, name, real=self._described(value, spec, name))
        if call.integer:
            source = call.held(call.primary)
            return self.quantized.moved(call.node, index, value, source, held_as, quantizer)
        real = self._described(value, spec, name)
        return self.quantized.output(
            call.node, index, real, held_as, quantizer, cut=not call.inherits
        )

    def _described(self, value: ir.Value, spec: Shaped, name: str) -> ir.Value:
        """Name a result, unless it is an input, an initializer or another node's result."""
        producer = value.producer()
        if producer is not None and producer not in self.owners and value.shape is None:
            self.builder.name_value(value, name)
            describe(value, spec)
        return value

    # --- what calls need (`Surroundings`) ------------------------------------------------------

    def resolve(self, value: Any) -> Any:
        """fx nodes inside a value -> `LoweredValue`, `SizeValue` or plain values."""
        return fx.node.map_arg(value, self._value_of)

    def _value_of(self, node: fx.Node) -> Any:
        if node not in self.env:
            self.env[node] = self._constant(node)
        return self.env[node]

    def reshaped_output(self, call: Call, made: ir.Value) -> LoweredValue | None:
        """A result that was made in another shape, on its grid; None where it has no grid.

        It is quantized where it is made and reshaped as integers: between an operator and its
        QuantizeLinear nothing may stand. Not on a signed grid: no kernel makes signed integers of
        unsigned ones, and the kernel that makes floats is found only without a QuantizeLinear.
        """
        quantizer = next(iter(self._own_quantizers(call.node)), None)
        if not isinstance(quantizer, AffineQuantizer) or quantizer.signed:
            return None
        name = f"{call.path}.output"
        self.quantized.grid(quantizer, call.out, name)  # its initializers are named after the whole
        flat = self.quantized.value(made, call.out, quantizer, f"{name}_rows")
        if flat.integers is None:
            return None
        integers = call.reshape(flat.integers, call.out.shape, call.held("input"))
        held_as = (call.out, name)
        return self.quantized.moved(call.node, 0, integers, flat, held_as, quantizer, made=made)

    def parameter(
        self, tensor: Tensor, name: str, module: nn.Module | None, arrangement: Arrangement
    ) -> ir.Value:
        """The value of a weight, dequantized where the module quantizes it."""
        known = len(self.weights.stored)
        value = self.weights.value(tensor, name, _quantizer_of(module, name), arrangement)
        self.quantized.found += ((self.current, w) for w in self.weights.stored[known:])
        return value

    def table(self, tensor: Tensor, name: str, module: nn.Module | None) -> Table | None:
        """The integers of a weight that is read row by row; None where it is not quantized."""
        quantizer = _quantizer_of(module, name)
        if quantizer is None or isinstance(quantizer, FloatQuantizeDequantize):
            return None
        found = self.weights.table(tensor, name, quantizer)
        self.quantized.found.append((self.current, self.weights.stored[-1]))
        return found


def _quantizer_of(module: nn.Module | None, name: str) -> QuantizerBase | None:
    """The quantizer of a parameter, given the parameter's full name."""
    if not isinstance(module, QuantizationMixin):
        return None
    return dict(module.param_quantizers.active()).get(name.rpartition(".")[2])


def _is_quantized(gm: fx.GraphModule) -> bool:
    return any(isinstance(m, QuantizationMixin) for m in gm.modules())
