"""Changing the bits of grids so that a simulation stays one that can be exported.

A weight's range is chosen anew from the weight, an activation's from the statistics of its last
calibration. Steps of biases follow, as they are products of those of input and weight: a bias whose
layer reads floats is float, and gets its grid back with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxquant.editing import refresh_biases
from fxquant.nn import QuantizationMixin
from fxquant.nn.calibration import fit_biases
from fxquant.precision.sites import Place
from fxquant.quantization.affine import BiasQuantizeDequantize
from fxquant.quantization.affine.resizing import resize
from fxquant.targets.quantizer_choice import analyzer_for_bits

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from fxquant.precision.kinds import Precision
    from fxquant.precision.sites import Site
    from fxquant.targets import Target


def change(gm: fx.GraphModule, target: Target, wanted: Mapping[Site, Precision]) -> list[Site]:
    """Give sites other precisions.

    Args:
        gm: the simulated model; it may be calibrated or not.
        target: how ranges are chosen for other bits.
        wanted: site -> bits, or None for floating point.

    Returns:
        Sites of activations whose range was kept, as nothing tells which one calibration would
        choose for the new bits.
    """
    kept = [site for site, bits in wanted.items() if not set_bits(site, bits, target)]
    settle_biases(gm)
    return kept


def set_bits(site: Site, precision: Precision, target: Target) -> bool:
    """Give one site another precision; biases are yet to follow.

    Returns:
        Whether its range is what calibration would choose.
    """
    quantizer = site.quantizer
    if precision is None or precision == quantizer.bitwidth:
        put(site, precision, target)
        return True
    if not site.tensors:
        found = resize(quantizer, precision)
        put(site, precision, target)
        return found
    put(site, precision, target)
    if quantizer.is_initialized():
        with torch.no_grad(), quantizer.compute_encodings():
            for tensor in site.tensors:
                quantizer(tensor)
    return True


def put(site: Site, precision: Precision, target: Target) -> None:
    """Give one site another precision and leave its range as it is."""
    quantizer = site.quantizer
    if precision is None:
        for place in site.places:
            place.take_out()
        return
    for place in site.places:
        if place.quantizer is None:
            place.put(quantizer)
    analyzer = analyzer_for_bits(target, quantizer.encoding_analyzer, precision)
    quantizer.encoding_analyzer = analyzer
    if precision != quantizer.bitwidth:
        quantizer.bitwidth = precision


def settle_biases(gm: fx.GraphModule) -> None:
    """Put biases on the grids of their input and weight as they are now, or into floating point."""
    places = list(_biases(gm))
    for place in places:
        before = vars(place.home).get("aside", {}).get(place.key)
        if place.quantizer is None and before is not None:
            place.put(before)
    stood = [(place, place.quantizer) for place in places]
    refresh_biases(gm)
    for place, quantizer in stood:
        if place.quantizer is None and quantizer is not None:
            place.put(quantizer)
            place.take_out()
    fit_biases(gm)


def _biases(gm: fx.GraphModule) -> Iterator[Place]:
    for path, module in gm.named_modules():
        home: Any = module.param_quantizers if isinstance(module, QuantizationMixin) else {}
        if "bias" in home:
            found = home["bias"] or vars(home).get("aside", {}).get("bias")
            if isinstance(found, BiasQuantizeDequantize):
                yield Place(path, home, "bias")
