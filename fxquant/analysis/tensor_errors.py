"""The error of every quantized tensor of a file against a model in floating point."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from fxquant.onnx.session import Level, open_session, packed
from fxquant.quantization.decibels import bounded, decibels

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from fxquant.onnx.ort.feeds import Feeds


@dataclass(frozen=True)
class TensorError:
    """How far one tensor is from its value in floating point; infinite values do not count.

    Attributes:
        sqnr: signal to quantization noise in dB, between -300 and 300, with all that was quantized
            before it.
        own_sqnr: the same if only this tensor were quantized.
        mean_steps: mean absolute error in steps of its grid.
        max_steps: largest one.
    """

    sqnr: float
    own_sqnr: float
    mean_steps: float
    max_steps: float


def tensor_errors(
    path: str | Path, model: ir.Model, truth: ir.Model, feeds: Feeds
) -> dict[str, TensorError]:
    """Errors by the name of the quantized tensor; those that the truth does not have are left out.

    Args:
        path: the quantized file.
        model: its graph; not changed.
        truth: the model in floating point, whose values have the names of those that are quantized.
        feeds: inputs by name.
    """
    known = {v.name for node in truth.graph for v in node.outputs}
    known |= {v.name for v in truth.graph.inputs}
    pairs = [n for n in model.graph if n.op_type == "QuantizeLinear" and _name(n) in known]
    if not pairs:
        return {}
    exact = _values(truth, {_name(n) for n in pairs}, feeds)
    found = _values(model, {str(n.outputs[0].name) for n in pairs}, feeds)
    return {
        str(n.outputs[0].name): _error(n, exact[_name(n)], found[str(n.outputs[0].name)])
        for n in pairs
        if exact[_name(n)].shape == found[str(n.outputs[0].name)].shape
    }


def _name(quantize: ir.Node) -> str:
    value = quantize.inputs[0]
    return str(value.name) if value is not None else ""


def _values(model: ir.Model, names: set[str], feeds: Feeds) -> dict[str, NDArray[Any]]:
    """Values of a model by name, as the file says them: without optimizations."""
    found = {name: feeds[name] for name in names if name in feeds}
    wanted = sorted(names - found.keys())
    if not wanted:
        return found
    copy = model.clone()
    values = {v.name: v for node in copy.graph for v in node.outputs}
    present = {v.name for v in copy.graph.outputs}
    copy.graph.outputs.extend(values[n] for n in wanted if n not in present)
    with packed(copy) as source:
        return found | open_session(source, Level.OFF).run(feeds, wanted)


def _error(quantize: ir.Node, exact: NDArray[Any], integers: NDArray[Any]) -> TensorError:
    step, zero = _grid(quantize, exact.ndim)
    step = np.broadcast_to(step, exact.shape)
    finite = np.isfinite(exact)
    zero = np.broadcast_to(zero, exact.shape)[finite]
    exact, integers, step = exact[finite], integers[finite], step[finite]
    limits = np.iinfo(integers.dtype)
    own = np.clip(np.rint(exact / step) + zero, limits.min, limits.max)
    error = np.abs(exact.astype(np.float64) - (integers.astype(np.float64) - zero) * step)
    rounding = exact - (own - zero) * step
    steps = error / step
    return TensorError(
        sqnr=_sqnr(exact, error), own_sqnr=_sqnr(exact, rounding),
        mean_steps=float(steps.mean()) if steps.size else 0.0,
        max_steps=float(steps.max(initial=0.0)),
    )  # fmt: skip


def _grid(quantize: ir.Node, rank: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """Step and zero point in a shape that lies along the tensor."""
    arrays = [v.const_value for v in quantize.inputs[1:] if v is not None]
    step = arrays[0].numpy().astype(np.float64) if arrays[0] is not None else np.ones(())
    known = len(arrays) > 1 and arrays[1] is not None
    zero = arrays[1].numpy().astype(np.float64) if known and arrays[1] is not None else np.zeros(())
    axis = quantize.attributes.get_int("axis", 1)
    shape = [-1 if i == axis % max(rank, 1) else 1 for i in range(rank)]
    return tuple(a.reshape(()) if a.size == 1 else a.reshape(shape) for a in (step, zero))  # type: ignore[return-value]


def _sqnr(signal: NDArray[Any], noise: NDArray[Any]) -> float:
    power = float(np.square(signal.astype(np.float64)).sum())
    return bounded(decibels(power, float(np.square(noise).sum())))
