"""What a quantizer is made of, checked: mistakes are told where they are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fxquant.errors import QuantizationError
from fxquant.quantization.analyzers import EncodingAnalyzer, MinMax
from fxquant.quantization.layout import Layout
from fxquant.quantization.range_to_qparams import IntegerRange

if TYPE_CHECKING:
    from collections.abc import Sequence

_FORMS = "pass bitwidth=8, or qmin=-127 and qmax=127"
_COMMON = ("symmetric", "encoding_analyzer", "block_size")


@dataclass(frozen=True)
class Options:
    """Arguments of a quantizer after its shape, by name, as they were given."""

    bitwidth: int | None = None
    symmetric: bool = False
    encoding_analyzer: EncodingAnalyzer | None = None
    block_size: Sequence[int] | None = None
    qmin: int | None = None
    qmax: int | None = None
    signed: bool | None = None


def options_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Options:
    """Tell `(bitwidth, symmetric, ...)` from `(qmin, qmax, symmetric, ...)`.

    Raises:
        TypeError: too many arguments, one given twice or of an unknown name.

    Example:
        >>> found = options_of((-8, 7, True), {})
        >>> found.bitwidth, found.qmin, found.qmax, found.symmetric
        (None, -8, 7, True)
    """
    ends = len(args) > 1 and type(args[1]) is int
    names = (("qmin", "qmax") if ends else ("bitwidth",)) + _COMMON
    if len(args) > len(names):
        msg = f"a quantizer takes shape, {', '.join(names)}, but {len(args) + 1} were given"
        raise TypeError(msg)
    return Options(**dict(zip(names, args, strict=False)), **kwargs)


def grid_of(given: Options) -> IntegerRange:
    """The integers of a quantizer.

    Raises:
        QuantizationError: FXQ410 they are given twice, by halves or by no integers, FXQ406 there
            are too few or too many.
    """
    bits, qmin, qmax = given.bitwidth, given.qmin, given.qmax
    numbers: list[Any] = [n for n in (bits, qmin, qmax) if n is not None]
    if not all(isinstance(n, int) and not isinstance(n, bool) for n in numbers):
        what = f"bits and ends of a grid are integers, not {numbers}"
        raise QuantizationError("FXQ410", what, fix=_FORMS)
    if type(given.symmetric) is not bool:
        what = f"symmetric={given.symmetric!r} is neither True nor False"
        raise QuantizationError("FXQ410", what, fix=_FORMS)
    if qmin is not None or qmax is not None:
        if bits is not None or given.signed is not None or qmin is None or qmax is None:
            what = "a grid is given by bitwidth (and signed) or by qmin and qmax"
            raise QuantizationError("FXQ410", what, fix=_FORMS)
        return IntegerRange(qmin, qmax, given.symmetric)
    signed = given.symmetric if given.signed is None else given.signed
    return IntegerRange.of_bits(
        8 if bits is None else bits, signed=signed, symmetric=given.symmetric
    )


def resized(grid: IntegerRange, bits: int | None) -> IntegerRange:
    """The grid of another number of bits.

    Raises:
        QuantizationError: FXQ410 `bits` is no integer, FXQ406 there are too few or too many.
    """
    if bits is None:
        raise QuantizationError("FXQ410", "bits are an integer, not None", fix=_FORMS)
    return grid_of(Options(bitwidth=bits, signed=grid.signed, symmetric=grid.symmetric))


def layout_of(shape: Sequence[int], block_size: Sequence[int] | None) -> Layout:
    """How the ranges lie.

    Raises:
        QuantizationError: FXQ424, they cannot.
    """
    return Layout(
        _sizes("shape", shape), None if block_size is None else _sizes("block_size", block_size)
    )


def _sizes(name: str, given: Any) -> tuple[int, ...]:
    least = 1 if name == "shape" else -1
    try:
        sizes = tuple(given)
        if not isinstance(given, str) and all(n == int(n) >= least for n in sizes):
            return tuple(int(n) for n in sizes)
    except (TypeError, ValueError):
        pass
    what = f"{name}={given!r} is no tuple of sizes"
    fix = "pass (), (channels, 1) or the like" if name == "shape" else "pass one size an axis"
    raise QuantizationError("FXQ424", what, fix=fix)


def analyzer_of(given: object) -> EncodingAnalyzer:
    """The analyzer, min-max by default.

    Raises:
        QuantizationError: FXQ425, it is something else.
    """
    if given is None:
        return MinMax()
    if isinstance(given, type) or not isinstance(given, EncodingAnalyzer):
        fix = "pass one of fxquant.quantization.analyzers, such as Percentile(99.9)"
        raise QuantizationError("FXQ425", f"{given!r} is no encoding analyzer", fix=fix)
    return given
