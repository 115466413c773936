"""Which integer grid each value of a graph lies on.

A value's grid belongs to the module that makes the value. Operators whose row says `Grid.SAME` move
values and own nothing: the walk goes through them to the producer. The answer is recomputed from
the graph and its modules whenever it is needed, so there is no second copy of it to disagree with.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from fxquant import ops

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from fxquant.quantization import QuantizerBase

Slot = tuple[fx.Node, int]
"""One output of a node: (producer, index)."""


def is_float_spec(spec: Any) -> bool:
    """Whether the recorded value is a floating-point tensor."""
    return hasattr(spec, "dtype") and bool(spec.dtype.is_floating_point)


def slot_spec(slot: Slot) -> Any:
    """Recorded value of one output of a node."""
    node, index = slot
    spec = node.meta.get("spec")
    if is_sequence(spec) and spec is not None and index < len(spec):
        return spec[index]
    return spec


def is_sequence(spec: Any) -> bool:
    """Whether the recorded value is a tuple or list; a tensor's own spec is a tuple too."""
    return isinstance(spec, (tuple, list)) and not hasattr(spec, "dtype")


def numbered_operands(node: fx.Node) -> Iterator[tuple[int, fx.Node]]:
    """Nodes that a node reads, each with its position among the tensors that its module is given.

    An operand of several tensors takes as many positions, one without tensors takes none.
    """
    given: list[fx.Node] = []
    fx.node.map_arg((node.args, node.kwargs), given.append)
    index = 0
    for operand in given:
        yield index, operand
        index += holds_tensors(operand)


def holds_tensors(node: fx.Node) -> int:
    """How many tensors the recorded value of a node is."""
    spec = node.meta.get("spec")
    return len(spec or ()) if is_sequence(spec) else int(hasattr(spec, "dtype"))


def moves_values(node: fx.Node, root: fx.GraphModule) -> fx.Node | None:
    """The operand whose values `node` moves without changing them, or None."""
    row = ops.row_of(node, root)
    if row is None:
        return None
    given = ops.arguments(node, root)
    if row.grid_for(given) is not ops.Grid.SAME:
        return None
    operand = given.get(row.inputs[0])
    if not isinstance(operand, fx.Node) or _changes_float_type(operand, node):
        return None
    return operand


def _changes_float_type(operand: fx.Node, node: fx.Node) -> bool:
    """Whether a cast rounds or widens the values: a grid's values have no form in every type."""
    given: Any = operand.meta.get("spec")
    made: Any = node.meta.get("spec")
    return is_float_spec(given) and is_float_spec(made) and given.dtype != made.dtype


def takes_item(node: fx.Node) -> tuple[fx.Node, Any] | None:
    """(container, key) of a node that takes one element out of a tuple, list or dict."""
    if node.op != "call_function" or node.target is not operator.getitem:
        return None
    container, key = node.args
    if not isinstance(container, fx.Node) or hasattr(container.meta.get("spec"), "dtype"):
        return None
    return container, key


def origin(
    node: fx.Node, root: fx.GraphModule, stop: Callable[[fx.Node], bool] = lambda _: False
) -> Slot:
    """The slot in which the values of `node` were made; the walk ends where `stop` holds."""
    index = 0
    while True:
        if stop(node):
            return node, index
        item = takes_item(node)
        if item is not None:
            container, key = item
            if container.op != "call_module" or not isinstance(key, int):
                return node, 0
            node, index = container, key
        moved = moves_values(node, root)
        if moved is None:
            return node, index
        node, index = moved, 0


def operands(node: fx.Node, root: fx.GraphModule) -> Iterator[tuple[str, fx.Node]]:
    """(parameter name, operand) of a node's floating-point tensor operands, lists flattened."""
    row = ops.row_of(node, root)
    if row is None:
        return
    given = ops.arguments(node, root)
    for name in row.inputs:
        found: list[fx.Node] = []
        fx.node.map_arg(given.get(name), found.append)
        yield from ((name, n) for n in found if is_float_spec(n.meta.get("spec")))


def resolve_grids(gm: fx.GraphModule) -> dict[fx.Node, tuple[QuantizerBase | None, ...]]:
    """The quantizer on whose grid each output of each node lies; None where it is floating point.

    A node with one output has a tuple of one. For operators with `Grid.SAME` it is their
    producer's, for tuple elements that of the element.
    """
    grids: dict[fx.Node, tuple[QuantizerBase | None, ...]] = {}
    for node in gm.graph.nodes:
        own = _own(node, gm)
        if any(q is not None for q in own):
            grids[node] = own
            continue
        item = takes_item(node)
        if item is not None and isinstance(item[1], int):
            above = grids[item[0]]
            grids[node] = (above[item[1]],) if item[1] < len(above) else (None,)
            continue
        moved = moves_values(node, gm)
        grids[node] = _moved(node, grids[moved]) if moved is not None else own
    return grids


def _own(node: fx.Node, gm: fx.GraphModule) -> tuple[QuantizerBase | None, ...]:
    if node.op != "call_module":
        return (None,)
    return tuple(getattr(gm.get_submodule(str(node.target)), "output_quantizers", (None,)))


def _moved(
    node: fx.Node, above: tuple[QuantizerBase | None, ...]
) -> tuple[QuantizerBase | None, ...]:
    spec = node.meta.get("spec")
    if spec is not None and is_sequence(spec):
        return tuple(above[0] if is_float_spec(s) else None for s in spec)
    return (above[0],)


def constant_of(node: fx.Node, root: fx.GraphModule) -> Tensor | None:
    """The tensor that a get_attr node reads, or None."""
    if node.op != "get_attr":
        return None
    *path, name = str(node.target).split(".")
    value = getattr(root.get_submodule(".".join(path)), name)
    return value if isinstance(value, Tensor) else None
