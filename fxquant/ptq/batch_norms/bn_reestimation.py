"""Statistics of batch norms taken anew: training moves weights, quantization moves activations."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant.calibrate import is_iterable_of_batches
from fxquant.errors import CalibrationError, ConfigError, FxQuantError
from fxquant.nn.modes import evaluating

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType

    from fxquant.sim import QuantizationSimModel

Forward = Callable[[nn.Module, Any], Any]
_STATISTICS = ("running_mean", "running_var")


class Handle:
    """Puts the statistics back that were there before; also as a context manager.

    Attributes:
        norms: by path of a batch norm, how far its mean moved, in standard deviations of before
            (the mean over channels), and the mean ratio of the variance to that of before.
        batches: number of batches that were seen.
    """

    def __init__(
        self,
        before: Mapping[nn.Module, Mapping[str, Tensor]],
        norms: dict[str, tuple[float, float]],
        batches: int,
    ) -> None:
        self._before = dict(before)
        self.norms, self.batches = norms, batches

    def remove(self) -> None:
        """Put the statistics back; a second call does nothing."""
        _put_back(self._before)
        self._before = {}

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.remove()

    def __str__(self) -> str:
        if not self.norms:
            return "no batch norm keeps running statistics"
        lines = [
            f"{path}: means moved by {moved:.3g} standard deviations, variances are {ratio:.3g} "
            "of before"
            for path, (moved, ratio) in self.norms.items()
        ]
        return "\n".join([*lines, f"{self.batches} batches"])


def reestimate_bn_stats(
    model: nn.Module | QuantizationSimModel,
    dataloader: Iterable[Any],
    num_batches: int = 100,
    forward_fn: Forward | None = None,
) -> Handle:
    """Replace the running statistics of batch norms by means over batches, in place.

    Batch norms alone compute with the statistics of the batch while the data run; every other
    module evaluates. Momentum, training flags and counters are what they were afterwards.

    Args:
        model: a model, prepared or not, a simulation or its `model`.
        dataloader: an iterable of batches.
        num_batches: batches that are used; fewer if there are fewer.
        forward_fn: `forward_fn(model, batch)` runs the model; by default a batch is a tensor, a
            tuple or list of positional inputs (what exceeds them, such as labels, is left out) or a
            dict of keyword inputs.

    Returns:
        A handle whose `remove()` puts the statistics of before back.

    Raises:
        ConfigError: FXQ216, `num_batches` is no positive number.
        CalibrationError: FXQ477 there are no batches, FXQ478 the model does not take a batch,
            FXQ479 the statistics are not finite. The model is then as it was.

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, algorithm 2: population statistics are means
    over batches of means and unbiased variances.

    Example:
        >>> net = nn.Sequential(nn.BatchNorm1d(1)).eval()
        >>> data = [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [7.0]])]
        >>> with reestimate_bn_stats(net, data):
        ...     print(net[0].running_mean.item(), net[0].running_var.item())
        4.0 2.0
        >>> net[0].running_mean.item()
        0.0
    """
    if type(num_batches) is not int or num_batches < 1:
        what = f"num_batches is {num_batches!r}"
        raise ConfigError("FXQ216", what, fix="pass a number from 1 on")
    run: nn.Module = model if isinstance(model, nn.Module) else model.model
    norms = {
        path: module
        for path, module in run.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None
    }
    before: dict[nn.Module, dict[str, Tensor]] = {
        m: {n: getattr(m, n).clone() for n in _kept(m)} for m in norms.values()
    }
    sums = _Sums(norms)
    forward = forward_fn or _forward(run)
    batches = 0
    try:
        with evaluating(run), sums.collecting(), torch.no_grad():
            for batch in itertools.islice(_iterated(dataloader), num_batches):
                _run(forward, run, batch, batches)
                batches += 1
        means = sums.means(batches)
    except BaseException:
        _put_back(before)
        raise
    _put_back(before)  # counters, and norms that no batch reached
    moved = {path: _moved(norms[path], before[norms[path]], *new) for path, new in means.items()}
    return Handle(before, moved, batches)


@torch.no_grad()
def _moved(
    norm: nn.modules.batchnorm._BatchNorm, old: Mapping[str, Tensor], mean: Tensor, var: Tensor
) -> tuple[float, float]:
    """Give a batch norm its statistics; how far they moved, see `Handle.norms`."""
    spread = (old["running_var"].double() + norm.eps).sqrt()
    for name, value in zip(_STATISTICS, (mean, var), strict=True):
        getattr(norm, name).copy_(value)
    shift = (mean - old["running_mean"]).abs() / spread
    return float(shift.mean()), float((var / spread.square()).mean())


def _kept(norm: nn.Module) -> list[str]:
    counter = getattr(norm, "num_batches_tracked", None)
    return [*_STATISTICS, *(["num_batches_tracked"] if counter is not None else [])]


@torch.no_grad()
def _put_back(before: Mapping[nn.Module, Mapping[str, Tensor]]) -> None:
    for norm, values in before.items():
        for name, value in values.items():
            getattr(norm, name).copy_(value)


class _Sums:
    """Sums of the statistics of every call of every batch norm, in float64."""

    def __init__(self, norms: dict[str, nn.modules.batchnorm._BatchNorm]) -> None:
        self.norms = norms
        self._sums: dict[str, tuple[Tensor, Tensor, int]] = {}

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Batch norms use the statistics of the batch, and leave them behind, for a while."""
        kept = [(m, m.momentum, m.training) for m in self.norms.values()]
        hooks = [m.register_forward_hook(self._hook(p)) for p, m in self.norms.items()]
        try:
            for module in self.norms.values():
                module.momentum, module.training = 1.0, True
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for module, momentum, training in kept:
                module.momentum, module.training = momentum, training

    def _hook(self, path: str) -> Callable[..., None]:
        def add(module: nn.Module, _args: Any, _result: Any) -> None:
            mean, var = (getattr(module, n).double() for n in _STATISTICS)
            known = self._sums.get(path)
            if known is not None:
                mean, var = mean + known[0], var + known[1]
            self._sums[path] = mean, var, 1 + (known[2] if known else 0)

        return add

    def means(self, batches: int) -> dict[str, tuple[Tensor, Tensor]]:
        """Means by path, after so many batches.

        Raises:
            CalibrationError: FXQ477 there were none, FXQ479 the means are not finite.
        """
        if not batches:
            fix = "pass a non-empty loader"
            raise CalibrationError("FXQ477", "there are no batches to estimate from", fix=fix)
        found = {p: (mean / n, var / n) for p, (mean, var, n) in self._sums.items()}
        for path, pair in found.items():
            if not all(bool(t.isfinite().all()) for t in pair):
                what = f"the input of {path} holds NaN or infinity"
                raise CalibrationError("FXQ479", what, fix="clean the data")
        return found


