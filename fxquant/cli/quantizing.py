"""Carrying out the settings of a recipe, which a command line is turned into first.

Where results are written is tried first: a folder without permissions is known before a calibration
of an hour, not after it.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxquant import QuantizationSimModel, audit_calibration, prepare_model
from fxquant.auto.calibration_data import Content, load_batches
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
from fxquant.cli.actions import built
from fxquant.cli.batches import Data, image_data
from fxquant.cli.data_request import DataRequest
from fxquant.cli.evaluation import DECIBELS, Measure, Scored, accuracy, load_evaluation
from fxquant.errors import ConfigError
from fxquant.inspection.audit.calibration_audit import CalibrationWarning
from fxquant.io.writing import checked_prefix, reserved
from fxquant.records import recipe_schema as schema
from fxquant.records.recipe_schema import SUFFIX, Override, Settings
from fxquant.records.recording import Recording, Sources

if TYPE_CHECKING:
    from torch import nn

    from fxquant.auto.request import Request
    from fxquant.cli.progress import Progress
    from fxquant.onnx.parity.report import ParityReport

_CALIBRATION_BATCHES = 8  # of a folder of images that is also evaluated
_AUDITED_BATCHES = 4  # enough to see that all data are wrong


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
        met: whether the score is within the drop that was allowed.
        scored: what a search found; None where nothing was scored, or sizes were not asked for.
    """

    export: ParityReport
    files: tuple[Path, ...]
    met: bool = True
    scored: Scored | None = None

    @property
    def recipe(self) -> Path:
        """The recipe among the files."""
        return next(file for file in self.files if file.name.endswith(SUFFIX))

    def to_dict(self) -> dict[str, Any]:
        """As plain data."""
        files = [str(file) for file in self.files]
        found = {"files": files, "report": json.loads(self.export.to_json())}
        return found | ({} if self.scored is None else {"evaluation": texts.plain(self.scored)})

    def __str__(self) -> str:
        parts = [str(self.export), ""]
        if self.scored is not None:
            parts += [str(self.scored.result.report), "", texts.summary(self.scored), ""]
        return "\n".join([*parts, "written:", *(f"  {file}" for file in self.files)])


def settings_of(factory: str, **options: Any) -> Settings:
    """The settings that a command line stands for."""
    names = (
        "weights", "calibration", "image_folder", "preprocess", "batch_size", "max_batches",
        "labels", "prefix", "scheme", "param_bw", "activation_bw", "techniques", "accuracy_drop",
        "max_seconds", "opset", "deploy",
    )  # fmt: skip
    settings = Settings.model_construct(
        **{name: options[name] for name in names}, **plain_config(options["config"]),
        **plain_target(options["target"]), network=factory, inputs=list(options["inputs"]),
        evaluate=options["evaluation"], evaluate_on=options["on"],
        prove=not options["no_proof"], contrib=False if options["standard"] else None,
    )  # fmt: skip
    return as_search(settings)


def as_search(settings: Settings) -> Settings:
    """The same with the techniques that a measure asks for where none are named."""
    named, drop = settings.techniques, settings.accuracy_drop
    measured = settings.evaluate is not None or settings.image_folder is not None
    if named is None and (measured or drop is not None):
        named = "none" if drop is None else "auto"
    return settings.model_copy(update={"techniques": named, "strict": named != "auto"})


