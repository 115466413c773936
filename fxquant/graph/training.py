"""Modules that do nothing in evaluation, such as stochastic depth.

A network is recorded in evaluation, where such a module leaves no trace. It is found by that, and
kept whole, so that the prepared network trains like the original.
"""

from __future__ import annotations

from types import CodeType
from typing import TYPE_CHECKING

from torch import fx, nn

from fxquant.graph.meta import module_path

if TYPE_CHECKING:
    from collections.abc import Iterator


def training_only(gm: fx.GraphModule, called: frozenset[str] = frozenset()) -> frozenset[str]:
    """Paths of modules whose code asks for `self.training` and that recorded nothing.

    Args:
        gm: a graph recorded in evaluation.
        called: paths that are known to be calls of their own.
    """
    active = {parent for node in gm.graph.nodes for parent in _with_parents(module_path(node))}
    active |= {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    found = [
        path
        for path, module in gm.named_modules()
        if path and path not in active and asks_for_training(type(module))
    ]
    return frozenset(found) - called


def _with_parents(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


def asks_for_training(kind: type[nn.Module]) -> bool:
    """Whether a class of the user's looks at `self.training` in one of its methods.

    >>> asks_for_training(nn.Dropout)
    False
    """
    if kind.__module__.startswith(("torch.", "fxquant.")):
        return False
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    codes = (getattr(f, "__code__", None) for base in own for f in vars(base).values())
    return any("training" in c.co_names for c in codes if isinstance(c, CodeType))
