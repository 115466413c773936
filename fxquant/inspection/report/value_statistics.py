"""What values tensors take in the float model: ranges, moments and histograms, in one walk."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxquant.calibrate import using_threads
from fxquant.graph.pytree import tensors
from fxquant.nn.modes import evaluating
from fxquant.placement.dataflow import resolve_grids
from fxquant.ptq.walking.walk import FloatEnvironment, Walk
from fxquant.quantization.encodings import AffineEncoding
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from fxquant.quantization import QuantizerBase

BINS = 64
_MOST = 1 << 18  # elements that a histogram counts: more of them do not change its shape
_FULL = 255  # height of the highest bar: a byte each


def value_statistics(
    gm: fx.GraphModule, nodes: Sequence[fx.Node], data: Any, *, samples: int | None = None,
    max_memory: int | None = None, progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Any]]:  # fmt: skip
    """Walk the float model once.

    Args:
        gm: the simulated graph; it is not changed.
        nodes: those whose values count.
        data: batches, as for `compute_encodings`.
        samples: samples that are used; None: all.
        max_memory: bytes of values in memory; None: no limit.
        progress: called after each node with (nodes done, nodes in all).

    Returns:
        By the name of the node, for real-valued tensors: least and largest value `lo` and `hi`,
        mean `m`, standard deviation `sd`, share of zeros `ze`, histogram `h` (bytes in base64,
        square roots of the counts) and, where a grid is known, the shares of values below and above
        it, `cl`, and of its steps that the middle 99.8% of the values span, `us`.

    Raises:
        CalibrationError: FXQ442 to FXQ445 the data are no batches, or hold NaN.
    """
    wanted = set(nodes)
    grids = resolve_grids(gm)
    with using_threads(1), evaluating(gm), torch.no_grad():
        environment = FloatEnvironment(gm, "float")
        walk = Walk(
            gm, data, [environment], samples=samples, max_memory=max_memory, progress=progress
        )
        found = {}
        for node in walk.nodes():
            if node not in wanted or node.op == "output":
                continue
            walk.compute(node, environment)
            values = [_first(walk.value(node, environment, b)) for b in range(len(walk))]
            known = [v for v in values if v is not None and v.numel()]
            if known:
                grid = next((q for q in grids[node] if q is not None), None)
                found[node.name] = _statistics(known, grid)
    return found


def _first(value: Any) -> Tensor | None:
    """The first real-valued tensor of a result."""
    for tensor in tensors(value):
        if tensor.is_floating_point():
            return plain(tensor).detach()
    return None


def _statistics(values: list[Tensor], grid: QuantizerBase | None) -> dict[str, Any]:
    flat = torch.cat([_thinned(v, len(values)) for v in values]).float()
    finite = flat[flat.isfinite()]
    if not finite.numel():
        return {}
    ends = [v.aminmax() for v in values] if finite.numel() == flat.numel() else [finite.aminmax()]
    low, high = min(float(e.min) for e in ends), max(float(e.max) for e in ends)
    counts = torch.histc(finite, BINS, low, high) if high > low else _all_in_one(finite)
    made: dict[str, Any] = {
        "lo": low, "hi": high, "m": float(finite.mean()), "sd": float(finite.std(correction=0)),
        "ze": float((finite == 0).float().mean()), "h": _packed(counts),
    }  # fmt: skip
    made = {k: float(f"{v:.5g}") if isinstance(v, float) else v for k, v in made.items()}
    encoding = grid.get_encodings() if grid is not None else None
    if isinstance(encoding, AffineEncoding) and encoding.scale.numel() == 1:
        made |= _fit(finite, encoding, counts, low, high)
    return made


def _thinned(value: Tensor, parts: int) -> Tensor:
    flat = value.reshape(-1)
    stride = -(-flat.numel() * parts // _MOST)
    return flat[:: max(stride, 1)]


def _all_in_one(values: Tensor) -> Tensor:
    counts = torch.zeros(BINS)
    counts[BINS // 2] = values.numel()
    return counts


def _packed(counts: Tensor) -> str:
    """Bars of a histogram as bytes; what was seen at all stays visible."""
    heights = (counts / counts.max()).sqrt().mul(_FULL).round()
    heights = torch.where((counts > 0) & (heights < 1), torch.ones_like(heights), heights)
    return base64.b64encode(heights.to(torch.uint8).numpy().tobytes()).decode()


def _fit(
    values: Tensor, encoding: AffineEncoding, counts: Tensor, low: float, high: float
) -> dict[str, Any]:
    """How a tensor fits its grid."""
    half = encoding.scale.reshape(()) / 2  # values within half a step of an end are only rounded
    bottom, top = encoding.min.reshape(()) - half, encoding.max.reshape(()) + half
    clipped = [float((values < bottom).float().mean()), float((values > top).float().mean())]
    share = counts.cumsum(0) / counts.sum()
    edge = (high - low) / BINS
    inner_low = low + edge * int((share < 0.001).sum())
    inner_high = low + edge * (int((share < 0.999).sum()) + 1)
    width = min(inner_high, float(encoding.max)) - max(inner_low, float(encoding.min))
    whole = float(encoding.max - encoding.min)
    used = max(0.0, min(1.0, width / whole)) if whole > 0 else 0.0
    return {"cl": [float(f"{c:.3g}") for c in clipped], "us": round(used, 4)}
