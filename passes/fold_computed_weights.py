"""Replace weights that a network computes from its parameters in every call by their values."""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.graph.alias_analysis import written
from fxquant.graph.meta import module_path
from fxquant.graph.pass_infra import Fact, Pass
from fxquant.graph.recorded_module import FOLDED
from fxquant.nn import dense
from fxquant.nn.functional import Functional
from fxquant.nn.modes import evaluating
from fxquant.nn.stored_tensors import tensors_read
from fxquant.placement.dataflow import is_float_spec
from fxquant.placement.product_weights import AXIS_MOVES, PRODUCTS, written_tensors
from fxquant.placement.regions import find_regions

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fxquant.graph.rewriter import Rewriter

_CONVOLUTIONS = frozenset(f"conv{kind}{n}d" for n in (1, 2, 3) for kind in ("", "_transpose"))
# with a weight as the module of another class, which holds it
_LAYERS = _CONVOLUTIONS | {dense.ROW}
# whose operands `LinearProducts` sees through moves of axes
_PRODUCTS = PRODUCTS | {dense.ROW, "addmm"}
_SUMS = _LAYERS | _PRODUCTS | {"baddbmm", "einsum"}
_NAME = "computed"
# a byte for each element takes as much as the floats that it is computed from
_MOST = 4
_FEW = 1 << 16  # elements of which that does not matter, such as of a blur for every channel


