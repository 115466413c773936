"""How far outputs are from the float model: what a proof against a runtime cannot say.

A proof compares two programs that quantize alike. Whether the quantized model still computes what
the float model computes is another question; these numbers answer it for one example.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fxquant.errors import ExportError
from fxquant.quantization.decibels import decibels


@dataclass(frozen=True)
class Agreement:
    """One output compared with the float model's.

    Attributes:
        name: name of the output.
        elements: how many were compared; 0 for an empty array, which says nothing.
        sqnr_db: signal to quantization noise in dB: infinite where all are equal, minus infinity
            where the float model gives zeros only; None for integers, booleans and empty arrays.
        cosine: cosine of the angle between both; None where a side is zero, or as above.
        relative: largest difference divided by the float output's largest magnitude.
        equal_share: share of equal elements; None for an empty array.
        labels: share of rows whose largest element is at the same place, for scores [N, C].
    """

    name: str
    elements: int
    sqnr_db: float | None
    cosine: float | None
    relative: float | None
    equal_share: float | None
    labels: float | None


def compare_with_float(
    reference: Mapping[str, NDArray[Any]], found: Mapping[str, NDArray[Any]]
) -> list[Agreement]:
    """Compare outputs by name.

    Args:
        reference: outputs of the float model.
        found: outputs of the simulation or of a runtime, of the same names and shapes.

    Returns:
        One row an output, in the order of `reference`.

    Raises:
        ExportError: FXQ596 names or shapes differ; FXQ597 an output holds NaN or infinity.
    """
    if reference.keys() != found.keys():
        what = f"the float model has outputs {[*reference]}, compared are {[*found]}"
        raise ExportError("FXQ596", what, fix="compare the outputs of one model")
    return [_agreement(name, real, found[name]) for name, real in reference.items()]


def _agreement(name: str, real: NDArray[Any], other: NDArray[Any]) -> Agreement:
    if real.shape != other.shape:
        what = f"output {name!r} has shape {other.shape}, in the float model {real.shape}"
        raise ExportError("FXQ596", what, fix="run both on the same inputs")
    if real.size == 0:
        return Agreement(name, 0, None, None, None, None, None)
    equal = float((real == other).mean())
    if real.dtype.kind != "f":
        return Agreement(name, real.size, None, None, None, equal, None)
    a, b = real.astype(np.float64).reshape(-1), other.astype(np.float64).reshape(-1)
    for side, array in (("the float model", a), ("the quantized model", b)):
        bad = int((~np.isfinite(array)).sum())
        if bad:
            what = f"output {name!r} of {side} holds NaN or infinity at {bad} of {a.size} elements"
            raise ExportError("FXQ597", what, fix="look at the example and at the weights")
    peak, apart = float(np.abs(a).max()), float(np.abs(a - b).max())
    relative = apart / peak if peak else (math.inf if apart else 0.0)
    return Agreement(
        name,
        real.size,
        _sqnr(a, b),
        _cosine(a, b),
        relative,
        equal,
        label_agreement(real, other),
    )


def _sqnr(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    # scaled first: the square of 1e-200 is zero
    noise, signal = np.abs(a - b).max(), np.abs(a).max()
    if noise == 0:
        return math.inf
    if signal == 0:
        return -math.inf
    powers = (float(np.square(x / top).mean()) for x, top in ((a, signal), (a - b, noise)))
    return decibels(*powers) + 20 * (math.log10(signal) - math.log10(noise))


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float | None:
    tops = float(np.abs(a).max()), float(np.abs(b).max())
    if 0.0 in tops:
        return None
    a, b = a / tops[0], b / tops[1]
    return float(a @ b / math.sqrt(float(a @ a) * float(b @ b)))


def label_agreement(real: NDArray[Any], other: NDArray[Any]) -> float | None:
    """Share of rows with the largest element at the same place; None for all but scores [N, C]."""
    if real.dtype.kind != "f" or real.ndim != 2 or real.shape[1] < 2 or not len(real):
        return None
    return float((real.argmax(1) == other.argmax(1)).mean())
