"""`fxquant.quantize`: from a float model and data to a proven file, in one call."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxquant.auto.recorded_request import recording
from fxquant.auto.request import Found, Request, find
from fxquant.auto.search_report import AutoReport
from fxquant.errors import FxQuantError
from fxquant.io.writing import as_path, checked_prefix, made_folder, stage
from fxquant.records.recording import Sources
from fxquant.tracking.events import OnEvent, Value, emit

if TYPE_CHECKING:
    from fxquant.auto.journal import Trial
    from fxquant.auto.scoring import Evaluate, On
    from fxquant.auto.technique_search import Progress
    from fxquant.config import QuantConfig
    from fxquant.onnx.parity.report import ParityReport
    from fxquant.quantization import QuantScheme
    from fxquant.sim import QuantizationSimModel
    from fxquant.targets import Deploy, Target


@dataclass(frozen=True)
class QuantizeResult:
    """What `quantize` made.

    Attributes:
        sim: the simulation that was exported.
        float_model: the prepared float model that it is compared with.
        score: its score: what `evaluate` returned for it, or decibels.
        float_score: that of the float model; infinite when the score is decibels.
        runtime_score: that of onnxruntime on this CPU; None without `evaluate`.
        met: whether the score is within the drop that was allowed; true where none was given.
        techniques: what was applied, in order.
        tried: everything that was tried, in the order of trial.
        report: what was tried, gained and cost; `str()` says it for people.
        export: the report of the proof.
        files: what was written.
    """

    sim: QuantizationSimModel
    float_model: fx.GraphModule
    score: float
    float_score: float
    runtime_score: float | None
    met: bool
    techniques: tuple[str, ...]
    tried: tuple[Trial, ...]
    report: AutoReport
    export: ParityReport
    files: tuple[Path, ...]

    def __str__(self) -> str:
        return f"{self.report}\n\n{self.export}"


def quantize(
    model: nn.Module,
    data: Any,
    *,
    out: str | Path,
    name: str = "model",
    evaluate: Evaluate | None = None,
    accuracy_drop: float | None = None,
    techniques: str | Iterable[str] = "auto",
    target: Target | str = "onnxruntime_x86",
    config: QuantConfig | dict[str, Any] | str | Path | None = None,
    quant_scheme: QuantScheme | str | None = None,
    param_bw: int | None = None,
    output_bw: int | None = None,
    dummy_input: Any = None,
    fine_tune: Callable[[QuantizationSimModel], object] | None = None,
    on: On = "sim",
    seed: int = 0,
    max_seconds: float | None = None,
    progress: Progress | None = None,
    options: Mapping[str, Any] | None = None,
    opset: int = 21,
    prove: bool = True,
    contrib: bool | None = None,
    deploy: Deploy | None = None,
    sources: Sources | None = None,
    on_event: OnEvent | None = None,
) -> QuantizeResult:
    """Quantize a model as well as needed, and write what was found as proven files.

    The model is prepared and simulated; if that misses the target, techniques are tried on it, one
    on top of the other. One that lowers the score is left out again, and the search stops when the
    target is met. A run that was killed is gone on with by the same call, and ends in the same
    files; until then its state lies in a hidden folder in `out`. Beside the files lies a recipe,
    `NAME.recipe.yaml`, with everything that was decided; see `fxquant.recipe`.

    Args:
        model: the float model; it is not changed.
        data: calibration data: an iterable of batches (a tensor, a tuple of inputs or a dict of
            keyword inputs), or a function that returns one. Labels that come with them are left
            out. Loaders that shuffle with torch's generator give the same batches in every pass.
        out: folder of the files; it is made when missing.
        name: how the files are called.
        evaluate: `evaluate(model)` returns a number, the higher the better; `model` is called as
            the float model is. Without it the score is the signal to noise ratio of the outputs
            against the float model, on batches held out.
        accuracy_drop: how much lower than the float model's the score may be, in its own unit;
            None: everything is tried, and the best is taken.
        techniques: "auto", "none", or names of `fxquant.auto.techniques.TECHNIQUES`. An error of a
            technique that was named is raised; with "auto" it is told in the report.
        target: name of a shipped target, or a `Target`.
        config: as for `QuantizationSimModel`.
        quant_scheme: how ranges are found; None: more than one way is tried.
        param_bw: bits of weights; default: those of configuration or target.
        output_bw: bits of activations; the same.
        dummy_input: inputs to record the model with; default: the first batch.
        fine_tune: `fine_tune(sim)` trains a simulation in place; it is called last.
        on: what `evaluate` is given: "sim", the simulation; "integer", the exact integer executor;
            "onnxruntime", a session on this CPU.
        seed: of everything that is drawn.
        max_seconds: on the clock; no technique is begun after that.
        progress: called with a text before every step.
        options: options of techniques by their names, such as
            `{"reconstruct": ReconstructionOptions(samples=512)}`.
        opset: as for `sim.export`.
        prove: as for `sim.export`.
        contrib: as for `sim.export`.
        deploy: as for `sim.export`.
        sources: how `model`, `data` and `evaluate` are named on a command line, for the recipe.
        on_event: called with "quantize.step", "quantize.trial" and "quantize.result", and their
            values; see `fxquant.tracking`.

    Returns:
        The simulation, its score, the report and the files. If the target is missed, the best that
        was found is written, and `met` is false.

    Raises:
        ConfigError: FXQ255 to FXQ257, an argument cannot be used; FXQ258, `evaluate` failed;
            FXQ249, it returned no finite number.
        CalibrationError: FXQ480 to FXQ482, there are no data, or they hold NaN.
        ExportError: FXQ541 to FXQ545, `out` or `name` cannot be used; nothing was done. Others: the
            model has no form in ONNX.
        ParityError: onnxruntime computes something else; nothing is left behind.

    Example:
        >>> import tempfile
        >>> from torch import fx, nn
        >>> import torch
        >>> x = torch.randn(64, 8)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     result = quantize(nn.Linear(8, 4), [x[:32], x[32:]], out=folder, name="net")
        >>> result.export.proven, result.report.trials[0].names
        (True, ())
    """
    prefix, home = checked_prefix(name), as_path(out, "out")
    request = Request(
        model, data, evaluate, accuracy_drop, techniques, target, config, quant_scheme,
        param_bw=param_bw, output_bw=output_bw, dummy_input=dummy_input, fine_tune=fine_tune, on=on,
        seed=seed, max_seconds=max_seconds, options=options or {},
        lowering={"opset": opset, "contrib": contrib, "deploy": deploy},
        strict=techniques != "auto", on_event=on_event,
    )  # fmt: skip
    return carry_out(request, home, prefix, prove=prove, sources=sources, progress=progress)


def carry_out(
    request: Request,
    home: Path,
    prefix: str,
    *,
    prove: bool = True,
    sources: Sources | None = None,
    progress: Progress | None = None,
) -> QuantizeResult:
    """Search, export and record; see `quantize`.

    Args:
        request: what is asked for.
        home: folder of the files.
        prefix: how they are called.
        prove: as for `sim.export`.
        sources: see `quantize`.
        progress: called with a text before every step.
    """
    say = request.said(progress)
    with made_folder(home) as folder:
        with stage(folder, prefix):
            pass  # it can be written: that is known before anything is computed
        work = folder / f".fxquant-auto-{prefix}"
        try:
            found = find(request, work, progress)
            runtime = found.scorer.of_runtime(found.sim, found.report.score)
            say("exporting and proving" if prove else "exporting")
            record = recording(request, found, prefix, prove=prove, sources=sources or Sources())
            export = found.sim.export(
                folder, prefix, prove=prove, companion=record.companion(folder), **request.lowering
            )
        except FxQuantError:  # it would be the same again; other ends, such as Ctrl-C, go on
            shutil.rmtree(work, ignore_errors=True)
            raise
        shutil.rmtree(work, ignore_errors=True)
        files = tuple(sorted(folder.glob(f"{prefix}.*")))
    report = found.report
    tell_result(request, found, runtime)
    return QuantizeResult(
        found.sim, found.scorer.reference, report.score, report.float_score, runtime, report.met,
        report.best, report.trials, report, export, files,
    )  # fmt: skip


def tell_result(request: Request, found: Found, runtime: float | None = None) -> None:
    """The event "quantize.result".

    Args:
        request: what was asked for.
        found: what was found.
        runtime: score of onnxruntime.
    """
    report = found.report
    values: dict[str, Value | None] = {
        "score": report.score, "float_score": report.float_score, "runtime_score": runtime,
        "met": int(report.met), "techniques": " + ".join(report.best),
        "trials": len(report.trials), "cpu_seconds": report.cpu_seconds,
    }  # fmt: skip
    emit(request.on_event, "quantize.result", values)