def carry_out(
    settings: Settings,
    out: str | Path,
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
        ConfigError: FXQ776, something is neither named nor handed in.
    """
    given = handed or HandedIn()
    prefix = checked_prefix(settings.prefix, error=ConfigError)
    with reserved(out, prefix, error=ConfigError) as home:
        model = _model(settings, given, progress)
        if settings.techniques is None and given.evaluate is None:
            return _calibrated(settings, given, home, progress, model, overridden or {})
        data, measured = _data_and_measure(settings, given, model)
        result = search(
            _request(settings, replace(given, evaluate=measured.evaluate), model, data, trials),
            home, prefix, prove=settings.prove, progress=progress.step,
            sources=_sources(settings, given, overridden or {}),
        )  # fmt: skip
    if not measure:
        return Outcome(result.export, result.files, result.met)
    progress.step("measuring")
    onnx = next(file for file in result.files if file.suffix == ".onnx")
    sizes = side_by_side(result.float_model, result.sim.example, onnx)
    return Outcome(result.export, result.files, result.met, Scored(result, sizes, measured))


def _model(settings: Settings, given: HandedIn, progress: Progress) -> nn.Module:
    if given.model is not None:
        return given.model
    if settings.network is None:
        fix = "--network FACTORY, or run_recipe(..., model=...)"
        raise _unnamed(_NETWORK, fix)
    return built(settings.network, settings.weights, progress)


def _data(settings: Settings, given: HandedIn, model: nn.Module) -> Any:
    if given.data is not None:
        return given.data
    return _named_data(settings).load(model).take(settings.max_batches)


def _data_and_measure(
    settings: Settings, given: HandedIn, model: nn.Module
) -> tuple[Any, Measure]:  # fmt: skip
    """What to calibrate with and what to judge by; a folder of images with classes is both."""
    if given.evaluate is not None:
        return _data(settings, given, model), Measure("score", "", given.evaluate)
    if settings.evaluate is not None:
        data = _data(settings, given, model)
        keys = DataRequest(inputs=tuple(settings.inputs), labels=settings.labels).keys
        size = settings.batch_size
        return data, load_evaluation(settings.evaluate, model, keys=keys, batch_size=size)
    images = None if given.data is not None else _named_data(settings).images()
    if images is None or not images.classes:
        return _data(settings, given, model), DECIBELS
    batches = settings.max_batches or _CALIBRATION_BATCHES
    few, rest = images.split(batches * images.batch_size)
    return image_data(few), accuracy(rest.batches, str(images.root))


def _named_data(settings: Settings) -> DataRequest:
    if settings.calibration is None and settings.image_folder is None:
        fix = "--calibration DATA, or run_recipe(..., data=...)"
        raise _unnamed(_DATA, fix)
    return DataRequest(
        settings.calibration, (), settings.image_folder, settings.preprocess,
        tuple(settings.inputs), settings.labels, settings.batch_size,
    )  # fmt: skip


_NETWORK, _DATA = "the network", "the data"


def _unnamed(what: str, fix: str) -> ConfigError:
    text = f"the recipe does not name {what}: a call from Python handed it in"
    return ConfigError("FXQ776", text, fix=f"name it, or hand it in: {fix}")


def _request(
    settings: Settings, given: HandedIn, model: nn.Module, data: Any, trials: int | None
) -> Request:
    return request_of(
        settings, model, data, trials=trials, evaluate=given.evaluate,
        dummy_input=given.dummy_input, fine_tune=given.fine_tune, options=given.options,
    )  # fmt: skip


def _sources(
    settings: Settings, given: HandedIn, overridden: Mapping[str, Override]
) -> Sources:  # fmt: skip
    """How things are named that were not handed in."""
    names = {f.name for f in fields(Sources)} - {"overridden"}
    found = {name: getattr(settings, name) for name in names} | {"inputs": tuple(settings.inputs)}
    if given.model is not None:
        found |= {"network": None, "weights": None}
    if given.data is not None:
        found |= {"calibration": None, "image_folder": None}
    if given.evaluate is not None:
        found |= {"evaluate": None}
    return Sources(**found, overridden=overridden)


def _calibrated(
    settings: Settings, given: HandedIn, out: Path, progress: Progress, model: nn.Module,
    overridden: Mapping[str, Override],
) -> Outcome:  # fmt: skip
    """Calibrate and export, without a search."""
    data = _data(settings, given, model)
    if not isinstance(data, Data):
        batches = load_batches(data, model, dummy_input=given.dummy_input, seed=settings.seed)
        data = Data("the data", batches.read, len(batches))
    content = Content()
    example = data.first() if given.dummy_input is None else given.dummy_input
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
    _warn_of_data(sim, data, progress)
    progress.step("exporting and proving" if settings.prove else "exporting")
    sizes = content.sizes
    seen = schema.Data(digest=content.digest, batches=len(sizes), samples=sum(sizes))
    decided = decided_of(sim, settings.deploy)
    named = settings.model_copy(update=_sources(settings, given, overridden).settings())
    handed_in = {"network": given.model, "data": given.data, "dummy_input": given.dummy_input}
    record = Recording(
        named, network, seen, decided, tuple(k for k, v in handed_in.items() if v is not None),
        overridden,
    )  # fmt: skip
    export = sim.export(
        out, settings.prefix, example, opset=settings.opset, prove=settings.prove,
        contrib=settings.contrib, deploy=settings.deploy, companion=record.companion(out),
    )  # fmt: skip
    return Outcome(export, tuple(sorted(out.glob(f"{settings.prefix}.*"))))


def _warn_of_data(sim: QuantizationSimModel, data: Data, progress: Progress) -> None:
    """Say what makes the ranges useless."""
    progress.step("looking at the calibration data")
    for finding in audit_calibration(sim, data.take(_AUDITED_BATCHES)).severe:
        warnings.warn(str(finding), CalibrationWarning, stacklevel=2)


def _counted(data: Data, content: Content) -> Iterator[Any]:
    for batch in data.read():
        content.add(batch)
        yield batch
