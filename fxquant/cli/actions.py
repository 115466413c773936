"""What the commands do: from names on a command line to reports.

The functions take what stands on the command line, already checked as far as it can be without
torch; all errors are those of the parts that they call. Where results are written is tried first:
a folder without permissions is known before a calibration of an hour, not after it.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from fxquant import (
    QuantizationSimModel,
    insert_stubs,
    inspect_model,
    prepare_model,
)
from fxquant import quantize as one_call
from fxquant.analysis.inspector import Inspector, InspectorReport
from fxquant.analysis.inspector_regions import inspect_regions
from fxquant.analysis.profile import Profile
from fxquant.analysis.profile import profile as profile_of
from fxquant.auto.side_by_side import side_by_side
from fxquant.cli.batches import Data, image_data
from fxquant.cli.evaluation import DECIBELS, Measure, Scored, accuracy, load_evaluation
from fxquant.cli.loading import build_model
from fxquant.encodings import diff, read
from fxquant.errors import ConfigError
from fxquant.io.writing import as_path, checked_prefix, reserved, write_text
from fxquant.onnx.examine import examine
from fxquant.onnx.lint.verify import verify_file
from fxquant.validate import validate_preparation

_CALIBRATION_BATCHES = 8  # of a folder of images that is also evaluated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from fxquant.cli.data_request import DataRequest
    from fxquant.cli.progress import Progress
    from fxquant.encodings.diff import Difference
    from fxquant.onnx.parity.report import ParityReport
    from fxquant.validate import ValidationReport


def quantize(
    factory: str, data: DataRequest, *, max_batches: int | None, progress: Progress, **options: Any
) -> tuple[ParityReport, list[str]]:
    """Calibrate and export.

    Returns:
        The report of the export, and the files that were written.
    """
    prefix = checked_prefix(options["prefix"], error=ConfigError)
    with reserved(options["out"], prefix, error=ConfigError) as out:
        model = built(factory, options["weights"], progress)
        calibration = data.load(model).take(max_batches)
        example = calibration.first()
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
        with progress.bar("calibrating", calibration.count) as advance:
            sim.compute_encodings(calibration, progress=lambda done, _: advance(done))
        progress.step("exporting" if options["no_proof"] else "exporting and proving")
        report = sim.export(
            out, prefix, example, opset=options["opset"], prove=not options["no_proof"],
            contrib=False if options["standard"] else None, deploy=options["deploy"],
        )  # fmt: skip
        return report, sorted(str(p) for p in out.glob(f"{prefix}.*"))


def search(
    factory: str, data: DataRequest, evaluation: str | None, *, max_batches: int | None,
    progress: Progress, **options: Any,
) -> Scored:  # fmt: skip
    """Quantize by techniques, as well as a measure asks for, and compare with the float model."""
    prefix = checked_prefix(options["prefix"], error=ConfigError)
    with reserved(options["out"], prefix, error=ConfigError):
        model = built(factory, options["weights"], progress)
        batches, measure = _data_and_measure(data, evaluation, max_batches, model)
        result = one_call(
            model, batches, out=options["out"], name=prefix,
            evaluate=None if measure is None else measure.evaluate,
            accuracy_drop=options["accuracy_drop"], techniques=options["techniques"],
            target=options["target"], config=options["config"], quant_scheme=options["scheme"],
            param_bw=options["param_bw"], output_bw=options["activation_bw"], on=options["on"],
            max_seconds=options["max_seconds"], progress=progress.step, opset=options["opset"],
            prove=not options["no_proof"], contrib=False if options["standard"] else None,
            deploy=options["deploy"],
        )  # fmt: skip
    progress.step("measuring")
    onnx = next(file for file in result.files if file.suffix == ".onnx")
    sizes = side_by_side(result.float_model, result.sim.example, onnx)
    return Scored(result, sizes, measure or DECIBELS)


def _data_and_measure(
    request: DataRequest, evaluation: str | None, max_batches: int | None, model: nn.Module
) -> tuple[Data, Measure | None]:
    """What to calibrate with and what to judge by; a folder of images with classes is both."""
    images = request.images()
    if images is None or not images.classes or evaluation is not None:
        data = request.load(model).take(max_batches)
        if evaluation is None:
            return data, None
        keys, size = request.keys, request.batch_size
        return data, load_evaluation(evaluation, model, keys=keys, batch_size=size)
    few, rest = images.split((max_batches or _CALIBRATION_BATCHES) * images.batch_size)
    return image_data(few), accuracy(rest.batches, str(images.root))


def validate(factory: str, *, progress: Progress, **options: Any) -> ValidationReport:
    """Check a network against the guidelines."""
    model, example = _model_and_example(factory, progress, **options)
    progress.step("validating and preparing")
    return validate_preparation(model, example)


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
    with writable(picture):
        model, example = _model_and_example(factory, progress, **options)
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


@contextmanager
def writable(file: str | None) -> Iterator[None]:
    """Try whether a file can be written, before the work of the block; None: there is no file."""
    with ExitStack() as stack:
        if file is not None:
            path = as_path(file)
            stack.enter_context(reserved(path.parent, path.name, error=ConfigError))
        yield


def built(factory: str, weights: str | None, progress: Progress) -> nn.Module:
    """The network that the command line names, with its weights."""
    progress.step("building the network")
    return build_model(factory, weights, say=progress.note)


def _model_and_example(
    factory: str, progress: Progress, *, weights: str | None, data: DataRequest
) -> tuple[nn.Module, Any]:
    model = built(factory, weights, progress)
    return model, data.load(model).first()
