"""The last steps of lowering: outputs are named, unused nodes go, the model is put together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor

from fxquant._version import __version__
from fxquant.errors import ExportError
from fxquant.onnx.lowering.builder import Builder, describe
from fxquant.onnx.lowering.values import LoweredValue, SizeValue
from fxquant.onnx.runs.observed import Shaped

PRODUCER = "fxquant"
# the IR version that came with each opset: older runtimes refuse newer ones
_IR_VERSIONS = {13: 7, 14: 7, 15: 8, 16: 8, 17: 8, 18: 8, 19: 9, 20: 9, 21: 10, 22: 10, 23: 11}


def bind_outputs(builder: Builder, result: Any, inputs: list[ir.Value]) -> list[ir.Value]:
    """Graph outputs by name: keys of a dict, `output`, or `output_0`, `output_1` ...

    Args:
        builder: where Identity nodes go for values that cannot be renamed.
        result: what the graph returns, resolved.
        inputs: graph inputs.
    """
    taken = set(inputs)
    outputs = []
    for name, part in named_outputs(result):
        value, spec = _value(builder, part)
        free = value.producer() is not None and value not in taken
        if not free:
            value = builder.op("Identity", value)
            producer = value.producer()
            if producer is not None:
                builder.name_node(producer, name)
        _rename(builder, value, name)
        if value.shape is None or value.type is None:
            describe(value, spec)
        taken.add(value)
        outputs.append(value)
    return outputs


def named_outputs(result: Any) -> Iterator[tuple[str, Any]]:
    """(name, leaf) of what a model returns; None is left out."""
    if isinstance(result, (tuple, list)) and len(result) == 1 and _is_leaf(result[0]):
        result = result[0]
    if _is_leaf(result):
        yield "output", result
    else:
        prefix = "" if isinstance(result, Mapping) or _is_record(result) else "output"
        yield from _named(result, prefix)


def _named(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if value is None:
        return
    if _is_leaf(value):
        yield name, value
        return
    for key, part in _items(value):
        yield from _named(part, f"{name}_{key}" if name else str(key))


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return value.items()
    if _is_record(value):
        return [(field.name, getattr(value, field.name)) for field in fields(value)]
    return enumerate(value)


def _is_leaf(value: Any) -> bool:
    return not isinstance(value, (Mapping, tuple, list)) and not _is_record(value)


def _is_record(value: Any) -> bool:
    """Whether it is a dataclass of the user's."""
    ours = isinstance(value, LoweredValue | SizeValue | type)
    return is_dataclass(value) and not ours


_SHOWN = 60  # of a text


def _value(builder: Builder, part: Any) -> tuple[ir.Value, Shaped]:
    if isinstance(part, LoweredValue):
        return part.value(builder), part.spec
    if isinstance(part, SizeValue):
        return builder.op("Squeeze", part.value, [0]), Shaped((), part.dtype)
    if not isinstance(part, Tensor):
        if not isinstance(part, bool | int | float | complex):
            what = f"the model returns a {type(part).__name__}: {str(part)[:_SHOWN]!r}"
            fix = "return tensors and numbers; keep texts beside the model"
            raise ExportError("FXQ590", what, fix=fix)
        part = torch.tensor(part)
    return builder.constant(part), Shaped(tuple(part.shape), part.dtype)


def _rename(builder: Builder, value: ir.Value, name: str) -> None:
    """Outputs have the first right to a name."""
    if value.name == name:
        return
    holder = next((v for v in _all_values(builder) if v.name == name), None)
    if holder is not None:
        builder.name_value(holder, f"{name}_value")
        value.name = name
    else:
        builder.name_value(value, name)


def _all_values(builder: Builder) -> Iterator[ir.Value]:
    for node in builder.nodes:
        yield from node.outputs


def assemble(
    builder: Builder, inputs: list[ir.Value], outputs: list[ir.Value]
) -> tuple[ir.Model, set[ir.Value]]:
    """The model, and the values that are in it.

    What nothing reads is left out: sizes that turned out static, indices of a pool that nobody
    asked for.
    """
    kept: set[ir.Value] = set(outputs)
    nodes: list[ir.Node] = []
    for node in reversed(builder.nodes):
        if any(v in kept for v in node.outputs):
            nodes.append(node)
            kept.update(v for v in node.inputs if v is not None)
            kept.update(_captured(node))
    nodes.reverse()
    for node in builder.nodes:
        if not any(v in kept for v in node.outputs):
            _detach(node)
    _blank_unused(nodes, kept)
    initializers = [v for v in builder.initializers.values() if v in kept]
    graph = ir.Graph(
        inputs, outputs, nodes=nodes, initializers=initializers, name="main",
        opset_imports=dict(builder.domains),
    )  # fmt: skip
    model = ir.Model(
        graph, ir_version=_IR_VERSIONS[builder.opset], producer_name=PRODUCER,
        producer_version=__version__, functions=builder.functions,
    )  # fmt: skip
    return model, kept | {v for n in nodes for v in n.outputs}


def _captured(node: ir.Node) -> Iterator[ir.Value]:
    """Values that the bodies of a branch or loop read."""
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            for inner in attribute.as_graph().all_nodes():
                yield from (v for v in inner.inputs if v is not None)


def _detach(node: ir.Node) -> None:
    """Forget a node's inputs, so that it is no user of theirs."""
    for i in range(len(node.inputs)):
        node.replace_input_with(i, None)


def _blank_unused(nodes: list[ir.Node], kept: set[ir.Value]) -> None:
    """Optional outputs that nothing reads get the empty name, as ONNX has it."""
    optional = {"MaxPool", "LSTM", "GRU", "RNN"}
    for node in nodes:
        if node.op_type in optional:
            for value in node.outputs:
                if value not in kept:
                    value.name = ""
