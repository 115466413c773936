"""What `fxquant report` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant import QuantizationSimModel
from fxquant.cli.actions import built, writable
from fxquant.cli.evaluation import load_evaluation

if TYPE_CHECKING:
    from torch import nn

    from fxquant.cli.batches import Data
    from fxquant.cli.data_request import DataRequest
    from fxquant.cli.progress import Progress


def report(
    factory: str, *, weights: str | None, data: DataRequest, progress: Progress, **options: Any
) -> str:
    """Build, calibrate if there are data, and write the report.

    Returns:
        The file.
    """
    with writable(options["out"]):
        model = built(factory, weights, progress)
        batches = data.load(model)
    progress.step("preparing and placing quantizers")
    sim = QuantizationSimModel(
        model, batches.first(), quant_scheme=options["scheme"],
        default_param_bw=options["param_bw"], default_output_bw=options["activation_bw"],
        config=options["config"], target=options["target"],
    )  # fmt: skip
    real = None if data.shapes else batches  # random inputs have no values worth looking at
    _calibrate(sim, real, options["encodings"], progress)
    scores = _scores(sim, model, options["evaluation"], data, progress)
    with progress.bar("measuring", None) as advance:
        file = sim.report(
            options["out"], real, samples=options["samples"], evaluation=scores,
            export=options["export"], profile=options["profile"],
            mixed_precision=options["mixed_precision"], analyzer=options["analyzer"],
            audit=options["audit"], recipe=options["recipe"],
            title=factory.rpartition(":")[2], progress=lambda done, _: advance(done),
        )  # fmt: skip
    return str(file)


def _calibrate(
    sim: QuantizationSimModel, batches: Data | None, encodings: str | None, progress: Progress
) -> None:
    if encodings is not None:
        progress.step("loading encodings")
        sim.load_encodings(encodings)
    elif batches is not None:
        with progress.bar("calibrating", batches.count) as advance:
            sim.compute_encodings(batches, progress=lambda done, _: advance(done))


def _scores(
    sim: QuantizationSimModel, model: nn.Module, evaluation: str | None, data: DataRequest,
    progress: Progress,
) -> dict[str, float] | None:  # fmt: skip
    if evaluation is None:
        return None
    progress.step("evaluating")
    size = data.batch_size
    measure = load_evaluation(evaluation, model, keys=data.keys, batch_size=size).evaluate
    return None if measure is None else {"float": measure(model), "simulation": measure(sim.model)}
