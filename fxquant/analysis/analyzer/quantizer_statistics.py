"""What quantizers are like: their ranges, and how the float values are spread over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx

from fxquant.graph.pytree import tensors
from fxquant.nn.calibration import weight_of
from fxquant.nn.modes import evaluating, quantization_off
from fxquant.nn.quantizer_places import QuantizerPlace, quantizer_places
from fxquant.quantization import AffineEncoding
from fxquant.quantization.analyzers.histogram import Histogram
from fxquant.quantization.layout import Layout
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Callable

_BINS = 256
Range = tuple[float, float]


def name_of(place: QuantizerPlace) -> str:
    """Path of the module, and which of its tensors: "conv1_output_0", "conv1_weight"."""
    tensor = place.key if place.role == "param" else f"{place.role}_{place.key}"
    return f"{place.path}_{tensor}"


def ranges(gm: fx.GraphModule) -> tuple[dict[str, Range], dict[str, Range | dict[str, Range]]]:
    """Ranges of activations, and of parameters: one each, or one by channel or block.

    Quantizers without a range of integers, such as those to narrow floats, are left out.
    """
    activations: dict[str, Range] = {}
    weights: dict[str, Range | dict[str, Range]] = {}
    for place in quantizer_places(gm):
        found = _range(place)
        if found is None:
            continue
        rows = list(
            zip(*(end.detach().double().reshape(-1).tolist() for end in found), strict=True)
        )
        if place.role != "param":
            activations[name_of(place)] = rows[0]
        elif len(rows) == 1:
            weights[name_of(place)] = rows[0]
        else:
            weights[name_of(place)] = {str(i): row for i, row in enumerate(rows)}
    return activations, weights


def outermost(found: Range | dict[str, Range]) -> Range:
    """One range around those of all channels."""
    ends = list(found.values()) if isinstance(found, dict) else [found]
    return min(low for low, _ in ends), max(high for _, high in ends)


def _range(place: QuantizerPlace) -> tuple[Tensor, Tensor] | None:
    encoding = place.quantizer.get_encodings() if place.quantizer.is_initialized() else None
    return (encoding.min, encoding.max) if isinstance(encoding, AffineEncoding) else None


@dataclass(frozen=True)
class Spread:
    """A histogram of the float values of one tensor.

    Attributes:
        start: lower end of the first bin.
        width: width of a bin.
        counts: elements in every bin.
        smallest: smallest element.
        largest: largest element.
        clip: ends of the quantizer's range, over all channels; None where there is none.
    """

    start: float
    width: float
    counts: tuple[int, ...]
    smallest: float
    largest: float
    clip: Range | None


def spreads(
    gm: fx.GraphModule, run: Callable[[Any], Any], bins: int = _BINS
) -> tuple[dict[str, Spread], dict[str, Spread]]:
    """Histograms of activations in floating point, and of parameters.

    Args:
        gm: the simulated graph.
        run: runs data through it.
        bins: most bins.
    """
    collected: dict[str, tuple[QuantizerPlace, Histogram]] = {}
    handles = []
    for place in quantizer_places(gm):
        if place.role != "param":
            histogram = Histogram(Layout(), bins)
            collected[name_of(place)] = place, histogram
            handles.append(place.module.register_forward_hook(_note(place, histogram)))
    try:
        with quantization_off(gm), evaluating(gm), torch.no_grad():
            run(gm)
    finally:
        for handle in handles:
            handle.remove()
    activations = {k: _spread(p, h) for k, (p, h) in collected.items() if not h.empty}
    weights = {}
    for place in quantizer_places(gm):
        value = weight_of(place.module, place.key) if place.role == "param" else None
        if value is not None and value.numel():
            histogram = Histogram(Layout(), bins)
            _count(histogram, value)
            weights[name_of(place)] = _spread(place, histogram)
    return activations, weights


def _note(place: QuantizerPlace, histogram: Histogram) -> Callable[..., None]:
    def note(_module: Any, args: Any, result: Any) -> None:
        given = tensors(args if place.role == "input" else result)
        if place.key < len(given):
            _count(histogram, given[place.key])

    return note


def _count(histogram: Histogram, x: Tensor) -> None:
    values = plain(x.detach()).float().reshape(-1)
    values = values[values.isfinite()]
    if values.numel():
        histogram.update(values, values.amin(), values.amax())


def _spread(place: QuantizerPlace, histogram: Histogram) -> Spread:
    width, first = float(histogram.width[0]), int(histogram.first[0])
    used = histogram.counts[0].nonzero()[:, 0]
    begin, end = int(used[0]), int(used[-1]) + 1
    found = _range(place)
    return Spread(
        (first + begin) * width, width, tuple(histogram.counts[0, begin:end].tolist()),
        float(histogram.low[0]), float(histogram.high[0]),
        None if found is None else (float(found[0].min()), float(found[1].max())),
    )  # fmt: skip
