"""The error tree: every error has a stable code and says what is wrong, where, and how to fix it.

Codes: 1xx trace, prepare, validate, regions · 2xx configuration and selectors · 3xx passes and
placement · 4xx quantizers and calibration · 5xx lowering, verify and parity · 6xx checkpoints ·
7xx command line and files · 8xx training.

    FxQuantError
    ├── ModelError ── TraceError, RegionError
    ├── ConfigError ── SelectorError
    ├── PassError
    ├── QuantizationError ── UncalibratedError, CalibrationError, ShapeMismatchError
    ├── ExportError ── ParityError
    ├── CheckpointError
    └── TrainingError

Some are errors of Python as well, for programs that catch those: `ExportError` and
`CheckpointError` are a `RuntimeError`, `ConfigError` and `QuantizationError` also a `ValueError`.

What is looked for, and not stumbled on, is a finding with such a code; a `Report` holds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch.fx import Node


class FxQuantError(Exception):
    """Base of all errors raised on purpose by fxquant.

    Args:
        code: stable identifier such as ``"FXQ112"``.
        what: one sentence that says what is wrong.
        at: where: an fx node (its name, module path and the user's line are shown) or a text.
        fix: what the reader can do about it.
    """

    def __init__(
        self, code: str, what: str, *, at: Node | str | None = None, fix: str | None = None
    ) -> None:
        self.code = code
        self.what = what
        self.at = place(at)
        self.fix = fix
        super().__init__(code, what, self.at, fix)

    def __str__(self) -> str:
        lines = [f"{self.code}: {self.what}"]
        if self.at:
            lines.append(f"  at: {self.at}")
        if self.fix:
            lines.append(f"  fix: {self.fix}")
        return "\n".join(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        # keyword-only arguments are lost by BaseException's own pickling
        return _rebuild, (type(self), self.code, self.what, self.at, self.fix)

    def to_dict(self) -> dict[str, str | None]:
        """The error as plain data for ``--json`` output."""
        kind = type(self).__name__
        return {"error": kind, "code": self.code, "what": self.what, "at": self.at, "fix": self.fix}


class ModelError(FxQuantError):
    """The user's model cannot be taken as it is."""


class TraceError(ModelError):
    """Recording the model as a graph failed or would have been wrong."""


class RegionError(ModelError):
    """Quantized regions are not well formed."""


class ConfigError(FxQuantError, RuntimeError, ValueError):
    """A configuration value is unknown, conflicting or impossible."""


class SelectorError(ConfigError):
    """A name, glob, type or region matches nothing."""


class PassError(FxQuantError):
    """A graph pass was built, ordered or applied wrongly."""


class QuantizationError(FxQuantError, RuntimeError, ValueError):
    """A quantizer was used wrongly or met data it cannot represent."""


class UncalibratedError(QuantizationError):
    """A quantizer has no range yet."""


class CalibrationError(QuantizationError):
    """Calibration data are empty, not finite or otherwise unusable."""


class ShapeMismatchError(QuantizationError):
    """A tensor's shape does not fit the quantizer's shape or block size."""


class ExportError(FxQuantError, RuntimeError):
    """Lowering or writing the ONNX model failed."""


class ParityError(ExportError):
    """The runtime computes something else than the simulation."""


class CheckpointError(FxQuantError, RuntimeError):
    """A checkpoint is missing, damaged or does not fit the model."""


class TrainingError(FxQuantError):
    """Training in simulation is set up wrongly or went wrong."""


def place(at: Node | str | None) -> str | None:
    """Text of a place: ``conv_1 (layer1.0.conv1), net.py:12`` for a node, a text as it is."""
    if at is None or isinstance(at, str):
        return at
    path = at.target if at.op == "call_module" else at.meta.get("module_path")
    text = f"{at.name} ({path})" if path else at.name
    source = at.meta.get("source")
    return f"{text}, {source}" if source else text


class _Graded(Protocol):
    @property
    def severity(self) -> str: ...


F = TypeVar("F", bound=_Graded)


@dataclass(frozen=True)
class Report(Generic[F]):
    """Findings; truthy when none of them is an error.

    Attributes:
        findings: errors, warnings and notes.
    """

    findings: tuple[F, ...] = ()

    def __bool__(self) -> bool:
        return not self.errors

    @property
    def errors(self) -> tuple[F, ...]:
        """The findings of severity "error"."""
        return tuple(f for f in self.findings if f.severity == "error")


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> str:
    """A hint for a name that matches nothing: the nearest known names, or an empty text."""
    found = get_close_matches(str(name), list(known), n=most, cutoff=0.5)
    return f"did you mean {', '.join(repr(f) for f in found)}?" if found else ""


def _rebuild(
    kind: type[FxQuantError], code: str, what: str, at: str | None, fix: str | None
) -> FxQuantError:
    return kind(code, what, at=at, fix=fix)
