"""What `fxquant report` does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant import QuantizationSimModel
from fxquant.cli.batches import load_data, random_data
from fxquant.cli.evaluation import load_evaluation
from fxquant.cli.loading import build_model

if TYPE_CHECKING:
    from torch import nn

    from fxquant.cli.batches import Data
    from fxquant.cli.progress import Progress


def report(
    factory: str, *, weights: str | None, data: str | None, shapes: tuple[str, ...],
    batch_size: int, progress: Progress, **options: Any,
) -> str:  # fmt: skip
    """Build, calibrate if there are data, and write the report.

    Returns:
        The file.
    """
    progress.step("building the network")
    model = build_model(factory, weights)
    batches = None
    if data is not None:
        batches = load_data(data, batch_size=batch_size, model=model).inputs_of(model)
    example = random_data(shapes).first() if batches is None else batches.first()
    progress.step("preparing and placing quantizers")
    sim = QuantizationSimModel(
        model, example, quant_scheme=options["scheme"], default_param_bw=options["param_bw"],
        default_output_bw=options["activation_bw"], config=options["config"],
        target=options["target"],
    )  # fmt: skip
    _calibrate(sim, batches, options["encodings"], progress)
    scores = _scores(sim, model, options["evaluation"], options["labels"], batch_size, progress)
    with progress.bar("measuring", None) as advance:
        file = sim.report(
            options["out"], batches, samples=options["samples"], evaluation=scores,
            export=options["export"], profile=options["profile"],
            mixed_precision=options["mixed_precision"], recipe=options["recipe"],
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
    sim: QuantizationSimModel, model: nn.Module, evaluation: str | None, labels: str | None,
    batch_size: int, progress: Progress,
) -> dict[str, float] | None:  # fmt: skip
    if evaluation is None:
        return None
    progress.step("evaluating")
    measure = load_evaluation(evaluation, labels, model, batch_size)
    return {"float": measure(model), "simulation": measure(sim.model)}
