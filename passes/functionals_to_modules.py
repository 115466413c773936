"""Make every tensor operation a module."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import fx, nn

from fxquant import ops
from fxquant.graph.alias_analysis import written
from fxquant.graph.meta import computes_floats
from fxquant.graph.pass_infra import Fact, Pass
from fxquant.nn.functional import Functional, ScaledDotProductAttention
from fxquant.nn.opaque import Opaque
from fxquant.tracing.training_mode import IN_TRAINING

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class FunctionalsToModules(Pass):
    """Functions, operators and tensor methods become modules, by the rows of the operator table.

    Before::

        %add  = add(%x, %y)
        %relu = relu(%add, inplace=True)

    After::

        %add  = add[layer1.add](%x, %y)
        %relu = relu[layer1.relu](%add)

    A new module lives in the module that made the call and is named after its row. It is a
    `torch.nn` class where that class can hold the arguments (weights are shared, not copied), else
    a functional module that is called with all of them. Arithmetic on sizes is no tensor operation
    and stays. An operator without a row, a custom `autograd.Function` for one, becomes an `Opaque`
    module, which stays in floating point.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_WRITES})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.MODULES_ONLY})

    def run(self, rw: Rewriter) -> None:
        """Walk the nodes in order."""
        for node in rw.nodes:
            if node.op not in ("call_function", "call_method"):
                continue
            _spell_attribute(rw, node)
            row = rw.op(node)
            if written(node, rw.gm) is not None:
                continue  # what still writes was logged by RemoveWrites
            if row is not None:
                _convert(rw, node, row)
            elif computes_floats(node):
                _enclose(rw, node, "it has no row in the operator table")


def _spell_attribute(rw: Rewriter, node: fx.Node) -> None:
    """Write attributes that are views, `x.T` and `x.mT`, as the method of the same meaning."""
    if node.target is not getattr or not isinstance(node.args[0], fx.Node):
        return
    tensor, name = node.args[:2]
    rank = len(rw.shape(node))
    if name == "mT" or (name == "T" and rank == 2):
        rw.become_call(node, "transpose", tensor, -2, -1)
    elif name == "T":
        rw.become_call(node, "permute", tensor, *reversed(range(rank)))
    elif name == "data":
        rw.become_call(node, "detach", tensor)


def _convert(rw: Rewriter, node: fx.Node, row: ops.Op) -> None:
    try:
        values = rw.arguments(node)
        held = {k: _resolved(rw, k, v, row) for k, v in values.items()}
        modes = node.meta.get(IN_TRAINING)
        follows = not row.mode or modes is None or row.mode[0] in modes
        module, holds = ops.module_for(row, held, follows=follows)
    except (TypeError, KeyError) as e:
        _enclose(rw, node, f"its arguments do not fit the row {row.name!r}: {e}")
        return
    modes = modes or {}
    if isinstance(module, ScaledDotProductAttention):
        module.dropout = modes.get("dropout_p", 0.0)
    elif isinstance(module, Functional):
        module.onto_view = node.meta.get("onto_view", False)
        module.in_training = modes
    elif isinstance(module, nn.modules.dropout._DropoutNd):
        module.p = modes.get("p", module.p)
    if holds:
        args: tuple[Any, ...] = tuple(values[name] for name in row.inputs)
        kwargs: dict[str, Any] = {}
    else:
        args, kwargs = ops.call_arguments(row, values, by_name=modes)
    rw.become_module(node, module, *args, kwargs=kwargs, name=row.name)


def _enclose(rw: Rewriter, node: fx.Node, reason: str) -> None:
    module = Opaque(node.target)
    name = re.sub(r"\W", "_", module.name).strip("_").lower() or "function"
    rw.become_module(node, module, *node.args, kwargs=node.kwargs, name=name)
    rw.explain(node, f"{module.name} stays in floating point: {reason}")


def _resolved(rw: Rewriter, name: str, value: Any, row: ops.Op) -> Any:
    """Weights and other tensors that a module can hold, as tensors; the rest as it is."""
    if name in row.inputs:
        return value
    constant = rw.constant(value)
    return value if constant is None else constant
