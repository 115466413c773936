"""A request and what was found as the recipe has them, and a request of such settings."""

from __future__ import annotations

from dataclasses import asdict, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from fxquant.auto.request import Request
from fxquant.auto.techniques import chosen
from fxquant.config import QuantConfig
from fxquant.errors import ConfigError, nearest
from fxquant.ptq.engine import ReconstructionOptions
from fxquant.ptq.solving.gradient_rounding import AdaroundOptions
from fxquant.ptq.techniques.fast_finetune import FinetuneParams
from fxquant.ptq.techniques.gptq import GptqParams
from fxquant.ptq.techniques.seq_mse import SeqMseParams
from fxquant.records.recipe_schema import Data, Decided, Settings, Trial, finite
from fxquant.records.recording import Recording, Sources
from fxquant.targets import Target, available, load_target

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from fxquant.auto.request import Found
    from fxquant.sim import QuantizationSimModel

# of what class the options of a technique are; those of others are keyword arguments
_OPTIONS: Mapping[str, type] = {
    "reconstruct": ReconstructionOptions, "adaround": AdaroundOptions, "gptq": GptqParams,
    "seq_mse": SeqMseParams, "fast_finetune": FinetuneParams,
}  # fmt: skip
# where a technique keeps what it has done so far, which changes nothing of the result
_SCRATCH = ("folder", "max_memory")


def recording(
    request: Request, found: Found, prefix: str, *, prove: bool, sources: Sources
) -> Recording:
    """All that a request decided and was decided, but the files."""
    settings, handed_in = _settings(request, prefix, prove, sources)
    report, sizes = found.report, found.data.sizes
    trials = [
        Trial(
            techniques=list(t.names), note=t.note,
            score=None if t.score is None else finite(t.score.value),
            decibels=None if t.score is None else finite(t.score.decibels),
        )
        for t in report.trials
    ]  # fmt: skip
    decided = decided_of(found.sim, request.lowering.get("deploy")).model_copy(
        update={
            "techniques": list(report.best), "score": finite(report.score),
            "float_score": finite(report.float_score), "met": report.met, "trials": trials,
        }
    )  # fmt: skip
    data = Data(digest=found.data.digest, batches=len(sizes), samples=sum(sizes))
    return Recording(settings, found.network, data, decided, handed_in, sources.overridden)


def decided_of(sim: QuantizationSimModel, deploy: str | None) -> Decided:
    """What a simulation was made with, once configuration and target have had their say."""
    return Decided(
        scheme=sim.quant_scheme.value,
        activation_bw=sim.config.activation_bitwidth or 0,
        param_bw=sim.config.weight_bitwidth or 0,
        deploy=deploy or sim.config.deploy or sim.target.deploy,
    )


def plain_config(config: Any) -> dict[str, Any]:
    """A configuration as settings have it: its content, so that no file is needed."""
    loaded = QuantConfig.load(config)
    content = loaded.model_dump(mode="json", exclude_defaults=True)
    return {"config": content, "lenient": loaded.is_foreign}


def plain_target(target: Target | str) -> dict[str, Any]:
    """A target as settings have it: the name of a shipped one, else its content."""
    runtime = load_target(target)
    shipped = runtime.name in available() and load_target(runtime.name) == runtime
    return {"target": runtime.name if shipped else runtime.model_dump(mode="json")}


def config_of(settings: Settings) -> QuantConfig:
    """The configuration of a recipe."""
    return QuantConfig.load(settings.config)._as_foreign(settings.lenient)


def target_of(settings: Settings) -> Target:
    """The target of a recipe."""
    given = settings.target
    return load_target(given) if isinstance(given, str) else Target.model_validate(given)


