"""What the commands do: from names on a command line to reports.

The functions take what stands on the command line, already checked as far as it can be without
torch; all errors are those of the parts that they call.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxquant import (
    QuantizationSimModel,
    insert_stubs,
    inspect_model,
    prepare_model,
    validate_model,
)
from fxquant import quantize as one_call
from fxquant.analysis.inspector import Inspector, InspectorReport
from fxquant.analysis.inspector_regions import inspect_regions
from fxquant.analysis.profile import Profile
from fxquant.analysis.profile import profile as profile_of
from fxquant.auto.side_by_side import side_by_side
from fxquant.cli.batches import Data, load_data, random_data
from fxquant.cli.evaluation import load_evaluation
from fxquant.cli.loading import build_model
from fxquant.encodings import diff, read
from fxquant.errors import ConfigError, ModelError
from fxquant.io.writing import write_text
from fxquant.onnx.examine import examine
from fxquant.onnx.lint.verify import verify_file
from fxquant.prepare import SpecialisationWarning
from fxquant.validate import Finding, ValidationReport

if TYPE_CHECKING:
    from torch import nn

    from fxquant.auto.one_call import QuantizeResult
    from fxquant.auto.side_by_side import SideBySide
    from fxquant.cli.progress import Progress
    from fxquant.encodings.diff import Difference
    from fxquant.onnx.parity.report import ParityReport


def quantize(
    factory: str,
    calibration: str,
    *,
    batch_size: int,
    max_batches: int | None,
    progress: Progress,
    **options: Any,
) -> tuple[ParityReport, list[str]]:
    """Calibrate and export.

    Returns:
        The report of the export, and the files that were written.
    """
    progress.step("building the network")
    model = build_model(factory, options["weights"])
    data = load_data(calibration, batch_size=batch_size, model=model).take(max_batches)
    data = data.inputs_of(model)
    example = data.first()
    progress.step("preparing and placing quantizers")
    sim = QuantizationSimModel(
        model,
        example,
        quant_scheme=options["scheme"],
        default_param_bw=options["param_bw"],
        default_output_bw=options["activation_bw"],
        config=options["config"],
        target=options["target"],
    )
    with progress.bar("calibrating", data.count) as advance:
        sim.compute_encodings(data, progress=lambda done, _: advance(done))
    progress.step("exporting" if options["no_proof"] else "exporting and proving")
    prefix = options["prefix"]
    report = sim.export(
        options["out"], prefix, example, opset=options["opset"], prove=not options["no_proof"],
        contrib=False if options["standard"] else None, deploy=options["deploy"],
    )  # fmt: skip
    return report, sorted(str(p) for p in Path(options["out"]).glob(f"{prefix}.*"))


def search(
    factory: str,
    calibration: str,
    *,
    batch_size: int,
    max_batches: int | None,
    evaluation: str | None,
    labels: str | None,
    progress: Progress,
    **options: Any,
) -> tuple[QuantizeResult, SideBySide]:
    """Quantize by techniques, as well as a measure asks for, and compare with the float model."""
    progress.step("building the network")
    model = build_model(factory, options["weights"])
    data = load_data(calibration, batch_size=batch_size, model=model).take(max_batches)
    evaluate = None
    if evaluation is not None:
        evaluate = load_evaluation(evaluation, labels, model, batch_size)
    result = one_call(
        model, data, out=options["out"], name=options["prefix"], evaluate=evaluate,
        accuracy_drop=options["accuracy_drop"], techniques=options["techniques"],
        target=options["target"], config=options["config"], quant_scheme=options["scheme"],
        param_bw=options["param_bw"], output_bw=options["activation_bw"], on=options["on"],
        max_seconds=options["max_seconds"], progress=progress.step, opset=options["opset"],
        prove=not options["no_proof"], contrib=False if options["standard"] else None,
        deploy=options["deploy"],
    )  # fmt: skip
    progress.step("measuring")
    onnx = next(file for file in result.files if file.suffix == ".onnx")
    return result, side_by_side(result.float_model, result.sim.example, onnx)


def validate(factory: str, *, progress: Progress, **options: Any) -> ValidationReport:
    """Check a network against the guidelines."""
    model, data = _model_and_data(factory, progress, **options)
    example = data.first()
    progress.step("validating")
    report = validate_model(model, example)
    if not report.blocking:  # what is said to be repaired must be
        progress.step("preparing")
        report = ValidationReport((*report.findings, *_left(model, example)))
    return report


def _left(model: nn.Module, example: Any) -> tuple[Finding, ...]:
    """What blocks a network after it was prepared, or keeps it from being prepared."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SpecialisationWarning)  # they are findings here
            return validate_model(prepare_model(model, example), example).blocking
    except ModelError as error:
        place, fix = str(error.at or ""), str(error.fix or "")
        return (Finding(error.code, "error", error.what, at=place, fix=fix),)


def inspect(
    factory: str,
    *,
    config: str | None,
    target: str,
    named: bool,
    regions: bool,
    chosen: tuple[str, ...],
    kept: tuple[str, ...],
    picture: str | None,
    progress: Progress,
    **options: Any,
) -> Any:
    """What would be quantized and why: of regions, of a target that was named, or of the model.

    Returns:
        A report with `to_json`.
    """
    model, data = _model_and_data(factory, progress, **options)
    example = data.first()
    progress.step("preparing and placing quantizers")
    if chosen or kept:
        prepared = prepare_model(model, example)
        model = insert_stubs(prepared, chosen or None, keep_float=kept or None)
    settings: dict[str, Any] = {"config": config}
    plan: Any
    if regions or chosen or kept:
        plan = inspect_regions(model, example, target=target, **settings)
    elif picture or named:
        plan = Inspector(target).inspect(model, example, **settings)
    else:
        plan = inspect_model(model, example, target=target, **settings)
    if picture and isinstance(plan, InspectorReport):
        write_text(picture, plan.to_svg(), error=ConfigError)
    return plan


def verify(file: str, data: str | None) -> Any:
    """The lint of a file; with data also what runtime and executor compute."""
    return verify_file(file) if data is None else examine(file, data)


def profile(file: str, data: str, *, reference: str | None, rounds: int, threads: int) -> Profile:
    """Time and error of each operator."""
    return profile_of(file, data, reference=reference, rounds=rounds, threads=threads)


def compare_encodings(first: str, second: str) -> tuple[tuple[Difference, ...], int]:
    """Compare two encodings files.

    Returns:
        The differences, and how many tensors the files name.
    """
    a, b = read(first), read(second)
    return diff(a, b), len({e.name for e in (*a.entries, *b.entries)})


def _model_and_data(
    factory: str,
    progress: Progress,
    *,
    weights: str | None,
    data: str | None,
    shapes: tuple[str, ...],
    batch_size: int,
) -> tuple[nn.Module, Data]:
    progress.step("building the network")
    model = build_model(factory, weights)
    if data is None:
        return model, random_data(shapes)
    return model, load_data(data, batch_size=batch_size, model=model)
