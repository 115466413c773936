"""`choose_mixed_precision`: precisions that cost least for the accuracy that is wanted."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from fxquant.calibrate import using_threads
from fxquant.errors import ConfigError
from fxquant.io.writing import write_text
from fxquant.mixed_precision.bit_candidates import candidates_of
from fxquant.mixed_precision.run import Run
from fxquant.mixed_precision.search_options import Cost, Options
from fxquant.ptq.snapshot import snapshot
from fxquant.ptq.walking.given_simulation import require_simulation

if TYPE_CHECKING:
    from fxquant.mixed_precision.mixed_result import MixedPrecisionResult
    from fxquant.mixed_precision.search import Technique
    from fxquant.sim import QuantizationSimModel

FILE = "mixed_precision.json"


def choose_mixed_precision(
    sim: QuantizationSimModel,
    candidates: Sequence[Any] = ((8, 4), (8, 8), (16, 8)),
    evaluate: Callable[[Any], Any] | None = None,
    data: Any = None,
    allowed_accuracy_drop: float | None = None,
    *,
    cost: Cost = "size",
    sensitivity: Literal["evaluate", "sqnr"] | None = None,
    techniques: Sequence[Technique] = (),
    results_dir: str | Path | None = None,
    clean_start: bool = False,
    samples: int = 64,
    points: int = 8,
    trials: int = 16,
    latency: bool | None = None,
    rounds: int = 20,
    threads: int | None = 1,
    progress: Callable[[int, int], None] | None = None,
) -> MixedPrecisionResult:
    """Choose the bits of every group of grids, and give them to the simulation.

    An operator's weight and what it reads are a group, together with all else that reads the same
    values. Every group is judged alone with every candidate; a greedy path from the most accurate
    choice to the cheapest follows, and the cheapest choice that keeps enough accuracy is taken.
    Frozen grids stay as they are, and what lies outside of a network's regions does too.

    Args:
        sim: a calibrated simulation.
        candidates: pairs of precisions (activation, weight): bits or "float"; "float" alone is
            both; AIMET's `((8, type), (4, type))` is understood.
        evaluate: `evaluate(model) -> number`, larger is better; it is called with `sim.model`.
            None: the ratio of signal to noise at the outputs against float, in decibels.
        data: batches, as for `compute_encodings`; needed without `evaluate`.
        allowed_accuracy_drop: what `evaluate` may lose against the float model; without `evaluate`,
            decibels below the most accurate choice in integers. None: nothing is chosen, and the
            simulation is left as it is.
        cost: what is to be small: "size" of weights, "bit_operations", or "latency", measured in
            onnxruntime on the simulation's example inputs.
        sensitivity: how groups are judged alone, by "evaluate" or by "sqnr"; default: as choices.
        techniques: functions `(sim, data)`, such as `reconstruct`, that every choice is judged
            after; they are applied to the chosen one.
        results_dir: folder of the result as JSON, and of what was found on the way: a search that
            was interrupted, even by a kill, goes on from that, with the same result.
        clean_start: forget what that file holds.
        samples: samples of `data` that noise is measured on.
        points: choices that are evaluated along the path, for the Pareto front.
        trials: single steps that are tried beyond the point that the path ends at.
        latency: measure the latency of what the report compares; default: where the target is
            onnxruntime.
        rounds: how often each file is measured.
        threads: of torch and of onnxruntime; None: as torch has them.
        progress: called after each evaluation with (done, most that there will be).

    Returns:
        The Pareto front, the sensitivities and what was chosen.

    Raises:
        ConfigError: FXQ262 the target lacks a candidate, FXQ263 or FXQ267 an argument is wrong,
            FXQ268 the folder holds the progress of another search, FXQ286 arguments do not go
            together, FXQ258 `evaluate` failed, FXQ249 it returned no finite number.
        UncalibratedError: FXQ401, the simulation is not calibrated.
        CalibrationError: FXQ442 to FXQ445 the data are no batches, FXQ449 outputs are not finite.

    Source: groups judged alone and a greedy path over them are those of automatic mixed precision
        as AIMET documents it; the order of steps is that of `front.steepest_path`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(64, 8)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2)), x)
        >>> sim.compute_encodings([x])
        >>> result = choose_mixed_precision(sim, data=[x], allowed_accuracy_drop=3, latency=False)
        >>> result.met, result.chosen.size <= result.all_integer.size
        (True, True)
    """
    require_simulation(sim, "choose_mixed_precision")
    options = Options(
        evaluate, data, allowed_accuracy_drop, cost, sensitivity, tuple(techniques), samples,
        points, trials, latency, rounds, threads,
    )  # fmt: skip
    options.check(sim)
    _require_calibrated(sim)
    run = Run(sim, candidates_of(candidates, sim.target), options)
    before = snapshot(sim)
    try:
        with using_threads(threads):
            run.begin(results_dir, clean_start=clean_start, progress=progress)
            run.search()
            result = run.result()
    except BaseException:
        run.put_back(before)
        raise
    if result.chosen is None:
        run.put_back(before)
    if results_dir is not None:
        write_text(Path(results_dir) / FILE, result.to_json(), error=ConfigError)
    return result


def _require_calibrated(sim: QuantizationSimModel) -> None:
    for quantizer in sim.quantizers():
        if not quantizer.is_initialized():
            raise quantizer._uncalibrated()
