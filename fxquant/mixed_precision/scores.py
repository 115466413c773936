"""How good a simulation is: by the user's function, or by the noise at its outputs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxquant.calibrate import using_threads
from fxquant.errors import CalibrationError, ConfigError, FxQuantError
from fxquant.graph.pytree import fresh_inputs, tensors
from fxquant.io.reading import reason
from fxquant.nn.modes import evaluating
from fxquant.ptq.walking.walk import bound_batches, taking_batch
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Callable

_LEAST = 1e-14  # of the signal: what float32 itself leaves, 140 dB


def score_of(evaluate: Callable[[Any], Any], gm: fx.GraphModule) -> float:
    """What the user's function says of a model.

    Raises:
        ConfigError: FXQ269, it fails, or returns no finite number.
    """
    try:
        with evaluating(gm, kept=True), torch.no_grad():
            found = evaluate(gm)
    except (FxQuantError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the user's function may raise anything
        what = f"evaluate failed: {reason(error)}"
        fix = "it is given a model in evaluation, and returns a number"
        raise ConfigError("FXQ269", what, fix=fix) from error
    try:
        score = float(found)
    except (TypeError, ValueError, OverflowError) as error:
        what = f"evaluate returned a {type(found).__name__}"
        raise ConfigError("FXQ269", what, fix="return one number, larger is better") from error
    if not math.isfinite(score):
        raise ConfigError("FXQ269", f"evaluate returned {score}", fix="return a finite number")
    return score


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
        noise = [0.0] * len(self.exact[0])
        signal = [0.0] * len(noise)
        for values, exact in zip(self.batches, self.exact, strict=True):
            for i, (found, wanted) in enumerate(zip(self._outputs(values), exact, strict=True)):
                noise[i] += float((found.double() - wanted.double()).square().sum())
                signal[i] += float(wanted.double().square().sum())
        shares = [n / s if s > 0 else float(n > 0) for n, s in zip(noise, signal, strict=True)]
        return max(sum(shares) / len(shares), _LEAST)


def decibels(share: float) -> float:
    """Signal to noise ratio for a share of noise."""
    return -10.0 * math.log10(max(share, _LEAST))
