"""Which lines of a program decide how often a ``while`` loop turns."""

from __future__ import annotations

import ast
import functools
import linecache
from collections.abc import Iterator

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
