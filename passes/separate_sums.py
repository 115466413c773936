"""Products that add something in the same call, as a product and a sum."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxquant.graph.meta import TensorSpec
from fxquant.graph.pass_infra import Fact, Pass
from fxquant.nn import functional as fn
from fxquant.placement.dataflow import is_float_spec

if TYPE_CHECKING:
    from torch import fx

    from fxquant.graph.rewriter import Rewriter

_OPERANDS = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2")}


@dataclass(frozen=True)
class SeparateSums(Pass):
    """Take `addmm` and `baddbmm` apart, so that their products are computed in integers.

    Before: `addmm(y, a, b)`.
    After:  `add(matmul(a, b), y)`.

    Why: runtimes have integer kernels for products of two tensors and for sums, and none for both.
    The sum is rounded once more, so it is done for the simulation only, like taking attention
    apart. What adds a bias to a product with a weight is a linear layer: see `LinearProducts`.
    """

    needs = frozenset({Fact.MODULES_ONLY})

    def run(self, rw: Rewriter) -> None:
        """Look at every product that adds something."""
        for node in rw.nodes:
            row = rw.op(node)
            if row is None or row.name not in _OPERANDS:
                continue
            given = rw.arguments(node)
            if not is_float_spec(node.meta.get("spec")):
                rw.skip(node, "its values are no floats")
            elif given["beta"] == 0:
                rw.skip(node, "it adds nothing: what it is given to add may even be NaN")
            else:
                _separate(rw, node, given, _OPERANDS[row.name])


def _separate(
    rw: Rewriter, node: fx.Node, given: dict[str, Any], operands: tuple[str, str]
) -> None:
    spec = node.meta["spec"]

    def call(name: str, kind: Any, spec: TensorSpec, *args: Any) -> fx.Node:
        return rw.new_module(kind(), *args, like=node, name=name, spec=spec)

    result = call("product", fn.MatMul, spec, *(given[name] for name in operands))
    if given["alpha"] != 1:
        result = call("scaled_product", fn.Multiply, spec, result, given["alpha"])
    added = given["input"]
    if given["beta"] != 1:
        added = call("scaled_summand", fn.Multiply, added.meta["spec"], added, given["beta"])
    result = call("sum", fn.Add, spec, result, added)
    rw.replace(node, result, "was taken apart; its values come from")
