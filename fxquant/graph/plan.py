"""The plan of a placement: which values get a grid, which of them share one, and why.

Why a plan apart from the pass: what is decided can be shown and tested before a single module is
touched, and the pass that follows has nothing left to decide.

The rules, in order:

1. An operator is *integer* when the target lists it with these arguments. Sums and products stay in
   floating point between floating-point neighbours and before a softmax.
2. The operands of integer operators need a grid, and so does an output that the kernel can write as
   integers only. An activation that the kernel absorbs takes the output's place.
3. The grid belongs to the slot where the values were made (`graph.grids.origin`).
4. Concatenations put their operands and their output on one grid.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxquant import ops
from fxquant.graph.choose import chosen_nodes
from fxquant.graph.grids import (
    Slot,
    constant_of,
    is_float_spec,
    moves_values,
    operands,
    origin,
    slot_spec,
)
from fxquant.graph.regions import find_regions

if TYPE_CHECKING:
    from fxquant.config import QuantConfig
    from fxquant.targets import Breach, OperatorRule, Target

_SOFTMAX = frozenset({"softmax", "log_softmax", "softmin"})
_WITHOUT_WEIGHT_GRID = frozenset({"lstm", "gru", "rnn"})


@dataclass
class GridPlan:
    """One grid: the slots that lie on it and its type."""

    slots: list[Slot]
    bitwidth: int
    signed: bool
    symmetric: bool
    fixed: tuple[float, float] | None = None
    entry: bool = False  # its values enter the quantized part here


@dataclass(frozen=True)
class WeightPlan:
    """The grid of a weight and of the bias beside it."""

    shape: tuple[int, ...]
    bitwidth: int
    signed: bool
    symmetric: bool
    bias_input: Slot | None
    own_bias: bool = False  # the bias has a step of its own instead of the accumulator's


@dataclass
class Plan:
    """Grids of activations and weights, and the reason of every decision by node.

    Attributes:
        inside: nodes that may read integers; None where the whole graph may.
        borders: slots outside of the regions whose values get a grid for readers inside only.
        kernels: operators that the target computes, with their rules.
        absorbed: operators that are computed inside the kernel of another one.
        breaches: constraints of the target that operators do not keep.
    """

    inside: frozenset[fx.Node] | None = None
    borders: set[Slot] = field(default_factory=set)
    grids: list[GridPlan] = field(default_factory=list)
    weights: dict[fx.Node, WeightPlan] = field(default_factory=dict)
    kernels: dict[fx.Node, OperatorRule] = field(default_factory=dict)
    absorbed: dict[fx.Node, fx.Node] = field(default_factory=dict)
    breaches: dict[fx.Node, Breach] = field(default_factory=dict)
    why: dict[fx.Node, list[str]] = field(default_factory=dict)


def make_plan(gm: fx.GraphModule, config: QuantConfig, target: Target) -> Plan:
    """Decide every grid of a prepared graph, inside its regions if it has stubs.

    Args:
        gm: prepared graph with recorded specs.
        config: what the user asks for.
        target: what the runtime can do.

    Returns:
        The plan; nothing is changed.

    Raises:
        RegionError: the stubs of the graph do not mark whole regions.
        ConfigError: FXQ262, the target cannot compute what the configuration asks for.
    """
    target.check(config)
    return _Planner(gm, config, target).run()


@dataclass
class _Need:
    """What asks for a slot's grid."""

    seconds: int = 0  # uses as second operand of a product
    others: int = 0


