"""Inspector: which operators of a network a target takes, which not and why, and in how many parts.

The decisions are those of the placement itself (`graph.plan`), so what is shown here is what will
be quantized. Nothing is calibrated.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant import ops
from fxquant.config import QuantConfig
from fxquant.graph.selectors import producers_among
from fxquant.io.text_tables import table
from fxquant.io.writing import as_path, write_text
from fxquant.passes import simulation_pipeline
from fxquant.placement.planner import make_plan
from fxquant.prepare import prepare_model
from fxquant.quantization import QuantScheme
from fxquant.targets import Target, load_target

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from fxquant.placement.plan import Plan

TARGET, FLOAT = "target", "float"


@dataclass(frozen=True)
class InspectedNode:
    """One operator.

    Attributes:
        name: name of the node.
        module: path of its module.
        operator: name of the operator's row; the class where it has none.
        shape: recorded shape of its result.
        device: "target" or "float".
        partition: number of the sub-graph that it belongs to.
        reason: why it is where it is.
        constraint: the argument or property that the target does not take; empty if there is none.
        value: what the call has there.
        allowed: what the target takes.
        source: the user's file and line.
        inputs: names of the operators that it reads.
    """

    name: str
    module: str
    operator: str
    shape: tuple[int, ...]
    device: str
    partition: int
    reason: str
    constraint: str
    value: str
    allowed: str
    source: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Partition:
    """Operators that one device computes in one go.

    Attributes:
        number: counted from 1 in the order of execution.
        device: "target" or "float".
        nodes: names of the operators.
    """

    number: int
    device: str
    nodes: tuple[str, ...]


@dataclass(frozen=True)
class InspectorReport:
    """What a target takes of a network; prints as a table.

    Attributes:
        target: name of the target.
        nodes: operators in the order of execution.
        partitions: sub-graphs in the order of execution.
    """

    target: str
    nodes: tuple[InspectedNode, ...]
    partitions: tuple[Partition, ...]

    @property
    def refused(self) -> tuple[InspectedNode, ...]:
        """Operators that the target does not take."""
        return tuple(n for n in self.nodes if n.device == FLOAT)

    def to_json(self) -> str:
        """The report as JSON text."""
        return json.dumps(asdict(self), indent=1)

    def to_svg(self) -> str:
        """The graph as a picture, folded to one page: one colour a device."""
        from fxquant.analysis.picture import draw

        return draw(self)

    def save(self, folder: str | Path) -> list[Path]:
        """Write `inspect_<target>.txt`, `.json` and `.svg`.

        Args:
            folder: it is made when missing.

        Returns:
            The files.
        """
        home = as_path(folder, "folder")
        texts = {"txt": str(self), "json": self.to_json(), "svg": self.to_svg()}
        files = [home / f"inspect_{self.target}.{kind}" for kind in texts]
        for file, text in zip(files, texts.values(), strict=True):
            write_text(file, text)
        return files

    def __str__(self) -> str:
        cells = [
            (n.module or n.name, n.operator, n.device, n.partition, n.reason, n.source)
            for n in self.nodes
        ]
        taken = len(self.nodes) - len(self.refused)
        parts = Counter(p.device for p in self.partitions)
        return (
            f"{table(('module', 'operator', 'device', 'part', 'why', 'source'), cells)}\n"
            f"{taken} of {len(self.nodes)} operators on {self.target}, in {parts[TARGET]} "
            f"sub-graph(s); {parts[FLOAT]} sub-graph(s) in floating point"
        )


class Inspector:
    """Shows what a target takes of a network.

    Args:
        target: name or alias of a shipped target, or a `Target`.

    Raises:
        SelectorError: FXQ260, there is no such target.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Softmax(1))
        >>> report = Inspector("amd_aie2").inspect(net, torch.randn(1, 3, 8, 8))
        >>> [(n.module, n.device) for n in report.nodes]
        [('0', 'target'), ('1', 'target'), ('2', 'float')]
    """

    def __init__(self, target: Target | str) -> None:
        self.target = load_target(target)

    def inspect(
        self,
        model: nn.Module,
        inputs: Any,
        *,
        config: QuantConfig | dict[str, Any] | str | None = None,
        output_dir: str | Path | None = None,
    ) -> InspectorReport:
        """Inspect a network.

        Args:
            model: float model or prepared graph; it is not changed.
            inputs: example inputs, as for `prepare_model`.
            config: as for `QuantizationSimModel`.
            output_dir: where to write the report as text, JSON and picture.
        """
        chosen = QuantConfig.load(config)
        prepared = prepare_model(model, inputs)  # of a prepared graph: a copy
        pipeline = simulation_pipeline(chosen, self.target, QuantScheme.min_max)
        for step in pipeline.passes[:-1]:
            step(prepared)
        report = _report(prepared, make_plan(prepared, chosen, self.target), self.target)
        if output_dir is not None:
            report.save(output_dir)
        return report


def _report(gm: fx.GraphModule, plan: Plan, target: Target) -> InspectorReport:
    operators = [n for n in gm.graph.nodes if _computes(n, gm)]
    judge = _Judge(gm, plan, target)
    verdicts = {n: judge.of(n) for n in operators}
    chosen = set(operators)
    producers = {n: producers_among(n, chosen) for n in operators}
    numbers, partitions = _partitions(operators, producers, verdicts)
    nodes = tuple(
        InspectedNode(
            name=n.name, module=str(n.target) if n.op == "call_module" else "",
            operator=judge.operator(n), shape=_shape(n), partition=numbers[n],
            source=str(n.meta.get("source") or ""), inputs=tuple(m.name for m in producers[n]),
            **verdicts[n],
        )
        for n in operators
    )  # fmt: skip
    return InspectorReport(target.name, nodes, partitions)


def _computes(node: fx.Node, gm: fx.GraphModule) -> bool:
    """Whether a node is an operator, not a size or an element of a tuple."""
    if node.op == "call_module":
        return not type(gm.get_submodule(str(node.target))).__name__.endswith("QuantStub")
    return ops.row_of(node, gm) is not None


def _shape(node: fx.Node) -> tuple[int, ...]:
    shape = getattr(node.meta.get("spec"), "shape", ())
    return tuple(int(n) for n in shape)


@dataclass(frozen=True)
class _Judge:
    """Says of each operator where it is computed, and why."""

    gm: fx.GraphModule
    plan: Plan
    target: Target

    def operator(self, node: fx.Node) -> str:
        """Name of the operator."""
        row = ops.row_of(node, self.gm)
        if row is not None:
            return row.name
        return (
            type(self.gm.get_submodule(str(node.target))).__name__
            if node.op == "call_module"
            else str(node.target)
        )

    def of(self, node: fx.Node) -> dict[str, str]:
        """Device, reason and constraint."""
        rule = self.plan.kernels.get(node)
        head = self.plan.absorbed.get(node)
        if rule is not None and rule.kernel == "integer":
            return _verdict(TARGET, f"{self.operator(node)} is taken")
        if rule is not None:
            return _verdict(
                FLOAT, "its weight is stored as integers, but it is computed in floating point"
            )
        if head is not None:
            return _verdict(TARGET, f"it is computed inside the kernel of {head.target}")
        if self._moves(node):
            return self._of_move(node)
        violation = self.plan.violations.get(node)
        reasons = self.plan.why.get(node) or [f"{self.operator(node)} is not in the target's list"]
        if violation is None:
            return _verdict(FLOAT, reasons[0])
        return _verdict(
            FLOAT, str(violation), violation.name, repr(violation.value), violation.allowed
        )

    def _moves(self, node: fx.Node) -> bool:
        row = ops.row_of(node, self.gm)
        return row is not None and row.grid_for(ops.arguments(node, self.gm)) is ops.Grid.SAME

    def _of_move(self, node: fx.Node) -> dict[str, str]:
        """Values move where they are, if the target can move them so."""
        name, target = self.operator(node), self.target
        if target.moves is not None and name not in target.moves:
            return _verdict(FLOAT, f"{name} is not in the target's list of moves")
        rule = target.operators.get(name)
        violation = rule.violation(ops.arguments(node, self.gm)) if rule else None
        if violation is not None:
            return _verdict(
                FLOAT, str(violation), violation.name, repr(violation.value), violation.allowed
            )
        return _verdict("", f"{name} moves values where they are")


def _verdict(
    device: str, reason: str, constraint: str = "", value: str = "", allowed: str = ""
) -> dict[str, str]:
    return {
        "device": device,
        "reason": reason,
        "constraint": constraint,
        "value": value,
        "allowed": allowed,
    }


def _partitions(
    operators: list[fx.Node], producers: Mapping[fx.Node, list[fx.Node]],
    verdicts: Mapping[fx.Node, dict[str, str]],
) -> tuple[dict[fx.Node, int], tuple[Partition, ...]]:  # fmt: skip
    """Sub-graphs that one device can compute in one go.

    The depth of an operator is the number of changes of device on the longest way to it. Neighbours
    of one depth and device form a sub-graph; a way that leaves it has a greater depth from there on
    and never comes back.
    """
    depth: dict[fx.Node, int] = {}
    group: dict[fx.Node, fx.Node] = {}

    def root(node: fx.Node) -> fx.Node:
        while group[node] is not node:
            group[node] = group[group[node]]
            node = group[node]
        return node

    for node in operators:
        verdict = verdicts[node]
        if not verdict["device"]:  # a move: where its first operand is
            before = [verdicts[m]["device"] for m in producers[node]]
            verdict["device"] = before[0] if before else FLOAT
            if verdict["device"] == FLOAT:
                verdict["reason"] = "it moves values that are in floating point"
        device = verdict["device"]
        levels = (depth[m] + (verdicts[m]["device"] != device) for m in producers[node])
        depth[node] = max(levels, default=0)
        group[node] = node
        for producer in producers[node]:
            if verdicts[producer]["device"] == device and depth[producer] == depth[node]:
                group[root(producer)] = root(node)
    members: dict[fx.Node, list[fx.Node]] = {}
    for node in operators:
        members.setdefault(root(node), []).append(node)
    # members are in the order of their first operators, and sorting keeps that
    order = sorted(members.values(), key=lambda nodes: depth[nodes[0]])
    numbers = {node: i for i, nodes in enumerate(order, 1) for node in nodes}
    made = [
        Partition(i, verdicts[nodes[0]]["device"], tuple(n.name for n in nodes))
        for i, nodes in enumerate(order, 1)
    ]
    return numbers, tuple(made)
