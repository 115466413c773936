"""The table of techniques: what each needs, what it changes, and when it has nothing to do.

A combination is a set of names, applied in the order of the table, whatever the order in which they
were tried: first what changes the float model, then how ranges are found, then what changes a
calibrated simulation, of which precision comes before what chooses integers.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fxquant.errors import ConfigError, nearest
from fxquant.mixed_precision.bit_candidates import candidates_of
from fxquant.mixed_precision.choose import choose_mixed_precision
from fxquant.mixed_precision.mixed_result import FLOAT
from fxquant.ptq.activation_ranges.choose_ranges import choose_activation_ranges
from fxquant.ptq.cross_layer.equalization import equalize_model
from fxquant.ptq.engine import ReconstructionOptions, reconstruct
from fxquant.ptq.smoothing.smooth import smooth_model
from fxquant.ptq.solving.gradient_rounding import AdaroundOptions
from fxquant.ptq.solving.solver import SolverOptions
from fxquant.ptq.techniques.bias_correction import correct_bias
from fxquant.ptq.techniques.fast_finetune import fast_finetune
from fxquant.ptq.techniques.gptq import apply_gptq
from fxquant.ptq.techniques.seq_mse import apply_seq_mse
from fxquant.quantization.digest import tensors_digest

if TYPE_CHECKING:
    from pathlib import Path

    from torch import fx

    from fxquant.auto.calibration_data import Batches
    from fxquant.config import QuantConfig
    from fxquant.ptq.reconstruction_report import ReconstructionReport
    from fxquant.sim import QuantizationSimModel
    from fxquant.targets import Target

DEFAULT_SCHEME = "tf_enhanced"


class Inapplicable(Exception):
    """A technique has nothing to do here; the text says why.

    Attributes:
        name: the technique, once it is known.
    """

    name: str = ""


class Stage(enum.Enum):
    """What a technique changes."""

    FLOAT = "the float model"
    RANGES = "how ranges are found"
    SIMULATION = "the calibrated simulation"


@dataclass(frozen=True)
class Case:
    """What techniques may ask about.

    Attributes:
        data: batches to calibrate with.
        config: the configuration.
        bits: of activations and of weights.
        runtime: the target.
        folder: where techniques may keep what they have found so far.
        scheme: how ranges are found where no technique says otherwise.
        fixed: the caller asks for that scheme and no other.
        drop: how much lower than the float model's the score may be; None: any.
        target: the same as the lowest score that is good enough.
        evaluate: the caller's measure of a model, checked; None: there is none.
        fine_tune: trains a simulation; None: there is none.
        seed: of what is chosen at random.
        options: options of a technique by its name.
    """

    data: Batches
    config: QuantConfig
    bits: tuple[int, int]
    runtime: Target
    folder: Path
    scheme: str = DEFAULT_SCHEME
    fixed: bool = False
    drop: float | None = None
    target: float | None = None
    evaluate: Callable[[Any], float] | None = None
    fine_tune: Callable[[QuantizationSimModel], object] | None = None
    seed: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Technique:
    """One row.

    Attributes:
        name: what callers write.
        stage: what it changes.
        about: one sentence for the documentation.
        apply: changes a float model or a simulation in place and says what it did; for ranges None,
            as the name is that of the scheme. It raises `Inapplicable` where there is nothing.
        unless: why it does not apply to a case; an empty text where it does.
        group: of techniques that take each other's place.
        auto: whether "auto" tries it.
        alternative: with "auto" it is tried alone only: it does what another row does better.
        structural: it changes what a simulation has, such as the bits of grids, and not their
            values alone; what was kept of a simulation is read into one that it was applied to.
        late: tried after what gains more for less, though it may be applied before it.
        last: tried only when all others have missed the target, on top of the best of them.
    """

    name: str
    stage: Stage
    about: str
    apply: Callable[[Any, Case], str] | None = None
    unless: Callable[[Case], str] = lambda _: ""
    group: str = ""
    auto: bool = True
    alternative: bool = False
    structural: bool = False
    late: bool = False
    last: bool = False


# --- the float model -----------------------------------------------------------------------------


def _equalize(model: fx.GraphModule, case: Case) -> str:
    given: dict[str, Any] = {
        "data": case.data, "output_bw": case.bits[0], "param_bw": case.bits[1],
        "target": case.runtime, "config": case.config, "quant_scheme": case.scheme,
    }  # fmt: skip
    report = equalize_model(model, **given | case.options.get("equalize", {}))
    spaces = [s for s in report.spaces if s.scaled]
    if not report.changed:
        what = "no channels between layers can be scaled, or none differ"
        raise Inapplicable(what)
    channels = sum(s.scaled for s in spaces)
    return f"{channels} channels between {len(spaces)} groups of layers scaled"


def _smooth(model: fx.GraphModule, case: Case) -> str:
    given: dict[str, Any] = {
        "output_bw": case.bits[0], "param_bw": case.bits[1], "target": case.runtime,
        "config": case.config, "quant_scheme": case.scheme, "seed": case.seed,
    }  # fmt: skip
    report = smooth_model(model, case.data, **given | case.options.get("smooth", {}))
    changed = sum(group.changed for group in report.groups)
    return _told(changed, len(report.groups), "groups of layers smoothed")


def _keeps_norms(case: Case) -> str:
    if case.config.fold_batch_norms is True:
        return ""
    return "the configuration keeps batch norms, and it folds them"


# --- ranges --------------------------------------------------------------------------------------


def _scheme(name: str, *, auto: bool = True) -> Technique:
    def unless(case: Case) -> str:
        if case.scheme == name:
            return "ranges are found so already"
        return f"the scheme is given: {case.scheme}" if case.fixed else ""

    about = f"ranges by {name}"
    return Technique(name, Stage.RANGES, about, unless=unless, group="ranges", auto=auto)


# --- the simulation ------------------------------------------------------------------------------


def _activation_ranges(sim: QuantizationSimModel, case: Case) -> str:
    given = {"seed": case.seed} | case.options.get("activation_ranges", {})
    report = choose_activation_ranges(sim, case.data, **given)
    if report.without_gradients:
        raise Inapplicable(report.without_gradients)
    changed = sum(one.changed for one in report.ranges)
    return _told(changed, len(report.ranges), "ranges of activations changed")


def _reconstruct(sim: QuantizationSimModel, case: Case) -> str:
    options = case.options.get("reconstruct") or ReconstructionOptions(seed=case.seed)
    return _changed(reconstruct(sim, case.data, options))


def _adaround(sim: QuantizationSimModel, case: Case) -> str:
    given = case.options.get("adaround") or AdaroundOptions()
    solver = SolverOptions("adaround", search_scale=False, adaround=given)
    options = ReconstructionOptions(solver, float_target=False, seed=case.seed)
    return _changed(reconstruct(sim, case.data, options))


def _gptq(sim: QuantizationSimModel, case: Case) -> str:
    return _changed(apply_gptq(sim, case.data, case.options.get("gptq")))


def _seq_mse(sim: QuantizationSimModel, case: Case) -> str:
    report = apply_seq_mse(sim, case.data, params=case.options.get("seq_mse"))
    changed = sum(layer.changed for layer in report.layers)
    return _told(changed, sum(layer.ranges for layer in report.layers), "ranges of weights changed")


def _fast_finetune(sim: QuantizationSimModel, case: Case) -> str:
    report = fast_finetune(sim, case.data, case.options.get("fast_finetune"))
    changed = sum(layer.changed != "nothing" for layer in report.layers)
    kept = {"finetuned": changed, "engine": 0, "nothing": 0}[report.kept]
    return _told(kept, len(report.layers), "layers refined")


def _correct_bias(sim: QuantizationSimModel, case: Case) -> str:
    report = correct_bias(sim, case.data, **case.options.get("correct_bias", {}))
    changed = sum(layer.changed != "nothing" for layer in report.layers)
    return _told(changed, len(report.layers), "biases corrected")


def _changed(report: ReconstructionReport) -> str:
    changed = sum(layer.changed != "nothing" for layer in report.layers)
    return _told(changed, len(report.layers), "layers changed")


def _told(changed: int, total: int, what: str) -> str:
    if not changed:
        reason = f"none of {total} {what}" if total else "there is nothing for it in the model"
        raise Inapplicable(reason)
    return f"{changed} of {total} {what}"


def _mixed_precision(sim: QuantizationSimModel, case: Case) -> str:
    given: dict[str, Any] = {
        "candidates": _candidates(sim, case),
        "sensitivity": "sqnr",
        "latency": False,
    }
    given |= case.options.get("mixed_precision", {})
    # of the model as it is now: other combinations have searches of their own
    folder = case.folder / "mixed_precision" / tensors_digest(sim.model.state_dict())[:16]
    found = choose_mixed_precision(
        sim, evaluate=case.evaluate, data=case.data, allowed_accuracy_drop=case.drop,
        results_dir=folder, **given,
    )  # fmt: skip
    if found.chosen is None:
        what = "nothing was chosen"
        raise Inapplicable(what)
    count = Counter(found.chosen.options.values())
    return ", ".join(f"{n} groups {option}" for option, n in sorted(count.items()))


def _candidates(sim: QuantizationSimModel, case: Case) -> tuple[Any, ...]:
    """The precision that is asked for, and those above it that the target has."""
    activation, weight = case.bits[0], max(8, case.bits[1])
    wanted = (case.bits, (activation, weight), (max(16, activation), weight), (FLOAT, weight))
    return tuple(pair for pair in dict.fromkeys(wanted) if _is_offered(sim, pair))


def _is_offered(sim: QuantizationSimModel, pair: Any) -> bool:
    try:
        candidates_of([pair], sim.target)
    except ConfigError:
        return False
    return True


def _fine_tune(sim: QuantizationSimModel, case: Case) -> str:
    if case.fine_tune is not None:
        case.fine_tune(sim)
    return "trained by the caller's function"


def _needs_target(case: Case) -> str:
    return "" if case.target is not None else "it needs evaluate and accuracy_drop"


def _needs_training(case: Case) -> str:
    return "" if case.fine_tune is not None else "fine_tune was not passed"


TECHNIQUES: tuple[Technique, ...] = (
    Technique(
        "equalize", Stage.FLOAT, "channels between layers get equal weight ranges", _equalize,
        unless=_keeps_norms,
    ),
    Technique(
        "smooth", Stage.FLOAT, "outliers of activations go into the weights behind norms", _smooth,
        unless=_keeps_norms,
    ),
    _scheme("min_max"),
    _scheme("mse", auto=False),
    _scheme(DEFAULT_SCHEME, auto=False),
    _scheme("percentile", auto=False),
    Technique(
        "mixed_precision", Stage.SIMULATION, "more bits where fewer cost too much",
        _mixed_precision, unless=_needs_target, structural=True, last=True,
    ),
    Technique(
        "activation_ranges", Stage.SIMULATION, "ranges of activations by what outputs lose",
        _activation_ranges, late=True,
    ),
    Technique(
        "reconstruct", Stage.SIMULATION, "integers, steps and biases by what layers put out",
        _reconstruct, group="integers",
    ),
    Technique(
        "gptq", Stage.SIMULATION, "integers that make up for errors of their neighbours", _gptq,
        group="integers", alternative=True,
    ),
    Technique(
        "seq_mse", Stage.SIMULATION, "ranges of weights by what layers put out", _seq_mse,
        group="integers", alternative=True,
    ),
    Technique(
        "adaround", Stage.SIMULATION, "integers by gradient descent, layer by layer", _adaround,
        group="integers", auto=False,
    ),
    Technique(
        "fast_finetune", Stage.SIMULATION, "reconstruct, refined by gradient descent",
        _fast_finetune, group="integers", auto=False,
    ),
    Technique(
        "correct_bias", Stage.SIMULATION, "mean errors of layers are taken off their biases",
        _correct_bias, structural=True, alternative=True,
    ),
    Technique(
        "fine_tune", Stage.SIMULATION, "the caller's own training of the simulation", _fine_tune,
        unless=_needs_training, last=True,
    ),
)  # fmt: skip

BY_NAME = {row.name: row for row in TECHNIQUES}
Combination = tuple[str, ...]


def chosen(techniques: str | Iterable[str]) -> tuple[Technique, ...]:
    """The rows that "auto", "none", or names stand for, in the order of the table.

    Raises:
        ConfigError: FXQ257, a name is unknown.
    """
    if techniques == "auto":
        return tuple(row for row in TECHNIQUES if row.auto)
    if techniques == "none":
        return ()
    given: Any = techniques
    listed = isinstance(given, Iterable) and not isinstance(given, (str, bytes, Mapping))
    names = list(given) if listed else [given]
    for name in names:
        if name not in BY_NAME:
            known = ("auto", "none", *BY_NAME)
            fix = nearest(str(name), known) or f"known are {', '.join(known)}"
            raise ConfigError("FXQ257", f"no technique is called {name!r}", fix=fix)
    return tuple(row for row in TECHNIQUES if row.name in names)


def with_technique(names: Combination, name: str) -> Combination:
    """A combination with one more technique, which takes the place of those of its group."""
    group = BY_NAME[name].group
    kept = {n for n in names if not group or BY_NAME[n].group != group} | {name}
    return tuple(row.name for row in TECHNIQUES if row.name in kept)


def of_stage(names: Combination, stage: Stage) -> Combination:
    """The part of a combination that changes one thing."""
    return tuple(n for n in names if BY_NAME[n].stage is stage)
