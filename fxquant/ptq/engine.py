"""Reconstruction: integers, scales and biases of a simulation, chosen by what layers put out.

One walk over the graph with two environments: the float model and the simulation, whose layers are
changed one after the other. A layer sees inputs that are already quantized, and its target is what
the float model puts out there, so that every layer makes up for errors of those before it. What is
found for a layer is kept only if its error falls on data held out.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant.errors import ConfigError
from fxquant.nn.calibration import fit_biases
from fxquant.ptq.activation_ranges.walked_ranges import WalkedRanges
from fxquant.ptq.finished_layers import FinishedLayers
from fxquant.ptq.layer_problem import LayerProblem
from fxquant.ptq.layer_walk import DataOptions, LayerWise, Visit
from fxquant.ptq.layers.layer_search import tables_of
from fxquant.ptq.reconstruction_report import LayerReport, ReconstructionReport
from fxquant.ptq.sampling import Sampling, layer_data
from fxquant.ptq.snapshot import restore, snapshot, undone_on_error
from fxquant.ptq.solving.solver import SolverOptions
from fxquant.ptq.tables import fit_steps
from fxquant.ptq.walking.given_simulation import require_simulation
from fxquant.ptq.walking.held_out_outputs import FloatWeights, output_errors
from fxquant.ptq.walking.stored_batches import StoredBatches
from fxquant.ptq.walking.walk import Walk, named_batches
from fxquant.ptq.working_memory import working_bytes
from fxquant.tracking.events import OnEvent, Value, counted, emit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from torch import Tensor

    from fxquant.ptq.layers.layer import Layer
    from fxquant.ptq.snapshot import Snapshot
    from fxquant.ptq.walking.parts_of_data import WholeData
    from fxquant.ptq.walking.walk import Environment, FloatEnvironment, Progress
    from fxquant.sim import QuantizationSimModel

# the share of the outputs' error with float weights behind the ranges as they are, below which no
# second run is needed: behind the same ranges a reconstruction has gained up to 3 dB on it
_CLEARLY = 0.5


@dataclass(frozen=True)
class ReconstructionOptions:
    """How a simulation is reconstructed.

    Attributes:
        solver: how integers and scales are found.
        samples: samples of the data that are used.
        columns: positions of a layer's output that are looked at, over all samples.
        held_out: one of so many samples is held out to judge by.
        float_target: aim at the float model's output; False: at the float weights, with the
            quantized inputs.
        correct_bias: change biases too, where there is more than one sample.
        tables: choose the steps of tables whose rows are looked up, too.
        activation_ranges: choose ranges of activations of six bits or fewer along the way, where
            their squared error falls on samples held out and outputs gain by it. Ranges that are
            frozen, or are not those of the last calibration, stay.
        max_memory: bytes of the values between layers together with what a layer is computed and
            solved with; values beyond that lie in files. The least is two copies of the parameters,
            one batch of a layer's values, and its matrices: about 16 bytes for each pair of inputs
            of an output and 50 to 70 for each weight. A warning says so before it begins, and the
            report's `least_bytes` afterwards.
        folder: where these files are, and those of the layers that are finished: a reconstruction
            of the same simulation on the same data that was killed goes on behind them, with the
            same result. They are removed at the end. None: nothing is kept of one that is killed.
        seed: of the choice of positions.
        threads: of torch; 1 gives the same result on every machine; None: as they are.
    """

    solver: SolverOptions = field(default_factory=SolverOptions)
    samples: int = 256
    columns: int = 8192
    held_out: int = 8
    float_target: bool = True
    correct_bias: bool = True
    tables: bool = True
    activation_ranges: bool = True
    max_memory: int | None = None
    folder: str | Path | None = None
    seed: int = 0
    threads: int | None = 1

    def __post_init__(self) -> None:
        numbers = {"samples": 1, "columns": 1, "held_out": 2}
        for name, least in numbers.items():
            value = getattr(self, name)
            if type(value) is not int or value < least:
                what = f"the option {name} of a reconstruction is {value!r}"
                raise ConfigError("FXQ291", what, fix=f"pass a number from {least} on")

    def of_the_result(self) -> dict[str, Any]:
        """Those that the result depends on, as plain data."""
        found = asdict(self)
        for name in ("max_memory", "folder"):
            del found[name]
        return found


def reconstruct(
    sim: QuantizationSimModel,
    data: Any,
    options: ReconstructionOptions | None = None,
    *,
    progress: Progress | None = None,
    on_event: OnEvent | None = None,
    parts: WholeData | None = None,
) -> ReconstructionReport:
    """Choose the integers, scales and biases of a calibrated simulation, in place.

    Weights then lie on their grids, whose ranges `compute_encodings` leaves alone from now on.
    Frozen ranges are kept: only integers are chosen there. If it fails or is interrupted, the
    simulation is as it was before. Calibrated ranges of activations of six
    bits or fewer are chosen anew along the way, by their squared error against the float model's
    values; where the outputs on data held out do not gain clearly by it, all is done again with the
    ranges as they were, and the better result is kept.

    Args:
        sim: the simulation; its weights are those of the float model.
        data: an iterable of batches, as for `compute_encodings`.
        options: see `ReconstructionOptions`.
        progress: called after each node with (nodes done, nodes in all).
        on_event: called with "reconstruct.progress" after each node, and with "reconstruct.layer"
            and its errors after each layer; see `fxquant.tracking`.
        parts: of which the data are one, see `fxquant.distributed.reconstruct`; None: they are all.

    Returns:
        What was done, layer by layer.

    Raises:
        CalibrationError: FXQ441 the model does not take a batch, FXQ442 to FXQ445 the data are no
            batches or hold NaN, FXQ446 a layer's input or output is not finite, FXQ428 values
            choose a layer's rows, and others in every batch.
        UncalibratedError: FXQ401, the simulation is not calibrated.
        CheckpointError: FXQ542 to FXQ545, the folder cannot be written.

    Source: the target is that of `Moments.target`, the integers are those of GPTQ
    (arXiv:2210.17323), improved by coordinate descent, biases by empirical bias correction
    (arXiv:1906.04721).

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(64, 8)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)), x, default_param_bw=4)
        >>> sim.compute_encodings([x])
        >>> report = reconstruct(sim, [x])
        >>> report.layers[0].error_after < report.layers[0].error_before
        True
    """
    require_simulation(sim, "reconstruct")
    work = _Reconstruction(sim.model, options or ReconstructionOptions(), on_event)
    told = counted(on_event, "reconstruct", progress)
    with undone_on_error(sim) as start:
        if not work.ranges.grids:
            report = work.run(data, told, parts)
            work.finished.clear()
            return report
        given = work.options
        if not isinstance(data, list | tuple):
            data = named_batches(sim.model, data, given.samples)
        with StoredBatches(data, given.max_memory, given.folder) as stored:
            return _with_ranges_or_without(sim, stored, start, work, told, parts)


def _with_ranges_or_without(
    sim: QuantizationSimModel, data: StoredBatches, start: Snapshot, work: _Reconstruction,
    progress: Progress | None, parts: WholeData | None,
) -> ReconstructionReport:  # fmt: skip
    """Reconstruct with other ranges of activations, unless outputs are better without.

    What clipping makes of a value has one sign: where outputs are means of many values its errors
    add up, while those of rounding cancel, so an error that is smaller may cost more.
    """
    report = work.run(data, progress, parts)
    same = bool(report.ranges) and not any(r.changed for r in report.ranges)
    if same or work.errors[0] < _CLEARLY * work.errors[1]:
        work.finished.clear()
        return report
    found = snapshot(sim)
    restore(sim, start)
    given = replace(work.options, activation_ranges=False)
    plain = _Reconstruction(sim.model, given, work.on_event, judged=True)
    other = plain.run(data, progress, parts)
    if work.errors[0] < plain.errors[0]:
        restore(sim, found)
        report, other = other, report
    other.seconds += report.seconds
    for run in (work, plain):
        run.finished.clear()
    return other


class _Reconstruction:
    finished: FinishedLayers  # known once the walk has its data
    errors: Tensor  # of the outputs: of the result, and of float weights with the ranges as given
    parts: WholeData

    def __init__(
        self, gm: fx.GraphModule, options: ReconstructionOptions, on_event: OnEvent | None = None,
        *, judged: bool = False,
    ) -> None:  # fmt: skip
        self.options, self.on_event = options, on_event
        data = DataOptions(
            options.samples, options.columns, options.held_out, options.max_memory, options.folder,
            options.seed, options.threads,
        )  # fmt: skip
        self.layers = LayerWise.of(gm, data)
        self.report = ReconstructionReport(skipped=self.layers.skipped)
        self.layers.cost = self.report
        self.tables: list[LayerReport] = []
        self.ranges = WalkedRanges(gm, held_out=options.held_out, seed=options.seed)
        if not options.activation_ranges:
            self.ranges.grids.clear()
        self.judged = judged or bool(self.ranges.grids)
        self.float_weights = FloatWeights(gm, "float weights")

    def run(
        self, data: Any, progress: Progress | None, parts: WholeData | None = None
    ) -> ReconstructionReport:
        layers = self.layers.run(
            data, self._visit, progress, self._begin, parts, settle=self._settle,
            beside=(self.float_weights,) if self.judged else (),
            working=partial(working_bytes, kept=1 / self.options.held_out),
        )  # fmt: skip
        self.report.layers, self.report.ranges = [*self.tables, *layers], self.ranges.reports
        if self.ranges.grids:  # steps of biases are those of inputs times those of weights
            fit_biases(self.layers.gm)
        return self.report

    def _begin(self, walk: Walk) -> None:
        given, self.parts = self.options, walk.parts
        identity = given.of_the_result() | {"ranges": self.ranges.names()}
        self.finished = FinishedLayers(given.folder, walk, identity)
        for table in tables_of(self.layers.gm) if given.tables else ():
            self.tables.append(self._once(table, partial(self._table, table)))
            del self.report.skipped[table.path]

    def _settle(
        self, node: fx.Node, walk: Walk, sim: Environment, exact: FloatEnvironment
    ) -> None:  # fmt: skip
        self.ranges.choose(node, walk, sim, exact)
        if self.judged and node.op == "output":
            found = (sim, self.float_weights)
            self.errors = output_errors(walk, node, exact, found, self.options.held_out)

    def _visit(self, visit: Visit) -> LayerReport:
        return self._once(visit.layer, lambda: self._layer(visit))

    def _table(self, table: Layer) -> LayerReport | None:
        return fit_steps(table) if self.parts.decides else None

    def _once(self, layer: Layer, find: Callable[[], LayerReport | None]) -> LayerReport:
        """What is found for a layer, or was before the run was killed."""
        found = self.finished.restored(layer)
        if self.parts.unknown(found):
            found = find()
            if found is not None:
                self.finished.keep(layer, found)
        found = self.parts.settled(layer, found)
        told: dict[str, Value | None] = {
            name: getattr(found, name)
            for name in ("path", "changed", "error_before", "error_after", "seconds")
        }
        emit(self.on_event, "reconstruct.layer", told)
        return found

    def _layer(self, visit: Visit) -> LayerReport | None:
        begin, given, layer = time.process_time(), self.options, visit.layer
        sampling = Sampling(given.columns, given.held_out, given.seed)
        data = layer_data(layer, visit.walk, visit.sim, visit.float, sampling)
        if not self.parts.decides:
            return None
        problem = LayerProblem(
            layer, data, given.solver,
            float_target=given.float_target, correct_bias=given.correct_bias,
        )  # fmt: skip
        data = problem.data
        before, after = problem.before(), problem.solve(problem.grid)
        tried = [before, after, before]
        biases = [problem.old_bias, *(problem.bias(s.weight.double()) for s in tried[1:])]
        errors = [data.error(s.weight.double(), b) for s, b in zip(tried, biases, strict=True)]
        totals = [float(squared.sum()) for squared, _ in errors]
        offsets = [float(mean.abs().mean()) for _, mean in errors]
        best = min(range(len(tried)), key=lambda i: totals[i])
        if best:
            layer.write(
                problem.whole(tried[best]), problem.places, problem.whole_bias, problem.again
            )
        changed = ("nothing", "weight and bias" if problem.moved else "weight", "bias")[best]
        return LayerReport(
            layer.path, changed, problem.loss(before), problem.loss(tried[best]),
            totals[0], totals[best], offsets[0], offsets[best], time.process_time() - begin,
        )  # fmt: skip
