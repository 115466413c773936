"""What the target computes on integers, by its own table; the proof runs on onnxruntime alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fxquant import ops
from fxquant.graph.pass_infra import state_of
from fxquant.graph.rewriter import label

if TYPE_CHECKING:
    from torch import fx

    from fxquant.targets import Target


@dataclass(frozen=True)
class TargetCoverage:
    """Operators of a network on a target, as the placement of quantizers found them.

    Attributes:
        name: of the target.
        runtime: whether the target is onnxruntime, which the proof runs.
        operators: how many compute something; those that only move values are not counted.
        integer: how many of them compute on integers.
        floating: those that do not: operator and module path, in the order of the graph.
    """

    name: str
    runtime: bool
    operators: int
    integer: int
    floating: tuple[tuple[str, str], ...]


def target_coverage(gm: fx.GraphModule, target: Target) -> TargetCoverage:
    """Count what a target computes on integers.

    Args:
        gm: the simulated model.
        target: what it was placed for.
    """
    on_integers = state_of(gm).on_integers
    floating = []
    for node in gm.graph.nodes:
        if on_integers.get(label(node)) is False:
            floating.append((_kind(node, gm), label(node)))
    integer = sum(on_integers.values())
    return TargetCoverage(target.name, target.contrib, len(on_integers), integer, tuple(floating))


def _kind(node: fx.Node, gm: fx.GraphModule) -> str:
    """What an operator is called, also where it has no row."""
    row = ops.row_of(node, gm)
    if row is not None:
        return row.name
    if node.op == "call_module":
        return type(gm.get_submodule(str(node.target))).__name__
    return str(getattr(node.target, "__name__", node.target))
