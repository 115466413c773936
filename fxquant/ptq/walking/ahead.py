"""Running ahead of a walk: what later nodes are given as things stand, and what they put out.

Only what these nodes depend on is computed, batch by batch, from the values that the walk holds;
the walk itself is left where it is.

Weights that are yet to be decided are in floating point. Once they are, they are nearer to that
than what they would be rounded to meanwhile, and a weight that was fitted to errors that are gone
in the end is worse for it: on networks with shared blocks by 1 to 4 dB.
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant.graph.node_walk import last_uses
from fxquant.graph.pytree import fresh_inputs
from fxquant.nn import QuantizationMixin
from fxquant.quantization.affine import AffineQuantizer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from fxquant.ptq.walking.walk import Environment, Walk

Operands = tuple[tuple[Any, ...], dict[str, Any]]


@dataclass(frozen=True)
class Given:
    """A node in two environments.

    Attributes:
        node: the node.
        operands: positional and keyword arguments in the one.
        wanted: reads those in the other.
        value: its value there.
        exact: whether the two are one.
    """

    node: fx.Node
    operands: Operands
    wanted: Callable[[], Operands]
    value: Any
    exact: bool

    @property
    def wanted_operands(self) -> Operands:
        """Positional and keyword arguments in the other environment."""
        return self.wanted()


class Ahead:
    """Nodes at which a walk is or will be.

    Args:
        walk: the walk.
        nodes: the nodes, in the order of the graph.
        source: the environment whose operands of the nodes are wanted.
        wanted: the environment whose values of the nodes are wanted.
    """

    def __init__(
        self, walk: Walk, nodes: Sequence[fx.Node], source: Environment, wanted: Environment
    ) -> None:
        self.walk, self.source, self.wanted = walk, source, wanted
        self._ends = set(nodes)
        operands = [o for node in nodes for o in node.all_input_nodes]
        both = {environment.name: environment for environment in (source, wanted)}
        missing = {name: set[fx.Node]() for name in both}
        for environment, ends in ((source, operands), (wanted, nodes)):
            missing[environment.name] |= self._missing(environment, ends)
        self._missing_in = [(environment, missing[name]) for name, environment in both.items()]
        concerned = set(nodes).union(*missing.values())
        self._order = [n for n in walk.gm.graph.nodes if n in concerned]
        self._last = last_uses(self._order)

    def _missing(self, environment: Environment, ends: Sequence[fx.Node]) -> set[fx.Node]:
        """What has to be computed for these nodes."""
        found: set[fx.Node] = set()
        open_ends = list(ends)
        while open_ends:
            node = open_ends.pop()
            if node not in found and (environment.name, node, 0) not in self.walk.store:
                found.add(node)
                open_ends += node.all_input_nodes
        return found

    def visits(self, batch: int) -> Iterator[Given]:
        """Each node with its operands in the one environment and its value in the other."""
        here: set[tuple[str, fx.Node, int]] = set()
        try:
            for node in self._order:
                for environment, missing in self._missing_in:
                    if node in missing:
                        value = self._computed(node, environment, batch)
                        key = self._key(environment, node, batch)
                        here.add(key)
                        self.walk.store.put(key, value)
                if node in self._ends:
                    yield Given(
                        node,
                        self._operands(node, self.source, batch),
                        partial(self._operands, node, self.wanted, batch),
                        self._value(node, self.wanted, batch),
                        self.source is self.wanted,
                    )
                for past in self._last.get(node, ()):
                    for environment, _ in self._missing_in:
                        self.walk.store.drop(self._key(environment, past, batch))
        finally:
            for key in here:
                self.walk.store.drop(key)

    def _computed(self, node: fx.Node, environment: Environment, batch: int) -> Any:
        if node.op == "placeholder":
            return fresh_inputs(self.walk.store.get(("", node, batch)))
        operands = self._operands(node, environment, batch)
        with self._undecided_in_float(node):
            return self.walk.computed(node, environment, batch, operands)

    @contextmanager
    def _undecided_in_float(self, node: fx.Node) -> Iterator[None]:
        module = self.walk.gm.get_submodule(str(node.target)) if node.op == "call_module" else None
        quantizers = [
            quantizer
            for _, quantizer in (
                module.param_quantizers.active() if isinstance(module, QuantizationMixin) else ()
            )
            if isinstance(quantizer, AffineQuantizer) and quantizer.enabled
            if quantizer.overwritable or node in self._ends
        ]
        try:
            for quantizer in quantizers:
                quantizer.enabled = False
            yield
        finally:
            for quantizer in quantizers:
                quantizer.enabled = True

    def _operands(self, node: fx.Node, environment: Environment, batch: int) -> Operands:
        read = lambda n: self._value(n, environment, batch)  # noqa: E731
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), read)
        return tuple(args), dict(kwargs)

    def _value(self, node: fx.Node, environment: Environment, batch: int) -> Any:
        key = self._key(environment, node, batch)
        if key in self.walk.store:
            return self.walk.store.get(key)
        value = self.walk.value(node, environment, batch)
        # what is written to while running ahead is not what the walk has
        return fresh_inputs(value) if self.walk.writes else value

    @staticmethod
    def _key(environment: Environment, node: fx.Node, batch: int) -> tuple[str, fx.Node, int]:
        return f"{environment.name}, ahead", node, batch