def _settings(
    request: Request, prefix: str, prove: bool, sources: Sources
) -> tuple[Settings, tuple[str, ...]]:
    names, options = list[str](), dict[str, dict[str, Any]]()
    for name, given in request.options.items():
        plain = _plain(given)
        if isinstance(plain, dict):
            options[name] = plain
        else:
            names.append(f"options.{name}")
    handed_in = {
        "network": sources.network is None,
        "data": sources.calibration is None and sources.image_folder is None,
        "evaluate": request.evaluate is not None and sources.evaluate is None,
        "dummy_input": request.dummy_input is not None,
        "fine_tune": request.fine_tune is not None,
    }
    techniques: Any = request.techniques
    if techniques not in ("auto", "none"):
        techniques = [row.name for row in chosen(techniques)]
    lowering = {k: v for k, v in request.lowering.items() if v is not None}
    settings = Settings.model_construct(
        **sources.settings(), **lowering, **plain_config(request.config),
        **plain_target(request.target), prefix=prefix,
        scheme=None if request.quant_scheme is None else request.first_scheme,
        first_scheme=request.scheme, param_bw=request.param_bw, activation_bw=request.output_bw,
        options=options, prove=prove, techniques=techniques, accuracy_drop=request.accuracy_drop,
        evaluate_on=request.on, max_seconds=request.max_seconds, strict=request.strict,
        seed=request.seed,
    )  # fmt: skip
    return settings, (*(name for name, is_so in handed_in.items() if is_so), *names)


def request_of(
    settings: Settings, model: nn.Module, data: Any, *, trials: int | None = None, **given: Any
) -> Request:
    """The request of a recipe.

    Args:
        settings: of the recipe.
        model: the float model.
        data: calibration data.
        trials: as many as it had time for.
        given: what no file can name: `evaluate`, `dummy_input`, `fine_tune`, `options`.

    Raises:
        ConfigError: FXQ779, options of a technique are none of it; those of `Request`.
    """
    options = {name: _rebuilt(name, plain) for name, plain in settings.options.items()}
    return Request(
        model, data, given.get("evaluate"), settings.accuracy_drop,
        "none" if settings.techniques is None else settings.techniques, target_of(settings),
        config_of(settings), settings.scheme, settings.first_scheme,
        param_bw=settings.param_bw, output_bw=settings.activation_bw,
        dummy_input=given.get("dummy_input"), fine_tune=given.get("fine_tune"),
        on=settings.evaluate_on, seed=settings.seed, max_seconds=settings.max_seconds,
        trials=trials, options={**options, **(given.get("options") or {})},
        lowering={
            "opset": settings.opset, "contrib": settings.contrib, "deploy": settings.deploy
        },
        strict=settings.strict,
    )  # fmt: skip


# --- options of techniques -----------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Options as plain data; None where they hold what no file can name, such as functions."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if k not in _SCRATCH}
        found = {k: _plain(v) for k, v in kept.items()}
        lost = any(found[k] is None and kept[k] is not None for k in kept)
        return None if lost or not all(isinstance(k, str) for k in kept) else found
    if isinstance(value, (list, tuple)):
        items = [_plain(v) for v in value]
        return None if None in items and None not in value else items
    return value if isinstance(value, (bool, int, float, str)) else None


def _rebuilt(name: str, plain: dict[str, Any]) -> Any:
    kind = _OPTIONS.get(name)
    return _as_tuples(plain) if kind is None else _made(kind, plain, name)


def _made(kind: type, plain: dict[str, Any], name: str) -> Any:
    """An object of a class of options; its own checks look at the values."""
    usual, given = kind(), dict[str, Any]()
    known = [f.name for f in fields(usual)]
    for key, value in plain.items():
        if key not in known:
            fix = nearest(key, known) or f"known are {', '.join(known)}"
            what = f"{name} has no option {key!r}"
            raise _wrong_option(what, fix)
        default = getattr(usual, key)
        inner = is_dataclass(default) and isinstance(value, dict)
        given[key] = _made(type(default), value, name) if inner else _as_tuples(value)
    try:
        return kind(**given)
    except TypeError as error:  # of a comparison with what is no number
        what = f"an option of {name} is of another type: {error}"
        fix = f"see {kind.__name__}"
        raise _wrong_option(what, fix) from error


def _wrong_option(what: str, fix: str) -> ConfigError:
    return ConfigError("FXQ779", what, fix=fix)


def _as_tuples(value: Any) -> Any:
    """Lists as tuples, which dataclasses and comparisons have where YAML has lists."""
    if isinstance(value, dict):
        return {k: _as_tuples(v) for k, v in value.items()}
    return tuple(map(_as_tuples, value)) if isinstance(value, list) else value
