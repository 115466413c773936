"""Operands on the grid of their result: for kernels that cannot rescale what they read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from fxquant.graph.pass_infra import Fact, Pass
from fxquant.placement.dataflow import operands, resolve_grids
from fxquant.quantization.affine import AffineQuantizer

if TYPE_CHECKING:
    from torch import fx

    from fxquant.graph.rewriter import Rewriter
    from fxquant.quantization import QuantizerBase

_ALIGNED = ("cat", "stack", "add", "avg_pool1d", "avg_pool2d", "avg_pool3d")


@dataclass(frozen=True)
class AlignGrids(Pass):
    """Give the operands of some operators the range of their result.

    Before: `a (step 1/64), b (step 1/16) -> cat (step 1/16)`.
    After:  `a (step 1/16), b (step 1/16) -> cat (step 1/16)`.

    It works on a calibrated graph, from the end to the beginning, so that a chain ends on one grid.

    Attributes:
        operators: names of rows whose operands are aligned.
    """

    needs = frozenset({Fact.PLACED})

    operators: tuple[str, ...] = _ALIGNED

    def run(self, rw: Rewriter) -> None:
        """Align, last operator first."""
        grids = resolve_grids(rw.gm)
        for node in reversed(rw.nodes):
            row = rw.op(node)
            if row is None or row.name not in self.operators:
                continue
            wanted = grids[node][0]
            if not isinstance(wanted, AffineQuantizer) or not wanted.is_initialized():
                rw.skip(node, "its result has no range")
                continue
            for _, operand in operands(node, rw.gm):
                _align(rw, operand, grids[operand][0], wanted, node)


def _same(a: AffineQuantizer, b: AffineQuantizer) -> bool:
    ends = ((a.min, b.min), (a.max, b.max))
    return a.grid == b.grid and all(torch.equal(x, y) for x, y in ends)


def _align(
    rw: Rewriter, operand: fx.Node, given: QuantizerBase | None, wanted: AffineQuantizer,
    node: fx.Node,
) -> None:  # fmt: skip
    if given is wanted or (isinstance(given, AffineQuantizer) and _same(given, wanted)):
        return
    if not isinstance(given, AffineQuantizer) or given.grid != wanted.grid:
        rw.skip(operand, f"{node.name} cannot share a grid with it: it is {given}")
        return
    if not given.overwritable:
        rw.skip(operand, f"its range is fixed, so {node.name} rescales it")
        return
    rw.set_range(given, wanted.min, wanted.max)
    rw.explain(operand, f"its range is that of {node.name}, which cannot rescale")
