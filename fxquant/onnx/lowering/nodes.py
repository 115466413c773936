"""What lowering asks about nodes and values: what is needed, what is moved, what is inside."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import onnx_ir as ir
from torch import Tensor, fx, nn

from fxquant.errors import ExportError
from fxquant.nn.opaque import Opaque
from fxquant.onnx.lowering.context import Call
from fxquant.onnx.lowering.values import LoweredValue
from fxquant.onnx.runs.observed import Shaped
from fxquant.ops import Moved, Op


def needed(gm: fx.GraphModule, constants: Mapping[fx.Node, Any]) -> set[fx.Node]:
    """Nodes that the outputs depend on; what only constants need is not among them."""
    found: set[fx.Node] = set()
    for node in reversed(gm.graph.nodes):
        if node.op == "output" or node in found:
            found.add(node)
            if node not in constants:
                found.update(node.all_input_nodes)
    return found


def check_real(wanted: set[fx.Node], constants: Mapping[fx.Node, Any], specs: Any) -> None:
    """Refuse complex numbers that a graph hands from one node to another.

    Raises:
        ExportError: FXQ534, with the first node that makes them.
    """
    for node in specs:
        if node not in wanted or node in constants or node.op == "output":
            continue
        if any(isinstance(s, Shaped) and s.dtype.is_complex for s in leaves(specs[node])):
            raise ExportError(
                "FXQ534",
                f"{node.name} is made of complex numbers, which no runtime reads or writes",
                at=node,
                fix="take and return pairs of real numbers: torch.view_as_complex, view_as_real",
            )


def moves_integers(row: Op, value: Any) -> bool:
    """Whether an operator shall move integers instead of real values between DQ and Q."""
    if not isinstance(value, LoweredValue) or value.integers is None or value.grid is None:
        return False
    if value.grid.grid.axis is not None:
        return False
    if row.moved is Moved.BYTES:
        return value.grid.grid.dtype in (ir.DataType.INT8, ir.DataType.UINT8)
    return row.moved is Moved.SIGNED and value.grid.grid.dtype is ir.DataType.INT8


def operator_name(call: Call) -> str:
    """What a call calls, for people: a class or a function."""
    if isinstance(call.module, Opaque):
        return call.module.name
    if call.module is not None:
        kind = type(call.module)
        return str(getattr(kind, "float_class", kind).__name__)
    target = call.node.target
    return str(getattr(target, "__name__", target))


def attribute(root: nn.Module, target: str) -> Tensor:
    """The tensor that a get_attr node reads."""
    path, _, name = target.rpartition(".")
    found: Tensor = getattr(root.get_submodule(path), name)
    return found


def constant_parts(value: Any, spec: Any, name: str) -> Any:
    """Tensors inside a constant container, as `LoweredValue`."""
    if isinstance(value, Tensor):
        return LoweredValue(spec, name, constant=value)
    if isinstance(value, Mapping):
        return {k: constant_parts(v, spec[k], f"{name}_{k}") for k, v in value.items()}
    if isinstance(value, (tuple, list)):
        parts = zip(value, spec, strict=True)
        return [constant_parts(v, s, f"{name}_{i}") for i, (v, s) in enumerate(parts)]
    return value


def is_container(node: fx.Node) -> bool:
    """Whether a node only puts values together: a dict, a dataclass, a named tuple."""
    kind = node.target
    if node.op != "call_function" or not isinstance(kind, type):
        return False
    return is_dataclass(kind) or issubclass(kind, (dict, list, tuple))


def container(node: fx.Node, resolve: Callable[[Any], Any]) -> Any:
    """The values that such a node puts together, as a plain dict or list."""
    args = [resolve(a) for a in node.args]
    kwargs = {k: resolve(v) for k, v in node.kwargs.items()}
    kind: Any = node.target
    if issubclass(kind, dict) and not is_dataclass(kind):
        return dict(*args, **kwargs)
    if is_dataclass(kind):
        names = [f.name for f in fields(kind)]
        given = dict(zip(names, args, strict=False)) | kwargs
        return {name: given[name] for name in names if name in given}
    names = list(getattr(kind, "_fields", ()))
    return [*args, *(kwargs[n] for n in names if n in kwargs)] if names else list(*args)


def leaves(spec: Any) -> Iterator[Any]:
    """Everything in nested containers that is no container."""
    if isinstance(spec, Mapping):
        spec = tuple(spec.values())
    if isinstance(spec, (tuple, list)):
        for part in spec:
            yield from leaves(part)
    else:
        yield spec
