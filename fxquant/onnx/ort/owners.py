"""Which operator of a file a node of onnxruntime's optimized graph comes from."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

    from fxquant.onnx.session import KernelTime

_FOLLOW = 8  # nodes between what absorbed an operator and that operator
CONVERSIONS = ("QuantizeLinear", "DequantizeLinear")
# what onnxruntime appends when it lays a node out anew, or joins it with others
_ADDED = re.compile(r"(_token_\d+|_nchwc|_nhwc)$")


class Owners:
    """Finds operators by the names that optimization left.

    Args:
        graph: the file's graph, with named nodes.
    """

    def __init__(self, graph: ir.Graph) -> None:
        self._nodes = {str(n.name): n for n in graph}
        self._outputs = {str(v.name): n for n in graph for v in n.outputs}

    def of(self, entry: KernelTime) -> str:
        """Name of the operator that a kernel belongs to; of a conversion, that made the tensor."""
        node = self._find(entry.name)
        if node is None:
            return f"({entry.operator}, put in by onnxruntime)"
        if node.op_type in CONVERSIONS:
            return self._producer(node)
        return str(self._wanted(node, entry.operator).name)

    def of_tensor(self, name: str, present: set[str]) -> str:
        """Name of the operator that makes a quantized tensor, as far as it has a kernel."""
        first = found = self._producer(self._outputs[name])
        for _ in range(_FOLLOW):
            if found in present or found not in self._nodes:
                return found
            above = _source(self._nodes[found])
            if above is None:
                break
            found = str(above.name)
        return first

    def operator(self, name: str) -> str:
        """Type of an operator; empty for what is none of the file's."""
        node = self._nodes.get(name)
        return node.op_type if node is not None else ""

    def _find(self, name: str) -> ir.Node | None:
        while True:
            node = self._nodes.get(name) or self._outputs.get(name)
            shorter = _ADDED.sub("", name)
            if shorter == name:
                shorter = name.rpartition("/")[0]  # and when it splits one
            if node is not None or not shorter:
                return node
            name = shorter

    def _wanted(self, node: ir.Node, kernel: str) -> ir.Node:
        """The operator whose kernel it is: a fused one has the name of what it absorbed."""
        found: ir.Node | None = node
        for _ in range(_FOLLOW):
            if found is None:
                break
            if found.op_type in kernel:
                return found
            found = _source(found)
        return node

    def _producer(self, node: ir.Node) -> str:
        """Who makes what a conversion converts: an operator, or an input of the graph."""
        found = node
        while found.op_type in CONVERSIONS or (found.op_type == "Max" and len(found.inputs) == 1):
            above = _source(found)
            if above is None:
                value = found.inputs[0]
                return f"{value.name if value is not None else found.name} (input)"
            found = above
        return str(found.name)


def _source(node: ir.Node) -> ir.Node | None:
    value = node.inputs[0] if node.inputs else None
    return value.producer() if value is not None else None