@dataclass(frozen=True)
class FoldComputedWeights(Pass):
    """A weight that is computed from nothing but parameters and buffers becomes a parameter.

    Before::

        %w    = attr[w]
        %mask = attr[mask]
        %mul  = mul[mul](%w, %mask)
        %conv = conv2d[conv2d](%x, %mul)

    After::

        %conv = conv2d[conv2d](%x)    # its weight the product

    Why: such a weight - standardised, masked, scaled, a slice, a sum with a product of low rank -
    is the same in every call. Only as a parameter it has the bits and channels of weights, and is
    stored as integers; the runtime would compute it anew in every run. It is done for the
    simulation only: in training the computed weight is what learns, as with parametrizations.
    Where some of the parameters are frozen and others are not, as in a sum with an adapter, it is
    left alone, as training would not keep to that.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.MODULES_ONLY, Fact.UNIQUE_MODULES})

    def run(self, rw: Rewriter) -> None:
        """Look at the operands of every operator with weights."""
        regions, known = find_regions(rw.gm), _Constants(rw, written_tensors(rw))
        for node in rw.nodes:
            row = rw.op(node)
            if row is None or row.name not in _SUMS or rw.module(node, Functional) is None:
                continue
            if (regions is not None and not regions.holds(node)) or known.is_computed(node):
                continue
            folded = [o for o in _operands(rw, node, row) if _fold(rw, node, o, known)]
            if folded and row.name in _LAYERS:
                _hold(rw, node, row)
        for stored in known.values:
            if not stored.node.users:  # layers hold it
                rw.erase(stored.node)
                rw.edit(rw.gm.delete_submodule, str(stored.node.target).rpartition(".")[0])
        _retire(rw, known)


def _operands(rw: Rewriter, node: fx.Node, row: ops.Op) -> Iterator[fx.Node]:
    """The operands of an operator that may be weights and are no parameters."""
    given = rw.arguments(node)
    if row.name in _LAYERS:
        found = [given.get("weight"), given.get("bias")]
    else:
        found = list(node.all_input_nodes)
    for operand in dict.fromkeys(x for x in found if isinstance(x, fx.Node)):
        moved = operand
        while row.name in _PRODUCTS and _moves_axes(rw, moved):
            moved = moved.all_input_nodes[0]
        if moved.op != "get_attr" and is_float_spec(operand.meta.get("spec")):
            yield operand


def _moves_axes(rw: Rewriter, node: fx.Node) -> bool:
    row = rw.op(node)
    return row is not None and row.name in AXIS_MOVES and len(node.all_input_nodes) == 1


@dataclass(frozen=True)
class _Stored:
    """A value that was folded, what it was computed from, and the node that reads it."""

    value: Tensor
    sources: tuple[Tensor, ...]
    node: fx.Node

    def is_of(self, value: Tensor, sources: Sequence[Tensor]) -> bool:
        """Whether the same was computed from the same tensors; other ones may become others."""
        if {id(s) for s in self.sources} != {id(s) for s in sources}:
            return False
        return self.value.shape == value.shape and torch.equal(self.value, value)


@dataclass
class _Constants:
    """What nodes compute that depend on parameters and buffers alone.

    Attributes:
        rw: reads the graph.
        changing: ids of tensors that the network writes into.
        computed: whether a node does, as far as it was asked for.
        values: what was folded.
    """

    rw: Rewriter
    changing: set[int]
    computed: dict[fx.Node, bool] = field(default_factory=dict)
    values: list[_Stored] = field(default_factory=list)

    def is_computed(self, node: fx.Node) -> bool:
        """Whether a node depends on parameters and buffers alone."""
        pending = [node]
        while pending:
            last = pending[-1]
            if last in self.computed:
                pending.pop()
            elif not self._is_fixed(last):
                self.computed[last] = False
            elif unknown := [n for n in last.all_input_nodes if n not in self.computed]:
                pending += unknown
            else:
                self.computed[last] = all(self.computed[n] for n in last.all_input_nodes)
        return self.computed[node]

    def _is_fixed(self, node: fx.Node) -> bool:
        """Whether a node computes the same in every run of the same operands."""
        if node.op == "get_attr":
            return id(self.rw.constant(node)) not in self.changing
        row, module = self.rw.op(node), self.rw.module(node)
        if node.op in ("placeholder", "output") or written(node, self.rw.gm) is not None:
            return False
        if module is None:  # of sizes, which say nothing of values
            return node.target in (operator.getitem, torch.tensor, "size", "dim", "numel")
        if module._forward_hooks or module._forward_pre_hooks or row is None:
            return False
        modes = getattr(module, "in_training", None)
        given = self.rw.arguments(node)
        # a batch norm that keeps no statistics standardises a weight
        fixed = given.get("running_mean", node) is None and given.get("training") is True
        return not modes and (fixed or (row.effect is None and not row.mode))

    @torch.no_grad()
    def value(self, node: fx.Node) -> tuple[Tensor, list[Tensor]]:
        """What a node computes, and from what."""
        gm = self.rw.gm
        found: dict[fx.Node, Any] = {}
        with evaluating(gm):
            for current in self.needed(node):
                args, kwargs = fx.node.map_arg((current.args, current.kwargs), found.__getitem__)
                if current.op == "get_attr":
                    found[current] = self.rw.constant(current)
                elif current.op == "call_module":
                    found[current] = gm.get_submodule(str(current.target))(*args, **kwargs)
                elif current.op == "call_method":
                    found[current] = getattr(args[0], str(current.target))(*args[1:], **kwargs)
                else:
                    found[current] = current.target(*args, **kwargs)  # type: ignore[operator]
        value: Tensor = found[node].detach().clone(memory_format=torch.contiguous_format)
        sources = [found[n] for n in found if n.op == "get_attr"]
        if any(isinstance(s, nn.Parameter) for s in sources):
            value = nn.Parameter(value, any(s.requires_grad for s in sources))
        return value, sources

    def is_read_elsewhere(self, operand: fx.Node, value: Tensor, sources: Sequence[Tensor]) -> bool:
        """Whether the network computes something else with what is trained, too.

        Layers with the same value, computed from the same tensors, do not count: they all get one
        parameter.
        """
        trained = {id(s) for s in sources if isinstance(s, nn.Parameter) and s.requires_grad}
        for node in self.rw.nodes:
            if node.op == "call_module":
                module = self.rw.gm.get_submodule(str(node.target))
                if any(id(p) in trained for p in module.parameters()):
                    return True
            elif node.op == "get_attr" and id(self.rw.constant(node)) in trained:
                for other, row in self._ends(node):
                    if row is None or row.name not in _SUMS:
                        return True
                    if other is not operand and not _Stored(value, tuple(sources), other).is_of(
                        *self.value(other)
                    ):
                        return True
        return False

    def _ends(self, node: fx.Node) -> Iterator[tuple[fx.Node, ops.Op | None]]:
        """What is computed from a node that a node reads which is not, with the row of that."""
        for user in node.users:
            if user.op != "output" and self.is_computed(user):
                yield from self._ends(user)
            else:
                yield node, self.rw.op(user)

    def needed(self, node: fx.Node) -> list[fx.Node]:
        """A node and all that it is computed from, in the order of the graph."""
        needed, pending = {node}, [node]
        while pending:
            for operand in pending.pop().all_input_nodes:
                if operand not in needed:
                    needed.add(operand)
                    pending.append(operand)
        return [n for n in self.rw.gm.graph.nodes if n in needed]


def _fold(rw: Rewriter, node: fx.Node, operand: fx.Node, known: _Constants) -> bool:
    """Let a node read the value of an operand as a parameter; False if it is none."""
    if not known.is_computed(operand):
        return False
    value, sources = known.value(operand)
    if not value.is_floating_point():
        return False
    if len({s.requires_grad for s in sources if isinstance(s, nn.Parameter)}) > 1:
        rw.explain(node, "its weight is computed from parameters of which only some are trained")
        return False
    given = sum(s.numel() for s in sources)
    if value.numel() > max(_MOST * given, _FEW):
        rw.skip(node, f"its weight has {value.numel()} elements, computed from {given}")
        return False
    if known.is_read_elsewhere(operand, value, sources):
        rw.explain(node, "its weight is computed from parameters that are trained elsewhere, too")
        return False
    same = (stored.node for stored in known.values if stored.is_of(value, sources))
    stored = next(same, None) or _stored(rw, node, operand, value, known, sources)
    rw.redirect(operand, stored, [node])
    rw.explain(node, "its weight, which is computed from parameters, was folded into a parameter")
    return True


def _alive(rw: Rewriter) -> set[fx.Node]:
    """Nodes that the result, or something that is written to, depends on."""
    pending = [n for n in rw.nodes if n.op == "output" or written(n, rw.gm) is not None]
    found = set(pending)
    while pending:
        new = [n for n in pending.pop().all_input_nodes if n not in found]
        found.update(new)
        pending += new
    return found


def _retire(rw: Rewriter, known: _Constants) -> None:
    """What nothing computes with any more is not trained, and loading it is no longer enough."""
    read = {id(t) for t in tensors_read(rw.gm, _alive(rw))}
    sources = {id(s) for stored in known.values for s in stored.sources} - read
    tensors = (*rw.gm.named_parameters(), *rw.gm.named_buffers())
    left = [(name, tensor) for name, tensor in tensors if id(tensor) in sources]
    for _, tensor in left:
        if tensor.requires_grad:
            rw.edit(lambda tensor=tensor: tensor.requires_grad_(False))
    if left:
        rw.gm.meta[FOLDED] = frozenset(name for name, _ in left)


def _stored(
    rw: Rewriter,
    node: fx.Node,
    operand: fx.Node,
    value: Tensor,
    known: _Constants,
    sources: Sequence[Tensor],
) -> fx.Node:
    """A node in front of all others that reads a value."""
    inputs = [n for n in rw.nodes if n.op == "placeholder"]
    first = rw.after(inputs[-1]) if inputs else rw.before(rw.nodes[0])
    with first:
        made = rw.new_constant(module_path(node), _NAME, value, like=operand)
    holder = rw.gm.get_submodule(str(made.target).rpartition(".")[0])
    rw.edit(lambda: dense.adopt(holder, value=value))
    known.values.append(_Stored(value, tuple(sources), made))
    known.computed[made] = True
    return made


def _hold(rw: Rewriter, node: fx.Node, row: ops.Op) -> None:
    """Give a convolution or linear layer the module that holds its weight."""
    given = rw.arguments(node)
    constants = {k: rw.constant(v) for k, v in given.items() if k not in row.inputs}
    held = {k: v if constants.get(k) is None else constants[k] for k, v in given.items()}
    module, holds = ops.module_for(row, held)
    if not holds:
        return
    rw.set_module(str(node.target), module.train(rw.gm.get_submodule(str(node.target)).training))
    rw.call_anew(node, *(given[name] for name in row.inputs), kwargs={})
