"""Calibration: show data to a simulated model and let its quantizers set their ranges."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant import nn as qnn
from fxquant.errors import CalibrationError
from fxquant.quantization import affine

log = logging.getLogger("fxquant")

NOT_GIVEN: Any = object()
Progress = Callable[[int, "int | None"], None]


def calibrate(
    model: fx.GraphModule,
    data: Callable[..., Any] | Iterable[Any],
    args: Any = NOT_GIVEN,
    *,
    progress: Progress | None = None,
) -> None:
    """Compute all encodings of a simulated model.

    Args:
        model: the simulated model; it is evaluated without gradients, and its training mode is
            restored afterwards.
        data: `callback(model, args)` that runs the model on calibration data, or an iterable of
            batches: a tensor, a tuple or list of positional inputs (what exceeds the number of
            inputs, such as labels, is not passed) or a dict of keyword inputs.
        args: second argument of the callback; without it the callback gets the model alone, or
            None where it insists on two.
        progress: called after each batch with (batches done, total or None).

    Raises:
        CalibrationError: FXQ430 no data came, FXQ431 `data` is neither a callable nor iterable, or
            a tensor held NaN or infinity: the tensor and the batch are named.
    """
    run = _runner(model, data, args)
    was_training = {m: m.training for m in model.modules()}
    model.eval()
    counter = _Counter(progress, _length(data))
    try:
        with counter.watch(model), torch.no_grad(), qnn.compute_encodings(model):
            run()
            if not counter.seen:
                raise CalibrationError(
                    "FXQ430",
                    "calibration saw no data: the model was never called",
                    fix="pass a non-empty loader, or call the model in the callback",
                )
    except CalibrationError as error:
        if error.code == "FXQ430":
            raise
        what = f"{error.what} (in calibration batch {counter.seen - 1})"
        raise CalibrationError(error.code, what, at=error.at, fix=error.fix) from error
    finally:
        for module, training in was_training.items():
            module.training = training
    fit_biases(model)


class _Counter:
    """Counts calls of the model."""

    def __init__(self, progress: Progress | None, total: int | None) -> None:
        self.seen, self.total, self.progress = 0, total, progress

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        before = model.register_forward_pre_hook(self._before)
        after = model.register_forward_hook(self._after)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _before(self, *_: Any) -> None:
        self.seen += 1

    def _after(self, *_: Any) -> None:
        log.debug("calibration batch %d", self.seen)
        if self.progress is not None:
            self.progress(self.seen, self.total)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None


def _runner(model: fx.GraphModule, data: Any, args: Any) -> Callable[[], Any]:
    if callable(data) and not isinstance(data, nn.Module):
        if args is not NOT_GIVEN:
            return lambda: data(model, args)
        return (lambda: data(model, None)) if _wants_two(data) else (lambda: data(model))
    if isinstance(data, Tensor):
        return lambda: model(data)
    if isinstance(data, Iterable) and not isinstance(data, str):
        return lambda: _feed(model, data)
    raise CalibrationError(
        "FXQ431",
        f"calibration data are a {type(data).__name__}",
        fix="pass a callback(model, args) or an iterable of batches",
    )


def _wants_two(callback: Callable[..., Any]) -> bool:
    try:
        inspect.signature(callback).bind(None)
    except TypeError:
        return True
    except ValueError:  # a builtin without a signature
        return False
    return False


def _feed(model: fx.GraphModule, data: Iterable[Any]) -> None:
    most = sum(n.op == "placeholder" for n in model.graph.nodes)
    for batch in data:
        if isinstance(batch, Mapping):
            model(**batch)
        elif isinstance(batch, (tuple, list)):
            model(*batch[:most])
        else:
            model(batch)


def fit_biases(model: nn.Module) -> list[str]:
    """Widen weight grids whose int32 bias would not fit; returns the modules that changed.

    A bias lies on the grid `s_input * s_weight`; where a channel's weights are tiny, so is the grid,
    and `|bias| / (s_input * s_weight)` exceeds int32. The weight's step is raised just enough: the
    weights of such a channel are negligible beside its bias.
    """
    changed = []
    for name, module in model.named_modules():
        quantizers = getattr(module, "param_quantizers", None)
        bias = getattr(module, "bias", None)
        if quantizers is None or "bias" not in quantizers or bias is None:
            continue
        grid = quantizers["bias"]
        fits = isinstance(grid, affine.BiasQuantizeDequantize) and grid.is_initialized()
        if fits and _widen(grid, bias.detach()):
            changed.append(name)
            log.info("%s: the weight's grid was widened so that its bias fits int32", name)
    return changed


def _widen(grid: affine.BiasQuantizeDequantize, bias: Tensor) -> bool:
    """Raise the weight's range where the bias would exceed its int32 grid."""
    factor = grid.needed_widening(bias)
    weight = grid.weight_quantizer
    low, high = weight.get_min(), weight.get_max()
    if factor is None or low is None or high is None:
        return False
    if not isinstance(weight, affine.AffineQuantizer):
        return False
    shaped = factor.reshape(low.shape) if factor.numel() == low.numel() else factor.max()
    weight.set_range(low * shaped, high * shaped)
    return True
