"""Weights that oscillate between two integers, held back by a penalty or frozen.

At low bits a weight whose best value lies between two integers jumps from one to the other for as
long as it is trained: rounding hides from the gradient that it overshoots. The last step leaves it
on a side by chance, and statistics of batch norms are those of other weights.

Source: Nagel et al. 2022, arXiv:2203.11086: section 4.1 (dampening), algorithm 1 (freezing).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.errors import TrainingError
from fxquant.nn import QuantizationMixin
from fxquant.nn.calibration import weight_of
from fxquant.nn.live_norm import live_norm_of
from fxquant.quantization.affine import AffineQuantizer
from fxquant.tracking.events import OnEvent, emit, require_event_callback

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fxquant.quantization import AffineEncoding


def dampening_loss(model: nn.Module) -> Tensor:
    """How far weights are from the middles of the steps that they are rounded to.

    Sum over all weights of `(q(w) - clip(w, min, max))**2`. Gradients flow into `w` only: not into
    `q(w)`, not into ranges, and not into weights beyond the grid. Add it to the loss with a factor
    that grows during training; from the start it would keep weights from moving at all.

    Args:
        model: a simulation's model, `sim.model`.

    Raises:
        TrainingError: FXQ833, no weight is both trained and quantized.

    Source: Nagel et al. 2022, arXiv:2203.11086, equation 5.

    Example:
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(4, 3)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2)), x, default_param_bw=4)
        >>> sim.compute_encodings([x])
        >>> dampening_loss(sim.model).item() > 0
        True
    """
    losses = []
    for weight in _weights(model):
        value = weight.value()
        if value.requires_grad:
            losses.append(weight.dampening(value))
    if not losses:
        what = "no weight of the model is both trained and quantized to integers"
        raise TrainingError("FXQ833", what, fix="call requires_grad_() on what is to be trained")
    return torch.stack(losses).sum()


class OscillationTracker:
    """Counts how often integers of weights turn back, and freezes those that do it too often.

    Call `step` after each step of the optimizer. A frozen weight stays at the integer that it was
    at on average; its range goes on.

    Args:
        model: a simulation's model, `sim.model`.
        momentum: of the moving averages, the paper's `m`.
        threshold: oscillations per step from which on a weight is frozen; None: nothing is frozen.
            It may be changed between steps: the paper lowers it along a cosine, from 0.04 to 0.01.
        on_event: called with "qat.oscillation" and the two shares after each step; see
            `fxquant.tracking`.

    Attributes:
        threshold: as given; settable.

    Raises:
        TrainingError: FXQ833, an argument is out of range, or no weight is quantized to integers.

    Source: Nagel et al. 2022, arXiv:2203.11086, algorithm 1.

    Example:
        >>> from fxquant import QuantizationSimModel
        >>> x = torch.randn(4, 3)
        >>> sim = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2)), x, default_param_bw=4)
        >>> sim.compute_encodings([x])
        >>> tracker = OscillationTracker(sim.model, threshold=0.02)
        >>> tracker.step()
        >>> tracker.oscillating(), tracker.frozen()
        (0.0, 0.0)
    """

    def __init__(
        self, model: nn.Module, momentum: float = 0.01, threshold: float | None = 0.02,
        *, on_event: OnEvent | None = None,
    ) -> None:  # fmt: skip
        require_event_callback(on_event)
        _require_share("momentum", momentum)
        if threshold is not None:
            _require_share("threshold", threshold)
        self.momentum, self.threshold = momentum, threshold
        self._on_event, self._steps = on_event, 0
        self._weights = {weight.path: weight for weight in _weights(model)}
        if not self._weights:
            what = "no weight of the model is quantized to integers by a calibrated quantizer"
            raise TrainingError("FXQ833", what, fix="run compute_encodings() before")
        with torch.no_grad():
            self._seen = {p: _Seen.of(w.integers(w.value())) for p, w in self._weights.items()}

    @torch.no_grad()
    def step(self) -> None:
        """Look at the weights after a step of the optimizer, and put frozen ones back."""
        for path, weight in self._weights.items():
            weight.quantizer.follow(weight.value(), begin=False)
            seen = self._seen[path]
            seen.update(weight.integers(weight.value()), self.momentum, self.threshold)
            if bool(seen.frozen.any()):
                weight.pin(seen.integers, seen.frozen)
        self._steps += 1
        if self._on_event is not None:
            shares = {"oscillating": self.oscillating(), "frozen": self.frozen()}
            emit(self._on_event, "qat.oscillation", {"step": self._steps, **shares})

    def frequencies(self) -> dict[str, Tensor]:
        """Oscillations per step of every weight, by the path of the parameter."""
        return {path: seen.frequency for path, seen in self._seen.items()}

    def oscillating(self, frequency: float = 0.005) -> float:
        """Share of weights that oscillate more often than that and are not frozen."""
        return self._share(lambda seen: (seen.frequency > frequency) & ~seen.frozen)

    def frozen(self) -> float:
        """Share of weights that are frozen."""
        return self._share(lambda seen: seen.frozen)

    def _share(self, chosen: Any) -> float:
        count = sum(int(chosen(seen).sum()) for seen in self._seen.values())
        return count / max(1, sum(seen.frozen.numel() for seen in self._seen.values()))

    def state_dict(self) -> dict[str, Tensor]:
        """What was seen so far, by the path of the parameter and what it is."""
        return {
            f"{path}.{name}": tensor
            for path, seen in self._seen.items()
            for name, tensor in vars(seen).items()
        }

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what was seen before.

        Raises:
            TrainingError: FXQ833, the state is that of other weights.
        """
        own = self.state_dict()
        wrong = set(own) ^ set(state)
        wrong |= {name for name in set(own) & set(state) if own[name].shape != state[name].shape}
        if wrong:
            what = f"the state is that of other weights: {min(wrong)!r} differs"
            raise TrainingError("FXQ833", what, fix="make the tracker of the same simulation")
        for name, tensor in own.items():
            tensor.copy_(state[name])


