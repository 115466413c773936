"""The plan of a placement: which values get a grid, which of them share one, and why.

Why a plan apart from the pass: what is decided can be shown and tested before a single module is
touched, and the pass that follows has nothing left to decide.

The rules, in order:

1. Which operators are integer is `graph.classify`'s answer.
2. The operands of integer operators need a grid, and so does an output that the kernel can write as
   integers only. An activation that the kernel absorbs takes the output's place.
3. The grid belongs to the slot where the values were made (`dataflow.origin`); consumers in
   floating point, such as the shortcut beside a linear layer, read floats before their grid.
4. Concatenations put their operands and their output on one grid.
5. The configuration's rules add grids, take them away and change their type (`graph.settings`).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxquant import ops
from fxquant.errors import ConfigError
from fxquant.placement.config_rules import Setting, Settings, check_supergroups
from fxquant.placement.dataflow import (
    Slot,
    is_float_spec,
    is_sequence,
    operands,
    origin,
    slot_spec,
)
from fxquant.placement.integer_reads import IntegerReads
from fxquant.placement.partition import classify
from fxquant.placement.plan import Plan, PlannedQuantizer, WeightPlan
from fxquant.placement.ranges_of_weights import Ranges, ranges_of
from fxquant.placement.regions import find_regions
from fxquant.placement.rule_effects import check_effects
from fxquant.placement.shared_weights import shared_channels
from fxquant.placement.token_grids import choose_by_token

if TYPE_CHECKING:
    from fxquant.config import QuantConfig
    from fxquant.targets import OperatorRule, Target


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
        SelectorError: FXQ213, the configuration names layers that are not there.
        ConfigError: FXQ222 to FXQ226 its rules are impossible or disagree, FXQ232 a rule changes
            nothing, FXQ262 the target cannot compute what it asks for.
    """
    target.check(config)
    check_supergroups(config)
    if config.supergroups_only:
        target = target.model_copy(update={"supergroups": config.supergroups, "absorbs": ()})
    elif config.supergroups:
        target = target.model_copy(update={"supergroups": target.supergroups + config.supergroups})
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
        self.settings = Settings(gm, config, target)
        classes = classify(gm, self.settings, target, self.regions)
        self.rules, self.absorbed, self.kernel_ends = (
            classes.kernels,
            classes.absorbed,
            classes.kernel_ends,
        )
        self.plan = Plan(
            inside=self.regions.inside if self.regions else None,
            kernels=self.rules,
            absorbed={a: n for a, n in self.absorbed.items() if n in self.rules},
            violations=classes.violations,
            why=classes.why,
        )
        chains: dict[fx.Node, list[fx.Node]] = {}
        for node in gm.graph.nodes:
            head = self.absorbed.get(node, node)
            if head in self.kernel_ends and head in self.rules:
                chains.setdefault(self.kernel_ends[head], []).append(node)
        for node, reasons in self.settings.join(chains).items():
            self.plan.why.setdefault(node, []).extend(reasons)
        self.reads = IntegerReads(gm, self.rules, self.settings, self.regions)
        self.needs: dict[Slot, _Need] = {}
        self.parent: dict[Slot, Slot] = {}

    def run(self) -> Plan:
        for node in self.gm.graph.nodes:
            self._ask(node)
        self._ask_ends()
        self._ask_rules()
        self._group()
        self._split()
        choose_by_token(self.gm, self.plan, self.reads)
        self._weights()
        check_effects(self.gm, self.settings, self.plan)
        return self.plan

    def _note(self, node: fx.Node, text: str) -> None:
        self.plan.why.setdefault(node, []).append(text)

    # which slots need a grid -----------------------------------------------------------------

    def _ask(self, node: fx.Node) -> None:
        rule, row = self.rules.get(node), self.rows[node]
        if rule is None or row is None:
            return
        for name, operand in operands(node, self.gm):
            second = rule.second == "symmetric" and name == row.inputs[1]
            self._need(operand, second=second, consumer=node)
        if rule.output == "required":
            owner = self.kernel_ends.get(node, node)
            self.needs.setdefault((owner, 0), _Need()).others += 1
            self._note(owner, f"its output has a grid: {row.name} writes integers")
            if owner is not node:
                self._note(node, f"its output is float: the kernel takes in {owner.name}")
        if row.grid is ops.Grid.SHARED or row.name in self.target.shares:
            self._share(node)

    def _is_outside(self, node: fx.Node) -> bool:
        return self.regions is not None and not self.regions.holds(node)

    def _origin(self, operand: fx.Node) -> Slot:
        """Where a value was made; for one that enters a region, the boundary."""
        slot = origin(operand, self.gm, self._is_outside)
        if self.regions is not None and slot[0] not in self.regions.inside | self.regions.begins:
            self.plan.boundaries.add(slot)
        return slot

    def _need(self, operand: fx.Node, *, second: bool, consumer: fx.Node) -> None:
        slot = self._origin(operand)
        need = self.needs.setdefault(slot, _Need())
        need.seconds += second
        need.others += not second
        self._note(slot[0], f"its output has a grid: {consumer.name} reads it in integers")

    def _ask_ends(self) -> None:
        """What leaves a region, and on request the graph, is an integer."""
        ends = set(self.regions.ends) if self.regions else set()
        if self.config.quantize_outputs and not self.regions:
            ends.add(self.gm.graph.output_node())
        for end in ends:
            for node in end.all_input_nodes:
                if is_float_spec(node.meta.get("spec")):
                    self._need(node, second=False, consumer=end)

    # grids -----------------------------------------------------------------------------------

    def _find(self, slot: Slot) -> Slot:
        while self.parent.get(slot, slot) != slot:
            slot = self.parent[slot]
        return slot

    def _share(self, node: fx.Node) -> None:
        """Put a concatenation and its operands on one grid, unless that would cost a kernel.

        A kernel takes in a ReLU only while zero is the smallest integer. On one grid with values of
        both signs it is not, and the convolution would run in floating point; the concatenation
        rescales its operands instead. So it does where others read a gate too, whose range is
        bounded: beside values of hundreds, all of a sigmoid is one integer or two.
        """
        slots = [self._origin(operand) for _, operand in operands(node, self.gm)]
        clipped = [s for s in slots if s[0] in self.absorbed]
        if clipped and len(clipped) < len(slots) and not self._must_share(node):
            self._note(
                node, f"it rescales: {clipped[0][0].name} must keep zero as smallest integer"
            )
            return
        gates = [s for s in slots if self._is_gate(s[0])]
        if gates and len(gates) < len(slots) and not self._must_share(node):
            self._note(node, f"it rescales: others read {gates[0][0].name}, whose range is bounded")
            return
        for slot in slots:
            a, b = self._find(slot), self._find((node, 0))
            if a != b:
                self.parent[b] = a
                self._note(slot[0], f"shares its grid with {node.name}")

    def _is_gate(self, node: fx.Node) -> bool:
        """Whether a value is bounded by mathematics and has several consumers."""
        row = self.rows.get(node)
        return row is not None and row.grid is ops.Grid.FIXED and len(node.users) > 1

    def _must_share(self, node: fx.Node) -> bool:
        row = self.rows[node]
        return row is not None and row.name in self.target.shares

    def _ask_rules(self) -> None:
        """Grids that the configuration asks for beside those that are needed."""
        for node in self.gm.graph.nodes:
            setting = self.settings.of(node, "output.quantized")
            if not setting.value or self._is_outside(node):
                continue
            tail = self.kernel_ends.get(node, node) if node in self.rules else node
            if tail is not node and not self.settings.is_layer(setting):
                continue  # of another tool's file: see `Settings.join`
            self.needs.setdefault((node, 0), _Need()).others += 1
            self._note(node, f"its output has a grid: {setting.key} asks for it")

    def _refused(self, slot: Slot) -> str | None:
        """The key of the configuration that takes a slot's grid away, or None."""
        setting = self.settings.of(slot[0], "output.quantized")
        if setting.value is not None:
            return None if setting.value else setting.key
        if slot[0].op == "placeholder":
            return None if self.config.quantize_inputs else "quantize_inputs"
        return None if self.config.quantize_activations else "quantize_activations"

    def _group(self) -> None:
        groups: dict[Slot, list[Slot]] = {}
        for slot in self.needs:
            if not is_float_spec(slot_spec(slot)):
                continue
            refused = self._refused(slot)
            if refused:
                self._note(slot[0], f"its output has no grid all the same: {refused}")
            else:
                groups.setdefault(self._find(slot), []).append(slot)
        self.plan.grids = [self._grid(slots) for slots in groups.values()]

    def _split(self) -> None:
        """Let float consumers of values that are made in floating point read them as they are."""
        for node, index in (slot for grid in self.plan.grids for slot in grid.slots):
            made_float = node.op == "call_module" and node not in self.rules
            if not made_float or node in self.plan.absorbed or is_sequence(node.meta.get("spec")):
                continue
            others = self.reads.float_users(node)
            asked = self.settings.of(node, "output.quantized").value
            if others and not asked and (node, index) not in self.plan.boundaries:
                self.plan.integer_consumers[node, index] = self.reads.integer_users(node)
                self._note(node, f"{others[0].name} reads it in floating point, before its grid")

    def _grid(self, slots: list[Slot]) -> PlannedQuantizer:
        grid, config = self.target.activation, self.config
        bits = self._asked(slots, "bitwidth")
        bitwidth = bits.value or config.activation_bitwidth or grid.bitwidth
        wanted = self._asked(slots, "symmetric").value
        entry = any(map(self._is_entry, slots))
        fixed = self._fixed(slots)
        if self._only_second(slots) and wanted is None:
            self._note(slots[0][0], "symmetric: only second operands of products read it")
            return PlannedQuantizer(slots, bitwidth, signed=True, symmetric=True)
        wanted = config.activation_symmetric if wanted is None else wanted
        symmetric = grid.symmetric if wanted is None else bool(wanted)
        signed = grid.signed or symmetric
        return PlannedQuantizer(
            slots, bitwidth, signed=signed, symmetric=symmetric, fixed=fixed, entry=entry
        )

    def _asked(self, slots: list[Slot], key: str) -> Setting:
        """What the rules ask of a grid; the slots that lie on it must not disagree."""
        found = [w for s in slots if (w := self.settings.of(s[0], f"output.{key}")).key]
        for setting in found:
            if setting.value != found[0].value:
                what = (
                    f"{found[0].key} asks for {found[0].value}, {setting.key} for {setting.value}"
                )
                raise ConfigError("FXQ225", f"{what}: they share one grid", at=slots[0][0],
                                  fix="ask for the same in both, or leave one out")  # fmt: skip
        if not found:
            return Setting()
        for slot in slots:
            self._note(slot[0], f"{key} {found[0].value} of its grid: {found[0].key}")
        return found[0]

    def _is_entry(self, slot: Slot) -> bool:
        begins = self.regions.begins if self.regions else frozenset()
        return slot[0].op == "placeholder" or slot[0] in begins or slot in self.plan.boundaries

    def _only_second(self, slots: list[Slot]) -> bool:
        needs = [self.needs[s] for s in slots]
        return all(n.others == 0 for n in needs) and any(n.seconds for n in needs)

    def _fixed(self, slots: list[Slot]) -> tuple[float | None, float | None] | None:
        row = self.rows.get(slots[0][0]) if len(slots) == 1 else None
        rule = self.rules.get(slots[0][0]) if len(slots) == 1 else None
        natural: tuple[float, float] | tuple[None, None] = (None, None)
        if rule is not None and rule.fixed is not None:
            natural = rule.fixed
        elif row is not None and row.grid is ops.Grid.FIXED and row.fixed is not None:
            natural = row.fixed
        asked = self._end(slots, "min"), self._end(slots, "max")
        found = (
            natural[0] if asked[0] is None else asked[0],
            natural[1] if asked[1] is None else asked[1],
        )
        return None if found == (None, None) else found

    def _end(self, slots: list[Slot], key: str) -> float | None:
        """An end of the range that a rule asks for."""
        free = [s[0].name for s in slots if self.settings.of(s[0], f"output.{key}").value is None]
        setting = self._asked(slots, key)
        if setting.value is None:
            return None
        if free and not self.settings.is_layer(setting):
            # a rule for an operator's values says nothing about those of another one
            self._note(slots[0][0], f"{key} is calibrated all the same: {free[0]} shares the grid")
            return None
        return float(setting.value)

    # weights ---------------------------------------------------------------------------------

    def _weights(self) -> None:
        for node in self.gm.graph.nodes:
            row, rule = self.rows[node], self.rules.get(node)
            if row is None or rule is None or not (rule.weight_grid or row.weight_axis is not None):
                continue
            weight = ops.arguments(node, self.gm).get("weight")
            if not isinstance(weight, torch.Tensor):
                continue
            setting = self._weight_setting(node, "quantized", self.config.quantize_weights)
            if setting.value:
                self.plan.weights[node] = self._weight(node, row, rule, weight)
            else:
                reason = setting.key or "quantize_weights"
                self._note(node, f"its weight is stored in floating point: {reason}")
        for node, other in shared_channels(self.gm, self.plan.weights, self.rules).items():
            if self.settings.of(node, "weight.per_channel").value is None:
                mine, fine = (self.plan.weights[n] for n in (node, other))
                self.plan.weights[node] = replace(mine, shape=fine.shape, blocks=fine.blocks)
                self._note(node, f"its weight has the grid per channel of {other.name}, to be "
                                 "stored once")  # fmt: skip

    def _weight_setting(self, node: fx.Node, key: str, default: Any) -> Setting:
        setting = self.settings.of(node, f"weight.{key}")
        if setting.value is None:
            return Setting(default)
        if key != "quantized":
            self._note(node, f"{key} {setting.value} of its weight: {setting.key}")
        return setting

    def _weight(
        self, node: fx.Node, row: ops.Op, rule: OperatorRule, weight: torch.Tensor
    ) -> WeightPlan:
        config, grid = self.config, self.target.weight
        default = grid.per_channel if config.per_channel is None else config.per_channel
        setting = self._weight_setting(node, "per_channel", default)
        if setting.key and setting.value and not rule.per_channel:
            what = f"{setting.key}: {row.name} takes one grid for its weight on {self.target.name}"
            raise ConfigError("FXQ226", what, at=node, fix="take the key out")
        module = self.gm.get_submodule(str(node.target))
        ranges = ranges_of(module, weight, rule) if setting.value else Ranges()
        symmetric = config.weight_symmetric
        symmetric = grid.symmetric if symmetric is None else symmetric
        own_bias = self.target.bias.scale == "own"
        bias_input = self._bias_input(node)
        self._note(node, f"its weight has a grid {ranges}")
        bitwidth = config.weight_bitwidth or grid.bitwidth
        return WeightPlan(
            shape=ranges.shape,
            blocks=ranges.blocks,
            bitwidth=self._weight_setting(node, "bitwidth", bitwidth).value,
            signed=grid.signed,
            symmetric=self._weight_setting(node, "symmetric", symmetric).value,
            bias_input=None if own_bias else bias_input,
            own_bias=own_bias and bias_input is not None,
        )

    def _bias_input(self, node: fx.Node) -> Slot | None:
        """The slot whose scale the bias grid is built on."""
        given: dict[str, Any] = ops.arguments(node, self.gm)
        first = given.get("input")
        if not isinstance(given.get("bias"), torch.Tensor) or not isinstance(first, fx.Node):
            return None
        setting = self.settings.of(node, "bias.quantized")
        if setting.key:
            self._note(
                node, f"its bias is {'an integer' if setting.value else 'float'}: {setting.key}"
            )
        wanted = self.config.quantize_bias if setting.value is None else setting.value
        return self._origin(first) if wanted else None
