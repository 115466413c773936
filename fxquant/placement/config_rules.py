"""What a configuration says about each node of a graph, and which of its keys says so.

Rules for operator types come before the defaults, globs of layers before operator types, and the
path of a layer before globs. Two globs that ask for different things of one layer are an error.

What one kernel computes has one grid, that of its last operator. A rule for the output of an
operator before the last one moves there (`Settings.join`), as nothing else could keep it.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import fx, nn

from fxquant import ops
from fxquant.errors import ConfigError, SelectorError, nearest
from fxquant.graph.rewriter import label
from fxquant.graph.selectors import computing_nodes, select_in
from fxquant.placement.dataflow import moves_values

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fxquant.config import QuantConfig, Rule
    from fxquant.targets import Target

log = logging.getLogger("fxquant")


_EXACT = 2  # rank of a rule that names a layer by its path


class Setting(NamedTuple):
    """What is asked of a node.

    Attributes:
        value: what is asked, None for nothing.
        key: where the configuration says so; empty for nothing.
    """

    value: Any = None
    key: str = ""


class Settings:
    """The rules of a configuration, by node.

    Args:
        gm: prepared graph.
        config: the configuration.
        target: what the rules are checked against.

    Raises:
        SelectorError: FXQ213, a layer matches nothing.
        ConfigError: FXQ222 an operator is unknown, FXQ223 two rules of one rank disagree, FXQ224 a
            rule cannot be kept by the operators it is for, FXQ262 the target cannot compute it.
    """

    def __init__(self, gm: fx.GraphModule, config: QuantConfig, target: Target) -> None:
        self.config = config
        self._settings: dict[fx.Node, dict[str, Setting]] = {}
        self._rank: dict[tuple[fx.Node, str], int] = {}
        self._gm, self._target = gm, target
        if config.operators or config.layers:
            self._read()

    def of(self, node: fx.Node, key: str) -> Setting:
        """What is asked of a node: key "output.bitwidth" and so on."""
        return self._settings.get(node, {}).get(key, Setting())

    def given(self) -> Iterator[tuple[fx.Node, str, Setting]]:
        """(node, key, what is asked) of all rules, without what a stronger one replaces."""
        for node, settings in self._settings.items():
            yield from ((node, key, setting) for key, setting in settings.items())

    def is_layer(self, setting: Setting) -> bool:
        """Whether the rule is for a named layer."""
        return setting.key.startswith("layers.")

    def _read(self) -> None:
        for rank, prefix, nodes, rule in self._rules():
            asked = rule.asked()
            self._check_target(prefix, asked)
            if not nodes:
                log.warning("%s: the network has no such operator", prefix)
            for node in nodes:
                for key, value in asked.items():
                    impossible = self._impossible(node, f"{prefix}.{key}", key)
                    if impossible is None:
                        self._add(node, key, Setting(value, f"{prefix}.{key}"), rank)
                    elif not self.config.is_foreign:
                        raise impossible
                    elif value is not False:
                        log.warning("%s", impossible.what)
        self._check_ranges()

    def _check_ranges(self) -> None:
        for node, settings in self._settings.items():
            low, high = (settings.get(f"output.{end}", Setting()) for end in ("min", "max"))
            if _is_empty(low, high):
                what = f"{low.key or high.key}: a range holds zero, and max is larger than min"
                fix = "give min <= 0 and max >= 0, or one of them"
                raise ConfigError("FXQ224", what, at=node, fix=fix)

    # operators that are computed as one --------------------------------------------------------

    def join(self, chains: Mapping[fx.Node, list[fx.Node]]) -> dict[fx.Node, list[str]]:
        """Move rules for outputs to the operator whose output the kernel writes.

        An operator whose own rule for the layer asks for a grid keeps its rules. In files of other
        tools a rule for the first operators of a group has no effect, so nothing moves.

        Args:
            chains: last operator of a kernel -> its operators in order.

        Returns:
            What moved, by node, as reasons for people.

        Raises:
            ConfigError: FXQ223 the rules of a kernel's operators disagree, FXQ224 a range does not
                go through an activation.
        """
        notes: dict[fx.Node, list[str]] = {}
        for tail, chain in ({} if self.config.is_foreign else chains).items():
            for i in range(len(chain) - 2, -1, -1):
                own = self.of(chain[i], "output.quantized")
                if own.value and self.is_layer(own):
                    break
                for key in [k for k in self._settings.get(chain[i], ()) if k.startswith("output.")]:
                    setting = self._move(chain[i], key, chain[i + 1 :])
                    text = f"{setting.key} counts for {tail.name}: one kernel computes both"
                    notes.setdefault(chain[i], []).append(text)
        self._check_ranges()
        return notes

    def _move(self, node: fx.Node, key: str, after: list[fx.Node]) -> Setting:
        setting, rank = self._settings[node].pop(key), self._rank.pop((node, key))
        value = setting.value
        if key in ("output.min", "output.max"):
            for activation in after:
                row = ops.row_of(activation, self._gm)
                if row is None or not row.clips:
                    what = f"{setting.key}: the values of {label(node)} go on into "
                    what += f"{label(activation)} inside one kernel and have no grid"
                    fix = f"write the rule for {label(after[-1])!r}"
                    raise ConfigError("FXQ224", what, at=node, fix=fix)
                value = float(_module_at(self._gm, activation)(torch.tensor(value)))
        self._add(after[-1], key, Setting(value, setting.key), rank)
        return setting

    def _rules(self) -> Iterator[tuple[int, str, list[fx.Node], Rule]]:
        nodes = computing_nodes(self._gm)
        known = {n: row.name for n in nodes if (row := ops.row_of(n, self._gm)) is not None}
        for name, rule in self.config.operators.items():
            _check_operator(name, f"operators.{name}")
            yield 0, f"operators.{name}", [n for n in nodes if known[n] == name], rule
        at = {str(n.target): n for n in nodes}
        at |= {n.name: n for n in self._gm.graph.nodes if n.op == "placeholder"}
        named = {p: _module_at(self._gm, n) for p, n in at.items()}
        for pattern, rule in self.config.layers.items():
            try:
                found = select_in(self._gm, pattern, named)
            except SelectorError as error:
                raise SelectorError(
                    error.code, f"layers.{pattern}: {error.what}", fix=error.fix
                ) from error
            rank = _EXACT if pattern in at else 1
            yield rank, f"layers.{pattern}", [at[p] for p in found], rule

    def _add(self, node: fx.Node, key: str, setting: Setting, rank: int) -> None:
        settings = self._settings.setdefault(node, {})
        before, rank_before = settings.get(key), self._rank.get((node, key), -1)
        if before is not None and rank == rank_before and before.value != setting.value:
            what = f"{before.key} asks for {before.value}, {setting.key} for {setting.value}"
            fix = f"write a rule for the layer {label(node)!r} itself, or change one of the two"
            if rank == _EXACT:
                fix = "one kernel computes both and writes one grid: ask for the same, or for one"
            raise ConfigError("FXQ223", what, at=node, fix=fix)
        if rank >= rank_before:
            settings[key], self._rank[node, key] = setting, rank

    def _impossible(self, node: fx.Node, where: str, key: str) -> ConfigError | None:
        """The error of a rule that this operator cannot keep, or None."""
        row = ops.row_of(node, self._gm)
        part = key.partition(".")[0]
        given = ops.arguments(node, self._gm) if row is not None else {}
        if part == "output" and moves_values(node, self._gm) is not None:
            what = f"{where}: {label(node)} only moves values and keeps its producer's grid"
            return ConfigError("FXQ224", what, at=node, fix="write the rule for the producer")
        listed = self._target.operators.get(row.name) if row is not None else None
        has_grid = row is not None and (
            row.weight_axis is not None or (listed is not None and listed.weight_grid)
        )
        if part in ("weight", "bias") and not (has_grid and "weight" in given):
            what = f"{where}: {label(node)} has no quantized {part} on {self._target.name}"
            return ConfigError("FXQ224", what, at=node, fix="take the key out")
        return None

    def _check_target(self, prefix: str, asked: dict[str, Any]) -> None:
        names = {
            "output.bitwidth": "activation_bitwidth", "output.symmetric": "activation_symmetric",
            "weight.bitwidth": "weight_bitwidth", "weight.symmetric": "weight_symmetric",
            "weight.per_channel": "per_channel",
        }  # fmt: skip
        none = type(self.config)()
        for key, value in asked.items():
            if key in names:
                try:
                    self._target.check(none.replace(**{names[key]: value}))
                except ConfigError as error:
                    what = f"{prefix}.{key}: {error.what}"
                    raise ConfigError(error.code, what, fix=error.fix) from error


def _check_operator(name: str, where: str) -> None:
    rows = ops.TABLE.rows
    if name not in rows:
        fix = nearest(name, rows) or "the names are those of the table of supported operators"
        raise ConfigError("FXQ222", f"{where}: there is no operator {name!r}", fix=fix)


def check_supergroups(config: QuantConfig) -> None:
    """Refuse chains that name no operators.

    Raises:
        ConfigError: FXQ222 an operator is unknown, FXQ224 a chain is too short.
    """
    for i, chain in enumerate(config.supergroups):
        if len(chain) < 2:
            what = f"supergroups.{i}: {len(chain)} operators are no chain"
            raise ConfigError("FXQ224", what, fix="give two or more")
        for name in chain:
            _check_operator(name, f"supergroups.{i}")


def _is_empty(low: Setting, high: Setting) -> bool:
    first, last = low.value or 0.0, high.value or 0.0
    given = low.value is not None and high.value is not None
    return bool(first > 0.0 or last < 0.0 or (given and first == last))


def _module_at(gm: fx.GraphModule, node: fx.Node) -> nn.Module:
    return gm.get_submodule(str(node.target)) if node.op == "call_module" else gm
