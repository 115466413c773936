"""What is asked of a search, checked, and how it is carried out."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxquant._version import __version__
from fxquant.auto.calibration_data import Batches, load_batches
from fxquant.auto.journal import Journal
from fxquant.auto.scoring import ON, Evaluate, On, Scorer
from fxquant.auto.search_report import AutoReport
from fxquant.auto.simulations import Settings, Simulations
from fxquant.auto.technique_search import Limits, Progress, Search
from fxquant.auto.techniques import BY_NAME, DEFAULT_SCHEME, Case, chosen
from fxquant.config import QuantConfig
from fxquant.errors import ConfigError, nearest
from fxquant.graph.pass_infra import state_of
from fxquant.graph.printer import dump
from fxquant.prepare import prepare_model
from fxquant.quantization import QuantScheme
from fxquant.quantization.digest import tensors_digest
from fxquant.records.recipe_schema import Network
from fxquant.sim import QuantizationSimModel
from fxquant.targets import Target, load_target
from fxquant.tracking.events import OnEvent, emit, require_event_callback

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True)
class Request:
    """What is asked for; see `fxquant.quantize`.

    Attributes:
        model: the float model.
        data: calibration data.
        evaluate: the caller's measure; None: decibels.
        accuracy_drop: how much lower than the float model's the score may be; None: any.
        techniques: "auto", "none" or names.
        target: the target.
        config: the configuration.
        quant_scheme: how ranges are found; None: more than one way may be tried.
        scheme: how ranges are found at first.
        param_bw: bits of weights.
        output_bw: bits of activations.
        dummy_input: inputs to record the model with; None: the first batch.
        fine_tune: trains a simulation.
        on: what `evaluate` is given.
        seed: of everything that is drawn.
        max_seconds: on the clock, after which no technique is begun.
        trials: so many are made at most, whatever the clock says; None: any number.
        options: options of techniques by name.
        lowering: options of the export: `opset`, `contrib` and `deploy`.
        strict: an error of a technique ends the search.
        on_event: called with every step, trial and result; see `fxquant.tracking`.
    """

    model: nn.Module
    data: Any
    evaluate: Evaluate | None = None
    accuracy_drop: float | None = None
    techniques: str | Iterable[str] = "auto"
    target: Target | str = "onnxruntime_x86"
    config: QuantConfig | dict[str, Any] | str | Path | None = None
    quant_scheme: QuantScheme | str | None = None
    scheme: str = DEFAULT_SCHEME
    param_bw: int | None = None
    output_bw: int | None = None
    dummy_input: Any = None
    fine_tune: Callable[[QuantizationSimModel], object] | None = None
    on: On = "sim"
    seed: int = 0
    max_seconds: float | None = None
    trials: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    lowering: Mapping[str, Any] = field(default_factory=dict)
    strict: bool = True
    on_event: OnEvent | None = None

    def __post_init__(self) -> None:
        require_event_callback(self.on_event)
        if self.evaluate is not None and not callable(self.evaluate):
            what = f"evaluate is a {type(self.evaluate).__name__}"
            raise ConfigError("FXQ255", what, fix="pass a function of the model")
        if self.on not in ON:
            raise ConfigError("FXQ255", f"on is {self.on!r}", fix=f"pass one of {', '.join(ON)}")
        for name in ("accuracy_drop", "max_seconds"):
            value = getattr(self, name)
            number = isinstance(value, (int, float)) and not isinstance(value, bool)
            if value is not None and not (number and math.isfinite(value) and value >= 0):
                fix = "pass a number from 0 on, or None"
                raise ConfigError("FXQ255", f"{name} is {value!r}", fix=fix)
        if type(self.seed) is not int or not -(2**63) <= self.seed < 2**64:
            fix = "pass an integer that torch.manual_seed takes"
            raise ConfigError("FXQ255", f"seed is {self.seed!r}", fix=fix)
        if self.accuracy_drop is not None and self.evaluate is None:
            what = "accuracy_drop is a drop of evaluate's score, and there is no evaluate"
            raise ConfigError("FXQ255", what, fix="pass evaluate, or leave accuracy_drop out")
        chosen(self.techniques)
        for name in self.options:
            if name not in BY_NAME:
                fix = nearest(str(name), BY_NAME) or f"techniques are {', '.join(BY_NAME)}"
                raise ConfigError("FXQ255", f"options are given for {name!r}", fix=fix)

    @property
    def first_scheme(self) -> str:
        """Name of the scheme that the plain simulation has."""
        return QuantScheme(self.quant_scheme or self.scheme).value

    def said(self, progress: Progress | None) -> Progress:
        """A callback of texts that is also an event "quantize.step"."""

        def say(text: str) -> None:
            if progress is not None:
                progress(text)
            emit(self.on_event, "quantize.step", {"text": text})

        return say


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        sim: the best simulation.
        report: what was tried.
        scorer: scores other forms of the simulation alike.
        network: the float model, as checksums.
        data: the data, all of them.
    """

    sim: QuantizationSimModel
    report: AutoReport
    scorer: Scorer
    network: Network
    data: Batches


