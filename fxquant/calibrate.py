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
from fxquant.nn.modes import evaluating

log = logging.getLogger("fxquant")

NOT_GIVEN: Any = object()
Progress = Callable[[int, "int | None"], None]


def calibrate(
    model: fx.GraphModule,
    data: Callable[..., Any] | Iterable[Any],
    args: Any = NOT_GIVEN,
    *,
    progress: Progress | None = None,
    threads: int | None = 1,
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
        threads: of torch, on the CPU, while data run. Convolutions and products add in another
            order on another number of threads, and a range moves by its last bit: one thread gives
            the same file on every machine. None leaves torch's number as it is: faster with many
            cores.

    Raises:
        CalibrationError: FXQ430 no data came, FXQ431 `data` is neither a callable nor iterable, or
            a tensor held NaN or infinity: the tensor and the batch are named.
    """
    run = _runner(model, data, args)
    counter = _Counter(progress, _length(data))
    try:
        with (
            _threads(threads), counter.watch(model), evaluating(model), torch.no_grad(),
            qnn.compute_encodings(model),
        ):  # fmt: skip
            run()
            counter.check()
    except CalibrationError as error:
        if not counter.seen:  # no data, or a weight that is not finite
            raise
        what = f"{error.what} (in calibration batch {counter.seen - 1})"
        raise CalibrationError(error.code, what, at=error.at, fix=error.fix) from error


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Counter:
    """Counts calls of the model."""

    def __init__(self, progress: Progress | None, total: int | None) -> None:
        self.seen, self.total, self.progress = 0, total, progress
        self.filled = False

    def check(self) -> None:
        """Refuse to have seen nothing."""
        if not self.seen:
            raise CalibrationError(
                "FXQ430",
                "calibration saw no data: the model was never called",
                fix="pass a non-empty loader, or call the model in the callback",
            )
        if not self.filled:
            what = "calibration saw no data: every batch was empty"
            raise CalibrationError("FXQ430", what, fix="pass batches that hold samples")

    @contextmanager
    def watch(self, model: nn.Module) -> Iterator[None]:
        before = model.register_forward_pre_hook(self._before)
        after = model.register_forward_hook(self._after)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _before(self, _module: nn.Module, args: tuple[Any, ...]) -> None:
        self.seen += 1
        tensors = [a for a in args if isinstance(a, Tensor)]
        self.filled |= not tensors or any(t.numel() for t in tensors)

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
    if args is not NOT_GIVEN and args is not None:
        what = "arguments of a callback were given, but calibration data are no callback"
        raise CalibrationError("FXQ431", what, fix="leave them out, or pass callback(model, args)")
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
