"""Sequential MSE: `aimet_torch.seq_mse`, in both of its documented forms."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import nn

from fxquant.aimet.adaround import refuse_checkpoints_config
from fxquant.ptq.techniques import seq_mse
from fxquant.ptq.techniques.seq_mse import SeqMseParams, SeqMseReport
from fxquant.sim import QuantizationSimModel

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = ["SeqMseParams", "SequentialMse", "apply_seq_mse"]


def apply_seq_mse(*args: Any, **kwargs: Any) -> SeqMseReport:
    """Choose and freeze ranges of weights by the error of their layers' outputs.

    `apply_seq_mse(sim, data_loader, num_candidates=20, forward_fn=None, modules_to_exclude=None,
    checkpoints_config=None, cache_dir=None)`, or the older `apply_seq_mse(model, sim, data_loader,
    params, modules_to_exclude=None, checkpoints_config=None, cache_dir=None)`; the float model is
    not needed there, the simulation has the float weights. See `fxquant.apply_seq_mse`.
    """
    older = "params" in kwargs or "model" in kwargs or (
        len(args) > 1 and isinstance(args[1], QuantizationSimModel)
    )  # fmt: skip
    return _with_params(*args, **kwargs) if older else _of_sim(*args, **kwargs)


def _of_sim(
    sim: QuantizationSimModel,
    data_loader: Any,
    num_candidates: int = 20,
    forward_fn: Callable[[nn.Module, Any], Any] | None = None,
    modules_to_exclude: Sequence[nn.Module] | None = None,
    checkpoints_config: str | None = None,
    cache_dir: str | None = None,
) -> SeqMseReport:
    refuse_checkpoints_config(checkpoints_config)
    _calibrate_weights(sim, data_loader, forward_fn)
    excluded = _of(sim, modules_to_exclude)
    return seq_mse.apply_seq_mse(sim, data_loader, num_candidates, forward_fn, excluded)


def _with_params(
    model: nn.Module,
    sim: QuantizationSimModel,
    data_loader: Any,
    params: SeqMseParams,
    modules_to_exclude: Sequence[nn.Module] | None = None,
    checkpoints_config: str | None = None,
    cache_dir: str | None = None,
) -> SeqMseReport:
    refuse_checkpoints_config(checkpoints_config)
    _calibrate_weights(sim, data_loader, params.forward_fn)
    excluded = _of(sim, modules_to_exclude, model)
    return seq_mse.apply_seq_mse(sim, data_loader, None, None, excluded, params=params)


def _calibrate_weights(sim: QuantizationSimModel, data: Any, forward_fn: Any) -> None:
    """AIMET applies it before calibration; the walk here needs ranges of activations, too."""
    if all(q.is_initialized() for q in sim.quantizers()):
        return
    if forward_fn is None:
        sim.compute_encodings(data)
        return

    def run(model: nn.Module, batches: Any) -> None:
        for batch in batches:
            forward_fn(model, batch)

    sim.compute_encodings(run, data)


def _of(
    sim: QuantizationSimModel, excluded: Sequence[nn.Module] | None, model: nn.Module | None = None
) -> list[Any] | None:
    """Modules of the float model by their paths: the simulation has others in their places."""
    if not excluded:
        return None
    paths = {} if model is None else {id(m): path for path, m in model.named_modules()}
    return [paths.get(id(module), module) for module in excluded]


class SequentialMse:
    """`apply_seq_mse` under its documented class."""

    apply_seq_mse = staticmethod(apply_seq_mse)
