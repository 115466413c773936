"""What a choice of precisions costs: bytes of weights, or bit operations.

Size: the bits of every parameter, once, whoever shares it; steps and zero points are left out.
Bit operations: multiply-accumulates times the bits of both operands, a float counting as 32 bits
(arXiv:2004.09576, section 4.1). Both are sums over groups and a rest that does not depend on them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from fxquant.graph.pytree import fresh_inputs
from fxquant.precision.sites import stored_bytes
from fxquant.ptq.walking.walk import FloatEnvironment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fxquant.mixed_precision.groups import Group, Option
    from fxquant.precision.kinds import Precision
    from fxquant.precision.sites import Site, Sites

_FLOAT = 32


def bits(precision: Precision) -> int:
    """Bits of a precision; those of a float32 for floating point."""
    return _FLOAT if precision is None else precision


class Costs:
    """Costs of options of groups.

    Args:
        gm: the simulated model.
        sites: its grids.
        groups: its groups.
        values: example inputs, in the order of the graph's inputs.
    """

    def __init__(
        self, gm: fx.GraphModule, sites: Sites, groups: Sequence[Group], values: Sequence[Any]
    ) -> None:
        self.sites = sites
        self.macs = multiply_accumulates(gm, values)
        grouped = {node for group in groups for node in group.nodes}
        chosen = {id(t) for group in groups for s in group.sites for t in s.stored}
        floats, self.rest_size = stored_bytes(gm, sites, chosen)
        known = {s: s.precision for s in sites}
        others = [n for n in self.macs if n not in grouped]
        self.rest_operations = float(sum(self._operations(n, known) for n in others))
        self._float = floats, float(sum(self.macs.values()) * _FLOAT**2)

    def of_float(self) -> tuple[float, float]:
        """Bytes and bit operations of the float model."""
        return self._float

    def size(self, group: Group, option: Option) -> float:
        """Bytes of the group's weights."""
        found = group.precisions(option)
        sizes = {id(t): t.numel() * bits(p) for s, p in found.items() for t in s.stored}
        return sum(sizes.values()) / 8

    def operations(self, group: Group, option: Option) -> float:
        """Bit operations of the group's operators on one example."""
        found = group.precisions(option)
        return float(sum(self._operations(n, found) for n in group.nodes))

    def _operations(self, node: fx.Node, found: Mapping[Site, Precision]) -> int:
        reads = [bits(found.get(s, s.precision)) for s in self.sites.reads.get(node, [])]
        weights = [bits(found.get(s, s.precision)) for s in self.sites.weights.get(node, [])]
        first = max(reads, default=_FLOAT)
        return self.macs.get(node, 0) * first * max(weights or reads[1:], default=first)


def multiply_accumulates(gm: fx.GraphModule, values: Sequence[Any]) -> dict[fx.Node, int]:
    """Multiply-accumulates of every node that has some, on these inputs."""
    counter = _Counter(gm, "count")
    with torch.no_grad():
        counter.run(*fresh_inputs(list(values)))
    return counter.found


class _Counter(FloatEnvironment):
    """Runs the float model and counts."""

    def __init__(self, gm: fx.GraphModule, name: str) -> None:
        super().__init__(gm, name)
        self.found: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Run one node."""
        with _Operations() as counted:
            value = super().run_node(n)
        if counted.flops:
            self.found[n] = counted.flops // 2
        return value


class _Operations(TorchDispatchMode):
    """Adds up the floating-point operations of what is computed.

    `FlopCounterMode` would do more: its hooks on modules do not take views of parameters.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Compute one operator and count."""
        found = func(*args, **(kwargs or {}))
        count = flop_registry.get(func.overloadpacket)
        if count is not None:
            self.flops += int(count(*args, **(kwargs or {}), out_val=found))
        return found
