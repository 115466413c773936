"""Candidates: pairs of precisions as people write them, checked against the target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from fxquant.errors import ConfigError
from fxquant.precision.kinds import Precision, precision_of

if TYPE_CHECKING:
    from fxquant.targets import Target

KEPT: Literal["kept"] = "kept"
_RESIDUAL = "_residual"
_FIX = 'pass pairs of (activation, weight), such as (8, 4), (16, 8) or ("float", 8)'


@dataclass(frozen=True)
class Candidate:
    """One pair of precisions.

    Attributes:
        activation: bits of activations; None: floating point.
        weight: bits of weights; None: floating point.
        residual: bits of values that sums read; "kept": those of all activations.
    """

    activation: Precision
    weight: Precision
    residual: Precision | Literal["kept"] = KEPT

    def __str__(self) -> str:
        if self.activation is None and self.weight is None:
            return "float"
        parts = [f"{_letter('A', self.activation)} {_letter('W', self.weight)}"]
        if self.residual != KEPT:
            parts.append(_letter("R", self.residual))
        return " ".join(parts)


def _letter(letter: str, precision: Precision | Literal["kept"]) -> str:
    return f"{letter}{'float' if precision is None else precision}"


def candidates_of(given: Any, target: Target) -> list[Candidate]:
    """Candidates without repetitions, in their order.

    Args:
        given: a sequence of pairs (activation, weight); each of both is a number of bits, "float",
            or as AIMET writes it `(bits, type)`. "float" alone stands for ("float", "float");
            "float_residual" and "int16_residual" add every pair with fewer bits once more, with
            that precision for values that sums read.
        target: refuses what it cannot compute.

    Raises:
        ConfigError: FXQ267 there are none, or one is no pair; FXQ263 a precision is none, FXQ262
            the target does not have it.
    """
    if isinstance(given, str) or not isinstance(given, Sequence) or not given:
        raise ConfigError("FXQ267", f"candidates={given!r} are no list of pairs", fix=_FIX)
    words = [one for one in given if isinstance(one, str) and one.endswith(_RESIDUAL)]
    pairs = list(map(_candidate, (one for one in given if one not in words)))
    if not pairs:
        raise ConfigError("FXQ267", f"candidates={given!r} hold no pair", fix=_FIX)
    residuals = [precision_of(one.removesuffix(_RESIDUAL), "a candidate") for one in words]
    found = dict.fromkeys(pairs)
    found |= dict.fromkeys(
        replace(one, residual=residual)
        for residual in residuals for one in pairs
        if one.activation is not None and (residual is None or residual > one.activation)
    )  # fmt: skip
    for one in found:
        try:
            for precision in (one.activation, one.residual):
                if precision != KEPT:
                    target.check_precision("activation", precision)
            target.check_precision("weight", one.weight)
        except ConfigError as error:
            what = f"candidate {one}: {error.what}"
            raise ConfigError(error.code, what, fix=error.fix) from error
    return list(found)


def _candidate(given: Any) -> Candidate:
    if isinstance(given, str):
        given = (given, given)
    if not isinstance(given, Sequence) or len(given) != 2:
        raise ConfigError("FXQ267", f"candidate {given!r} is no pair", fix=_FIX)
    activation, weight = (_of_type(one, given) for one in given)
    return Candidate(activation, weight)


def _of_type(given: Any, candidate: Any) -> Precision:
    if isinstance(given, tuple | list):
        if len(given) != 2:
            raise ConfigError("FXQ267", f"candidate {candidate!r} is no pair", fix=_FIX)
        bits, kind = given
        name = str(getattr(kind, "name", kind))
        given = bits if name == "int" else f"{name}{bits}"
    return precision_of(given, "a candidate's precision")
