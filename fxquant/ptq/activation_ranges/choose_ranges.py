"""Activation ranges, each chosen by the error that it causes at outputs.

One walk over the graph, without the quantizers of activations and with those of weights: so what a
range costs is measured without regard to other ranges, and their order does not matter. Values that
share a grid have one range, which is judged by what all of them cause.

What each range costs alone is an estimate. So the model's outputs have the last word: changes that
do not make them better are put back, and so are those whose gain is nothing beside the noise of the
weights. All samples are asked: what a narrow range clips is rare, and a few held out may miss it.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxquant.calibrate import using_threads
from fxquant.errors import ConfigError
from fxquant.graph.pytree import tensors
from fxquant.nn import QuantizationMixin
from fxquant.nn.calibration import fit_biases
from fxquant.nn.modes import evaluating
from fxquant.ptq.activation_ranges.gradients import Slots, add_costs
from fxquant.ptq.activation_ranges.outputs import OutputCheck, kept_parts
from fxquant.ptq.activation_ranges.range_candidates import CANDIDATES, Observed, rules_of
from fxquant.ptq.activation_ranges.range_report import ActivationRangesReport, RangeReport
from fxquant.ptq.activation_ranges.range_trials import ChosenGrid, obstacle
from fxquant.ptq.walking.given_simulation import require_simulation
from fxquant.ptq.walking.value_store import ValueStore, returning_freed
from fxquant.ptq.walking.walk import Environment, Walk
from fxquant.quantization.affine import AffineQuantizer
from fxquant.quantization.decibels import decibels
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from fxquant.ptq.activation_ranges.range_candidates import Candidate, RangeRule
    from fxquant.ptq.activation_ranges.range_trials import Choice, Ends
    from fxquant.ptq.walking.walk import Progress
    from fxquant.sim import QuantizationSimModel

_PROBES = 2  # backward passes a batch


def choose_activation_ranges(
    sim: QuantizationSimModel,
    data: Any,
    *,
    candidates: Sequence[Candidate] = CANDIDATES,
    samples: int | None = None,
    held_out: int = 4,
    max_memory: int | None = None,
    folder: str | Path | None = None,
    seed: int = 0,
    threads: int | None = 1,
    progress: Progress | None = None,
) -> ActivationRangesReport:
    """Choose the ranges of a calibrated simulation's activations, in place.

    Of every grid the range is taken whose error costs least, if it also costs less than the present
    one on batches held out, and if the model's outputs on all batches are better. Frozen ranges and
    frozen ends stay. `compute_encodings` sets all ranges that are not frozen anew.

    Before or after `reconstruct`: both work. Before is better, as integers are then fitted to the
    inputs that layers will get; afterwards ranges are chosen for the weights that were found, and
    the float model that outputs are compared with has these weights as well.

    Args:
        sim: the simulation.
        data: an iterable of batches, as for `compute_encodings`; two batches or more, or there is
            none to hold out.
        candidates: what is tried: names of schemes, analyzers, and shares (0 to 1] of the range
            that was seen.
        samples: samples that are enough; None: all data. With fewer than `compute_encodings` saw,
            rare large values are missing, and clipped.
        held_out: one of so many batches is held out.
        max_memory: bytes of values that are held in memory; the rest lies in files. The backward
            pass of one batch is not counted.
        folder: where these files are.
        seed: of the random sums of outputs whose gradients are used.
        threads: of torch; 1 gives the same result on every machine; None: as they are.
        progress: called after each node with (nodes done, nodes in all).

    Returns:
        What was chosen, grid by grid, and what the outputs gained.

    Raises:
        ConfigError: FXQ293 a candidate is none, FXQ294 an option is out of range.
        CalibrationError: FXQ402 a value is not finite, FXQ441 the model does not take a batch,
            FXQ442 to FXQ445 the data are no batches or hold NaN.
        UncalibratedError: FXQ401, the simulation is not calibrated.

    Source: ranges by squared error and by percentile are those of Nagel et al. 2021, "A White Paper
    on Neural Network Quantization", arXiv:2106.08295, section 3.1; the measure of their errors is
    the one of `gradients.py`.

    Example:
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(64, 8)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)), x, default_output_bw=4)
        >>> sim.compute_encodings([x])
        >>> report = choose_activation_ranges(sim, [x[:48], x[48:]])
        >>> report.sqnr_after >= report.sqnr_before
        True
    """
    require_simulation(sim, "choose_activation_ranges")
    _check_numbers(samples=(1 if samples is None else samples, 1), held_out=(held_out, 2))
    rules = rules_of(candidates)
    begin = time.process_time()
    gm = sim.model
    with (
        using_threads(threads), evaluating(gm), torch.no_grad(), returning_freed(max_memory),
    ):  # fmt: skip
        # the walk may fill what memory there is
        choosing = _Choosing(gm, rules, ValueStore(None if max_memory is None else 0, folder))
        walk = Walk(
            gm, data, (choosing.environment,), samples=samples, max_memory=max_memory,
            folder=folder, progress=progress,
        )  # fmt: skip
        report = choosing.run(walk, _held(len(walk), held_out), seed)
    report.seconds = time.process_time() - begin
    return report


def _check_numbers(**numbers: tuple[int, int]) -> None:
    for name, (value, least) in numbers.items():
        if type(value) is not int or value < least:
            what = f"{name} is {value!r}"
            raise ConfigError("FXQ294", what, fix=f"pass a number from {least} on")


class _Choosing:
    def __init__(
        self, gm: fx.GraphModule, rules: tuple[RangeRule, ...], inputs: ValueStore
    ) -> None:
        self.gm, self.rules, self.inputs = gm, rules, inputs
        self.report = ActivationRangesReport()
        self.environment = Environment(gm, "real activations")
        self.grids: dict[int, ChosenGrid] = {}
        self.slots: Slots = {}
        self._find()

    # which grids ---------------------------------------------------------------------------------

    def _find(self) -> None:
        names = {id(m): name for name, m in self.gm.named_modules()}
        skipped = self.report.skipped
        for node in self.gm.graph.nodes:
            module = self.gm.get_submodule(str(node.target)) if node.op == "call_module" else None
            if not isinstance(module, QuantizationMixin):
                continue
            for index, quantizer in module.output_quantizers.active():
                name, reason = names[id(quantizer)], obstacle(quantizer)
                if reason or not isinstance(quantizer, AffineQuantizer):
                    skipped[name] = reason
                    continue
                grid = self.grids.get(id(quantizer)) or self._new(quantizer, name)
                self.slots.setdefault(node, []).append((index, grid))
            for _, quantizer in module.input_quantizers.active():
                skipped.setdefault(names[id(quantizer)], "it belongs to one consumer alone")

    def _new(self, quantizer: AffineQuantizer, name: str) -> ChosenGrid:
        if not quantizer.is_initialized():
            raise quantizer._uncalibrated()
        before = quantizer.min.detach().clone(), quantizer.max.detach().clone()
        grid = ChosenGrid(quantizer, name, Observed(quantizer, self.rules), before)
        self.grids[id(quantizer)] = grid
        return grid

    # what they cost ------------------------------------------------------------------------------

    def run(self, walk: Walk, held: tuple[int, ...], seed: int) -> ActivationRangesReport:
        """Choose all ranges."""
        report = self.report
        with self.inputs:
            with ExitStack() as stack:
                for module in list(self.gm.modules()):
                    if isinstance(module, QuantizationMixin):
                        stack.enter_context(module._remove_activation_quantizers())
                self._observe(walk, held)
                for batch, samples in enumerate(walk.samples):
                    for judged in {batch in held, len(walk) == 1}:
                        report.without_gradients = add_costs(
                            self.gm, self.slots, self._values(batch), samples,
                            held=judged, probes=_PROBES, seed=seed + batch,
                        )  # fmt: skip
            checks = (
                OutputCheck(self.gm, batches, self._values, self.inputs)
                for batches in (range(len(walk)), held)
            )
            self._settle(*checks)
        report.held_out = len(held) if len(walk) > 1 else 0
        report.samples = sum(walk.samples)
        stores = (walk.store, self.inputs)
        report.peak_bytes, report.written_bytes = (
            sum(getattr(s, name) for s in stores) for name in ("peak", "written")
        )
        return report

    def _observe(self, walk: Walk, held: tuple[int, ...]) -> None:
        """See the values of the batches that are not held out, and keep all inputs."""
        unseen = held if len(walk) > 1 else ()
        for node in walk.nodes():
            walk.compute(node, self.environment)
            for batch in range(len(walk)):
                value = walk.value(node, self.environment, batch)
                if node.op == "placeholder":
                    self.inputs.put((batch, node), value)
                found = tensors(value) if batch not in unseen else []
                for index, grid in self.slots.get(node, ()):
                    if index < len(found) and found[index].is_floating_point():
                        grid.observed.update(plain(found[index]).float())
        for grid in self.grids.values():
            grid.begin()

    def _values(self, batch: int) -> list[Any]:
        holders = (n for n in self.gm.graph.nodes if n.op == "placeholder")
        return [self.inputs.get((batch, n)) for n in holders]

    def _settle(self, check: OutputCheck, glance: OutputCheck) -> None:
        """Make the changes that make the outputs better."""

        weights = _weight_ranges(self.gm)

        def put(change: tuple[ChosenGrid, Choice], *, made: bool) -> None:
            change[0].set(change[1].ends if made else change[0].before)
            for end, before in weights:  # what was widened for another range
                if not torch.equal(end, before):
                    end.copy_(before)
            fit_biases(self.gm)

        chosen = [(grid, grid.choice()) for grid in self.grids.values()]
        changes = [(g, c) for g, c in chosen if c.changed]
        try:
            kept, before, after = kept_parts(changes, put, check, glance)
        except BaseException:
            for change in changes:
                put(change, made=False)
            raise
        made = {grid for grid, _ in kept}
        for grid, choice in chosen:
            taken = choice if grid in made else choice.none(grid.before)
            if choice.changed and grid not in made:
                self.report.undone.append(grid.name)
            self.report.ranges.append(
                RangeReport(
                    grid.name,
                    grid.quantizer.where or grid.name,
                    taken.name,
                    _numbers(grid.before),
                    _numbers(taken.ends),
                    taken.cost_before,
                    taken.cost_after,
                )
            )
        self.report.sqnr_before = decibels(1.0, before)
        self.report.sqnr_after = decibels(1.0, after)


def _held(batches: int, each: int) -> tuple[int, ...]:
    """Numbers of the batches to judge by: one of so many and at least one."""
    return tuple(range(batches)[each - 1 :: each]) or (batches - 1,)


def _weight_ranges(gm: fx.GraphModule) -> list[tuple[Tensor, Tensor]]:
    """Ends of the ranges of all weights, and copies of them."""
    return [
        (end, end.detach().clone())
        for module in gm.modules()
        if isinstance(module, QuantizationMixin)
        for _, quantizer in module.param_quantizers.active()
        for end in quantizer.parameters(recurse=False)
    ]


def _numbers(ends: Ends) -> tuple[float, float]:
    return float(ends[0]), float(ends[1])
