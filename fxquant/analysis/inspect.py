"""What a target would do with a model, before anything is calibrated."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant import ops
from fxquant.graph.pass_infra import state_of
from fxquant.io.text_tables import table
from fxquant.nn import QuantizationMixin
from fxquant.placement.dataflow import resolve_grids
from fxquant.quantization.affine import AffineQuantizer
from fxquant.sim import QuantizationSimModel

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

    from fxquant.config import QuantConfig
    from fxquant.quantization import QuantizerBase
    from fxquant.targets import Target


@dataclass(frozen=True)
class InspectionRow:
    """One operator of the simulated graph.

    Attributes:
        module: module path, or node name where there is no module.
        operator: name of the operator's row; empty for what has none.
        output: type of the output's grid, such as "uint8"; "float" where there is none.
        weight: type of the weight's grid, such as "int8 x 64 channels"; empty where there is none.
        source: the user's file and line.
        why: reasons, in the order in which they were found.
    """

    module: str
    operator: str
    output: str
    weight: str
    source: str
    why: tuple[str, ...]


@dataclass(frozen=True)
class Inspection:
    """The plan for a model on a target; prints as a table."""

    target: str
    rows: tuple[InspectionRow, ...]

    def to_json(self) -> str:
        """The plan as JSON text."""
        return json.dumps(asdict(self), indent=1)

    def __str__(self) -> str:
        heads = ("module", "operator", "output", "weight", "why", "source")
        rows = [
            (r.module, r.operator, r.output, r.weight, r.why[0] if r.why else "", r.source)
            for r in self.rows
        ]
        quantized = sum(r.output != "float" for r in self.rows)
        return (
            f"{table(heads, rows)}\n{quantized} of {len(rows)} outputs have a grid on {self.target}"
        )


def inspect_model(
    model: nn.Module,
    dummy_input: Any,
    *,
    config: QuantConfig | dict[str, Any] | str | Path | None = None,
    target: Target | str = "onnxruntime_x86",
) -> Inspection:
    """Show what would be quantized, and why, without calibrating.

    Args:
        model: float model or prepared graph; it is not changed.
        dummy_input: example inputs, as for `prepare_model`.
        config: as for `QuantizationSimModel`.
        target: as for `QuantizationSimModel`.

    Returns:
        One row per operator, in the order of execution.
    """
    sim = QuantizationSimModel(model, dummy_input, config=config, target=target)
    grids = resolve_grids(sim.model)
    why = state_of(sim.model).why
    rows = [
        _row(node, sim.model, grids[node], why)
        for node in sim.model.graph.nodes
        if node.op == "call_module" or ops.row_of(node, sim.model) is not None
    ]
    return Inspection(sim.target.name, tuple(rows))


def _row(
    node: fx.Node,
    gm: fx.GraphModule,
    grids: tuple[QuantizerBase | None, ...],
    why: Any,
) -> InspectionRow:
    row = ops.row_of(node, gm)
    called = node.op == "call_module"
    name = str(node.target) if called else node.name
    module = gm.get_submodule(name) if called else None
    weight = None
    if isinstance(module, QuantizationMixin) and "weight" in module.param_quantizers:
        weight = module.param_quantizers["weight"]
    return InspectionRow(
        module=name,
        operator=row.name if row else "",
        output=_type(grids[0] if grids else None),
        weight=_type(weight) if weight is not None else "",
        source=str(node.meta.get("source") or ""),
        why=tuple(why.get(name, ())),
    )


def _type(quantizer: QuantizerBase | None) -> str:
    if quantizer is None:
        return "float"
    if not isinstance(quantizer, AffineQuantizer):
        return str(quantizer)
    kind = f"{'int' if quantizer.signed else 'uint'}{quantizer.bitwidth}"
    channels = max(quantizer.shape, default=1)
    return f"{kind} x {channels} channels" if channels > 1 else kind
