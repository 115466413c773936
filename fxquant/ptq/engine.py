"""Reconstruction: integers, scales and biases of a simulation, chosen by what layers put out.

One walk over the graph with two environments: the float model and the simulation, whose layers are
changed one after the other. A layer sees inputs that are already quantized, and its target is what
the float model puts out there, so that every layer makes up for errors of those before it. What is
found for a layer is kept only if its error falls on data held out.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant.errors import ConfigError
from fxquant.ptq.finished_layers import FinishedLayers
from fxquant.ptq.layer_problem import LayerProblem
from fxquant.ptq.layer_search import tables_of
from fxquant.ptq.layer_walk import DataOptions, LayerWise, Visit
from fxquant.ptq.reconstruction_report import LayerReport, ReconstructionReport
from fxquant.ptq.sampling import Sampling, layer_data
from fxquant.ptq.solving.solver import SolverOptions
from fxquant.ptq.tables import fit_steps
from fxquant.ptq.walking.given_simulation import require_simulation
from fxquant.ptq.walking.walk import Walk
from fxquant.tracking.events import OnEvent, Value, counted, emit

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from fxquant.ptq.layers import Layer
    from fxquant.ptq.walking.parts_of_data import WholeData
    from fxquant.ptq.walking.walk import Progress
    from fxquant.sim import QuantizationSimModel


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
        correct_bias: change biases too.
        tables: choose the steps of tables whose rows are looked up, too.
        max_memory: bytes of the values between layers together with what a layer is computed and
            solved with; values beyond that lie in files. The least is one batch of a layer's values
            and its matrices, about 40 bytes for each pair of inputs of an output.
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
    Frozen ranges are kept: only integers are chosen there.

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
            batches or hold NaN, FXQ446 a layer's input or output is not finite.
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
    return work.run(data, counted(on_event, "reconstruct", progress), parts)


class _Reconstruction:
    finished: FinishedLayers  # known once the walk has its data
    parts: WholeData

    def __init__(
        self, gm: fx.GraphModule, options: ReconstructionOptions, on_event: OnEvent | None = None
    ) -> None:
        self.options, self.on_event = options, on_event
        data = DataOptions(
            options.samples, options.columns, options.held_out, options.max_memory, options.folder,
            options.seed, options.threads,
        )  # fmt: skip
        self.layers = LayerWise.of(gm, data)
        self.report = ReconstructionReport(skipped=self.layers.skipped)
        self.layers.cost = self.report
        self.tables: list[LayerReport] = []

    def run(
        self, data: Any, progress: Progress | None, parts: WholeData | None = None
    ) -> ReconstructionReport:
        layers = self.layers.run(data, self._visit, progress, self._begin, parts)
        self.report.layers = [*self.tables, *layers]
        self.finished.clear()
        return self.report

    def _begin(self, walk: Walk) -> None:
        given, self.parts = self.options, walk.parts
        self.finished = FinishedLayers(given.folder, walk, given.of_the_result())
        for table in tables_of(self.layers.gm) if given.tables else ():
            self.tables.append(self._once(table, partial(self._table, table)))
            del self.report.skipped[table.path]

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
