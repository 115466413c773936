"""One walk over a graph, node after node; a value is freed after its last use.

An environment says how a node is computed. What wants to look at values, or to change something
before a node is computed, walks instead of running the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from torch import fx


class Environment(fx.Interpreter):
    """The graph as it is."""

    def __init__(self, gm: fx.GraphModule, name: str = "") -> None:
        super().__init__(gm, garbage_collect_values=False)
        self.name = name

    def compute(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The value of one node, from those of its operands."""
        return getattr(self, node.op)(node.target, args, kwargs)


def node_values(environment: Environment, inputs: Sequence[Any]) -> Iterator[tuple[fx.Node, Any]]:
    """Every node in order with its value; the last one is the output.

    Args:
        environment: how nodes are computed.
        inputs: values of the placeholders in order.
    """
    environment.args_iter = iter(inputs)
    values: dict[fx.Node, Any] = {}
    graph: fx.Graph = environment.graph
    nodes: list[fx.Node] = list(graph.nodes)
    last = last_uses(nodes)
    for node in nodes:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
        value = environment.compute(node, tuple(args), dict(kwargs))
        values[node] = value
        yield node, value
        for past in last.get(node, ()):
            del values[past]


def output_of(environment: Environment, inputs: Sequence[Any]) -> Any:
    """The output of a graph, as `node_values` walks it."""
    output = None
    for _, output in node_values(environment, inputs):  # noqa: B007
        pass
    return output


def depended_on(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """Nodes, and all that they are computed from."""
    waiting, found = list(nodes), set[fx.Node]()
    while waiting:
        node = waiting.pop()
        if node not in found:
            found.add(node)
            waiting += node.all_input_nodes
    return found


def last_uses(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """Node -> the nodes whose values are not needed once it has been computed."""
    last = {n: n for n in nodes}
    for node in nodes:
        for operand in node.all_input_nodes:
            last[operand] = node
    found: dict[fx.Node, list[fx.Node]] = {}
    for node, user in last.items():
        if node.op != "output":
            found.setdefault(user, []).append(node)
    return found
