"""The regions of a network and what each operator in them computes with, before calibration."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fxquant.analysis.inspect import inspect_model
from fxquant.io.text_tables import table
from fxquant.placement.regions import find_regions
from fxquant.prepare import prepare_model

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from fxquant.config import QuantConfig
    from fxquant.targets import Target


@dataclass(frozen=True)
class RegionRow:
    """One operator or stub.

    Attributes:
        module: module path, or node name where there is no module.
        operator: name of the operator's row, or "begin" and "end" for stubs.
        region: number of the region; 0 outside of all of them.
        precision: type of the output's grid, such as "uint8"; "float" where there is none.
        weight: type of the weight's grid; empty where there is none.
        why: reasons, in the order in which they were found.
        source: the user's file and line.
    """

    module: str
    operator: str
    region: int
    precision: str
    weight: str
    why: tuple[str, ...]
    source: str

    def cells(self) -> tuple[object, ...]:
        """The row of a table."""
        first = self.why[0] if self.why else ""
        kind = (self.region or "-", self.module, self.operator, self.precision, self.weight)
        return (*kind, first, self.source)


@dataclass(frozen=True)
class RegionPlan:
    """The plan of a partial quantization; prints as a table.

    Attributes:
        target: name of the target.
        count: number of regions; 0 for a network without stubs, which is quantized as a whole.
        rows: operators and stubs in the order of execution.
    """

    target: str
    count: int
    rows: tuple[RegionRow, ...]

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        heads = ("region", "module", "operator", "precision", "weight", "why", "source")
        cells = [r.cells() for r in self.rows]
        inside = sum(r.region > 0 for r in self.rows)
        said = f"{self.count} region(s) with {inside} of {len(self.rows)} steps on {self.target}"
        if not self.count:
            said = f"no stubs: the whole network is quantized for {self.target}"
        return f"{table(heads, cells)}\n{said}"


def inspect_regions(
    model: nn.Module,
    dummy_input: Any,
    *,
    config: QuantConfig | dict[str, Any] | str | Path | None = None,
    target: Target | str = "onnxruntime_x86",
) -> RegionPlan:
    """Show which region every operator belongs to, and what it computes with.

    Args:
        model: float model with stubs, or the result of `insert_stubs`; it is not changed.
        dummy_input: example inputs, as for `prepare_model`.
        config: as for `QuantizationSimModel`.
        target: as for `QuantizationSimModel`.

    Raises:
        RegionError: the stubs do not mark whole regions.
    """
    prepared = prepare_model(model, dummy_input)
    regions = find_regions(prepared)
    number = {str(n.target): i for n, i in (regions.number if regions else {}).items()}
    ends = {str(n.target): "end" for n in (regions.ends if regions else ())}
    found = inspect_model(prepared, dummy_input, config=config, target=target)
    rows = tuple(
        RegionRow(
            r.module, r.operator or ends.get(r.module, "begin"), number.get(r.module, 0),
            r.output, r.weight, r.why, r.source,
        )
        for r in found.rows
    )  # fmt: skip
    return RegionPlan(found.target, max(number.values(), default=0), rows)
