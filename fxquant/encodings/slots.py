"""Places of other tools for our places: the input of a consumer, the output of what moves values.

A grid belongs to the module that makes the values here, and a stub stands for the inputs of the
graph. AIMET keeps the encoding of such an input at the modules that read it, and files of other
configurations name what only moves values. Both are names for the same grid.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from torch import fx, nn

from fxquant.nn import QuantizationMixin
from fxquant.placement.dataflow import (
    is_float_spec,
    numbered_operands,
    origin,
    resolve_grids,
    slot_spec,
)

if TYPE_CHECKING:
    from fxquant.quantization import QuantizerBase


def aliases(gm: fx.GraphModule) -> dict[str, QuantizerBase]:
    """Name of a place that has no quantizer of its own -> the quantizer on whose grid it lies."""
    grids = resolve_grids(gm)
    found: dict[str, QuantizerBase] = {}
    for name, operand in _inputs(gm):
        above = grids[operand]
        if len(above) == 1 and above[0] is not None:
            found[name] = above[0]
    for node, module in _quantized(gm):
        for i, quantizer in enumerate(grids[node]):
            if quantizer is not None and not _holds(module.output_quantizers, i):
                found[f"{node.target}.output.{i}"] = quantizer
    return found


def names_at_consumers(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Place of a stub that the placement put in -> names of the inputs that read it."""
    if not isinstance(model, fx.GraphModule):
        return {}
    stubs = {n: n.target for n, module in _quantized(model) if getattr(module, "placed", False)}
    found: dict[str, tuple[str, ...]] = {}
    for name, operand in _inputs(model):
        if operand in stubs:
            key = f"{stubs[operand]}.output.0"
            found[key] = (*found.get(key, ()), name)
    return found


def float_results(gm: fx.GraphModule) -> frozenset[str]:
    """Places of modules without a quantizer there whose floating-point values the graph returns.

    A kernel may write floats there, so placement leaves such values alone unless it is asked; other
    tools give every tensor a grid.
    """
    returned: list[fx.Node] = []
    fx.node.map_arg(gm.graph.output_node().args, returned.append)
    found = set()
    for node in returned:
        made, index = origin(node, gm)
        module = gm.get_submodule(str(made.target)) if made.op == "call_module" else None
        if not isinstance(module, QuantizationMixin) or _holds(module.output_quantizers, index):
            continue
        if is_float_spec(slot_spec((made, index))):
            found.add(f"{made.target}.output.{index}")
    return frozenset(found)


def _quantized(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, QuantizationMixin]]:
    for node in gm.graph.nodes:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, QuantizationMixin):
            yield node, module


def _inputs(gm: fx.GraphModule) -> Iterator[tuple[str, fx.Node]]:
    """(name, value) of every input without a quantizer of its own, numbered as the module does."""
    for node, module in _quantized(gm):
        for index, operand in numbered_operands(node):
            tensor = hasattr(operand.meta.get("spec"), "dtype")
            if tensor and not _holds(module.input_quantizers, index):
                yield f"{node.target}.input.{index}", operand


def _holds(quantizers: nn.ModuleList, index: int) -> bool:
    return quantizers._modules.get(str(index)) is not None
