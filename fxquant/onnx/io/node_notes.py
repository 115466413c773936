"""What viewers such as Netron show of a node of an exported file beside its type and inputs.

Notes are `metadata_props` of nodes: the module's path, the user's line and, where values go to
integers and back, the grid. Of a line's file only the name is written: where it lay is no matter of
the model, and the same network shall give the same bytes wherever it was exported.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fxquant.graph.meta import source
from fxquant.graph.rewriter import label

if TYPE_CHECKING:
    from torch import fx

    from fxquant.onnx.lowering.result import Lowered, LoweredTensor

MODULE, SOURCE, GRID = "fxquant.module", "fxquant.source", "fxquant.grid"
_FIRST_VERSION = 10  # of the format: nodes have no metadata before
_PAIR = ("QuantizeLinear", "DequantizeLinear")


def note_nodes(lowered: Lowered, gm: fx.GraphModule) -> None:
    """Write notes into the nodes of a lowering, where its version of the format has them.

    Args:
        lowered: the lowering; its model is changed.
        gm: the graph that it was made of.
    """
    if lowered.model.ir_version < _FIRST_VERSION:
        return
    made = {node.name: node for node in gm.graph.nodes}
    grids = {t.quantized_name: _grid(t) for t in lowered.tensors}
    for node in lowered.model.graph:
        owner = made.get(lowered.owners.get(str(node.name), ""))
        if node.op_type in _PAIR:
            integers = node.outputs[0] if node.op_type == _PAIR[0] else node.inputs[0]
            grid = grids.get(str(integers.name)) if integers is not None else None
            if grid is not None:
                node.metadata_props[GRID] = grid
        elif owner is not None:
            node.metadata_props[MODULE] = label(owner)
            line = source(owner)
            if line is not None:
                node.metadata_props[SOURCE] = f"{Path(line.file).name}:{line.line}"


def _grid(tensor: LoweredTensor) -> str:
    """Such as "uint8, -1.088 to 0.8253" or "int8 x 64, steps of 0.0009 to 0.0015"."""
    kind = f"{'int' if tensor.dtype.is_signed() else 'uint'}{tensor.bits}"
    if tensor.scale.size != 1:
        low, high = float(tensor.scale.min()), float(tensor.scale.max())
        return f"{kind} x {tensor.scale.size}, steps of {low:.4g} to {high:.4g}"
    if tensor.kind == "bias":
        return f"{kind}, steps of {float(tensor.scale):.4g}"
    first = -(2 ** (tensor.bits - 1)) if tensor.dtype.is_signed() else 0
    zero, scale = int(tensor.zero_point), float(tensor.scale)
    low, high = ((end - zero) * scale for end in (first, first + 2**tensor.bits - 1))
    return f"{kind}, {low:.4g} to {high:.4g}"
