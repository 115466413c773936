"""Calibration while a model is used: encodings follow the running statistics.

Every batch gives each quantizer a range; the most frequent one (of powers of two), the largest,
mean or median decides, and the batch goes on quantized with it. Without a statistic the analyzer
looks at all batches together. Later layers therefore see the quantization of earlier ones, as they
will when the model is used.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.nn.calibration import compute_param_encodings, fit_biases
from fxquant.quantization.affine import AffineQuantizer
from fxquant.quantization.affine.pof2 import PowerOfTwoQuantizeDequantize
from fxquant.quantization.quantizer_base import float32

if TYPE_CHECKING:
    from fxquant.quantization.analyzers import Statistics

Ranges = tuple[Tensor, Tensor]


def _mean(low: Tensor, high: Tensor) -> Ranges:
    return low.mean(0), high.mean(0)


def _median(low: Tensor, high: Tensor) -> Ranges:
    return low.median(0).values, high.median(0).values


def _largest(low: Tensor, high: Tensor) -> Ranges:
    return low.amin(0), high.amax(0)


_AGGREGATE = {"mean": _mean, "median": _median, "max": _largest}


@dataclass
class _Followed:
    """One quantizer and what it has seen."""

    quantizer: AffineQuantizer
    method: str | None
    running: Statistics | None = None
    history: list[Ranges] = field(default_factory=list)
    batch: int = -1

    def see(self, x: Tensor, batch: int) -> None:
        """Take in one tensor and set the range."""
        quantizer = self.quantizer
        quantizer._check_float(x)
        if x.numel() == 0:
            return
        with torch.inference_mode(False), torch.no_grad():
            seen = float32(x.detach())
            low, high = quantizer._layout.extremes(seen)
            quantizer._check_finite(low, high)
            found = self._range(seen, low, high, batch)
            if found is not None:
                quantizer.set_range(found[0].clamp(max=0.0), found[1].clamp(min=0.0))

    def _range(self, x: Tensor, low: Tensor, high: Tensor, batch: int) -> Ranges | None:
        analyzer, grid = self.quantizer.encoding_analyzer, self.quantizer.grid
        if self.method is None or isinstance(self.quantizer, PowerOfTwoQuantizeDequantize):
            self.running = self.running or self.quantizer.new_statistics()
            self.running.update(x, low, high)
            return analyzer.range(self.running, grid)
        statistics = self.quantizer.new_statistics()
        statistics.update(x, low, high)
        found = analyzer.range(statistics, grid)
        if found is None:
            return None
        self._remember(found, batch)
        low, high = (torch.stack(ends) for ends in zip(*self.history, strict=True))
        return _AGGREGATE[self.method](low, high)

    def _remember(self, found: Ranges, batch: int) -> None:
        if batch == self.batch:  # a quantizer of several tensors: one range a batch for all
            low, high = self.history.pop()
            found = torch.minimum(low, found[0]), torch.maximum(high, found[1])
        self.history.append(found)
        self.batch = batch


class Following:
    """Lets the quantizers of a model follow what runs through it.

    Args:
        model: a simulated model.
        methods: quantizer -> "max", "mean" or "median"; others look at all batches together.

    Attributes:
        batches: how often the model was called.
        active: whether it still follows.
    """

    def __init__(self, model: nn.Module, methods: Mapping[nn.Module, str]) -> None:
        self.model, self.batches, self.active = model, 0, True
        params = {id(q) for m in model.modules() for q in _param_quantizers(m)}
        followed = [
            _Followed(q, methods.get(q))
            for q in model.modules()
            if isinstance(q, AffineQuantizer) and q.overwritable and id(q) not in params
        ]
        self._handles = [f.quantizer.register_forward_pre_hook(self._hook(f)) for f in followed]
        self._handles.append(model.register_forward_pre_hook(self._begin))
        compute_param_encodings(model)

    def _hook(self, followed: _Followed) -> Callable[..., None]:
        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            followed.see(args[0], self.batches)

        return see

    def _begin(self, *_: Any) -> None:
        self.batches += 1

    def stop(self) -> None:
        """Keep the ranges as they are from now on."""
        if not self.active:
            return
        for handle in self._handles:
            handle.remove()
        fit_biases(self.model)
        self.active = False


def _param_quantizers(module: nn.Module) -> list[nn.Module]:
    found = getattr(module, "param_quantizers", None)
    return [] if found is None else [q for _, q in found.active()]
