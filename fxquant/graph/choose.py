"""Choosing nodes of a prepared graph: by path, glob, class, predicate or range.

A *range* is a pair of the first and the last module, as a tuple, a slice or the text "first..last":
everything that lies on a path from the one to the other, both included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import networkx as nx
from torch import fx, nn

from fxquant import ops
from fxquant.errors import SelectorError
from fxquant.graph.select import hint, select_named

if TYPE_CHECKING:
    NodeSelector: TypeAlias = (
        str | type[nn.Module] | tuple[str, str] | slice | Callable[[str, nn.Module], bool]
    )


def chosen_nodes(gm: fx.GraphModule, selectors: Iterable[NodeSelector]) -> frozenset[fx.Node]:
    """The nodes that selectors name.

    A path means the module there and all modules below it.

    Args:
        gm: prepared graph.
        selectors: module paths, globs, module classes, predicates `(path, module) -> bool`, or
            ranges.

    Raises:
        SelectorError: FXQ213 a selector matches nothing, the nearest names are given; FXQ250 no
            path leads from one end of a range to the other.
    """
    given: list[Any] = list(selectors)
    at = {str(n.target): n for n in computing_nodes(gm)} if given else {}
    named = {path: gm.get_submodule(path) for path in at}
    found: set[fx.Node] = set()
    for selector in given:
        bounds = _bounds(selector)
        if bounds:
            found |= _between(gm, named, at, bounds)
        else:
            found.update(at[p] for p in select_named(selector, named, below=True))
    return frozenset(found)


def computing_nodes(gm: fx.GraphModule) -> list[fx.Node]:
    """Nodes that call the module of an operator."""
    return [n for n in gm.graph.nodes if n.op == "call_module" and ops.row_of(n, gm) is not None]


def holds_tensors(node: fx.Node) -> bool:
    """Whether a node's value is a tensor or a container, not a size."""
    spec: Any = node.meta.get("spec")
    return hasattr(spec, "dtype") or isinstance(spec, tuple | list | dict)


def _bounds(selector: Any) -> tuple[str, str] | None:
    """First and last module of a range, or None for another selector."""
    if isinstance(selector, slice):
        selector = (selector.start, selector.stop)
    if isinstance(selector, str) and ".." in selector:
        first, _, last = selector.partition("..")
        selector = (first.strip(), last.strip())
    if isinstance(selector, tuple) and len(selector) == 2:
        first, last = selector
        return (first, last) if isinstance(first, str) and isinstance(last, str) else None
    return None


def _between(
    gm: fx.GraphModule, named: dict[str, nn.Module], at: dict[str, fx.Node], bounds: tuple[str, str]
) -> set[fx.Node]:
    first, last = ({at[p] for p in select_named(end, named, below=True)} for end in bounds)
    flow = nx.DiGraph((i, n) for n in gm.graph.nodes for i in n.all_input_nodes)
    after = first.union(*(nx.descendants(flow, n) for n in first if n in flow))
    before = last.union(*(nx.ancestors(flow, n) for n in last if n in flow))
    between = after & before & set(at.values())
    if not between:
        what = f"there is no path {bounds[0]!r} to {bounds[1]!r}"
        raise SelectorError("FXQ250", what, fix=hint("..".join(bounds), named))
    return between
