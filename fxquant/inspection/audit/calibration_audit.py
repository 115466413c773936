"""Calibration audit: what is wrong with data, or with how a model takes them.

Data run once through the float model. What is looked at are samples (few, the same, empty), inputs
(not finite, not normalized as in training), tensors (clipped, in a narrow band) and the integers
that sums of products need. Nothing is changed.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import fx, nn

from fxquant.inspection.audit.accumulator_bounds import AccumulatorBound, accumulator_bounds
from fxquant.inspection.audit.audit_checks import findings_of
from fxquant.inspection.audit.audit_report import CalibrationAudit, Finding
from fxquant.inspection.audit.audit_run import AuditRun
from fxquant.nn.modes import evaluating
from fxquant.prepare import is_prepared, prepare_model
from fxquant.ptq.walking.walk import bound_batches, first_batch

if TYPE_CHECKING:
    from fxquant.sim import QuantizationSimModel

__all__ = [
    "AccumulatorBound", "CalibrationAudit", "CalibrationWarning", "Finding", "audit_calibration",
]  # fmt: skip


class CalibrationWarning(UserWarning):
    """Calibration data, or how a model takes them, make the ranges useless."""


def audit_calibration(
    model: nn.Module | QuantizationSimModel,
    data: Any,
    *,
    dummy_input: Any = None,
    samples: int | None = None,
) -> CalibrationAudit:
    """Look for what is wrong with calibration data and how a model takes them.

    Args:
        model: float model, prepared graph or simulation; it is not changed. Of a calibrated
            simulation clipped values and the bounds of int32 are looked at as well.
        data: an iterable of batches, as for `compute_encodings`, or a tensor, which is one batch.
        dummy_input: example inputs of a float model; default: the first batch.
        samples: samples that run through the model; all of them are looked at as inputs. Default:
            all.

    Returns:
        The findings, which print as text.

    Raises:
        CalibrationError: FXQ442 to FXQ444, there are no data or a batch lacks an input; FXQ483,
            the model does not take a batch.
        ModelError: the float model cannot be prepared.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
        >>> audit = audit_calibration(net, [torch.randn(1, 3, 8, 8)])
        >>> [finding.kind for finding in audit.findings]
        ['too few samples']
    """
    sim: Any = model if hasattr(model, "quant_scheme") else None
    gm, data = _prepared(model, data, dummy_input) if sim is None else (sim.model, data)
    run = AuditRun(gm)
    with evaluating(gm), torch.no_grad():
        for index, (values, count) in enumerate(bound_batches(gm, data, nan=True)):
            forward = samples is None or run.samples.count < samples
            run.add(values, count, index, forward=forward)
    bounds = () if sim is None else tuple(accumulator_bounds(gm, sim.target))
    found = sorted(findings_of(run, bounds), key=lambda f: f.severity != "error")
    return CalibrationAudit(tuple(found), run.samples.count, run.samples.batches, bounds)


def _prepared(model: Any, data: Any, dummy_input: Any) -> tuple[fx.GraphModule, Any]:
    if isinstance(model, fx.GraphModule) and is_prepared(model):
        return model, data
    if dummy_input is None:
        first, data = first_batch(data)
        dummy_input = _without_labels(model, first)
    return prepare_model(model, dummy_input), data


def _without_labels(model: nn.Module, batch: Any) -> Any:
    """A batch without what exceeds the inputs of a model."""
    if not isinstance(batch, (tuple, list)):
        return batch
    known = inspect.signature(model.forward).parameters.values()
    if any(p.kind is p.VAR_POSITIONAL for p in known):
        return tuple(batch)
    places = [p for p in known if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return tuple(batch[: len(places)])
