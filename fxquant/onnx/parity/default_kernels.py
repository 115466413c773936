"""What the default kernels of CPUs make of a file, compared with exact integer arithmetic.

The proof is about exact kernels. A file runs on kernels that are chosen by the CPU, and those of
x86 CPUs without VNNI saturate. On such a CPU they are run here and now; on all others the integer
executor computes what they would give, so that nobody learns it from the field.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.parity.float_comparison import label_agreement
from fxquant.onnx.session import Level, open_session, packed, show
from fxquant.quantization.decibels import decibels

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Feeds = Mapping[str, NDArray[Any]]
    Found = dict[str, NDArray[Any]]

_ELEMENTS = 1 << 20  # of the largest input, up to which rows of the example are taken
NO_VNNI = "x86-64 without VNNI"


@dataclass(frozen=True)
class KernelRun:
    """A whole run of the file on the default kernels of a CPU, compared with exact arithmetic.

    Attributes:
        cpu: whose kernels.
        measured: whether onnxruntime ran them on this CPU; else the integer executor computed them.
        rows: rows of the example that were run.
        tensors: quantized tensors that were compared.
        differing: how many of them differ.
        max_steps: largest difference, in steps.
        sqnr: signal to quantization noise of the worst output in dB, exact arithmetic being the
            signal; None where all outputs are equal.
        labels: lowest share of rows with the largest element at the same place, over the outputs
            [N, C]; None where there are none.
        explained: whether the integer executor computes the same bits; None where it is the one
            that computed.
    """

    cpu: str
    measured: bool
    rows: int
    tensors: int
    differing: int
    max_steps: int
    sqnr: float | None
    labels: float | None
    explained: bool | None = None

    def __str__(self) -> str:
        how = "" if self.measured else " (computed by the integer executor)"
        head = f"default kernels of {self.cpu}{how}:"
        if not self.differing and self.sqnr is None:
            return f"{head} exact, nothing differs on {self.rows} row(s)"
        text = (
            f"{head} {self.differing} of {self.tensors} quantized tensors differ from exact "
            f"arithmetic, up to {self.max_steps} step(s)"
        )
        text += "" if self.sqnr is None else f"; outputs keep {self.sqnr:.1f} dB"
        text += "" if self.labels is None else f", {self.labels:.1%} of {self.rows} labels"
        known = {True: "; saturation explains every bit", False: "; saturation does not explain it"}
        return text + known.get(self.explained, "") if self.explained is not None else text


def default_kernels(path: str | Path, feeds: Feeds) -> tuple[KernelRun, ...]:
    """What default kernels make of a file: those of this CPU, and of CPUs without VNNI.

    Args:
        path: the file.
        feeds: inputs by name; a part of the rows is enough where they are large.

    Returns:
        Nothing where every CPU computes exactly: no product can saturate.
    """
    exact = IntegerModel(path)
    if not exact.saturations():
        return ()
    feeds, rows = _fewer(path, feeds)
    names = (*exact.visible_names, *exact.output_names)
    wanted = exact.run(feeds, names)
    if this_cpu().exact:
        found = IntegerModel(path, cpu="avx2").run(feeds, names)
        return (_compared(exact, wanted, found, NO_VNNI, rows, None),)
    # the same float operators on both sides, so that only integer kernels can differ
    ours = IntegerModel(path, cpu="here", islands="onnxruntime").run(feeds, names)
    found = _ran(path, feeds, names)
    same = all(np.array_equal(ours[n], found[n], equal_nan=True) for n in names)
    return (_compared(exact, wanted, found, f"this CPU ({this_cpu()})", rows, same),)


def _compared(
    model: IntegerModel, exact: Found, found: Found, cpu: str, rows: int, explained: bool | None
) -> KernelRun:
    visible, results = model.visible_names, model.output_names
    # values may choose other rows: then there is nothing to compare with
    other = {n for n in (*visible, *results) if exact[n].shape != found[n].shape}
    steps = [
        int(np.abs(found[n].astype(np.int64) - exact[n].astype(np.int64)).max(initial=0))
        for n in visible
        if n not in other
    ]
    outputs = [(exact[n], found[n]) for n in results if n not in other]
    noise = [_sqnr(a, b) for a, b in outputs if a.dtype.kind == "f"]
    agree = [share for a, b in outputs if (share := label_agreement(a, b)) is not None]
    worst = min(noise, default=math.inf)
    return KernelRun(
        cpu, explained is not None, rows, len(visible),
        sum(s > 0 for s in steps) + len(other.intersection(visible)),
        max(steps, default=0), worst if math.isfinite(worst) else None, min(agree, default=None),
        explained,
    )  # fmt: skip


def _sqnr(signal: NDArray[Any], other: NDArray[Any]) -> float:
    a = signal.astype(np.float64)
    noise = float(np.square(a - other.astype(np.float64)).sum())
    power = float(np.square(a).sum())
    return decibels(max(power, 1e-300), noise)


def _ran(path: str | Path, feeds: Feeds, names: tuple[str, ...]) -> Found:
    """The default run, its integers shown."""
    model = ir.load(path)
    show(model, names)
    with packed(model) as source:
        return open_session(source, Level.ALL).run(feeds, names)


def _fewer(path: str | Path, feeds: Feeds) -> tuple[Feeds, int]:
    """The first rows of inputs that share a dynamic first axis, and how many there are."""
    inputs = {str(v.name): v for v in ir.load(path).graph.inputs}
    sizes = {n: x.shape[0] for n, x in feeds.items() if x.ndim}
    firsts = {_first(inputs[n]) for n in feeds if n in inputs}
    rows = max(sizes.values(), default=1)
    largest = max((x.size for x in feeds.values()), default=1)
    kept = max(1, min(rows, _ELEMENTS * rows // max(largest, 1)))
    whole = len(firsts) != 1 or None in firsts or set(sizes.values()) != {rows}
    if whole or kept >= rows:
        return feeds, rows
    return {n: x[:kept] for n, x in feeds.items()}, kept


def _first(value: ir.Value) -> str | None:
    """Name of the first axis where it is dynamic."""
    size = value.shape[0] if value.shape is not None and value.shape.rank() else None
    return str(size.value) if isinstance(size, ir.SymbolicDim) and size.value else None
