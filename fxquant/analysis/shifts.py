"""The shifts of a calibrated model beside what a target can do; nothing is changed."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from fxquant.io.text_tables import table
from fxquant.placement.shift_constraints import find_shifts

if TYPE_CHECKING:
    from torch import fx

    from fxquant.targets import Target


@dataclass(frozen=True)
class ShiftRow:
    """One shift.

    Attributes:
        module: path of the module.
        kind: "cut", "bias", "read" or "write".
        value: the shift.
        low: smallest one that the target can do.
        high: largest one.
        source: the user's file and line.
    """

    module: str
    kind: str
    value: int
    low: int
    high: int
    source: str

    @property
    def fits(self) -> bool:
        """Whether the target can shift so far."""
        return self.low <= self.value <= self.high


@dataclass(frozen=True)
class ShiftReport:
    """All shifts; true when every one lies in its range.

    Attributes:
        target: name of the target.
        rows: the shifts in the order of the graph.
    """

    target: str
    rows: tuple[ShiftRow, ...]

    def __bool__(self) -> bool:
        return all(row.fits for row in self.rows)

    def to_json(self) -> str:
        """The report as JSON text."""
        rows = [{**asdict(row), "fits": row.fits} for row in self.rows]
        return json.dumps({"target": self.target, "fits": bool(self), "rows": rows}, indent=1)

    def __str__(self) -> str:
        wrong = [r for r in self.rows if not r.fits]
        head = f"{len(self.rows) - len(wrong)} of {len(self.rows)} shifts fit {self.target}"
        if not wrong:
            return head
        cells = [(r.module, r.kind, r.value, f"{r.low} to {r.high}", r.source) for r in wrong]
        return f"{head}\n{table(('module', 'shift', 'is', 'allowed', 'source'), cells)}"


def check_shifts(model: fx.GraphModule, target: Target) -> ShiftReport:
    """Compare the shifts of a calibrated simulated model with the ranges of a target.

    Args:
        model: `sim.model` of a simulation with powers of two; other steps have no shifts.
        target: whose ranges count.
    """
    rows = [
        ShiftRow(
            str(s.node.target), s.kind, s.value, *s.allowed, str(s.node.meta.get("source") or "")
        )
        for s in find_shifts(model, target.shifts)
    ]
    return ShiftReport(target.name, tuple(rows))
