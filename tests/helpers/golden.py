"""Golden texts: a test shows what a graph looks like, and what a pass does to it.

The text stands in the test. `pytest --accept` writes what the code does now into the test's source;
the diff is then reviewed like any other.
"""

from __future__ import annotations

import ast
import difflib
import sys
import textwrap
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxquant.graph.pass_infra import Fact, Outcome, Pass, Pipeline, set_state, state_of
from fxquant.graph.printer import dump
from fxquant.passes import PREPARE
from fxquant.prepare import call_arguments
from fxquant.tracing.record import record

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import FrameType

_CHECKS = frozenset({"assert_rewrites", "assert_dump"})


@dataclass
class Accepting:
    """Whether golden texts are rewritten, and those that were: file -> line of the call -> text."""

    on: bool = False
    texts: dict[Path, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))


ACCEPTING = Accepting()


def assert_rewrites(step: Pass, net: nn.Module, text: str, *, inputs: Any = None) -> Outcome:
    """Assert what a pass does to a network, as a diff of the graph's text.

    Args:
        step: the pass.
        net: a module, which is recorded and prepared as far as the pass needs, or a graph.
        text: the graph, its lines marked `-` (gone) and `+` (new).
        inputs: dummy input for recording.

    Returns:
        The outcome of the pass.
    """
    gm = ready(net, step.needs, inputs) if not isinstance(net, fx.GraphModule) else net
    before = dump(gm).splitlines()
    outcome = step(gm)
    gm.graph.lint()
    _compare(_diff(before, dump(gm).splitlines()), text, sys._getframe(1))
    return outcome


def assert_dump(gm: fx.GraphModule, text: str) -> None:
    """Assert the text of a graph."""
    _compare(_aligned([("  ", line) for line in dump(gm).splitlines()]), text, sys._getframe(1))


def recorded(net: nn.Module, inputs: Any) -> fx.GraphModule:
    """The network as it was recorded."""
    args, kwargs = call_arguments(inputs)
    recording = record(net, args, kwargs)
    gm = recording.graph_module
    facts = frozenset({Fact.RECORDED})
    set_state(gm, facts=facts, specialisations=recording.specialisations)
    return gm


def ready(net: nn.Module, needs: frozenset[Fact], inputs: Any) -> fx.GraphModule:
    """The network recorded and prepared until these facts hold."""
    gm = recorded(net, inputs)
    for step in PREPARE:
        if needs <= state_of(gm).facts:
            break
        step(gm)
    return gm


def run(steps: Sequence[Pass], gm: fx.GraphModule) -> Outcome:
    """Run passes in order."""
    return Pipeline(tuple(steps), state_of(gm).facts)(gm)


def _diff(before: list[str], after: list[str]) -> list[str]:
    marked = [(d[:2], d[2:]) for d in difflib.ndiff(before, after) if not d.startswith("?")]
    return _aligned(marked)


def _aligned(marked: list[tuple[str, str]]) -> list[str]:
    """Lines with their marks, the `=` signs below each other."""
    split = [(mark, *line.partition(" = ")) for mark, line in marked]
    width = max((len(name) for _, name, equal, _ in split if equal), default=0)
    return [
        f"{mark}{name.ljust(width) if equal else name}{equal}{rest}".rstrip()
        for mark, name, equal, rest in split
    ]


def _compare(got: list[str], text: str, frame: FrameType) -> None:
    want = [line.rstrip() for line in textwrap.dedent(text).strip("\n").splitlines()]
    shown = textwrap.dedent("\n".join(got)).splitlines()
    if shown == want:
        return
    if ACCEPTING.on:
        ACCEPTING.texts[Path(frame.f_code.co_filename)][frame.f_lineno] = "\n".join(shown)
        return
    difference = "\n".join(difflib.ndiff(want, shown))
    msg = f"the graph is not as the test says (pytest --accept rewrites it):\n{difference}"
    raise AssertionError(msg)


def write_accepted() -> list[Path]:
    """Write the accepted texts into their tests; returns the files."""
    for path, texts in ACCEPTING.texts.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        literals = _literals("\n".join(lines))
        for line in sorted(texts, reverse=True):
            literal = next(lit for first, last, lit in literals if first <= line <= last)
            _replace(lines, literal, texts[line])
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return list(ACCEPTING.texts)


def _literals(source: str) -> list[tuple[int, int, ast.Constant]]:
    """First line, last line and golden literal of every check in a test file."""
    found = []
    for call in ast.walk(ast.parse(source)):
        if isinstance(call, ast.Call) and getattr(call.func, "id", "") in _CHECKS:
            texts = [a for a in call.args if isinstance(a, ast.Constant)]
            if texts:
                found.append((call.lineno, call.end_lineno or call.lineno, texts[-1]))
    return found


def _replace(lines: list[str], literal: ast.Constant, text: str) -> None:
    """Put a text in the place of a literal, indented as the line on which it begins."""
    first, last = literal.lineno - 1, (literal.end_lineno or literal.lineno) - 1
    start, end = lines[first][: literal.col_offset], lines[last][literal.end_col_offset :]
    pad = " " * (len(start) - len(start.lstrip()) + 4)
    body = [f"{pad}{line}".rstrip() for line in text.splitlines()]
    lines[first : last + 1] = [f'{start}"""', *body, f'{pad[4:]}"""{end}']