def find(
    request: Request, folder: Path, progress: Progress | None = None, *, shared: bool = False
) -> Found:
    """Carry out a search.

    Args:
        request: what is asked for.
        folder: of the journal; a search of the same request goes on from there.
        progress: called with a text before every step.
        shared: the folder is that of many requests, each of which has a folder in it.
    """
    config, target = QuantConfig.load(request.config), load_target(request.target)
    bits = config.with_bits((request.output_bw, request.param_bw), target.bitwidths)
    say = request.said(progress)
    say("reading the data and preparing the model")
    batches = load_batches(
        request.data, request.model, dummy_input=request.dummy_input, seed=request.seed
    )
    example = batches.first() if request.dummy_input is None else request.dummy_input
    prepared = prepare_model(request.model, example)
    shown, held = batches, batches
    if request.evaluate is None:
        shown, held = batches.split(by_rows=state_of(prepared).any_batch)
    scorer = Scorer(request.evaluate, request.on, prepared, held, request.lowering)
    network = network_of(prepared)
    key = _key(request, network, batches, config, target)
    journal = Journal(folder / key[:16] if shared else folder, key)
    if journal.float_score is None:
        say("scoring the float model")
        journal.float_score = scorer.of_float()
    known = len(journal.trials)
    case = Case(
        shown, config, (bits.activation_bitwidth or 0, bits.weight_bitwidth or 0), target,
        journal.folder,
        scheme=request.first_scheme, fixed=request.quant_scheme is not None,
        drop=request.accuracy_drop,
        target=_least(journal.float_score, request.accuracy_drop),
        evaluate=None if request.evaluate is None else scorer.of_model,
        fine_tune=request.fine_tune, seed=request.seed, options=request.options,
    )  # fmt: skip
    settings = Settings(example, target, request.first_scheme, request.output_bw, request.param_bw)
    simulations = Simulations(prepared, settings, case, journal)
    limits = Limits(
        case.target, request.max_seconds, request.trials, request.techniques != "auto",
        request.strict,
    )  # fmt: skip
    search = Search(
        chosen(request.techniques), simulations, scorer, journal, limits, say, request.on_event
    )
    trial = search.run()
    report = AutoReport(
        tuple(journal.trials.values()), trial.names, journal.float_score, case.target,
        request.evaluate is not None, search.skipped, scorer.forward_seconds(),
        held.sizes[0], 0 if shown is held else held.samples, known,
    )  # fmt: skip
    return Found(simulations.of(trial.names), report, scorer, network, batches)


def _least(score: float, drop: float | None) -> float | None:
    return None if drop is None else score - drop


def network_of(prepared: fx.GraphModule) -> Network:
    """What a float model is, as checksums: its operators, and its tensors."""
    graph = hashlib.sha256(dump(prepared).encode()).hexdigest()
    return Network(graph=graph, weights=tensors_digest(prepared.state_dict()))


def _key(
    request: Request, network: Network, batches: Batches, config: QuantConfig, target: Target
) -> str:  # fmt: skip
    """Digest of all that a search depends on."""
    parts = [
        __version__, torch.__version__, network.graph, network.weights,
        batches.digest, config.model_dump_json(), target, request.first_scheme,
        request.quant_scheme is None, request.param_bw,
        request.output_bw, request.on, request.seed, request.accuracy_drop,
        sorted(request.lowering.items(), key=repr),
        [row.name for row in chosen(request.techniques)],
        sorted((k, repr(v)) for k, v in request.options.items()),
        _code(request.evaluate), _code(request.fine_tune),
    ]  # fmt: skip
    return hashlib.sha256("\n".join(map(repr, parts)).encode()).hexdigest()


def _code(function: Any) -> str:
    """What tells functions apart in another process: their names, and what they are compiled to."""
    if function is None:
        return ""
    code = getattr(function, "__code__", None)
    name = f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', '')}"
    return name if code is None else f"{name} {code.co_code.hex()} {code.co_names}"
