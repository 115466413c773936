"""Calibration: show data to a simulated model and let its quantizers set their ranges."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant import nn as qnn
from fxquant.errors import CalibrationError, FxQuantError
from fxquant.nn.modes import evaluating, quantization_off
from fxquant.quantization.affine import AffineQuantizer
from fxquant.tracing.signature import mismatch

log = logging.getLogger("fxquant")

NOT_GIVEN: Any = object()
# bits of a weight up to which activations are observed with the float weight
_COARSE = 2
Progress = Callable[[int, "int | None"], None]


def calibrate(
    model: fx.GraphModule,
    data: Callable[..., Any] | Iterable[Any],
    args: Any = NOT_GIVEN,
    *,
    progress: Progress | None = None,
    threads: int | None = 1,
    merge: Callable[[fx.GraphModule], None] | None = None,
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
        merge: called with the model when all data have run, before ranges are chosen: to take in
            statistics of other data, see `fxquant.distributed`.

    Raises:
        CalibrationError: FXQ430 no data came, FXQ431 `data` is neither a callable nor an iterable
            of batches, FXQ433 `threads` is no number, FXQ435 the model does not take a batch, or a
            tensor held NaN or infinity: the tensor and the batch are named.
    """
    run = _runner(model, data, args)
    _check_threads(threads)
    _mention_ranks(merge is not None)
    if progress is not None and not callable(progress):
        what = f"progress is a {type(progress).__name__}"
        raise CalibrationError("FXQ431", what, fix="pass a function of (done, total)")
    counter = _Counter(progress, _length(data))
    try:
        with (
            using_threads(threads), counter.watch(model), evaluating(model), torch.no_grad(),
            qnn.compute_encodings(model), quantization_off(_coarse_weights(model)),
        ):  # fmt: skip
            run()
            counter.check()
            if merge is not None:
                merge(model)
    except CalibrationError as error:
        if not counter.seen:  # no data, or a weight that is not finite
            raise
        what = f"{error.what} (in calibration batch {counter.seen - 1})"
        raise CalibrationError(error.code, what, at=error.at, fix=error.fix) from error
    except (FxQuantError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if counter.running is None:  # the user's loader or callback, not the model
            raise
        found = mismatch(model, *counter.running, error)
        what = f"the model does not take calibration batch {counter.seen - 1}: {found.what}"
        raise CalibrationError("FXQ435", what, at=found.at, fix=found.fix) from error


def _coarse_weights(model: fx.GraphModule) -> nn.ModuleList:
    """Quantizers of weights whose nearest integers say little of what activations will be.

    With so few bits a network works only once its weights are reconstructed or trained, and what it
    computes then is near to what it computes in floating point.
    """
    modules = [m for m in model.modules() if isinstance(m, qnn.QuantizationMixin)]
    quantizers = [q for m in modules for _, q in m.param_quantizers.active()]
    return nn.ModuleList(
        q for q in quantizers if isinstance(q, AffineQuantizer) and q.bitwidth <= _COARSE
    )


def _mention_ranks(merges: bool) -> None:
    several = torch.distributed.is_available() and torch.distributed.is_initialized()
    if several and not merges and torch.distributed.get_world_size() > 1:
        log.warning(
            "these encodings are of the data of this process alone; "
            "fxquant.distributed.compute_encodings merges those of all ranks"
        )


def _check_threads(count: Any) -> None:
    if count is not None and (type(count) is not int or count < 1):
        what = f"threads is {count!r}"
        raise CalibrationError("FXQ433", what, fix="pass a number from 1 on, or None")


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Threads of torch for a while; None: as many as there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class _Counter:
    """Counts calls of the model; `running` are the inputs of a call that has not returned."""

    def __init__(self, progress: Progress | None, total: int | None) -> None:
        self.seen, self.total, self.progress = 0, total, progress
        self.filled = False
        self.running: tuple[tuple[Any, ...], dict[str, Any]] | None = None

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
        before = model.register_forward_pre_hook(self._before, with_kwargs=True)
        after = model.register_forward_hook(self._after)
        try:
            yield
        finally:
            before.remove()
            after.remove()

    def _before(self, _module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.seen += 1
        self.running = args, kwargs
        tensors = [a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)]
        self.filled |= not tensors or any(t.numel() for t in tensors)

    def _after(self, *_: Any) -> None:
        log.debug("calibration batch %d", self.seen)
        self.running = None
        if self.progress is not None:
            self.progress(self.seen, self.total)


def _length(data: Any) -> int | None:
    try:
        return len(data)
    except TypeError:
        return None


def _runner(model: fx.GraphModule, data: Any, args: Any) -> Callable[[], Any]:
    if callable(data) and not isinstance(data, nn.Module):
        given = [(model,), (model, None)] if args is NOT_GIVEN else [(model, args)]
        for values in given:
            if accepts(data, len(values)):
                return functools.partial(data, *values)
        what = f"the calibration callback does not take {len(given[-1])} arguments"
        raise CalibrationError("FXQ431", what, fix=_DATA)
    if args is not NOT_GIVEN and args is not None:
        what = "arguments of a callback were given, but calibration data are no callback"
        raise CalibrationError("FXQ431", what, fix="leave them out, or pass callback(model, args)")
    if isinstance(data, Tensor):
        return lambda: model(data)
    if isinstance(data, Mapping):
        what = "calibration data are a dict, which is one batch"
        raise CalibrationError("FXQ431", what, fix="pass a list of batches: [batch]")
    if type(data).__name__ == "ndarray":
        what = "calibration data are a numpy array"
        raise CalibrationError("FXQ431", what, fix="pass [torch.from_numpy(array)]")
    if isinstance(data, Iterable) and not isinstance(data, str | bytes | nn.Module):
        return lambda: _feed(model, data)
    raise CalibrationError("FXQ431", f"calibration data are a {type(data).__name__}", fix=_DATA)


_DATA = "pass a callback(model, args) or an iterable of batches"


def is_iterable_of_batches(data: Any) -> bool:
    """Whether data may be read batch after batch: one batch, a text, a model or an array are not.

    A tensor, which is one batch as well, is iterable; who takes one asks before.
    """
    no = isinstance(data, (str, bytes, Mapping, nn.Module)) or type(data).__name__ == "ndarray"
    return isinstance(data, Iterable) and not no


def accepts(callback: Callable[..., Any], count: int) -> bool:
    """Whether a function may be called with so many positional arguments, by its signature."""
    try:
        inspect.signature(callback).bind(*[None] * count)
    except TypeError:
        return False
    except ValueError:  # a builtin without a signature
        return True
    return True


def _feed(model: fx.GraphModule, data: Iterable[Any]) -> None:
    most = sum(n.op == "placeholder" for n in model.graph.nodes)
    for batch in data:
        if isinstance(batch, Mapping):
            model(**batch)
        elif isinstance(batch, (tuple, list)):
            model(*batch[:most])
        else:
            model(batch)