@dataclass
class _Seen:
    """What is kept of one weight, a tensor of its shape each.

    Attributes:
        integers: as of the last step; of frozen weights the one that they are frozen at.
        direction: sign of the last change, int8; 0: none so far.
        frequency: moving average of oscillations.
        average: moving average of the integers.
        frozen: whether it is frozen.
    """

    integers: Tensor
    direction: Tensor
    frequency: Tensor
    average: Tensor
    frozen: Tensor

    @classmethod
    def of(cls, integers: Tensor) -> _Seen:
        """The beginning."""
        zeros = torch.zeros_like(integers)
        return cls(
            integers.clone(), zeros.to(torch.int8), zeros, integers.clone(), zeros.to(torch.bool)
        )

    def update(self, integers: Tensor, momentum: float, threshold: float | None) -> None:
        """One step of algorithm 1."""
        integers = torch.where(self.frozen, self.integers, integers)
        direction = (integers - self.integers).sign().to(torch.int8)
        changed = direction != 0
        turned = changed & (direction == -self.direction)
        self.frequency.lerp_(turned.to(self.frequency.dtype), momentum)
        self.average.lerp_(integers, momentum)
        self.direction.copy_(torch.where(changed, direction, self.direction))
        if threshold is not None:
            new = ~self.frozen & (self.frequency > threshold)
            integers = torch.where(new, self.average.round(), integers)
            self.frozen |= new
        self.integers.copy_(integers)


@dataclass(frozen=True)
class _Weight:
    """A parameter and the quantizer of its integers."""

    path: str
    module: QuantizationMixin
    name: str
    quantizer: AffineQuantizer

    def value(self) -> Tensor:
        """The parameter as it is rounded: with a live batch norm folded in."""
        value = weight_of(self.module, self.name)
        if value is None:  # taken out of the module since
            raise TrainingError("FXQ833", f"{self.path} is gone", fix="make a new tracker")
        return value

    def integers(self, value: Tensor) -> Tensor:
        """The integers that the parameter is rounded to, as floats of its shape."""
        return self._encoding().quantize(value.detach().float())

    def dampening(self, value: Tensor) -> Tensor:
        """Equation 5 for this weight."""
        encoding = self._encoding()
        integers = encoding.quantize(value.detach().float())
        difference = value.float() - encoding.dequantize(integers)
        # clip() leaves no difference beyond the middles of the first and the last step
        below = (integers == encoding.qmin) & (difference < 0.0)
        above = (integers == encoding.qmax) & (difference > 0.0)
        return torch.where(below | above, 0.0, difference).square().sum()

    def pin(self, integers: Tensor, frozen: Tensor) -> None:
        """Put frozen elements of the parameter where they are rounded to their integers."""
        wanted = self._encoding().dequantize(integers)
        parameter = self.module.get_parameter(self.name)
        live = live_norm_of(self.module)
        if live is not None:
            wanted = live.unfolded(self.module, wanted)
        parameter.copy_(torch.where(frozen, wanted.to(parameter.dtype), parameter))

    def _encoding(self) -> AffineEncoding:
        encoding = self.quantizer.get_encodings()
        if encoding is None:
            raise self.quantizer._uncalibrated()
        return encoding


def _weights(model: nn.Module) -> Iterator[_Weight]:
    known: set[int] = set()
    for path, module in model.named_modules():
        if not isinstance(module, QuantizationMixin):
            continue
        for name, quantizer in module.param_quantizers.active():
            parameter = module._parameters.get(name)
            if parameter is None or id(parameter) in known:  # of tied weights the first counts
                continue
            # int32 grids of biases are no affine quantizers, and too fine for oscillations
            if isinstance(quantizer, AffineQuantizer) and quantizer.is_initialized():
                known.add(id(parameter))
                yield _Weight(f"{path}.{name}", module, name, quantizer)


def _require_share(name: str, value: Any) -> None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not math.isfinite(value) or not 0.0 < value < 1.0:
        raise TrainingError("FXQ833", f"the {name} is {value!r}", fix="pass a number in (0, 1)")