class _Planner:
    def __init__(self, gm: fx.GraphModule, config: QuantConfig, target: Target) -> None:
        self.gm, self.config, self.target = gm, config, target
        self.rows = {n: ops.row_of(n, gm) for n in gm.graph.nodes}
        self.regions = find_regions(gm)
        self.plan = Plan(inside=self.regions.inside if self.regions else None)
        self.rules: dict[fx.Node, OperatorRule] = {}
        self.absorbed: dict[fx.Node, fx.Node] = {}
        self.tails: dict[fx.Node, fx.Node] = {}  # where a kernel that takes in others writes
        self.needs: dict[Slot, _Need] = {}
        self.parent: dict[Slot, Slot] = {}
        self.kept = chosen_nodes(gm, config.keep_float)

    def run(self) -> Plan:
        for node in reversed(self.gm.graph.nodes):
            self._classify(node)
        for node in self.gm.graph.nodes:
            self._demote(node)
        for activation, node in self.absorbed.items():
            if node not in self.rules:
                continue
            self.plan.why[activation] = [f"it is computed inside the kernel of {node.name}"]
        self.plan.kernels = self.rules
        self.plan.absorbed = {a: n for a, n in self.absorbed.items() if n in self.rules}
        for node in self.gm.graph.nodes:
            self._ask(node)
        self._ask_ends()
        self._group()
        self._weights()
        return self.plan

    def _note(self, node: fx.Node, text: str) -> None:
        self.plan.why.setdefault(node, []).append(text)

    # 1. which operators are integer ----------------------------------------------------------

    def _classify(self, node: fx.Node) -> None:
        row = self.rows[node]
        if row is None or node.op != "call_module":
            return
        self._find_absorber(node, row)
        if row.grid_for(ops.arguments(node, self.gm)) is ops.Grid.SAME:
            self._note(node, f"{row.name} only moves values: it keeps its producer's grid")
            return
        reason = self._refusal(node, row)
        if reason is None:
            self._extend_kernel(node, row)
            self.rules[node] = self.target.operators[row.name]
            self._note(node, f"{row.name} is computed in integers on {self.target.name}")
        else:
            self._note(node, reason)

    def _find_absorber(self, node: fx.Node, row: ops.Op) -> None:
        """Note the activation that is computed inside this operator's kernel."""
        absorbs = row.absorbs.intersection(self.target.absorbs)
        user = next(iter(node.users), None)
        after = self.rows.get(user) if user is not None and len(node.users) == 1 else None
        listed = row.name in self.target.operators
        if user is not None and after is not None and listed and after.name in absorbs:
            self.absorbed[user] = node
            self.tails[node] = user

    def _extend_kernel(self, node: fx.Node, row: ops.Op) -> None:
        """Let a kernel take in what follows it in a supergroup of the target."""
        chain: tuple[str, ...] = (row.name,)
        tail = node
        if node in self.tails:
            self.rules.pop(self.tails[node], None)
        while len(tail.users) == 1:
            user = next(iter(tail.users))
            after = self.rows.get(user)
            if after is None or after.name not in self.target.followers(chain):
                return
            chain, tail = (*chain, after.name), user
            self.absorbed[user], self.tails[node] = node, user
            self.rules.pop(user, None)

    def _refusal(self, node: fx.Node, row: ops.Op) -> str | None:
        """Why the operator stays in floating point, or None."""
        if self._is_outside(node):
            return "it lies outside of the quantized regions"
        if node in self.kept:
            return "it is kept in floating point by the configuration"
        rule = self.target.operators.get(row.name)
        if rule is None:
            return f"{row.name} is computed in floating point on {self.target.name}"
        spec = node.meta.get("spec")
        if not is_float_spec(spec):
            return f"{row.name} does not make floating-point values here"
        breach = rule.breach(ops.arguments(node, self.gm))
        if breach is not None:
            self.plan.breaches[node] = breach
            return str(breach)
        if rule.elementwise:
            return self._elementwise_refusal(node)
        return None

    def _elementwise_refusal(self, node: fx.Node) -> str | None:
        found = list(operands(node, self.gm))
        row = self.rows[node]
        if row is None or len(found) < len(row.inputs):
            return "one operand is a number, for which there is no integer kernel"
        if self._feeds_softmax_only(node):
            return "only a softmax reads it, and softmax is computed in floating point"
        if any(self._is_unbounded(n) for _, n in found):
            return "an operand is a constant without a finite range (a mask)"
        return None

    def _demote(self, node: fx.Node) -> None:
        """Take back a sum or product none of whose operands comes from integers.

        Makers come before readers here, so what is taken back counts for the nodes after it.
        """
        rule = self.rules.get(node)
        if rule is None or not rule.elementwise:
            return
        if not any(self._is_near_integer(n) for _, n in operands(node, self.gm)):
            del self.rules[node]
            reason = "its operands are made in floating point: a grid would only cost accuracy"
            self.plan.why[node] = [reason]

    def _feeds_softmax_only(self, node: fx.Node) -> bool:
        """All readers, through moves and floating-point arithmetic, are softmaxes."""
        users = list(node.users)
        return bool(users) and all(self._leads_to_softmax(u) for u in users)

    def _leads_to_softmax(self, user: fx.Node) -> bool:
        row = self.rows.get(user)
        if row is None:
            return False
        if row.name in _SOFTMAX:
            return True
        passes = row.name in ("add", "mul", "sub", "div", "masked_fill", "where")
        passes = passes or moves_values(user, self.gm) is not None
        return passes and user not in self.rules and self._feeds_softmax_only(user)

    def _is_unbounded(self, node: fx.Node) -> bool:
        maker = origin(node, self.gm)[0]
        constant = constant_of(maker, self.gm)
        if constant is not None:
            return not bool(torch.isfinite(constant).all())
        row = self.rows.get(maker)
        return row is not None and row.grid is ops.Grid.FLOAT

    def _is_near_integer(self, node: fx.Node) -> bool:
        """Made by an integer kernel, or by one function of such a value."""
        maker = origin(node, self.gm)[0]
        if self._is_integer(maker):
            return True
        row = self.rows.get(maker)
        if row is None or len(row.inputs) != 1:
            return False
        return any(self._is_integer(origin(n, self.gm)[0]) for _, n in operands(maker, self.gm))

    def _is_integer(self, node: fx.Node) -> bool:
        """Whether a kernel makes the value from integers; a table look-up does not."""
        row = self.rows.get(node)
        return node in self.rules and row is not None and row.name != "embedding"

    # 2. which slots need a grid --------------------------------------------------------------

    def _ask(self, node: fx.Node) -> None:
        rule, row = self.rules.get(node), self.rows[node]
        if rule is None or row is None:
            return
        for name, operand in operands(node, self.gm):
            second = rule.second == "symmetric" and name == row.inputs[1]
            self._need(operand, second=second, reader=node)
        if rule.output == "required":
            owner = self.tails.get(node, node)
            slot = (owner, 0)
            self.needs.setdefault(slot, _Need()).others += 1
            self._note(owner, f"its output has a grid: {row.name} writes integers")
            if owner is not node:
                self._note(node, f"its output is float: the kernel takes in {owner.name}")
        if row.grid is ops.Grid.SHARED or row.name in self.target.shares:
            self._share(node)

    def _is_outside(self, node: fx.Node) -> bool:
        return self.regions is not None and not self.regions.holds(node)

    def _origin(self, operand: fx.Node) -> Slot:
        """Where a value was made; for one that enters a region, the border."""
        slot = origin(operand, self.gm, self._is_outside)
        if self.regions is not None and slot[0] not in self.regions.inside | self.regions.begins:
            self.plan.borders.add(slot)
        return slot

    def _need(self, operand: fx.Node, *, second: bool, reader: fx.Node) -> None:
        slot = self._origin(operand)
        need = self.needs.setdefault(slot, _Need())
        if second:
            need.seconds += 1
        else:
            need.others += 1
        self._note(slot[0], f"its output has a grid: {reader.name} reads it in integers")

    def _ask_ends(self) -> None:
        """What leaves a region, and on request the graph, is an integer."""
        ends = set(self.regions.ends) if self.regions else set()
        if self.config.quantize_outputs and not self.regions:
            ends.add(self.gm.graph.output_node())
        for end in ends:
            for node in end.all_input_nodes:
                if is_float_spec(node.meta.get("spec")):
                    self._need(node, second=False, reader=end)

    # 3. and 4. grids -------------------------------------------------------------------------

    def _find(self, slot: Slot) -> Slot:
        while self.parent.get(slot, slot) != slot:
            slot = self.parent[slot]
        return slot

    def _share(self, node: fx.Node) -> None:
        """Put a concatenation and its operands on one grid, unless that would cost a kernel.

        A kernel takes in a ReLU only while zero is the smallest integer. On one grid with values of
        both signs it is not, and the convolution would run in floating point; the concatenation
        rescales its operands instead.
        """
        slots = [self._origin(operand) for _, operand in operands(node, self.gm)]
        clipped = [s for s in slots if s[0] in self.absorbed]
        if clipped and len(clipped) < len(slots) and not self._must_share(node):
            self._note(
                node, f"it rescales: {clipped[0][0].name} must keep zero as smallest integer"
            )
            return
        for slot in slots:
            a, b = self._find(slot), self._find((node, 0))
            if a != b:
                self.parent[b] = a
                self._note(slot[0], f"shares its grid with {node.name}")

    def _must_share(self, node: fx.Node) -> bool:
        row = self.rows[node]
        return row is not None and row.name in self.target.shares

    def _group(self) -> None:
        groups: dict[Slot, list[Slot]] = {}
        for slot in self.needs:
            if is_float_spec(slot_spec(slot)):
                groups.setdefault(self._find(slot), []).append(slot)
        self.plan.grids = [self._grid(slots) for slots in groups.values()]

    def _grid(self, slots: list[Slot]) -> GridPlan:
        grid, config = self.target.activation, self.config
        bitwidth = config.activation_bitwidth or grid.bitwidth
        wanted = config.activation_symmetric
        symmetric = grid.symmetric if wanted is None else wanted
        if self._only_second(slots):
            self._note(slots[0][0], "symmetric: only second operands of products read it")
            return GridPlan(slots, bitwidth, signed=True, symmetric=True)
        fixed = self._fixed(slots[0]) if len(slots) == 1 else None
        return GridPlan(slots, bitwidth, signed=grid.signed or symmetric, symmetric=symmetric,
                        fixed=fixed, entry=any(map(self._is_entry, slots)))  # fmt: skip

    def _is_entry(self, slot: Slot) -> bool:
        begins = self.regions.begins if self.regions else frozenset()
        return slot[0].op == "placeholder" or slot[0] in begins or slot in self.plan.borders

    def _only_second(self, slots: list[Slot]) -> bool:
        needs = [self.needs[s] for s in slots]
        return all(n.others == 0 for n in needs) and any(n.seconds for n in needs)

    def _fixed(self, slot: Slot) -> tuple[float, float] | None:
        row = self.rows.get(slot[0])
        return row.fixed if row is not None and row.grid is ops.Grid.FIXED else None

    # weights ---------------------------------------------------------------------------------

    def _weights(self) -> None:
        for node in self.gm.graph.nodes:
            row, rule = self.rows[node], self.rules.get(node)
            if row is None or rule is None or row.weight_axis is None:
                continue
            weight = ops.arguments(node, self.gm).get("weight")
            if isinstance(weight, torch.Tensor) and row.name not in _WITHOUT_WEIGHT_GRID:
                self.plan.weights[node] = self._weight(node, row, rule, weight)

    def _weight(
        self, node: fx.Node, row: ops.Op, rule: OperatorRule, weight: torch.Tensor
    ) -> WeightPlan:
        config, grid = self.config, self.target.weight
        per_channel = grid.per_channel if config.per_channel is None else config.per_channel
        axis = row.weight_axis if per_channel and rule.per_channel else None
        shape = () if axis is None else tuple(
            n if i == axis else 1 for i, n in enumerate(weight.shape)
        )  # fmt: skip
        symmetric = config.weight_symmetric
        symmetric = grid.symmetric if symmetric is None else symmetric
        own_bias = self.target.bias.scale == "own"
        kind = "per tensor" if axis is None else f"per channel on axis {axis}"
        self._note(node, f"its weight has a grid {kind}")
        return WeightPlan(
            shape=shape,
            bitwidth=config.weight_bitwidth or grid.bitwidth,
            signed=grid.signed,
            symmetric=symmetric,
            bias_input=None if own_bias else self._bias_input(node),
            own_bias=own_bias and self._bias_input(node) is not None,
        )

    def _bias_input(self, node: fx.Node) -> Slot | None:
        """The slot whose scale the bias grid is built on."""
        given: dict[str, Any] = ops.arguments(node, self.gm)
        first = given.get("input")
        has_bias = isinstance(given.get("bias"), torch.Tensor)
        if not has_bias or not self.config.quantize_bias or not isinstance(first, fx.Node):
            return None
        return self._origin(first)
