"""Whether the rules of a configuration changed something: what a plan says against what was asked.

A rule that is possible for an operator may still come to nothing: the output has no grid, the
weight is stored in floating point, the layer lies outside of the regions. What was typed and has no
effect is an error that says why. A rule for many operators counts as kept when one of them keeps
it; files of other tools are meant for many networks, there it is reported only.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant import ops
from fxquant.errors import ConfigError
from fxquant.graph.selectors import chosen_nodes
from fxquant.placement.dataflow import moves_values

if TYPE_CHECKING:
    from fxquant.placement.config_rules import Settings
    from fxquant.placement.plan import Plan, PlannedQuantizer

log = logging.getLogger("fxquant")


def check_effects(gm: fx.GraphModule, settings: Settings, plan: Plan) -> None:
    """Refuse rules that change nothing.

    Args:
        gm: prepared graph.
        settings: the rules.
        plan: what became of them.

    Raises:
        ConfigError: FXQ232, a rule, a name in `keep_float` or a setting of the graph's ends has no
            effect; the reason is given.
    """
    work = _Effects(gm, settings, plan)
    kept: dict[str, bool] = {}
    first: dict[str, tuple[fx.Node, str]] = {}
    for node, key, setting in settings.given():
        kept[setting.key] = kept.get(setting.key, False) or work.keeps(node, key, setting.value)
        first.setdefault(setting.key, (node, key))
    for where in (w for w, good in kept.items() if not good):
        node, key = first[where]
        _tell(settings, where, node, *work.reason(node, key))
    for pattern in settings.config.keep_float:
        nodes = chosen_nodes(gm, (pattern,))
        if all(moves_values(n, gm) is not None for n in nodes):
            why = "it only moves values and computes nothing"
            _tell(settings, f"keep_float: {pattern}", next(iter(nodes)), why, _PRODUCER)
    if plan.inside is not None:
        ends = (("quantize_inputs", False), ("quantize_outputs", True))
        for name in (n for n, value in ends if getattr(settings.config, n) is value):
            why = "the network's stubs say where quantization begins and ends"
            _tell(settings, name, None, why, "take it out, or move the stubs")
    _check_groups(gm, settings, plan)


_OUT = "take the key out"
_PRODUCER = "name the producer of its values"


def _tell(settings: Settings, where: str, node: fx.Node | None, why: str, fix: str) -> None:
    if settings.config.is_foreign:
        log.info("%s changes nothing: %s", where, why)
        return
    raise ConfigError("FXQ232", f"{where} changes nothing: {why}", at=node, fix=fix)


def _check_groups(gm: fx.GraphModule, settings: Settings, plan: Plan) -> None:
    """Report supergroups that no part of the network is made of."""
    chains: dict[fx.Node, tuple[str, ...]] = {}
    for node in gm.graph.nodes:
        row = ops.row_of(node, gm)
        if row is not None:
            head = plan.absorbed.get(node, node)
            chains[head] = (*chains.get(head, ()), row.name)
    level = logging.INFO if settings.config.is_foreign else logging.WARNING
    for i, group in enumerate(settings.config.supergroups):
        if not any(chain[: len(group)] == group for chain in chains.values()):
            log.log(level, "supergroups.%d: no kernel computes %s here", i, " -> ".join(group))


class _Effects:
    def __init__(self, gm: fx.GraphModule, settings: Settings, plan: Plan) -> None:
        self.gm, self.settings, self.plan = gm, settings, plan
        self.grids: dict[fx.Node, PlannedQuantizer] = {}
        self.slots = {slot for grid in plan.grids for slot in grid.slots}
        for grid in plan.grids:
            for node, _ in grid.slots:
                self.grids.setdefault(node, grid)

    def keeps(self, node: fx.Node, key: str, value: Any) -> bool:
        """Whether the plan is as a rule asks."""
        part, _, name = key.partition(".")
        if part == "output":
            return self._output(node, name, value)
        if part == "weight":
            return self._weight(node, name, value)
        if part == "bias":
            return self._has_bias(node) is bool(value)
        if not value:
            return True
        free = node not in self.plan.kernels and node not in self.plan.absorbed
        return free and moves_values(node, self.gm) is None

    def _output(self, node: fx.Node, name: str, value: Any) -> bool:
        grid = self.grids.get(node)
        if name == "quantized":
            return (grid is not None) is bool(value)
        if grid is None:
            return False
        if name in ("min", "max"):
            return grid.fixed is not None and grid.fixed[name == "max"] == value
        return bool(getattr(grid, name) == value)

    def _weight(self, node: fx.Node, name: str, value: Any) -> bool:
        weight = self.plan.weights.get(node)
        if name == "quantized":
            return (weight is not None) is bool(value)
        if weight is None:
            return False
        if name == "per_channel":
            return (weight.shape != ()) is bool(value)
        return bool(getattr(weight, name) == value)

    def _has_bias(self, node: fx.Node) -> bool:
        weight = self.plan.weights.get(node)
        return weight is not None and (weight.own_bias or weight.bias_input in self.slots)

    def reason(self, node: fx.Node, key: str) -> tuple[str, str]:
        """Why a rule comes to nothing, and what to do."""
        part, _, name = key.partition(".")
        noted = self.plan.why.get(node, [])
        because = f" ({noted[-1]})" if noted else ""
        if part == "keep_float":
            return "it only moves values and computes nothing", _PRODUCER
        if part == "output" and self.grids.get(node) is not None:
            return "it shares its grid with values that the rule is not for", "name the layers"
        if part == "output":
            outside = self.plan.inside is not None and node not in self.plan.inside
            if outside:
                return "it lies outside of the quantized regions", "choose the region wider"
            fix = _OUT if name == "quantized" else "add quantized: true to the rule, or " + _OUT
            return f"nothing reads its output in integers{because}", fix
        if part == "weight" and node in self.plan.weights:
            return "its weight has one grid for the whole tensor", _OUT
        if part == "weight":
            return f"its weight is stored in floating point{because}", _OUT
        return f"its bias has no grid: that needs one of its input and weight{because}", _OUT
