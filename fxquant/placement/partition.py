"""Which operators of a graph the target computes in integers, and which kernels take in others.

An operator is *integer* when the target lists it with these arguments. Elementwise operators are
cheap in floating point: their integer kernels pay only where every operand lies on a grid anyway
and an integer operator reads the result. Elsewhere a grid costs accuracy and gains nothing, as in
the residual stream of a transformer: its linear layers write floats, and a norm reads the sums.
Concatenations of floating-point values that no integer operator reads stay floating point as well,
and so does what only a softmax reads. Which values then need a grid is `planner`'s part.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import fx

from fxquant import ops
from fxquant.graph.selectors import chosen_nodes
from fxquant.placement.dataflow import (
    constant_of,
    is_float_spec,
    moves_values,
    operands,
    origin,
)
from fxquant.placement.integer_reads import IntegerReads

if TYPE_CHECKING:
    from fxquant.placement.config_rules import Settings
    from fxquant.placement.regions import Regions
    from fxquant.targets import OperatorRule, Target, Violation


@dataclass
class Classes:
    """What the target computes.

    Attributes:
        kernels: operators that it computes, with their rules.
        absorbed: operators that are computed inside the kernel of another one.
        kernel_ends: kernels that take in others -> the operator with whose values they end.
        violations: constraints of the target that operators do not keep.
        why: reasons by node.
    """

    kernels: dict[fx.Node, OperatorRule] = field(default_factory=dict)
    absorbed: dict[fx.Node, fx.Node] = field(default_factory=dict)
    kernel_ends: dict[fx.Node, fx.Node] = field(default_factory=dict)
    violations: dict[fx.Node, Violation] = field(default_factory=dict)
    why: dict[fx.Node, list[str]] = field(default_factory=dict)

    def note(self, node: fx.Node, text: str) -> None:
        """Add a reason."""
        self.why.setdefault(node, []).append(text)


def classify(
    gm: fx.GraphModule, settings: Settings, target: Target, regions: Regions | None
) -> Classes:
    """Decide which operators are computed in integers.

    Args:
        gm: prepared graph with recorded specs.
        settings: what the configuration says about each node.
        target: what the runtime can do.
        regions: what may be quantized, or None for everything.
    """
    return _Classifier(gm, settings, target, regions).run()


class _Classifier:
    def __init__(
        self, gm: fx.GraphModule, settings: Settings, target: Target, regions: Regions | None
    ) -> None:
        self.gm, self.settings, self.target, self.regions = gm, settings, target, regions
        self.rows = {n: ops.row_of(n, gm) for n in gm.graph.nodes}
        self.kept = chosen_nodes(gm, settings.config.keep_float)
        self.classes = Classes()
        self.reads = IntegerReads(gm, self.classes.kernels, settings, regions)
        self.rules, self.absorbed = self.classes.kernels, self.classes.absorbed
        self.kernel_ends = self.classes.kernel_ends

    def run(self) -> Classes:
        for node in reversed(self.gm.graph.nodes):
            self._classify(node)
        for node in self.gm.graph.nodes:
            self._demote_by_operands(node)
        for node in reversed(self.gm.graph.nodes):
            self._demote_by_consumers(node)
        self._demote_unread()
        for activation, node in self.absorbed.items():
            if node in self.rules:
                reason = f"it is computed inside the kernel of {node.name}"
                self.classes.why[activation] = [reason]
        return self.classes

    def _classify(self, node: fx.Node) -> None:
        row = self.rows[node]
        if row is None or node.op != "call_module":
            return
        self._find_absorber(node, row)
        if row.grid_for(ops.arguments(node, self.gm)) is ops.Grid.SAME:
            self.classes.note(node, f"{row.name} only moves values: it keeps its producer's grid")
            return
        reason = self._refusal(node, row)
        if reason is None:
            self._extend_kernel(node, row)
            self.rules[node] = self.target.operators[row.name]
            self.classes.note(node, f"{row.name} is computed in integers on {self.target.name}")
        else:
            self.classes.note(node, reason)

    def _find_absorber(self, node: fx.Node, row: ops.Op) -> None:
        """Note the activation that is computed inside this operator's kernel."""
        absorbs = row.absorbs.intersection(self.target.absorbs)
        user = next(iter(node.users), None)
        after = self.rows.get(user) if user is not None and len(node.users) == 1 else None
        listed = row.name in self.target.operators
        if user is None or after is None or self._is_kept(user):
            return
        if listed and after.name in absorbs:
            self.absorbed[user] = node
            self.kernel_ends[node] = user

    def _extend_kernel(self, node: fx.Node, row: ops.Op) -> None:
        """Let a kernel take in what follows it in a supergroup of the target."""
        chain: tuple[str, ...] = (row.name,)
        tail = node
        if node in self.kernel_ends:
            self.rules.pop(self.kernel_ends[node], None)
        while len(tail.users) == 1:
            user = next(iter(tail.users))
            after = self.rows.get(user)
            follows = after is not None and after.name in self.target.followers(chain)
            if after is None or not follows or self._is_kept(user):
                return
            chain, tail = (*chain, after.name), user
            self.absorbed[user], self.kernel_ends[node] = node, user
            self.rules.pop(user, None)

    def _refusal(self, node: fx.Node, row: ops.Op) -> str | None:
        """Why the operator stays in floating point, or None."""
        if self.regions is not None and not self.regions.holds(node):
            return "it lies outside of the quantized regions"
        if self._is_kept(node):
            by = self.settings.of(node, "keep_float").key or "keep_float"
            return f"it is kept in floating point by the configuration: {by}"
        rule = self.target.operators.get(row.name)
        if rule is None:
            return f"{row.name} is computed in floating point on {self.target.name}"
        spec = node.meta.get("spec")
        if not is_float_spec(spec):
            return f"{row.name} does not make floating-point values here"
        violation = rule.violation(ops.arguments(node, self.gm))
        if violation is not None:
            self.classes.violations[node] = violation
            return str(violation)
        return self._elementwise_refusal(node) if rule.elementwise else None

    def _is_kept(self, node: fx.Node) -> bool:
        """Whether the configuration keeps it in floating point; a rule decides before the list."""
        setting = self.settings.of(node, "keep_float")
        return node in self.kept if setting.value is None else bool(setting.value)

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

    def _demote_by_operands(self, node: fx.Node) -> None:
        """Take back an elementwise operator with an operand that has a grid for its sake only.

        Producers come before consumers here, so what is taken back counts for the nodes after it.
        """
        if not self._is_elementwise(node):
            return
        made = (n for _, n in operands(node, self.gm) if not self._has_grid_anyway(n, node))
        first = next(made, None)
        if first is not None:
            self._demote(node, f"{origin(first, self.gm)[0].name} needs no grid but for it")

    def _demote_by_consumers(self, node: fx.Node) -> None:
        """Take back an elementwise operator whose result only floating-point operators read.

        Consumers come before producers here.
        """
        if self._is_elementwise(node) and not self.reads.in_integers(self._end(node)):
            self._demote(node, "only floating-point operators read its result")

    def _demote(self, node: fx.Node, reason: str) -> None:
        del self.rules[node]
        self.classes.why[node] = [f"it stays in floating point: {reason}"]

    def _is_elementwise(self, node: fx.Node) -> bool:
        rule = self.rules.get(node)
        return rule is not None and rule.elementwise

    def _end(self, node: fx.Node) -> fx.Node:
        return self.kernel_ends.get(node, node)

    def _demote_unread(self) -> None:
        """Take back what is in integers for its consumers, where none of them reads integers.

        Heads concatenate coordinates, sizes and scores: on one grid, only the largest of them would
        keep their digits, and operands that share the grid would lose them for all their consumers.
        """
        unread: set[fx.Node] = set()
        for node in reversed(self.gm.graph.nodes):
            rule = self.rules.get(node)
            read = self.reads.in_integers(node, but=unread.__contains__)
            if rule is not None and rule.for_consumers and not read:
                unread.add(node)
        for node in [n for n in self.gm.graph.nodes if n in unread]:
            made = [origin(n, self.gm)[0] for _, n in operands(node, self.gm)]
            if any(n not in self.rules and self.absorbed.get(n) not in self.rules for n in made):
                del self.rules[node]
                reason = "it has floating-point operands and no integer consumer: it needs no grid"
                self.classes.why[node] = [reason]

    def _feeds_softmax_only(self, node: fx.Node) -> bool:
        """All consumers, through moves and floating-point arithmetic, are softmaxes."""
        users = list(node.users)
        return bool(users) and all(self._leads_to_softmax(u) for u in users)

    def _leads_to_softmax(self, user: fx.Node) -> bool:
        row = self.rows.get(user)
        if row is None:
            return False
        if row.scores is ops.Scores.NORMALIZED:
            return True
        passes = row.scores is ops.Scores.PASSED_ON or moves_values(user, self.gm) is not None
        return passes and user not in self.rules and self._feeds_softmax_only(user)

    def _is_unbounded(self, node: fx.Node) -> bool:
        producer = origin(node, self.gm)[0]
        constant = constant_of(producer, self.gm)
        if constant is not None:
            return not bool(torch.isfinite(constant).all())
        row = self.rows.get(producer)
        return row is not None and row.grid is ops.Grid.FLOAT

    def _has_grid_anyway(self, node: fx.Node, consumer: fx.Node) -> bool:
        """Whether an operand of `consumer` lies on a grid that is not there for its sake only.

        The kernel that makes it writes integers, or it is one function of such a value; another
        kernel reads it in integers; it is a constant, rounded before the network runs; or it comes
        from outside of the graph or of a region, where values become integers.
        """
        producer = origin(node, self.gm)[0]
        enters = self.regions is not None and not self.regions.holds(producer)
        known = enters or producer.op in ("get_attr", "placeholder")
        if known or self._writes_integers(producer):
            return True
        if self.reads.in_integers(producer, but=self._is_elementwise):
            return True
        row = self.rows.get(producer)
        if row is None or len(row.inputs) != 1:
            return False
        above = (origin(n, self.gm)[0] for _, n in operands(producer, self.gm))
        return any(self._writes_integers(n) for n in above)

    def _writes_integers(self, node: fx.Node) -> bool:
        """Whether the kernel that makes a value can write integers only."""
        rule = self.rules.get(self.absorbed.get(node, node))
        return rule is not None and rule.output == "required"
