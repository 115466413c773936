"""Calibration audit: what is wrong with data, or with how a model takes them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass


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
        return f"{self.severity}: {self.where}: {self.message}\n  fix: {self.fix}"


@dataclass(frozen=True)
class CalibrationAudit:
    """Findings; truthy when there are none, prints as text.

    Attributes:
        findings: the most severe first.
        samples: samples that were looked at.
        batches: batches that they came in.
    """

    findings: tuple[Finding, ...]
    samples: int
    batches: int

    def __bool__(self) -> bool:
        return not self.findings

    @property
    def severe(self) -> tuple[Finding, ...]:
        """The findings that make ranges useless."""
        return tuple(f for f in self.findings if f.severity == "error")

    def to_json(self) -> str:
        """The findings as JSON text."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        found = f"{len(self.findings)} finding(s)" if self.findings else "nothing wrong"
        head = f"{found} in {self.samples} sample(s) of {self.batches} batch(es)"
        return "\n".join([head, *map(str, self.findings)])
