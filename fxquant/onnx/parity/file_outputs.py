"""Compares a file's outputs: the default run, the plain one and the integer executor."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fxquant.onnx.lint.structure import Finding
from fxquant.onnx.parity.error_bounds import FLOAT_ISLAND_SLACK, magnitude
from fxquant.onnx.parity.float_comparison import label_agreement
from fxquant.onnx.session import Level, open_session

if TYPE_CHECKING:
    from fxquant.onnx.integer import IntegerModel
    from fxquant.onnx.ort.feeds import Feeds

_LAST_FLOATS = 1e-3  # relative: only the order of sums behind the last integers is left to differ


@dataclass(frozen=True)
class OutputExam:
    """One output of whole runs, compared with the default run.

    Attributes:
        name: name of the output.
        against: "off" (without optimizations) or "executor".
        difference: largest absolute difference.
        peak: largest magnitude in the default run.
        labels: share of rows with the largest element at the same place, for outputs [N, C].
    """

    name: str
    against: str
    difference: float
    peak: float
    labels: float | None


def unlike(name: str, default: NDArray[Any], ours: NDArray[Any]) -> Finding | None:
    """An output that differs by more than the floats behind the last integers may."""
    a, b = default.astype(np.float64), ours.astype(np.float64)
    with np.errstate(invalid="ignore"):
        allowed = _LAST_FLOATS * np.abs(a) + FLOAT_ISLAND_SLACK * magnitude(default)
        same = (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) <= allowed)
    if same.all():
        return None
    what = f"{(~same).sum()} of {same.size} elements are not what the integer executor computes"
    return Finding("FXQ595", "error", name, what, "report this with the file")


def compared(path: str | Path, executor: IntegerModel, feeds: Feeds) -> list[OutputExam]:
    """Every output of the runs from the inputs, against the default run."""
    default = open_session(path, Level.ALL).run(feeds)
    others = {
        "off": open_session(path, Level.OFF).run(feeds),
        "executor": executor.run(feeds),
    }
    return [
        _output(name, against, default[name], found[name])
        for name in executor.output_names
        for against, found in others.items()
    ]


def _output(name: str, against: str, default: NDArray[Any], found: NDArray[Any]) -> OutputExam:
    a, b = default.astype(np.float64), found.astype(np.float64)
    with np.errstate(invalid="ignore"):
        apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, np.abs(a - b))
    labels = label_agreement(default, found)
    return OutputExam(name, against, float(apart.max(initial=0.0)), magnitude(default), labels)
