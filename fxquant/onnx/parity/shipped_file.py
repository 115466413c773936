"""The file as it is written: opened and run at every optimization level, as its users will.

A proof looks at a graph whose integers are outputs, cut into segments. A runtime may do with the
whole file what it does not do with that graph, so the whole file is run as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from fxquant.errors import ParityError
from fxquant.onnx.session import Level, open_session

Values: TypeAlias = "Mapping[str, NDArray[Any]]"
Shipped: TypeAlias = "dict[Level, Values]"

# the default first: that is what users get
ALL_LEVELS = (Level.ALL, Level.FUSED, Level.BASIC, Level.OFF)
# noise that a file may have over that of the same graph with its integers shown, both against the
# simulation: other float kernels move last bits, and those move ties
_FACTOR, _FLOOR = 4.0, 1e-2


def run_shipped(path: str | Path, feeds: Values, threads: int = 1) -> Shipped:
    """Outputs of the unchanged file at every level.

    Args:
        path: the file.
        feeds: inputs by name.
        threads: of onnxruntime.

    Raises:
        ExportError: FXQ551 or FXQ552, it cannot be opened or run.
    """
    return {level: open_session(path, level, threads=threads).run(feeds) for level in ALL_LEVELS}


def check_same(shipped: Values, shown: Values, ours: Values, level: Level) -> None:
    """Refuse a file that computes something else than its graph does with the integers shown.

    Args:
        shipped: outputs of the unchanged file.
        shown: outputs of the graph that the proof looks at.
        ours: outputs of the simulation.
        level: at which both ran.

    Raises:
        ParityError: FXQ587.
    """
    for name, wanted in ours.items():
        a, b = shipped[name], shown[name]
        if a.shape == b.shape and np.array_equal(a, b, equal_nan=a.dtype.kind == "f"):
            continue
        noise, usual = _noise(a, wanted), _noise(b, wanted)
        if noise > max(_FACTOR * usual, _FLOOR):
            what = (
                f"output {name!r} of the file differs from the simulation by {noise:.1e} of its "
                f"size at level {level.value}, that of the same graph with its integers shown by "
                f"{usual:.1e}"
            )
            fix = "report it with the model: onnxruntime makes another program of the file"
            raise ParityError("FXQ587", what, fix=fix)


def _noise(found: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Root mean square of a difference, relative to that of what is wanted."""
    if found.shape != wanted.shape:
        return float("inf")
    a, b = found.astype(np.float64), wanted.astype(np.float64)
    apart = np.where((a == b) | (np.isnan(a) & np.isnan(b)), 0.0, a - b)
    size = float(np.square(b[np.isfinite(b)]).sum())
    return float(np.sqrt(np.square(apart).sum() / size)) if size else float(apart.any())
