"""Where a simulation first parts from the float model, its integer execution and onnxruntime.

All of them compute the same inputs from the beginning to the end, and every quantized tensor is
compared. Against the float model the measure is the signal to noise ratio, among those that compute
on the same grids it is the difference in steps. What differs behind the first tensor may only carry
on what began there: an export's proof, which starts every segment from the simulation's integers,
tells that apart.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from fxquant.inspection.node_errors import node_errors
from fxquant.io.text_tables import table
from fxquant.onnx.integer import IntegerSimulation
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.parity.error_bounds import Tolerance
from fxquant.onnx.parity.segments import graph_feeds, runs
from fxquant.onnx.parity.teacher_forcing import Reference, teach
from fxquant.onnx.runs.observed import bound_example
from fxquant.onnx.session import show
from fxquant.ptq.walking.given_simulation import require_simulation
from fxquant.quantization.decibels import shown
from fxquant.tracing.signature import input_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray
    from torch import fx

    from fxquant.sim import QuantizationSimModel

FLOAT = "float"
INTEGER = "integer execution"
_RUNTIME = "onnxruntime, optimizations {}"
_SHOWN = 30


@dataclass(frozen=True)
class Difference:
    """One quantized tensor, computed in another way.

    Attributes:
        other: share of elements that are not equal.
        steps: largest difference, in steps of the grid; None where the shapes differ, as sizes
            that values decide may.
    """

    other: float
    steps: int | None

    def exceeds(self, steps: int) -> bool:
        """Whether it is larger than so many steps."""
        return self.steps is None or self.steps > steps


@dataclass(frozen=True)
class DivergenceRow:
    """One quantized tensor of the simulation.

    Attributes:
        node: name of the fx node that makes it.
        module: path of its module.
        source: the user's file and line.
        float_db: signal to noise ratio against the float model; None where they are equal.
        differences: by what it is compared with; those are missing that do not have the tensor,
            as where the integer execution merges two that are equal.
    """

    node: str
    module: str
    source: str
    float_db: float | None
    differences: Mapping[str, Difference]


@dataclass(frozen=True)
class Divergences:
    """Where a simulation parts from others; prints as a table.

    Attributes:
        rows: one row a quantized tensor, in the order of the graph.
        compared: what the simulation is compared with.
        outputs: largest difference of the model's outputs, as a share of their largest magnitude.
        steps: a difference of up to so many steps is no divergence.
        float_db: a ratio of fewer dB is one.
        cpu: the CPU that onnxruntime ran on.
    """

    rows: tuple[DivergenceRow, ...]
    compared: tuple[str, ...]
    outputs: Mapping[str, float]
    steps: int
    float_db: float
    cpu: str

    def first(self, other: str) -> DivergenceRow | None:
        """The first tensor at which the simulation diverges from another one.

        Args:
            other: one of `compared`.
        """
        return next((row for row in self.rows if self._diverges(row, other)), None)

    def _diverges(self, row: DivergenceRow, other: str) -> bool:
        if other == FLOAT:
            return row.float_db is not None and row.float_db < self.float_db
        found = row.differences.get(other)
        return found is not None and found.exceeds(self.steps)

    def to_json(self) -> str:
        """All of it as JSON text."""
        plain = asdict(self)
        firsts = {other: self.first(other) for other in self.compared}
        plain["first"] = {k: None if row is None else row.node for k, row in firsts.items()}
        return json.dumps(plain, indent=1)

    def __str__(self) -> str:
        lines = []
        for other in self.compared:
            row, limit = self.first(other), f"more than {self.steps} step(s)"
            if other == FLOAT:
                limit = f"fewer than {self.float_db:g} dB"
            where = "nowhere" if row is None else f"first at {row.module or row.node} {row.source}"
            apart = self.outputs.get(other)
            end = "" if apart is None else f"; outputs within {apart:.1e} of their peak"
            lines.append(f"{other}: {limit} {where.rstrip()}{end}")
        others = self.compared[1:]
        heads = ("tensor", "float dB", *others)
        rows = [
            (r.module or r.node, shown(r.float_db), *(_cell(r.differences.get(o)) for o in others))
            for r in self.rows[:_SHOWN]
        ]
        more = len(self.rows) - _SHOWN
        rest = f"\n... and {more} more" if more > 0 else ""
        return "\n".join([*lines, f"onnxruntime on {self.cpu}", "", table(heads, rows)]) + rest


def _cell(found: Difference | None) -> str:
    if found is None:
        return ""
    if found.steps is None:
        return "other shape"
    return f"{found.other:.2%}, {found.steps}" if found.steps else "equal"


def first_divergence(
    sim: QuantizationSimModel, dummy_input: Any = None, *, steps: int = 1, float_db: float = 20.0
) -> Divergences:
    """Compare every quantized tensor of a simulation with the same one computed in other ways.

    In floating point; in the exact integer execution (`sim.integer_model`); in onnxruntime with its
    optimizations off and on, in the kernels of this CPU. The last three compute what an export
    would write.

    Args:
        sim: a calibrated simulation; it is left as it is.
        dummy_input: the inputs; default: those of the constructor.
        steps: differences that are rounding: a tie may fall to either side.
        float_db: signal to noise ratio against float below which a tensor counts as lost.

    Returns:
        One row a quantized tensor.

    Raises:
        ExportError: the model has no form in ONNX, or onnxruntime does not run it.
        UncalibratedError: FXQ401, the simulation is not calibrated.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(64, 8)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)), x)
        >>> sim.compute_encodings([x])
        >>> first_divergence(sim).first("integer execution") is None
        True
    """
    require_simulation(sim, "first_divergence")
    gm = sim.model
    example = sim.example if dummy_input is None else sim._taken(dummy_input)
    executor = sim.integer_model(dummy_input)
    lowered = executor.lowered
    made = {v.name for node in lowered.model.graph for v in node.outputs}
    wanted = [t for t in lowered.tensors if t.kind == "activation" and t.quantized_name in made]
    tolerances: dict[str, Tolerance] = defaultdict(lambda: Tolerance(0.0, 0.0))
    run = teach(gm, example, wanted, tolerances)
    reference, ours = (
        run.tensors,
        dict(zip(lowered.output_names, run.outputs.values(), strict=True)),
    )
    names = [one.tensor.quantized_name for one in reference]
    feeds = graph_feeds(gm, lowered, example)
    others = {INTEGER: _integers(executor, feeds, (*names, *ours))}
    model = lowered.model.clone()
    show(model, names)
    others |= {_RUNTIME.format(level.value): found for level, found in runs(model, feeds, 1)}
    exact = _float_ratios(sim, example)
    rows = [_row(gm, one, exact, others) for one in reference]
    outputs = {other: _apart(ours, found) for other, found in others.items()}
    return Divergences(tuple(rows), (FLOAT, *others), outputs, steps, float_db, str(this_cpu()))


def _row(
    gm: fx.GraphModule, reference: Reference, exact: Mapping[str, float | None],
    others: Mapping[str, Mapping[str, NDArray[Any]]],
) -> DivergenceRow:  # fmt: skip
    tensor = reference.tensor
    node = next(n for n in gm.graph.nodes if n.name == tensor.node)
    differences = {
        other: _difference(reference.integers, found[tensor.quantized_name])
        for other, found in others.items()
        if tensor.quantized_name in found
    }
    source = str(node.meta.get("source") or "")
    return DivergenceRow(tensor.node, tensor.module, source, exact.get(tensor.node), differences)


def _integers(
    executor: IntegerSimulation, feeds: Mapping[str, NDArray[Any]], names: Sequence[str]
) -> dict[str, NDArray[Any]]:
    known = {*executor.integers.quantized_names, *executor.integers.output_names}
    kept = [n for n in names if n in known]
    return executor.integers.run(feeds, kept)


def _float_ratios(sim: QuantizationSimModel, example: Any) -> dict[str, float | None]:
    holders = [n for n in sim.model.graph.nodes if n.op == "placeholder"]
    values = bound_example(sim.model, example)
    batch = dict(zip(map(input_name, holders), values, strict=True))
    found = node_errors(sim, [batch], samples=None, shares=False)
    return {row.node: row.cumulative_db for row in found.rows}


def _difference(ours: NDArray[Any], theirs: NDArray[Any]) -> Difference:
    if theirs.shape != ours.shape:
        return Difference(1.0, None)
    apart = np.abs(theirs.astype(np.int64) - ours.astype(np.int64))
    return Difference(float((apart > 0).mean()) if apart.size else 0.0, int(apart.max(initial=0)))


def _apart(ours: Mapping[str, NDArray[Any]], theirs: Mapping[str, NDArray[Any]]) -> float:
    """The largest difference of outputs by their peak; 1 where shapes differ."""
    found = 0.0
    for name, x in ours.items():
        y = theirs[name]
        if x.shape != y.shape:
            return 1.0
        finite = np.isfinite(x) & np.isfinite(y)
        a, b = (side[finite].astype(np.float64) for side in (x, y))
        peak = float(np.abs(a).max(initial=0.0))
        found = max(found, float(np.abs(a - b).max(initial=0.0)) / (peak or 1.0))
    return found
