"""Choosing nodes of a prepared graph: by path, glob, class, predicate or range.

A *range* is a pair of the first and the last module, as a tuple, a slice or the text "first..last":
everything that lies on a path from the one to the other, both included.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeAlias

import networkx as nx
from torch import fx, nn

from fxquant import ops
from fxquant.errors import SelectorError, nearest

if TYPE_CHECKING:
    NodeSelector: TypeAlias = (
        str | type[nn.Module] | tuple[str, str] | slice | Callable[[str, nn.Module], bool]
    )
_SHOWN = 12


def chosen_nodes(gm: fx.GraphModule, selectors: Iterable[NodeSelector]) -> frozenset[fx.Node]:
    """The nodes that selectors name.

    A path means the module there and all modules below it.

    Args:
        gm: prepared graph.
        selectors: module paths, globs, module classes, predicates `(path, module) -> bool`, or
            ranges.

    Raises:
        SelectorError: FXQ250, a selector matches nothing; the nearest names are given.
    """
    selectors = list(selectors)
    nodes = computing_nodes(gm) if selectors else []
    found: set[fx.Node] = set()
    for selector in selectors:
        bounds = _bounds(selector)
        chosen = _between(gm, nodes, bounds) if bounds else _matching(gm, nodes, selector)
        if not chosen:
            what = (
                f"there is no path {bounds[0]!r} to {bounds[1]!r}" if bounds else _nothing(selector)
            )
            raise SelectorError("FXQ250", what, fix=_hint(selector, nodes))
        found |= chosen
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


def _between(gm: fx.GraphModule, nodes: list[fx.Node], bounds: tuple[str, str]) -> set[fx.Node]:
    first, last = ({n for n in nodes if _is_at(n, path)} for path in bounds)
    for path, found in zip(bounds, (first, last), strict=True):
        if not found:
            raise SelectorError("FXQ250", _nothing(path), fix=_hint(path, nodes))
    flow = nx.DiGraph((i, n) for n in gm.graph.nodes for i in n.all_input_nodes)
    after = first.union(*(nx.descendants(flow, n) for n in first if n in flow))
    before = last.union(*(nx.ancestors(flow, n) for n in last if n in flow))
    return after & before & set(nodes)


def _matching(gm: fx.GraphModule, nodes: list[fx.Node], selector: Any) -> set[fx.Node]:
    return {n for n in nodes if _matches(gm, n, selector)}


def _matches(gm: fx.GraphModule, node: fx.Node, selector: Any) -> bool:
    if isinstance(selector, str):
        return _is_at(node, selector)
    module = gm.get_submodule(str(node.target))
    if isinstance(selector, type):
        return isinstance(module, selector)
    return callable(selector) and bool(selector(str(node.target), module))


def _is_at(node: fx.Node, path: str) -> bool:
    own = str(node.target)
    return own == path or own.startswith(f"{path}.") or fnmatch.fnmatchcase(own, path)


def _nothing(selector: Any) -> str:
    name = selector.__name__ if isinstance(selector, type) else repr(selector)
    return f"{name} matches no module"


def _hint(selector: Any, nodes: list[fx.Node]) -> str:
    known = [str(n.target) for n in nodes]
    wanted = "..".join(_bounds(selector) or (str(selector),))
    return nearest(wanted, known) or f"the modules are {', '.join(known[:_SHOWN])}"
