"""Compares the integer executor with onnxruntime's default run, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.session import Level, open_session, packed, show


@dataclass(frozen=True)
class Comparison:
    """How far both are apart.

    Attributes:
        elements: integers that were compared.
        equal: how many are equal.
        worst: largest difference in steps.
        first: name of the first tensor that differs.
        outputs: largest absolute difference of the graph outputs.
    """

    elements: int
    equal: int
    worst: int
    first: str
    outputs: float

    @property
    def share(self) -> float:
        """Share of equal integers."""
        return self.equal / self.elements if self.elements else 1.0


def model_of(source: ir.Model | str | Path) -> ir.Model:
    """A model that may be changed."""
    return source.clone() if isinstance(source, ir.Model) else ir.load(source)


def compare(
    source: ir.Model | str | Path,
    feeds: Mapping[str, NDArray[Any]],
    *,
    islands: str = "onnxruntime",
    shown: bool = True,
) -> Comparison:
    """Run both on the same inputs.

    Args:
        source: a QDQ model.
        feeds: inputs by name.
        islands: see `IntegerModel`.
        shown: whether to compare quantized tensors; onnxruntime then sees them as outputs.
    """
    ours = IntegerModel(source, islands=islands, cpu="here")
    model = model_of(source)
    names = list(ours.visible_names) if shown else []
    if shown:
        show(model, names)
    with packed(model) as given:
        theirs = open_session(given, Level.ALL).run(feeds)
    found = ours.run(feeds, [*names, *ours.output_names])
    worst, equal, elements, first = 0, 0, 0, ""
    for name in names:
        a, b = found[name], theirs[name]
        assert (a.shape, a.dtype) == (b.shape, b.dtype), name
        steps = np.abs(a.astype(np.int64) - b.astype(np.int64))
        elements, equal = elements + steps.size, equal + int((steps == 0).sum())
        first = first or (name if steps.any() else "")
        worst = max(worst, int(steps.max(initial=0)))
    apart = [_difference(found[n], theirs[n]) for n in ours.output_names]
    return Comparison(elements, equal, worst, first, max(apart, default=0.0))


def _difference(a: NDArray[Any], b: NDArray[Any]) -> float:
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    return float(np.abs(a.astype(np.float64) - b.astype(np.float64)).max(initial=0.0))


def assert_equal(
    source: ir.Model | str | Path, feeds: Mapping[str, NDArray[Any]], **options: Any
) -> None:
    """Every quantized tensor and every output is the same bit for bit."""
    found = compare(source, feeds, **options)
    assert found.equal == found.elements, found
    assert found.outputs == 0.0, found


def kernels(source: ir.Model | str | Path) -> dict[str, str]:
    """Kernel of every operator by its name, as the executor places them."""
    return {p.node: p.kernel for p in IntegerModel(source).placement()}
