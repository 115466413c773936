"""Selecting modules by instance, class or path."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from typing import TypeAlias

from torch import nn

from fxquant.errors import SelectorError, nearest

Selector: TypeAlias = nn.Module | type[nn.Module] | str


def select(model: nn.Module, selectors: Iterable[Selector] | Selector) -> frozenset[str]:
    """Paths of the modules that selectors name.

    Args:
        model: where to look.
        selectors: modules of the model, classes (their subclasses count), or paths in which `*`,
            `?` and `[...]` stand for other characters; one selector or several.

    Raises:
        SelectorError: FXQ213, a selector matches nothing.

    Example:
        >>> sorted(select(nn.Sequential(nn.Linear(1, 1), nn.ReLU()), ["0", nn.ReLU]))
        ['0', '1']
    """
    if isinstance(selectors, str | type | nn.Module):
        selectors = (selectors,)
    named = list(model.named_modules(remove_duplicate=False))
    return frozenset(path for one in selectors for path in _matches(one, named))


def _matches(selector: Selector, named: list[tuple[str, nn.Module]]) -> list[str]:
    if isinstance(selector, str):
        found = [p for p, _ in named if p and fnmatch.fnmatchcase(p, selector)]
        fix = nearest(selector, (p for p, _ in named)) or "see model.named_modules()"
    elif isinstance(selector, nn.Module):
        found = [p for p, m in named if m is selector]
        fix = "pass modules of the model itself, not of a copy"
    elif isinstance(selector, type):
        found = [p for p, m in named if isinstance(m, selector)]
        fix = "the model's classes are " + ", ".join(sorted({type(m).__name__ for _, m in named}))
    else:
        found, fix = [], "a selector is a module, a module class or a path"
    if not found:
        raise SelectorError("FXQ213", f"{_name(selector)} matches no module", fix=fix)
    return found


def _name(selector: object) -> str:
    if isinstance(selector, str):
        return repr(selector)
    return selector.__name__ if isinstance(selector, type) else f"a {type(selector).__name__}"
