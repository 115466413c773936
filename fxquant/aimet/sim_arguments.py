"""Arguments of AIMET's `QuantizationSimModel`: two orders of positions, bits and types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from fxquant.aimet.defs import QuantizationDataType
from fxquant.aimet_config import from_aimet, is_aimet
from fxquant.errors import ConfigError
from fxquant.io.reading import read_json
from fxquant.io.writing import as_path
from fxquant.quantization import QuantScheme

if TYPE_CHECKING:
    from pathlib import Path


_USUAL = 8
_FLOAT_BITS = 16


class Given(NamedTuple):
    """What comes after the scheme, in the order of the signature."""

    rounding_mode: Any = "nearest"
    output_bw: Any = _USUAL
    param_bw: Any = _USUAL
    in_place: Any = False
    config_file: Any = None
    data_type: Any = QuantizationDataType.int


def in_order(given: Given) -> Given:
    """The arguments; those of the newer signature, which has no rounding mode, are moved.

    A number in the place of the rounding mode tells that signature. The types of the others tell
    which of them were given by position, one place too early, and which by name.

    Example:
        >>> in_order(Given(4, 6, True)).param_bw, in_order(Given(4, param_bw=6)).param_bw
        (6, 6)
    """
    first = given.rounding_mode
    if not isinstance(first, int) or isinstance(first, bool):
        return given
    moved = isinstance(given.param_bw, bool)  # in_place, by position
    by_name = not moved and given.param_bw != _USUAL
    in_place, file, kind = given.in_place, given.config_file, given.data_type
    if isinstance(file, QuantizationDataType):
        file, kind = None, file
    if not isinstance(in_place, bool):
        in_place, file = False, in_place
    return Given(
        "nearest", first, given.param_bw if by_name else given.output_bw,
        given.param_bw if moved else in_place, file, kind,
    )  # fmt: skip


def require_nearest(rounding_mode: object) -> None:
    """Refuse what runtimes do not compute.

    Raises:
        ConfigError: FXQ906, it is another mode.
    """
    if rounding_mode not in ("nearest", None):
        what = f"rounding_mode is {rounding_mode!r}"
        raise ConfigError("FXQ906", what, fix="'nearest' is what runtimes compute: ties to even")


def bits_of(given: Given, *, configured: bool) -> tuple[tuple[Any, Any], bool]:
    """Bits of activations and weights for `fxquant.QuantizationSimModel`; whether they are floats.

    8 is what nobody asked for: beside a configuration it leaves that the choice.

    Raises:
        ConfigError: FXQ906, the type and the bits do not go together.
    """
    bits: tuple[Any, Any] = (given.output_bw, given.param_bw)
    if given.data_type is QuantizationDataType.float:
        if bits != (_FLOAT_BITS, _FLOAT_BITS):
            what = f"default_data_type is float with {bits[0]} and {bits[1]} bits"
            raise ConfigError("FXQ906", what, fix="pass default_output_bw=16, default_param_bw=16")
        return (None, None), True
    if given.data_type is not QuantizationDataType.int:
        what = f"default_data_type is {given.data_type!r}"
        raise ConfigError("FXQ906", what, fix="pass QuantizationDataType.int or .float")
    if configured:
        bits = tuple(None if b == _USUAL else b for b in bits)  # type: ignore[assignment]
    return bits, False


class QuantParams:
    """Parameters of quantization for `correct_bias`, as AIMET documents them.

    Args:
        weight_bw: bits of weights.
        act_bw: bits of activations.
        round_mode: "nearest".
        quant_scheme: how ranges are found.
        config_file: a configuration, AIMET's or one's own.

    Raises:
        ConfigError: FXQ906, the rounding mode is another one.
    """

    def __init__(
        self,
        weight_bw: int = 8,
        act_bw: int = 8,
        round_mode: str = "nearest",
        quant_scheme: QuantScheme | str = QuantScheme.post_training_tf_enhanced,
        config_file: str | Path | None = None,
    ) -> None:
        require_nearest(round_mode)
        self.weight_bw = weight_bw
        self.act_bw = act_bw
        self.round_mode = round_mode
        self.quant_scheme = QuantScheme(quant_scheme)
        self.config_file = config_file


def supported_kernels(config_file: str | Path | None) -> dict[str, Any]:
    """Lists of kernels of a configuration file of AIMET, by key, as written."""
    data = None if config_file is None else read_json(as_path(config_file))
    return dict(from_aimet(data).supported_kernels) if is_aimet(data) else {}
