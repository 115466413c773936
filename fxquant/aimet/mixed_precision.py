"""Mixed precision, automatic and by hand: `aimet_torch.mixed_precision`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar, Literal

from fxquant.aimet.defs import CallbackFunc
from fxquant.errors import ConfigError
from fxquant.io.writing import write_text
from fxquant.mixed_precision import choose
from fxquant.precision.requests import PrecisionChange

if TYPE_CHECKING:
    from torch import nn

    from fxquant.mixed_precision.mixed_result import MixedPrecisionResult
    from fxquant.sim import QuantizationSimModel

__all__ = [
    "AMPSearchAlgo",
    "CallbackFunc",
    "GreedyMixedPrecisionAlgo",
    "MixedPrecisionConfigurator",
    "SupportedDType",
    "choose_mixed_precision",
]

SupportedDType = Literal["int16", "int8", "int4", "fp16"]


class GreedyMixedPrecisionAlgo:
    """Switches of AIMET's search.

    Attributes:
        ENABLE_CONVERT_OP_REDUCTION: refused if True: conversions between grids are part of the cost
            `latency` of `fxquant.choose_mixed_precision`, and are no phase of their own.
    """

    ENABLE_CONVERT_OP_REDUCTION: ClassVar[bool] = False


class AMPSearchAlgo(Enum):
    """How AIMET walks along the front of choices; the search here evaluates points of it."""

    Binary = 1
    Interpolation = 2
    BruteForce = 3


def choose_mixed_precision(
    sim: QuantizationSimModel,
    dummy_input: Any,
    candidates: Sequence[Any],
    eval_callback_for_phase1: Callable[[Any], Any],
    eval_callback_for_phase2: Callable[[Any], Any],
    allowed_accuracy_drop: float | None,
    results_dir: str | Path,
    clean_start: bool,
    forward_pass_callback: Callable[[Any], Any],
    use_all_amp_candidates: bool = False,
    phase2_reverse: bool = False,
    phase1_optimize: bool = True,
    amp_search_algo: AMPSearchAlgo = AMPSearchAlgo.Binary,
) -> MixedPrecisionResult:
    """Choose precisions; see `fxquant.choose_mixed_precision`, which measures in one way.

    Args:
        sim: the simulation; it is calibrated with `forward_pass_callback` where it is not yet.
        dummy_input: not needed: the simulation has its inputs.
        candidates: `((activation bits, type), (weight bits, type))`.
        eval_callback_for_phase1: judges groups alone.
        eval_callback_for_phase2: judges choices; it is asked for both, so that one number decides.
        allowed_accuracy_drop: what a choice may lose against the float model.
        results_dir: folder of the result, and of the progress that is gone on from.
        clean_start: forget what that folder holds.
        forward_pass_callback: `callback(model)` runs data through a model.
        use_all_amp_candidates: all candidates are tried in any case.
        phase2_reverse: the order along the front; it is searched from the accurate end.
        phase1_optimize: not needed: evaluations are kept.
        amp_search_algo: not needed: points along the whole front are evaluated.

    Raises:
        ConfigError: FXQ908, `ENABLE_CONVERT_OP_REDUCTION` is set; as for
            `fxquant.choose_mixed_precision`.
    """
    if GreedyMixedPrecisionAlgo.ENABLE_CONVERT_OP_REDUCTION:
        what = "ENABLE_CONVERT_OP_REDUCTION is set: there is no such phase"
        fix = 'leave it False; fxquant.choose_mixed_precision(cost="latency") counts conversions'
        raise ConfigError("FXQ908", what, fix=fix)
    if any(not q.is_initialized() for q in sim.quantizers()):
        sim.compute_encodings(lambda model, _: forward_pass_callback(model), None)
    return choose.choose_mixed_precision(
        sim, candidates, eval_callback_for_phase2, allowed_accuracy_drop=allowed_accuracy_drop,
        results_dir=results_dir, clean_start=clean_start, sensitivity="evaluate", latency=False,
    )  # fmt: skip


class MixedPrecisionConfigurator:
    """Collects requests for precisions; `apply` carries them out, a later one before an earlier.

    Args:
        sim: the simulation.
    """

    def __init__(self, sim: QuantizationSimModel) -> None:
        self._sim = sim
        self._requests: list[tuple[Any, Any, Any]] = []

    def set_precision(
        self,
        arg: nn.Module | type[nn.Module],
        activation: SupportedDType | Sequence[SupportedDType | None] | None,
        param: Mapping[str, SupportedDType] | SupportedDType | None = None,
    ) -> None:
        """Ask for the precision in which modules read values, and for that of their parameters.

        Args:
            arg: a module of `sim.model`, or a class.
            activation: precision of the inputs.
            param: of parameters by name.
        """
        self._requests.append((arg, _one(activation), param))

    def set_model_input_precision(
        self, activation: SupportedDType | Sequence[SupportedDType | None]
    ) -> None:
        """Ask for the precision of the model's inputs.

        Args:
            activation: one precision for all, or one for each input in order, None to leave it.

        Raises:
            ConfigError: FXQ908, a sequence has another length.
        """
        nodes = [n for n in self._sim.model.graph.nodes if n.op == "placeholder"]
        given = [activation] * len(nodes) if isinstance(activation, str) else list(activation)
        if len(given) != len(nodes):
            what = f"{len(given)} precisions for {len(nodes)} inputs"
            raise ConfigError("FXQ908", what, fix="give one for each input, None to leave it")
        self._requests += [(n, a, "output") for n, a in zip(nodes, given, strict=True) if a]

    def set_model_output_precision(
        self, activation: SupportedDType | Sequence[SupportedDType | None]
    ) -> None:
        """Ask for the precision of what the model returns."""
        self._requests.append(("output", _one(activation), None))

    def apply(
        self, log_file: str | Path | IO[str] | None = None, strict: bool = True
    ) -> list[PrecisionChange]:
        """Carry the requests out.

        Args:
            log_file: where what changed is written to, a path or an open file; None: nowhere.
            strict: False leaves out a request that cannot be had, and logs why.

        Returns:
            What each request changed.
        """
        changes: list[PrecisionChange] = []
        told: list[str] = []
        for arg, activation, param in self._requests:
            asked = {"output": activation} if param == "output" else {
                "activation": activation, "param": param,
            }  # fmt: skip
            try:
                changes.append(self._sim.set_precision(arg, **asked))
                told.append(str(changes[-1]))
            except ConfigError as error:
                if strict:
                    raise
                told.append(str(error))
        text = "\n".join([*told, ""])
        if isinstance(log_file, str | Path):
            write_text(log_file, text)
        elif log_file is not None:
            log_file.write(text)
        self._requests.clear()
        return changes


def _one(activation: Any) -> Any:
    """The one precision that all inputs of a module are asked for."""
    if isinstance(activation, str) or activation is None:
        return activation
    found = {a for a in activation if a is not None}
    if len(found) > 1:
        what = f"one module is asked to read its inputs in {', '.join(sorted(found))}"
        raise ConfigError("FXQ908", what, fix="ask the modules that make these values")
    return next(iter(found), None)
