"""Where the channels of a value are after operators that only move its elements.

Numbers of channels are moved instead of knowing what each operator does to channels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxquant import ops
from fxquant.graph.meta import TensorSpec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

# every element goes to one place, and nothing is added
_MOVES = frozenset({
    "view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "t",
    "squeeze", "unsqueeze", "contiguous", "clone", "detach", "identity",
})  # fmt: skip
_VIEWS = frozenset({"view", "view_as"})


def is_move(node: fx.Node, gm: fx.GraphModule) -> bool:
    """Whether a node, in evaluation, puts the elements of its operand elsewhere and that is all."""
    row = ops.row_of(node, gm)
    return row is not None and (row.name in _MOVES or _drops(row))


def _drops(row: ops.Op) -> bool:
    """Whether it is a dropout: in evaluation it returns its operand."""
    return row.effect is ops.Effect.RANDOM and row.memory is ops.Memory.VIEW


def moved_from(node: fx.Node, gm: fx.GraphModule) -> list[fx.Node]:
    """The moves that lead to a value, last first, and the node that makes it."""
    found = [node]
    while is_move(found[-1], gm):
        operand = ops.arguments(found[-1], gm)["input"]
        if not isinstance(operand, fx.Node):
            break
        found.append(operand)
    return found


def moved_to(node: fx.Node, gm: fx.GraphModule) -> Iterator[tuple[list[fx.Node], fx.Node]]:
    """For every consumer behind moves: the moves from `node` on, first first, and the consumer."""
    for user in node.users:
        if is_move(user, gm):
            for path, consumer in moved_to(user, gm):
                yield [user, *path], consumer
        elif _is_value(user):
            yield [], user


def _is_value(user: fx.Node) -> bool:
    """Whether a consumer reads more than sizes."""
    spec = user.meta.get("spec")
    return user.op == "output" or isinstance(spec, TensorSpec | tuple | list)


def channel_pairs(
    made: fx.Node, axis: int, path: Sequence[fx.Node], axis_behind: int, gm: fx.GraphModule
) -> Tensor:
    """Which channels of a value, in front of and behind moves, have elements in common.

    Args:
        made: the node with channels along `axis`.
        axis: that dimension.
        path: moves, from `made` on.
        axis_behind: dimension of the channels of the last value.
        gm: the graph.

    Returns:
        Pairs of (channel of `made`, channel behind the moves), int64 `[P, 2]`.
    """
    shape = made.meta["spec"].shape
    axis %= len(shape)
    if not path:  # along all other dimensions elements say the same
        kept = (axis, axis_behind % len(shape))
        shape = [size if i in kept else 1 for i, size in enumerate(shape)]
    ids = torch.arange(shape[axis], dtype=torch.float64)
    ids = ids.reshape(-1, *[1] * (len(shape) - 1 - axis)).expand(shape)
    operand = made
    with torch.no_grad():
        for node in path:
            ids = _moved(node, operand, ids, gm)
            operand = node
    behind = torch.arange(ids.shape[axis_behind], dtype=torch.float64)
    behind = behind.reshape(-1, *[1] * (ids.dim() - 1 - axis_behind % ids.dim())).expand(ids.shape)
    # marks in a table: `unique` sorts all elements, which takes seconds
    common = torch.zeros(made.meta["spec"].shape[axis], ids.shape[axis_behind], dtype=torch.bool)
    common[ids.long(), behind.long()] = True
    return torch.nonzero(common)


def mapped(pairs: Tensor, column: int, count: int) -> Tensor | None:
    """For every channel of one column the only one of the other, int64 `[C]`; None if not so."""
    ours, theirs = pairs[:, column], pairs[:, 1 - column]
    if len(ours) != count or len(ours.unique()) != count:
        return None
    return theirs[ours.argsort()]


def _moved(node: fx.Node, operand: fx.Node, ids: Tensor, gm: fx.GraphModule) -> Tensor:
    row = ops.row_of(node, gm)
    if row is not None and _drops(row):
        return ids
    moved: Tensor = run_on(node, gm, lambda n: ids if n is operand else n.meta.get("spec"))
    return moved


def run_on(node: fx.Node, gm: fx.GraphModule, given: Callable[[fx.Node], Any]) -> Any:
    """What an operator that moves elements makes of tensors that stand for its operands.

    Args:
        node: the operator.
        gm: the graph.
        given: what stands for an operand; a tensor of its shape, with strides of its own.
    """
    row, spec = ops.row_of(node, gm), node.meta.get("spec")
    if row is not None and row.name in _VIEWS and isinstance(spec, TensorSpec):
        operand = ops.arguments(node, gm)["input"]
        # whether a view is allowed depends on strides; one as another type moves no elements
        if operand.meta["spec"].dtype == spec.dtype:
            return given(operand).reshape(spec.shape)
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), given)
    if node.op == "call_module":
        return gm.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]
