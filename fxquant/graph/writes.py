"""The out-of-place form of an in-place call."""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from fxquant import ops
from fxquant.graph.aliases import OUT_OF_PLACE
from fxquant.graph.meta import TensorSpec, spec, spec_of

# `x.copy_(y)`, `x.fill_(2)` and `x.zero_()` are `x[...] = y`
_ASSIGNING = frozenset({"copy_", "fill_", "zero_"})


def assigned(node: fx.Node) -> tuple[Any, Any] | None:
    """(index, value) of a node that assigns to all or to some of a tensor, or None.

    >>> graph = fx.Graph()
    >>> assigned(graph.call_method("fill_", (graph.placeholder("x"), 2)))
    (Ellipsis, 2)
    """
    if node.target in (operator.setitem, "__setitem__"):
        return node.args[1], node.args[2]
    if node.op != "call_method" or node.target not in _ASSIGNING:
        return None
    if node.target == "zero_":
        return Ellipsis, 0
    values = [*node.args[1:2], *(v for k, v in node.kwargs.items() if k in ("src", "value"))]
    return (Ellipsis, values[0]) if values else None


def plain_target(node: fx.Node) -> Any:
    """The out-of-place function or method of a call_function or call_method node, or None."""
    if node.target is setattr:
        return None
    if "out" in node.kwargs:
        return node.target
    name = str(getattr(node.target, "__name__", node.target))
    if node.op == "call_method":
        name = f"__{name[3:]}" if name.startswith("__i") else name.rstrip("_")
        return name if hasattr(torch.Tensor, name) else None
    if node.target in OUT_OF_PLACE:
        return OUT_OF_PLACE[node.target]
    if not name.endswith("_"):
        return node.target  # `inplace=True`
    return next((f for m in (torch, F) if (f := getattr(m, name.rstrip("_"), None))), None)


def plain_arguments(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments without `inplace` and `out`, wherever they stood."""
    kwargs = {k: v for k, v in node.kwargs.items() if k not in ("inplace", "out")}
    spelled = ops.TABLE.spelling(node)
    names = list(spelled.signature.parameters) if spelled else []
    if "inplace" not in names or len(node.args) <= names.index("inplace"):
        return node.args, kwargs
    position = names.index("inplace")
    behind = zip(names[position + 1 :], node.args[position + 1 :], strict=False)
    return node.args[:position], kwargs | dict(behind)


def changes_type(node: fx.Node) -> bool:
    """Whether `x.add_(y)` keeps x's type where `x.add(y)` would have another one.

    Found by running the out-of-place form on tensors without values.
    """
    args, kwargs = plain_arguments(node)
    args, kwargs = fx.node.map_arg((args, kwargs), _on_meta)
    target = plain_target(node)
    try:
        call = getattr(args[0], target) if isinstance(target, str) else target
        value = call(*(args[1:] if isinstance(target, str) else args), **kwargs)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return True
    return bool(spec_of(value) != spec(node))


def _on_meta(node: fx.Node) -> Any:
    found = spec(node)
    if isinstance(found, TensorSpec):
        return torch.empty(found.shape, dtype=found.dtype, device="meta")
    return found
