"""Make in-place operations return a new tensor instead."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F

from fxquant import ops
from fxquant.graph.aliases import aliases, disjoint, written
from fxquant.graph.meta import TensorSpec, spec
from fxquant.graph.passes import Fact, Pass
from fxquant.nn.functional import SetItem

if TYPE_CHECKING:
    from torch import fx

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
    if _changes_type(node, target):
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


def _changes_type(node: fx.Node, target: fx.Node) -> bool:
    """Whether `x.add_(y)` keeps x's type or shape where `x.add(y)` would take y's."""
    if _is_item_write(node) or node.op == "call_module":
        return False
    mine = spec(target)
    for operand in node.all_input_nodes:
        other = spec(operand)
        if not isinstance(other, TensorSpec) or operand is target:
            continue
        wider = torch.promote_types(mine.dtype, other.dtype) != mine.dtype
        if wider and len(other.shape) > 0:
            return True
    row = ops.TABLE.spelling(node)
    return bool(row and row.op.grid is ops.Grid.INDEX and mine.dtype is not torch.bool)


def _plain_target(node: fx.Node) -> Any:
    """The out-of-place form of a function or method, or None."""
    if "out" in node.kwargs or node.target is setattr:
        return node.target if node.target is not setattr else None
    if node.op == "call_method":
        name = str(node.target).rstrip("_")
        return name if hasattr(torch.Tensor, name) else None
    name = getattr(node.target, "__name__", "")
    if getattr(node.target, "__module__", None) in ("_operator", "operator"):
        return _OPERATORS.get(name)
    if not name.endswith("_"):
        return node.target  # `inplace=True`
    return next((f for m in (torch, F) if (f := getattr(m, name.rstrip("_"), None))), None)


_OPERATORS = {
    "iadd": operator.add,
    "isub": operator.sub,
    "imul": operator.mul,
    "itruediv": operator.truediv,
    "ifloordiv": operator.floordiv,
    "imod": operator.mod,
    "ipow": operator.pow,
    "iand": operator.and_,
    "ior": operator.or_,
    "ixor": operator.xor,
}


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
    args, kwargs = _without_flag(rw, node)
    plain = _plain_target(node)
    call = rw.call_method if node.op == "call_method" else rw.call_function
    new = call(plain, *args, kwargs=kwargs, like=node)
    order[new] = order[node]
    rw.redirect(target, new, later)
    rw.replace(node, new)


def _without_flag(rw: Rewriter, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
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
    new = rw.new_module(SetItem(), *node.args, like=node, name="setitem")
    new.meta["spec"] = spec(target)
    order[new] = order[node]
    rw.redirect(target, new, later)
    rw.replace(node, new)
