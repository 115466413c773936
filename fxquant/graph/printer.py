"""A graph as text that people read and tests compare: `%conv = conv2d[features.0](%x)`.

No floats and no ids: the text is the same on every machine and at every precision. A float argument
shows as `·`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from fxquant import ops


def dump(gm: fx.GraphModule, note: Callable[[fx.Node], str | None] | None = None) -> str:
    """One line a node.

    Args:
        gm: the graph.
        note: what to write behind a node's line, e.g. its quantizer; None or "" writes nothing.
    """
    return "\n".join(line(node, gm, note) for node in gm.graph.nodes)


def line(
    node: fx.Node, gm: fx.GraphModule, note: Callable[[fx.Node], str | None] | None = None
) -> str:
    """The text of one node."""
    said = note(node) if note else None
    return _statement(node, gm) + (f"  # {said}" if said else "")


def _statement(node: fx.Node, gm: fx.GraphModule) -> str:
    if node.op == "output":
        return f"return {_text(node.args[0])}"
    if node.op == "placeholder":
        return f"%{node.name} = input"
    if node.op == "get_attr":
        return f"%{node.name} = attr[{node.target}]"
    args = [_text(a) for a in node.args] + [f"{k}={_text(v)}" for k, v in node.kwargs.items()]
    return f"%{node.name} = {_callee(node, gm)}({', '.join(args)})"


def _callee(node: fx.Node, gm: fx.GraphModule) -> str:
    if node.op == "call_module":
        return f"{_kind(node, gm)}[{node.target}]"
    if node.op == "call_method":
        return f".{node.target}"
    return getattr(node.target, "__name__", str(node.target))


def _kind(node: fx.Node, gm: fx.GraphModule) -> str:
    module = gm.get_submodule(str(node.target))
    row = ops.row_for_module(module)
    name = row.name if row else type(module).__name__
    if getattr(module, "inplace", False):
        name += "_"
    return f"quantized_{name}" if hasattr(module, "output_quantizers") and row else name


def _text(value: Any) -> str:
    if isinstance(value, fx.Node):
        return f"%{value.name}"
    if isinstance(value, float):
        return "·"
    if isinstance(value, slice):
        return ":".join("" if v is None else _text(v) for v in _bounds(value))
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, tuple):
        inside = ", ".join(map(_text, value))
        return f"({inside},)" if len(value) == 1 else f"({inside})"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{k!r}: {_text(v)}" for k, v in value.items()) + "}"
    if isinstance(value, torch.dtype):
        return str(value).removeprefix("torch.")
    return "..." if value is Ellipsis else repr(value)


def _bounds(value: slice) -> tuple[Any, ...]:
    full = (value.start, value.stop)
    return full if value.step is None else (*full, value.step)
