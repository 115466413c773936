"""One node by torch's own exporter, for operators that have no emitter.

The node alone is exported on the values it sees, with a dynamic batch, and its ONNX nodes are put
into the graph. It is the way out for exotic operators, not a second lowering: it takes about a
second a node. Functions that are called alike several times are exported once.
"""

from __future__ import annotations

import importlib.util
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from fxquant.errors import ExportError, FxQuantError
from fxquant.graph.pytree import leaves, map_leaves
from fxquant.nn import QuantizationMixin
from fxquant.nn.opaque import Complex, Opaque
from fxquant.onnx.lowering.complex_pairs import OnPairs
from fxquant.onnx.lowering.context import Call, path_of
from fxquant.onnx.lowering.values import LoweredValue, SizeValue
from fxquant.onnx.runs.observed import Dim, Recorded, Shaped, inputs_of

# the exporter gives them int32 now and then, which ONNX does not allow
_INT64_PLACES = frozenset({"ScatterND", "GatherND"})
_LEAST_OPSET = 18  # the exporter writes nothing older


class SizesNeededError(ExportError):
    """What an operator makes depends on sizes that must be known when the file is written."""


def export_node(call: Call, name: str, recorded: Recorded, reason: str) -> Any:
    """Values of a node, written by torch's exporter.

    Raises:
        ExportError: FXQ508, the exporter is not installed or cannot write the node either.
    """
    node = call.node
    what = f"{name} has no lowering ({reason})"
    operands = _operands(call)
    _check_operands(call, operands, what)
    if importlib.util.find_spec("onnxscript") is None:
        raise ExportError("FXQ508", f"{what}, and torch's exporter is not installed", at=node,
                          fix="pip install fxquant[exporter]")  # fmt: skip
    if call.opset < _LEAST_OPSET:
        raise ExportError("FXQ508", f"{what}, and torch's exporter writes no opset {call.opset}",
                          at=node, fix=f"export with opset {_LEAST_OPSET} or later")  # fmt: skip
    args, kwargs = inputs_of(call.around.gm, node, recorded)
    single = _SingleNode(call, args, kwargs)
    key = _key(call, single, operands)
    try:
        model = call.around.exported.get(key) or _exported(single, operands, call.opset)
    except FxQuantError:
        raise
    except Exception as error:  # the exporter raises whatever its many layers raise
        what = f"{what}, and torch's exporter fails too: {_cause(error)}"
        fix = "write an emitter: fxquant.onnx.lowering.emit.emits"
        raise ExportError("FXQ508", what, at=node, fix=fix) from error
    if key is not None:
        call.around.exported[key] = model
    outputs = _inline(call, model, [h.value(call.builder) for h in operands])
    return _shaped_like(call.out, iter(outputs))


class _SingleNode(nn.Module):
    """A module that is one node: its tensor operands come in, the rest is fixed."""

    def __init__(self, call: Call, args: Any, kwargs: Any) -> None:
        super().__init__()
        module = call.module
        self.target: Any = _plain_module(module) if module is not None else call.node.target
        self.is_method = call.node.op == "call_method"
        self.args, self.kwargs = args, kwargs
        found = [leaf for _, leaf in leaves((args, kwargs))]
        self.tensors = tuple(_plain(t) for t in found if isinstance(t, Tensor))

    def forward(self, *tensors: Tensor) -> Any:
        given = iter(tensors)

        def next_tensor(leaf: Any) -> Any:
            return next(given) if isinstance(leaf, Tensor) else leaf

        args = map_leaves(self.args, next_tensor)
        kwargs = map_leaves(self.kwargs, next_tensor)
        if self.is_method:
            return getattr(args[0], self.target)(*args[1:], **kwargs)
        with OnPairs() if isinstance(self.target, Complex) else nullcontext():
            result = self.target(*args, **kwargs)
        return (
            tuple(leaf for _, leaf in leaves(result)) if not isinstance(result, Tensor) else result
        )


def _key(call: Call, single: _SingleNode, operands: list[LoweredValue]) -> Any:
    """What makes two calls alike; None for modules, which hold weights of their own."""
    if call.module is not None and not isinstance(call.module, Opaque):
        return None
    fixed = list(leaves((single.args, single.kwargs)))
    static = tuple((p, "tensor" if isinstance(v, Tensor) else repr(v)) for p, v in fixed)
    target = getattr(single.target, "function", single.target)
    return target, static, tuple(h.spec for h in operands)


def _plain(x: Tensor) -> Tensor:
    return x.detach().as_subclass(Tensor)


