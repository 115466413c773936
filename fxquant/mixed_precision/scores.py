"""How good a simulation is: by the user's function, or by the noise at its outputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant.calibrate import using_threads
from fxquant.errors import CalibrationError, ConfigError, FxQuantError
from fxquant.graph.pytree import fresh_inputs, tensors
from fxquant.io.reading import reason
from fxquant.nn.modes import evaluating
from fxquant.ptq.walking.walk import bound_batches, taking_batch
from fxquant.quantization.decibels import Power
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Callable

_LEAST = 1e-14  # of the signal: what float32 itself leaves, 140 dB


def score_of(
    evaluate: Callable[[Any], Any], model: nn.Module, name: str = "", *, kept: bool = False
) -> float:
    """What the user's function says of a model in evaluation.

    Args:
        evaluate: is given the model and returns a number, the higher the better.
        model: the model; a simulation, or what stands for it.
        name: how errors call it.
        kept: its quantized weights need not be computed again, as for `evaluating`.

    Raises:
        ConfigError: FXQ258 it raised an error of its own, FXQ249 it returned no finite number.
    """
    try:
        with evaluating(model, kept=kept), torch.no_grad():
            value = evaluate(model)
    except (FxQuantError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the user's function may raise anything
        what = f"evaluate failed: {reason(error)}"
        fix = "it is given a model in evaluation, and returns a number"
        raise ConfigError("FXQ258", what, at=name, fix=fix) from error
    return _number(value, name)


class Noise:
    """Noise at the outputs of a simulation against its float model.

    Args:
        gm: the simulated model, without its grids at this moment.
        data: batches, as for `compute_encodings`.
        samples: samples that are used.
        threads: of torch.

    Raises:
        CalibrationError: FXQ441 the model does not take a batch, FXQ442 to FXQ445 the data are no
            batches or hold NaN, FXQ447 an output of
            the float model is not finite, or none is of real numbers.
    """

    def __init__(self, gm: fx.GraphModule, data: Any, samples: int, threads: int | None) -> None:
        self.gm, self.threads = gm, threads
        self.batches = [values for values, _ in bound_batches(gm, data, samples)]
        self.exact = []
        for number, values in enumerate(self.batches):
            with taking_batch(gm, values, number):
                self.exact.append(self._outputs(values))
        if not self.exact[0]:
            raise CalibrationError("FXQ449", "the model returns no floating-point tensor",
                                   fix="pass evaluate=")  # fmt: skip
        if not all(bool(t.isfinite().all()) for outputs in self.exact for t in outputs):
            what = "an output of the float model is not finite"
            raise CalibrationError("FXQ449", what, fix="look for its first NaN or infinity")

    def _outputs(self, values: list[Any]) -> list[Tensor]:
        with using_threads(self.threads), evaluating(self.gm, kept=True), torch.no_grad():
            found = tensors(self.gm(*fresh_inputs(values)))
        return [plain(t).detach().clone() for t in found if t.is_floating_point()]

    def share(self) -> float:
        """Energy of the noise as a share of the signal's, the mean over outputs."""
        powers = [Power() for _ in self.exact[0]]
        for values, exact in zip(self.batches, self.exact, strict=True):
            for power, found, wanted in zip(powers, self._outputs(values), exact, strict=True):
                power.add(wanted.double(), found.double())
        return max(sum(power.share for power in powers) / len(powers), _LEAST)


def _number(value: Any, name: str) -> float:
    fix = "return a number, the higher the better"
    try:
        found = None if isinstance(value, (bool, str)) else float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        found = None
    if found is None:
        what = f"evaluate returned a {type(value).__name__}, not a number"
        raise ConfigError("FXQ249", what, at=name, fix=fix)
    if not math.isfinite(found):
        raise ConfigError("FXQ249", f"evaluate returned {found}", at=name, fix=fix)
    return found
