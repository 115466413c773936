"""Another number of bits for a quantizer, with the range that calibration would have chosen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fxquant.quantization.affine.pof2 import PositionCounts

if TYPE_CHECKING:
    from fxquant.quantization.affine.affine_quantizer import AffineQuantizer


def resize(quantizer: AffineQuantizer, bitwidth: int) -> bool:
    """Give a quantizer of an activation another number of bits.

    A range that was searched, as by "tf_enhanced", is the best one for some number of bits only. It
    is searched again in the statistics of the last calibration, if it still is the range that
    these gave. A range that was set otherwise is kept, and so is one whose statistics are counts
    of positions of powers of two, which hold for one grid.

    Args:
        quantizer: the quantizer; it keeps signedness, symmetry and layout.
        bitwidth: bits, 2 to 32.

    Returns:
        Whether the range is what calibration would choose; False: it was kept as it was.

    Example:
        >>> from fxquant.quantization import affine
        >>> q = affine.QuantizeDequantize(shape=(), bitwidth=8)
        >>> with q.compute_encodings():
        ...     x = q(torch.tensor([0.0, 1.5]))
        >>> resize(q, 4), q.bitwidth, q.get_encodings().scale
        (True, 4, tensor(0.1000))
    """
    same = quantizer.bitwidth == bitwidth
    known = same or not quantizer.is_initialized() or not quantizer.overwritable
    seen = quantizer._seen
    quantizer.bitwidth = bitwidth
    if known:
        return True
    if seen is None or isinstance(seen[0], PositionCounts):
        return False
    if not is_as_calibrated(quantizer):
        return False
    quantizer._choose(seen[0])
    return True


def is_as_calibrated(quantizer: AffineQuantizer) -> bool:
    """Whether the range still is the one that the last calibration gave."""
    if quantizer._seen is None:
        return False
    now, then = (quantizer.min, quantizer.max), quantizer._seen[1:]
    return all(torch.equal(a, b.to(a.device)) for a, b in zip(now, then, strict=True))
