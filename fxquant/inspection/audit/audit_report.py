"""What a calibration audit found."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from fxquant.inspection.audit.accumulator_bounds import AccumulatorBound


@dataclass(frozen=True)
class Finding:
    """Something that costs accuracy, or that calibration cannot repair.

    Attributes:
        kind: what it is, such as "duplicate samples".
        severity: "error" where ranges are of no use, "warning" where accuracy suffers.
        where: the input, tensor or module, with the user's file and line.
        message: what was found, in numbers.
        fix: what to do about it.
    """

    kind: str
    severity: str
    where: str
    message: str
    fix: str

    def __str__(self) -> str:
        return f"{self.severity}: {self.kind}: {self.where}: {self.message}\n  fix: {self.fix}"


@dataclass(frozen=True)
class CalibrationAudit:
    """Findings; truthy when there are none, prints as text.

    Attributes:
        findings: errors first.
        samples: samples that were looked at.
        batches: batches that they came in.
        bounds: the largest integers of every layer; empty before calibration.
    """

    findings: tuple[Finding, ...]
    samples: int
    batches: int
    bounds: tuple[AccumulatorBound, ...] = ()

    def __bool__(self) -> bool:
        return not self.findings

    @property
    def severe(self) -> tuple[Finding, ...]:
        """The findings that make ranges useless."""
        return tuple(f for f in self.findings if f.severity == "error")

    def to_json(self) -> str:
        """The findings and bounds as JSON text."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        found = f"{len(self.findings)} finding(s)" if self.findings else "nothing wrong"
        lines = [f"{found} in {self.samples} sample(s) of {self.batches} batch(es)"]
        if self.bounds:
            most = max(self.bounds, key=lambda b: b.calibrated)
            bits, worst = (int(v).bit_length() + 1 for v in (most.calibrated, most.worst_case))
            lines.append(
                f"sums of integers need up to {bits} of 32 bits over the calibrated ranges, "
                f"{worst} in the worst case: {most.where}"
            )
        return "\n".join([*lines, *map(str, self.findings)])
