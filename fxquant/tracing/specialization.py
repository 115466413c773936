"""What a recording holds fixed: data-dependent reads, and loops whose count depends on values."""

from __future__ import annotations

import ast
import functools
import linecache
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from fxquant.graph.meta import Source
from fxquant.graph.symbolic_ints import Change


@dataclass(frozen=True)
class Specialisation:
    """A place where Python decided on a value or on a dynamic size, so that the graph is narrower
    than the model.

    Attributes:
        source: the user's line.
        module_path: the module whose forward decided.
        kind: ``"value"`` for a tensor's value, ``"size"`` for a size that depends on an input,
            ``"training"`` for what is computed otherwise in training (`prepare_model` looks).
        what: how it was looked at: ``comparison``, ``item()``, ``bool()`` ...
        value: what Python saw; a tuple of all if the line looked several times.
        loop: whether it decides how often a ``while`` loop turns.
    """

    source: Source | None
    module_path: str
    kind: str
    what: str
    value: Any
    loop: bool = False


class DataDependentReads:
    """All looks of one recording, gathered by line, kind and way of looking."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Source | None, str, str, bool], tuple[str, list[Any]]] = {}

    def add(
        self,
        source: Source | None,
        path: str,
        change: Change,
        what: str,
        value: object,
        *,
        loop: bool = False,
    ) -> None:
        """Python decided on ``value``, which can change."""
        kind = "value" if change is Change.VALUE else "size"
        self._seen.setdefault((source, kind, what, loop), (path, []))[1].append(value)

    def specialisations(self) -> tuple[Specialisation, ...]:
        """The looks so far, one per line and kind."""
        return tuple(
            Specialisation(
                source, path, kind, what, seen[0] if len(seen) == 1 else tuple(seen), loop
            )
            for (source, kind, what, loop), (path, seen) in self._seen.items()
        )


_Function = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef)


def ends_loop(filename: str, line: int) -> bool:
    """Whether what is decided on a line ends a ``while`` loop of its function.

    Those are the lines of the loop's condition, of conditions that leave it, and of what is
    assigned to the names in either.
    """
    return line in _lines(filename)


@functools.cache
def _lines(filename: str) -> frozenset[int]:
    text = "".join(linecache.getlines(filename))
    if "while" not in text:  # parsing takes longer than most recordings
        return frozenset()
    try:
        tree = ast.parse(text)
    except SyntaxError:  # a notebook's cell may hold more than Python
        return frozenset()
    found: set[int] = set()
    for scope in ast.walk(tree):
        if isinstance(scope, ast.Module | ast.FunctionDef | ast.AsyncFunctionDef):
            own = list(_own(scope))
            for loop in own:
                if isinstance(loop, ast.While):
                    found |= _deciding(loop, own)
    return frozenset(found)


def _own(scope: ast.AST) -> Iterator[ast.AST]:
    """The nodes of a function without those of functions in it."""
    for child in ast.iter_child_nodes(scope):
        if not isinstance(child, _Function):
            yield child
            yield from _own(child)


def _deciding(loop: ast.While, own: list[ast.AST]) -> set[int]:
    conditions = [loop.test, *_ways_out(loop.body)]
    names = {n.id for c in conditions for n in ast.walk(c) if isinstance(n, ast.Name)}
    values = [v for node in own for v in _assigned(node, names)]
    return {line for part in (*conditions, *values) for line in _span(part)}


def _ways_out(body: list[ast.stmt]) -> Iterator[ast.expr]:
    """Conditions on which a loop of this body is left, those of loops in it aside."""
    for statement in body:
        if isinstance(statement, ast.If):
            inside = [*statement.body, *statement.orelse]
            if any(isinstance(s, ast.Break | ast.Return) for s in inside):
                yield statement.test
            yield from _ways_out(inside)
        elif isinstance(statement, ast.With | ast.Try):
            yield from _ways_out(statement.body)


def _assigned(node: ast.AST, names: set[str]) -> Iterator[ast.expr]:
    targets: list[ast.expr] = []
    if isinstance(node, ast.Assign):
        targets = node.targets
    elif isinstance(node, ast.AnnAssign | ast.AugAssign | ast.NamedExpr):
        targets = [node.target]
    held = {n.id for t in targets for n in ast.walk(t) if isinstance(n, ast.Name)}
    value = getattr(node, "value", None)
    if held & names and isinstance(value, ast.expr):
        yield value


def _span(part: ast.expr) -> range:
    return range(part.lineno, (part.end_lineno or part.lineno) + 1)
