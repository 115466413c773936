"""Grids of a model's inputs, at the modules that read them.

AIMET keeps the quantizer of a model's input at the modules that read the input; here a stub that
stands for the input owns it, once for all of them. Through `LinkedInputs` both are the same: what
is read, changed or put into the place at a module is the stub's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant.nn import QuantizationMixin
from fxquant.nn.containers import QuantizerList
from fxquant.placement.dataflow import numbered_operands

if TYPE_CHECKING:
    from collections.abc import Iterator


class LinkedInputs(QuantizerList):
    """Input quantizers of a module, some of which are those of the stubs before it.

    A place of which the module has a quantizer of its own is its own; there both are applied.

    Attributes:
        links: position -> list and position that the quantizer stands in.
    """

    links: dict[int, tuple[QuantizerList, int]]

    @classmethod
    def of(cls, own: QuantizerList, links: dict[int, tuple[QuantizerList, int]]) -> LinkedInputs:
        """The same quantizers with links."""
        made = cls(list(own._modules.values()))
        made.limit = own.limit
        made.links = links
        return made

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        if found is None and isinstance(index, int):
            home, place = self.links.get(index % len(self), (None, 0))
            return None if home is None else home[place]
        return found

    def __setitem__(self, index: Any, quantizer: Any) -> None:
        linked = self._linked(index)
        if linked is None:
            super().__setitem__(index, quantizer)
        else:
            home, place = linked
            home[place] = quantizer

    def _linked(self, index: Any) -> tuple[QuantizerList, int] | None:
        if not isinstance(index, int) or not -len(self) <= index < len(self):
            return None
        place = index % len(self)
        return self.links.get(place) if self._modules[str(place)] is None else None

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def link_inputs(gm: fx.GraphModule) -> None:
    """Show the grids of stubs that the placement made at the modules that read them."""
    for node in gm.graph.nodes:
        module = gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, QuantizationMixin) or _is_placed(module):
            continue
        links = dict(_links(gm, node, len(module.input_quantizers)))
        if links:
            module.input_quantizers = LinkedInputs.of(module.input_quantizers, links)


def _is_placed(module: QuantizationMixin) -> bool:
    """Whether it is a stub that the placement made to own a grid."""
    return bool(getattr(module, "placed", False))


def _links(
    gm: fx.GraphModule, node: fx.Node, places: int
) -> Iterator[tuple[int, tuple[QuantizerList, int]]]:
    for index, operand in numbered_operands(node):
        stub = gm.get_submodule(str(operand.target)) if operand.op == "call_module" else None
        if index < places and isinstance(stub, QuantizationMixin) and _is_placed(stub):
            yield index, (stub.output_quantizers, 0)