def _iterated(data: Any) -> Iterable[Any]:
    if isinstance(data, Tensor):
        return [data]
    if not is_iterable_of_batches(data):
        what = f"the data are a {type(data).__name__}, no iterable of batches"
        raise CalibrationError("FXQ477", what, fix="pass a list of batches, or a loader")
    return data  # type: ignore[no-any-return]


def _forward(model: nn.Module) -> Forward:
    """How a batch is given to a model."""
    most: int | None = None
    if isinstance(model, fx.GraphModule):
        most = sum(n.op == "placeholder" for n in model.graph.nodes)
    else:
        known = inspect.signature(model.forward).parameters.values()
        if not any(p.kind is p.VAR_POSITIONAL for p in known):
            most = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in known)

    def forward(run: nn.Module, batch: Any) -> Any:
        if isinstance(batch, Mapping):
            return run(**batch)
        return run(*batch[:most]) if isinstance(batch, (tuple, list)) else run(batch)

    return forward


def _run(forward: Forward, model: nn.Module, batch: Any, number: int) -> None:
    try:
        forward(model, batch)
    except (FxQuantError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        what = f"the model does not take batch {number}: {error}"
        fix = "pass batches like the model's inputs, of more than one value per channel"
        raise CalibrationError("FXQ478", what, fix=fix) from error
