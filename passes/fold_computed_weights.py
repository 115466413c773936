"""Replace weights that a network computes from its parameters in every call by their values."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.graph.alias_analysis import written
from fxquant.graph.meta import module_path
from fxquant.graph.node_walk import depended_on
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
    from collections.abc import Iterator

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
    Where some of the parameters are frozen and others are not, as in a sum with an adapter, or one
    that is trained is read elsewhere, too, it is left alone, as training would not keep to that.
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
        for _, stored in known.values:
            if not stored.users:  # layers hold it
                rw.erase(stored)
                rw.edit(rw.gm.delete_submodule, str(stored.target).rpartition(".")[0])
        if known.values:
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
class _Computed:
    """What a node computes, and from what."""

    value: Tensor
    sources: tuple[Tensor, ...]

    @property
    def parameters(self) -> list[nn.Parameter]:
        """The sources that may be trained."""
        return [s for s in self.sources if isinstance(s, nn.Parameter)]

    def equals(self, other: _Computed) -> bool:
        """Whether the same was computed from the same tensors; other ones may become others."""
        if {id(s) for s in self.sources} != {id(s) for s in other.sources}:
            return False
        return self.value.shape == other.value.shape and torch.equal(self.value, other.value)


@dataclass
class _Constants:
    """What nodes compute that depend on parameters and buffers alone.

    Attributes:
        rw: reads the graph.
        changing: ids of tensors that the network writes into.
        computed: whether a node does, as far as it was asked for.
        values: what was folded, with the node that reads it.
        readers: nodes that read a tensor, by its id, before anything was folded.
    """

    rw: Rewriter
    changing: set[int]
    computed: dict[fx.Node, bool] = field(default_factory=dict)
    values: list[tuple[_Computed, fx.Node]] = field(default_factory=list)

    @functools.cached_property
    def readers(self) -> dict[int, list[fx.Node]]:
        found: dict[int, list[fx.Node]] = {}
        for node in self.rw.nodes:
            for tensor in tensors_read(self.rw.gm, [node]):
                found.setdefault(id(tensor), []).append(node)
        return found

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
    def value(self, node: fx.Node) -> _Computed:
        """What a node computes."""
        gm, needed = self.rw.gm, depended_on([node])
        found: dict[fx.Node, Any] = {}
        with evaluating(gm):
            for current in (n for n in gm.graph.nodes if n in needed):
                args, kwargs = fx.node.map_arg((current.args, current.kwargs), found.__getitem__)
                if current.op == "get_attr":
                    found[current] = self.rw.constant(current)
                elif current.op == "call_module":
                    found[current] = gm.get_submodule(str(current.target))(*args, **kwargs)
                elif current.op == "call_method":
                    found[current] = getattr(args[0], str(current.target))(*args[1:], **kwargs)
                else:
                    found[current] = current.target(*args, **kwargs)
        value: Tensor = found[node].detach().clone(memory_format=torch.contiguous_format)
        sources = [found[n] for n in found if n.op == "get_attr"]
        if any(isinstance(s, nn.Parameter) for s in sources):
            value = nn.Parameter(value, any(s.requires_grad for s in sources))
        return _Computed(value, tuple(sources))

    def is_read_elsewhere(self, operand: fx.Node, computed: _Computed) -> bool:
        """Whether the network computes something else with what is trained, too.

        Layers with the same value, computed from the same tensors, do not count: they all get one
        parameter.
        """
        trained = [s for s in computed.parameters if s.requires_grad]
        for node in (n for s in trained for n in self.readers[id(s)]):
            if node.op != "get_attr":
                return True
            for other, row in self._ends(node):
                if row is None or row.name not in _SUMS:
                    return True
                if other is not operand and not computed.equals(self.value(other)):
                    return True
        return False

    def _ends(self, node: fx.Node) -> Iterator[tuple[fx.Node, ops.Op | None]]:
        """What is computed from a node that a node reads which is not, with the row of that."""
        for user in node.users:
            if user.op != "output" and self.is_computed(user):
                yield from self._ends(user)
            else:
                yield node, self.rw.op(user)


def _fold(rw: Rewriter, node: fx.Node, operand: fx.Node, known: _Constants) -> bool:
    """Let a node read the value of an operand as a parameter; False if it is none."""
    if not known.is_computed(operand):
        return False
    computed = known.value(operand)
    size, given = computed.value.numel(), sum(s.numel() for s in computed.sources)
    if not computed.value.is_floating_point():
        return False
    if len({s.requires_grad for s in computed.parameters}) > 1:
        rw.explain(node, "its weight is computed from parameters of which only some are trained")
        return False
    if size > max(_MOST * given, _FEW):
        rw.skip(node, f"its weight has {size} elements, computed from {given}")
        return False
    if known.is_read_elsewhere(operand, computed):
        rw.explain(node, "its weight is computed from parameters that are trained elsewhere, too")
        return False
    same = (stored for earlier, stored in known.values if earlier.equals(computed))
    stored = next(same, None) or _stored(rw, node, operand, computed, known)
    rw.redirect(operand, stored, [node])
    rw.explain(node, "its weight, which is computed from parameters, was folded into a parameter")
    return True


def _retire(rw: Rewriter, known: _Constants) -> None:
    """What nothing computes with any more is not trained, and loading it is no longer enough."""
    ends = (n for n in rw.nodes if n.op == "output" or written(n, rw.gm) is not None)
    read = {id(t) for t in tensors_read(rw.gm, depended_on(ends))}
    sources = {id(s) for computed, _ in known.values for s in computed.sources} - read
    tensors = (*rw.gm.named_parameters(), *rw.gm.named_buffers())
    left = {name: tensor for name, tensor in tensors if id(tensor) in sources}
    for tensor in left.values():
        if tensor.requires_grad:
            rw.edit(lambda tensor=tensor: tensor.requires_grad_(False))
    rw.gm.meta[FOLDED] = frozenset(left)


def _stored(
    rw: Rewriter, node: fx.Node, operand: fx.Node, computed: _Computed, known: _Constants
) -> fx.Node:
    """A node in front of all others that reads a value."""
    inputs = [n for n in rw.nodes if n.op == "placeholder"]
    first = rw.after(inputs[-1]) if inputs else rw.before(rw.nodes[0])
    with first:
        made = rw.new_constant(module_path(node), _NAME, computed.value, like=operand)
    holder = rw.gm.get_submodule(str(made.target).rpartition(".")[0])
    rw.edit(lambda: dense.adopt(holder, value=computed.value))
    known.values.append((computed, made))
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
