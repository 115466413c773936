"""Make in-place operations return a new tensor instead."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import fx

from fxquant import ops
from fxquant.graph.aliases import OUT_OF_PLACE, aliases, disjoint, written
from fxquant.graph.meta import TensorSpec, spec, spec_of
from fxquant.graph.passes import Fact, Pass
from fxquant.nn.functional import SetItem

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class RemoveWrites(Pass):
    """In-place operations become ordinary ones; whoever reads the tensor later reads the result.

    Before::

        %relu  = relu_(%x)
        %add   = add(%x, %relu)

    After::

        %relu  = relu(%x)
        %add   = add(%relu, %relu)

    Only where the order of effects cannot be seen: a write into a parameter or buffer stays, and so
    does a write into a tensor of which another view is read afterwards. Both are logged.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_MODULES})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_WRITES})

    def run(self, rw: Rewriter) -> None:
        """Walk the writes in order; each is judged by the graph as the earlier ones left it."""
        order = {node: number for number, node in enumerate(rw.nodes)}
        for node in rw.nodes:
            target = written(node, rw.gm)
            if target is None:
                continue
            reason = _objection(rw, node, target, order)
            if reason:
                rw.skip(node, reason)
            elif _is_item_write(node):
                _replace_item_write(rw, node, target, order)
            else:
                _replace(rw, node, target, order)


def _objection(
    rw: Rewriter, node: fx.Node, target: fx.Node, order: dict[fx.Node, int]
) -> str | None:
    """Why the write has to stay, or None."""
    if not isinstance(spec(target), TensorSpec):
        return "what it writes into is no single tensor"
    if not _is_item_write(node) and rw.module(node) is None and _plain_target(node) is None:
        return "it has no form that returns a new tensor"
    if _changes_type(node):
        return "written out of place, its result would have another type or shape"
    now = order[node]
    for alias in aliases(target, rw.gm):
        if alias.op == "get_attr":
            return f"it changes {alias.target}, which outlives the call"
        if alias is target or alias is node or order.get(alias, now) > now:
            continue
        late = [user for user in alias.users if order.get(user, -1) > now]
        if late and not disjoint(alias, target, rw.gm):
            return f"{late[0].name} reads {alias.name} afterwards, which may share its memory"
    return None


def _is_item_write(node: fx.Node) -> bool:
    return node.target in (operator.setitem, "__setitem__")


def _changes_type(node: fx.Node) -> bool:
    """Whether `x.add_(y)` keeps x's type where `x.add(y)` would have another one."""
    if _is_item_write(node) or node.op == "call_module":
        return False
    try:
        args, kwargs = _without_flag(node)
        value = _call(node, _plain_target(node), _on_meta(args), _on_meta(kwargs))
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return True
    return bool(spec_of(value) != spec(node))


def _call(node: fx.Node, target: Any, args: Any, kwargs: Any) -> Any:
    if node.op == "call_method":
        return getattr(args[0], target)(*args[1:], **kwargs)
    return target(*args, **kwargs)


def _on_meta(arguments: Any) -> Any:
    """Arguments with tensors that have a shape and a type but no values in place of nodes."""

    def empty(node: fx.Node) -> Any:
        found = spec(node)
        if isinstance(found, TensorSpec):
            return torch.empty(found.shape, dtype=found.dtype, device="meta")
        return found

    return fx.node.map_arg(arguments, empty)


def _plain_target(node: fx.Node) -> Any:
    """The out-of-place form of a function or method, or None."""
    if "out" in node.kwargs or node.target is setattr:
        return node.target if node.target is not setattr else None
    if node.op == "call_method":
        name = str(node.target)
        name = f"__{name[3:]}" if name.startswith("__i") else name.rstrip("_")
        return name if hasattr(torch.Tensor, name) else None
    name = getattr(node.target, "__name__", "")
    if node.target in OUT_OF_PLACE:
        return OUT_OF_PLACE[node.target]
    if not name.endswith("_"):
        return node.target  # `inplace=True`
    return next((f for m in (torch, F) if (f := getattr(m, name.rstrip("_"), None))), None)


def _later(node: fx.Node, target: fx.Node, order: dict[fx.Node, int]) -> list[fx.Node]:
    return [user for user in target.users if order.get(user, -1) > order[node]]


def _replace(rw: Rewriter, node: fx.Node, target: fx.Node, order: dict[fx.Node, int]) -> None:
    later = _later(node, target, order)
    module = rw.module(node)
    if module is not None:
        module.inplace = False  # type: ignore[assignment]  # a flag of torch's activations
        rw.changes += 1
        rw.redirect(target, node, later)
        return
    args, kwargs = _without_flag(node)
    rw.become_call(node, _plain_target(node), *args, kwargs=kwargs)
    rw.redirect(target, node, later)


def _without_flag(node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments without `inplace` and `out`, wherever they stood."""
    kwargs = {k: v for k, v in node.kwargs.items() if k not in ("inplace", "out")}
    spelled = ops.TABLE.spelling(node)
    if spelled is None or "inplace" not in spelled.signature.parameters:
        return node.args, kwargs
    position = list(spelled.signature.parameters).index("inplace")
    if len(node.args) <= position:
        return node.args, kwargs
    names = list(spelled.signature.parameters)
    return node.args[:position], kwargs | dict(
        zip(names[position + 1 :], node.args[position + 1 :], strict=False)
    )


def _replace_item_write(
    rw: Rewriter, node: fx.Node, target: fx.Node, order: dict[fx.Node, int]
) -> None:
    """`x[i] = y` becomes a new tensor that later readers of x read."""
    later = _later(node, target, order)
    rw.become_module(node, SetItem(), *node.args, name="setitem")
    node.meta["spec"] = spec(target)
    rw.redirect(target, node, later)
