"""Carrying out the settings of a recipe, which a command line is turned into first."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxquant import QuantizationSimModel, prepare_model
from fxquant.auto.calibration_data import Content
from fxquant.auto.one_call import carry_out as search
from fxquant.auto.recorded_request import (
    config_of,
    decided_of,
    plain_config,
    plain_target,
    request_of,
    target_of,
)
from fxquant.auto.request import network_of
from fxquant.auto.side_by_side import side_by_side
from fxquant.cli import evaluation as texts
from fxquant.cli.batches import Data, load_data
from fxquant.cli.evaluation import load_evaluation
from fxquant.cli.loading import build_model
from fxquant.errors import ConfigError
from fxquant.records import recipe_schema as schema
from fxquant.records.recipe_schema import SUFFIX, Override, Settings
from fxquant.records.recording import Recording, Sources

if TYPE_CHECKING:
    from torch import nn

    from fxquant.auto.one_call import QuantizeResult
    from fxquant.auto.side_by_side import SideBySide
    from fxquant.cli.progress import Progress
    from fxquant.onnx.parity.report import ParityReport


@dataclass(frozen=True)
class HandedIn:
    """What Python hands in, where the settings name no file.

    Attributes:
        model: the float model.
        data: calibration data, as for `fxquant.quantize`.
        evaluate: `evaluate(model)` returns a number.
        dummy_input: inputs to record the model with.
        fine_tune: `fine_tune(sim)` trains a simulation.
        options: options of techniques that a file cannot name.
    """

    model: nn.Module | None = None
    data: Any = None
    evaluate: Any = None
    dummy_input: Any = None
    fine_tune: Any = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a run wrote.

    Attributes:
        export: the report of the export.
        files: what was written.
        result: what a search found; None where nothing was scored.
        sizes: float model and file side by side, where that was asked for.
    """

    export: ParityReport
    files: tuple[Path, ...]
    result: QuantizeResult | None = None
    sizes: SideBySide | None = None

    @property
    def met(self) -> bool:
        """Whether the score is within the drop that was allowed."""
        return self.result is None or self.result.met

    @property
    def recipe(self) -> Path:
        """The recipe among the files."""
        return next(file for file in self.files if file.name.endswith(SUFFIX))

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        files = [str(file) for file in self.files]
        found = {"files": files, "report": json.loads(self.export.to_json())}
        if self.result is not None and self.sizes is not None:
            found["evaluation"] = texts.plain(self.result, self.sizes)
        return found

    def __str__(self) -> str:
        parts = [str(self.export), ""]
        if self.result is not None and self.sizes is not None:
            parts += [str(self.result.report), "", texts.summary(self.result, self.sizes), ""]
        return "\n".join([*parts, "written:", *(f"  {file}" for file in self.files)])


def settings_of(factory: str, calibration: str, **options: Any) -> Settings:
    """The settings that a command line stands for."""
    names = (
        "weights", "batch_size", "max_batches", "labels", "prefix", "param_bw", "activation_bw",
        "techniques", "accuracy_drop", "max_seconds", "opset", "deploy", "scheme",
    )  # fmt: skip
    settings = Settings.model_construct(
        **{name: options[name] for name in names}, **plain_config(options["config"]),
        **plain_target(options["target"]), network=factory,
        calibration=calibration, evaluate=options["evaluation"], evaluate_on=options["on"],
        prove=not options["no_proof"], contrib=False if options["standard"] else None,
    )  # fmt: skip
    return as_search(settings)


def as_search(settings: Settings) -> Settings:
    """The same with the techniques that a measure asks for where none are named."""
    named, drop = settings.techniques, settings.accuracy_drop
    if named is None and (settings.evaluate is not None or drop is not None):
        named = "none" if drop is None else "auto"
    return settings.model_copy(update={"techniques": named, "strict": named != "auto"})