def _plain_module(module: nn.Module) -> nn.Module:
    """The module without quantizers; its parameters are what the quantizers make of them."""
    if not isinstance(module, QuantizationMixin):
        return module
    plain = module.get_original_module()
    with torch.no_grad():
        for name, quantizer in module.param_quantizers.active():
            value = _plain(quantizer(getattr(module, name)))
            plain.register_parameter(name, nn.Parameter(value, requires_grad=False))
    return plain


def _operands(call: Call) -> list[LoweredValue]:
    """Tensor operands in the order in which the arguments hold them."""
    found: list[fx.Node] = []
    fx.node.map_arg((call.node.args, call.node.kwargs), found.append)
    return [held for node in found for held in _helds(call.resolve(node))]


def _check_operands(call: Call, operands: list[LoweredValue], what: str) -> None:
    """Refuse a call that the exporter would see with fixed sizes, or with no input at all."""
    found: list[fx.Node] = []
    fx.node.map_arg((call.node.args, call.node.kwargs), found.append)
    if not operands or any(isinstance(call.resolve(n), SizeValue) for n in found):
        what = f"{what}, and what it makes depends on sizes that are known at run time"
        fix = "make the tensor outside of the model"
        raise SizesNeededError("FXQ508", what, at=call.node, fix=fix)


def _helds(value: Any) -> Iterator[LoweredValue]:
    if isinstance(value, LoweredValue):
        yield value
    elif isinstance(value, (list, tuple)):
        for part in value:
            yield from _helds(part)
    elif isinstance(value, dict):
        yield from _helds(list(value.values()))


def _exported(single: _SingleNode, operands: list[LoweredValue], opset: int) -> ir.Model:
    batch = torch.export.Dim("batch", min=1)
    dynamic = tuple(_dynamic(h.spec, batch) for h in operands)
    with _quiet():
        program = torch.onnx.export(
            single, single.tensors, dynamo=True, opset_version=opset, dynamic_shapes=(dynamic,),
            verbose=False, optimize=True,
        )  # fmt: skip
    if program is None:
        msg = "it returned nothing"
        raise RuntimeError(msg)
    return program.model


def _dynamic(spec: Shaped, batch: Any) -> dict[int, Any]:
    return {i: batch if s == Dim(1, 0) else torch.export.Dim.DYNAMIC
            for i, s in enumerate(spec.shape) if isinstance(s, Dim)}  # fmt: skip


def _cause(error: BaseException) -> str:
    """The first error of a chain in one line: the exporter wraps it in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress, warnings and log lines."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _inline(call: Call, model: ir.Model, operands: list[ir.Value]) -> list[ir.Value]:
    """Put the nodes of a small model into the graph; returns its outputs."""
    builder, graph = call.builder, model.graph
    values: dict[ir.Value, ir.Value] = dict(zip(graph.inputs, operands, strict=True))
    for name, value in graph.initializers.items():
        if value.const_value is not None:
            values[value] = builder.initializer(value.const_value, f"{path_of(call.node)}.{name}")
    for node in graph:
        inputs = [values[v] if v is not None else None for v in node.inputs]
        scope = f"{path_of(call.node)}.{len(builder.nodes)}"
        attributes = [_inner(a, values, scope) for a in node.attributes.values()]
        places = node.inputs[1] if node.op_type in _INT64_PLACES else None
        if places is not None and places.dtype is not ir.DataType.INT64:
            inputs[1] = builder.op("Cast", inputs[1], to=ir.DataType.INT64)
        made = ir.Node(node.domain, node.op_type, inputs, attributes, num_outputs=len(node.outputs))
        values.update(zip(node.outputs, builder.add(made), strict=True))
        if node.domain:
            builder.domains[node.domain] = model.opset_imports.get(node.domain, 1)
    known = {f.identifier() for f in builder.functions}
    builder.functions += [f for k, f in model.functions.items() if k not in known]
    return [values[v] for v in graph.outputs]


def _inner(attribute: ir.Attr, values: dict[ir.Value, ir.Value], scope: str) -> ir.Attr:
    """An attribute; the body of a branch or loop reads the values of the graph it comes into."""
    if attribute.type is not ir.AttributeType.GRAPH:
        return attribute
    body = attribute.as_graph().clone(allow_outer_scope_values=True)
    for node in body.all_nodes():
        node.name = f"{scope}.{node.name}"
        for number, value in enumerate(node.inputs):
            if value is not None and value in values:
                node.replace_input_with(number, values[value])
        for value in node.outputs:
            value.name = f"{scope}.{value.name}"
    return ir.AttrGraph(attribute.name, body)


def _shaped_like(spec: Any, outputs: Iterator[ir.Value]) -> Any:
    if isinstance(spec, Shaped):
        return next(outputs)
    if isinstance(spec, dict):
        return [_shaped_like(s, outputs) for s in spec.values()]
    if isinstance(spec, (tuple, list)):
        return [_shaped_like(s, outputs) for s in spec]
    return None
