"""Selecting modules by instance, class, path, glob or predicate, and nodes of graphs by them.

Nodes can be named by a *range*, too: a pair of the first and the last module, as a tuple, a slice
or the text "first..last" means everything that lies on a path from the one to the other, both
included.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import fx, nn

from fxquant import ops
from fxquant.errors import SelectorError, nearest
from fxquant.graph.absent_names import absence
from fxquant.graph.meta import path_matches

if TYPE_CHECKING:
    NodeSelector: TypeAlias = (
        str | type[nn.Module] | tuple[str, str] | slice | Callable[[str, nn.Module], bool]
    )


Selector: TypeAlias = nn.Module | type[nn.Module] | str | Callable[..., bool]
_SHOWN = 12


def select(
    model: nn.Module, selectors: Iterable[Selector] | Selector, *, below: bool = False
) -> frozenset[str]:
    """Paths of the modules that selectors name.

    Args:
        model: where to look.
        selectors: modules of the model, classes (their subclasses count), paths in which `*`, `?`
            and `[...]` stand for other characters, or predicates `(module)` or `(path, module)`;
            one selector or several.
        below: a path means the module there and all modules below it.

    Raises:
        SelectorError: FXQ213 a selector matches nothing, FXQ214 a predicate raises.

    Example:
        >>> sorted(select(nn.Sequential(nn.Linear(1, 1), nn.ReLU()), ["0", nn.ReLU]))
        ['0', '1']
    """
    named = dict(model.named_modules(remove_duplicate=False))
    return frozenset(
        path for one in several(selectors) for path in select_named(one, named, below=below)
    )


def several(selectors: Iterable[Selector] | Selector) -> list[Selector]:
    """The selectors as a list; one alone is a list of one."""
    # callables come last: modules and classes are callable, and so may be a container be iterable
    if isinstance(selectors, str | type | nn.Module) or not isinstance(selectors, Iterable):
        return [selectors]
    return list(selectors)


def select_named(
    selector: Selector, named: Mapping[str, nn.Module], *, below: bool = False
) -> list[str]:
    """Paths that one selector names, among these modules.

    Raises:
        SelectorError: FXQ213, there are none.
    """
    found = [path for path, module in named.items() if _matches(selector, path, module, below)]
    if not found:
        raise SelectorError(
            "FXQ213", f"{_name(selector)} matches no module", fix=hint(selector, named)
        )
    return found


def hint(selector: Any, named: Mapping[str, nn.Module]) -> str:
    """What the reader of an error may have meant."""
    if isinstance(selector, str):
        paths = [path for path in named if path]
        return nearest(selector, paths) or f"the modules are {', '.join(paths[:_SHOWN])}"
    if isinstance(selector, nn.Module):
        return "pass modules of the model itself, not of a copy"
    if isinstance(selector, type):
        classes = sorted({type(m).__name__ for m in named.values()})
        return "the model's classes are " + ", ".join(classes)
    if callable(selector):
        return "the predicate is called with (path, module), or with (module) if it takes one"
    return "a selector is a module, a module class, a path or a predicate"


def _matches(selector: Any, path: str, module: nn.Module, below: bool) -> bool:
    if isinstance(selector, str):
        return path_matches(selector, path, below=below)
    if isinstance(selector, nn.Module):
        return module is selector
    if isinstance(selector, type):
        return isinstance(module, selector)
    return callable(selector) and _holds(selector, path, module)


def _holds(predicate: Callable[..., bool], path: str, module: nn.Module) -> bool:
    given: tuple[Any, ...] = (path, module)
    try:
        inspect.signature(predicate).bind(path, module)
    except (TypeError, ValueError):  # it takes the module alone, or is a builtin that does not say
        given = (module,)
    try:
        return bool(predicate(*given))
    except Exception as error:  # the user's function may raise anything; say for which module
        what = f"the predicate {_name(predicate)} raised {type(error).__name__}: {error}"
        fix = "it is called with (path, module), or with (module) if it takes one"
        raise SelectorError("FXQ214", what, at=path or "the model itself", fix=fix) from error


def _name(selector: object) -> str:
    if isinstance(selector, str):
        return repr(selector)
    if isinstance(selector, nn.Module):
        return f"a {type(selector).__name__}"
    return getattr(selector, "__name__", f"a {type(selector).__name__}")


def select_in(gm: fx.GraphModule, selector: Any, named: Mapping[str, nn.Module]) -> list[str]:
    """Paths that one selector names, among these modules of a graph; also those below a path.

    Raises:
        SelectorError: FXQ213, there are none; it says what became of a module that was there.
    """
    try:
        return select_named(selector, named, below=True)
    except SelectorError as error:
        found = absence(gm, selector)
        if found is None:
            raise
        raise found.error(error.code) from error


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
            found.update(at[p] for p in select_in(gm, selector, named))
    return frozenset(found)


def computing_nodes(gm: fx.GraphModule) -> list[fx.Node]:
    """Nodes that call the module of an operator."""
    return [n for n in gm.graph.nodes if n.op == "call_module" and ops.row_of(n, gm) is not None]


def holds_tensors(node: fx.Node) -> bool:
    """Whether a node's value is a tensor or a container, not a size."""
    spec: Any = node.meta.get("spec")
    return hasattr(spec, "dtype") or isinstance(spec, tuple | list | dict)


def producers_among(node: fx.Node, chosen: Collection[fx.Node]) -> list[fx.Node]:
    """Those of some nodes whose results a node reads, itself or through nodes that are not chosen.

    Args:
        node: the consumer.
        chosen: a set, or what answers `in` as fast.

    Returns:
        Producers in the order of the operands.
    """
    found: dict[fx.Node, None] = {}
    waiting = list(reversed(node.all_input_nodes))
    seen: set[fx.Node] = set()
    while waiting:
        producer = waiting.pop()
        if producer in chosen:
            found[producer] = None
        elif producer not in seen and holds_tensors(producer):
            seen.add(producer)
            waiting += reversed(producer.all_input_nodes)
    return list(found)


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
    import networkx as nx  # slow to import, and needed by ranges only

    first, last = ({at[p] for p in select_in(gm, end, named)} for end in bounds)
    flow = nx.DiGraph((i, n) for n in gm.graph.nodes for i in n.all_input_nodes)
    after = first.union(*(nx.descendants(flow, n) for n in first if n in flow))
    before = last.union(*(nx.ancestors(flow, n) for n in last if n in flow))
    between = after & before & set(at.values())
    if not between:
        what = f"there is no path {bounds[0]!r} to {bounds[1]!r}"
        raise SelectorError("FXQ250", what, fix=hint("..".join(bounds), named))
    return between
