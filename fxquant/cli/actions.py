"""What the commands do: from names on a command line to reports.

The functions take what stands on the command line, already checked as far as it can be without
torch; all errors are those of the parts that they call.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from fxquant import QuantizationSimModel, insert_stubs, inspect_model, prepare_model
from fxquant.analysis.inspector import Inspector, InspectorReport
from fxquant.analysis.inspector_regions import inspect_regions
from fxquant.analysis.profile import Profile
from fxquant.analysis.profile import profile as profile_of
from fxquant.cli.loading import build_model
from fxquant.encodings import diff, read
from fxquant.errors import ConfigError
from fxquant.io.writing import as_path, reserved, write_text
from fxquant.onnx.examine import examine
from fxquant.onnx.lint.verify import verify_file
from fxquant.validate import validate_preparation

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from fxquant.cli.data_request import DataRequest
    from fxquant.cli.progress import Progress
    from fxquant.encodings.diff import Difference
    from fxquant.validate import ValidationReport


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
    if picture and picture.endswith(".html"):
        QuantizationSimModel(model, example, target=target, **settings).report(picture)
    elif picture and isinstance(plan, InspectorReport):
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
