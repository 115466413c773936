"""Judges differences between simulation and runtime: exact, tie, drift, rounding, or defect."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fxquant.errors import ExportError
from fxquant.onnx.parity.float_comparison import label_agreement
from fxquant.onnx.parity.report import REPORT_IT, OutputRow, TensorRow

if TYPE_CHECKING:
    from fxquant.onnx.parity.error_analysis import Rounding
    from fxquant.onnx.parity.error_bounds import Tolerance
    from fxquant.onnx.parity.teacher_forcing import Reference
    from fxquant.onnx.session import Level


def classify(reference: Reference, runtime: NDArray[Any], allowed: Tolerance) -> dict[str, Any]:
    """Sort the elements of one tensor into exact, tie, drift and defect.

    Args:
        reference: the simulation's integers.
        runtime: onnxruntime's.
        allowed: what is a tie, and what drift passes.

    Returns:
        The counts and measures of a `TensorRow`, by field name.

    Raises:
        ExportError: FXQ565 the shapes differ.
    """
    ours = reference.integers
    if ours.shape != runtime.shape:
        name = reference.tensor.quantized_name
        what = f"{name!r} has shape {runtime.shape}, in the simulation {ours.shape}"
        raise ExportError("FXQ565", what, at=reference.tensor.node, fix=REPORT_IT)
    tally: dict[str, Any] = dict.fromkeys(("tie", "drift", "defect", "unexplained", "max_steps"), 0)
    tally |= {"elements": ours.size, "exact": ours.size, "distance": 0.0, "tolerance": allowed.tie}
    flat = np.flatnonzero(ours.reshape(-1) != runtime.reshape(-1))
    if not flat.size:
        return tally
    theirs = runtime.reshape(-1)[flat].astype(np.int64)
    steps = np.abs(theirs - ours.reshape(-1)[flat].astype(np.int64))
    one = steps == 1
    distances = reference.distances(flat[one], theirs[one])
    ties = distances <= allowed.tie
    defect = int((~one).sum())
    return tally | {
        "exact": ours.size - flat.size,
        "tie": int(ties.sum()),
        "drift": int((~ties).sum()),
        "defect": defect,
        "unexplained": defect + int((distances > allowed.drift).sum()),
        "max_steps": int(steps.max()),
        "distance": float(distances.max(initial=0.0)),
    }


def without_noise(
    row: TensorRow, rounding: Rounding, reference: Reference, theirs: NDArray[Any]
) -> TensorRow:
    """Take back what the float64 value shows to be rounding on both sides."""
    if not row.unexplained:
        return row
    ours = reference.integers
    noise = rounding.of_integers(reference.tensor.quantized_name, ours, theirs)
    if noise is None:
        return row
    steps = np.abs(theirs.astype(np.int64) - ours.astype(np.int64))
    real = steps[~noise.explained]
    far = steps[noise.explained & (steps > 1)]
    return replace(
        row,
        noise=min(row.unexplained, int((noise.explained & (steps > 0)).sum())),
        noise_steps=int(steps[noise.explained].max(initial=0)),
        defect=row.defect - far.size,
        unexplained=min(row.unexplained, int((real > 0).sum())),
    )


def with_noise(
    row: OutputRow, rounding: Rounding, ours: NDArray[Any], theirs: NDArray[Any]
) -> OutputRow:
    """Allow what the float64 value shows to be rounding on both sides."""
    if row.proven or not math.isfinite(row.relative):
        return row
    noise = rounding.of_floats(row.name, ours, theirs)
    if noise is None or not noise.explained.all():
        return row
    # both programs may be off by it, each to its side
    bound = 2 * float(noise.allowed[ours != theirs].max(initial=0.0))
    return replace(row, allowed=max(row.relative, bound / row.peak if row.peak else math.inf))


def output_row(
    name: str, ours: NDArray[Any], theirs: NDArray[Any], level: Level, allowed: float | None
) -> OutputRow:
    """Compare one output.

    Args:
        name: its name.
        ours: the simulation's.
        theirs: onnxruntime's.
        level: at which it ran.
        allowed: relative difference that passes; None where it is only shown.

    Raises:
        ExportError: FXQ566, the shapes differ.
    """
    forced = allowed is not None
    if ours.shape != theirs.shape and not forced and ours.ndim == theirs.ndim:
        # one flipped tie and values choose other rows
        return OutputRow(
            name, level.value, forced, _finite_peak(ours), math.inf, math.inf, None, None
        )
    if ours.shape != theirs.shape:
        what = f"output {name!r} has shape {theirs.shape}, in the simulation {ours.shape}"
        raise ExportError("FXQ566", what, at=name, fix=REPORT_IT)
    peak = _finite_peak(ours)
    difference = _difference(ours, theirs)
    relative = difference / peak if peak else float(difference > 0)
    return OutputRow(
        name,
        level.value,
        forced,
        peak,
        difference,
        relative,
        allowed,
        label_agreement(ours, theirs),
    )


def _finite_peak(value: NDArray[Any]) -> float:
    sizes = np.abs(value.astype(np.float64))
    return float(sizes[np.isfinite(sizes)].max(initial=0.0))


def _difference(ours: NDArray[Any], theirs: NDArray[Any]) -> float:
    """Largest absolute difference; infinities and NaN agree where both have the same."""
    a, b = ours.astype(np.float64), theirs.astype(np.float64)
    both = (a == b) | (np.isnan(a) & np.isnan(b))
    apart = np.abs(a[~both] - b[~both])
    if apart.size == 0:
        return 0.0
    return float("inf") if np.isnan(apart).any() else float(apart.max())
