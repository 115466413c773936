"""Selecting modules by instance, class, path, glob or predicate: the one place that knows how."""

from __future__ import annotations

import fnmatch
import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import nn

from fxquant.errors import SelectorError, nearest

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
        SelectorError: FXQ213, a selector matches nothing.

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


def path_matches(pattern: str, path: str, *, below: bool = False) -> bool:
    """Whether a path is the one that is written, or fits the glob."""
    if not isinstance(pattern, str):
        return False
    if path == pattern:
        return bool(path)
    if below and path.startswith(f"{pattern}."):
        return True
    return bool(path) and fnmatch.fnmatchcase(path, pattern)


def _matches(selector: Any, path: str, module: nn.Module, below: bool) -> bool:
    if isinstance(selector, str):
        return path_matches(selector, path, below=below)
    if isinstance(selector, nn.Module):
        return module is selector
    if isinstance(selector, type):
        return isinstance(module, selector)
    return callable(selector) and _holds(selector, path, module)


def _holds(predicate: Callable[..., bool], path: str, module: nn.Module) -> bool:
    try:
        inspect.signature(predicate).bind(path, module)
    except TypeError:
        return bool(predicate(module))
    except ValueError:  # a builtin without a signature
        return bool(predicate(module))
    return bool(predicate(path, module))


def _name(selector: object) -> str:
    if isinstance(selector, str):
        return repr(selector)
    if isinstance(selector, nn.Module):
        return f"a {type(selector).__name__}"
    return getattr(selector, "__name__", f"a {type(selector).__name__}")