def carry_out(
    settings: Settings,
    out: Path,
    progress: Progress,
    *,
    handed: HandedIn | None = None,
    overridden: Mapping[str, Override] | None = None,
    trials: int | None = None,
    measure: bool = True,
) -> Outcome:
    """Quantize as settings say, and write the files and a recipe.

    Args:
        settings: with paths as this process can use them.
        out: folder of the files.
        progress: is told every step.
        handed: what files do not name.
        overridden: settings of an older recipe that flags have replaced.
        trials: a search makes so many at most; None: any number.
        measure: compare size and time of what a search wrote with the float model's.

    Raises:
        ConfigError: FXQ782, something is neither named nor handed in.
    """
    given = handed or HandedIn()
    progress.step("building the network")
    model = _model(settings, given)
    data = _data(settings, given, model)
    if settings.techniques is None and given.evaluate is None:
        return _calibrated(settings, out, progress, model, data, overridden or {})
    if given.evaluate is None and settings.evaluate is not None:
        measured = load_evaluation(settings.evaluate, settings.labels, model, settings.batch_size)
        given = replace(given, evaluate=measured)
    request = request_of(
        settings, model, data, trials=trials, evaluate=given.evaluate,
        dummy_input=given.dummy_input, fine_tune=given.fine_tune, options=given.options,
    )  # fmt: skip
    sources = Sources(
        settings.network if given.model is None else None, settings.weights,
        settings.calibration if given.data is None else None, settings.batch_size,
        settings.max_batches, settings.evaluate, settings.labels, overridden or {},
    )  # fmt: skip
    result = search(
        request, out, settings.prefix, prove=settings.prove, sources=sources,
        progress=progress.step,
    )  # fmt: skip
    if not measure:
        return Outcome(result.export, result.files, result)
    progress.step("measuring")
    onnx = next(file for file in result.files if file.suffix == ".onnx")
    sizes = side_by_side(result.float_model, result.sim.example, onnx)
    return Outcome(result.export, result.files, result, sizes)


_NETWORK, _DATA = "the network", "the data"


def _model(settings: Settings, given: HandedIn) -> nn.Module:
    if given.model is not None:
        return given.model
    if settings.network is None:
        fix = "--network path.py:function, or run_recipe(..., model=...)"
        raise _unnamed(_NETWORK, fix)
    return build_model(settings.network, settings.weights)


def _data(settings: Settings, given: HandedIn, model: nn.Module) -> Any:
    if given.data is not None:
        return given.data
    if settings.calibration is None:
        fix = "--calibration DATA, or run_recipe(..., data=...)"
        raise _unnamed(_DATA, fix)
    found = load_data(settings.calibration, batch_size=settings.batch_size, model=model)
    return found.take(settings.max_batches)


def _unnamed(what: str, fix: str) -> ConfigError:
    text = f"the recipe does not name {what}: a call from Python handed it in"
    return ConfigError("FXQ782", text, fix=f"name it, or hand it in: {fix}")


def _calibrated(
    settings: Settings, out: Path, progress: Progress, model: nn.Module, data: Data,
    overridden: Mapping[str, Override],
) -> Outcome:  # fmt: skip
    """Calibrate and export, without a search."""
    data = data.inputs_of(model)
    example, content = data.first(), Content()
    progress.step("preparing and placing quantizers")
    prepared = prepare_model(model, example)
    network = network_of(prepared)
    sim = QuantizationSimModel(
        prepared, example,
        quant_scheme=settings.scheme or settings.first_scheme,
        default_param_bw=settings.param_bw, default_output_bw=settings.activation_bw,
        config=config_of(settings), target=target_of(settings), in_place=True,
    )  # fmt: skip
    counted = Data(data.name, lambda: _counted(data, content), data.count)
    with progress.bar("calibrating", data.count) as advance:
        sim.compute_encodings(counted, progress=lambda done, _: advance(done))
    progress.step("exporting and proving" if settings.prove else "exporting")
    sizes = content.sizes
    seen = schema.Data(digest=content.digest, batches=len(sizes), samples=sum(sizes))
    decided = decided_of(sim, settings.deploy)
    record = Recording(settings, network, seen, decided, (), overridden)
    export = sim.export(
        out, settings.prefix, example, opset=settings.opset, prove=settings.prove,
        contrib=settings.contrib, deploy=settings.deploy, companion=record.companion(out),
    )  # fmt: skip
    return Outcome(export, tuple(sorted(out.glob(f"{settings.prefix}.*"))))


def _counted(data: Data, content: Content) -> Iterator[Any]:
    for batch in data.read():
        content.add(batch)
        yield batch
