"""Where each live tensor came from: the node, or the part of a node's value, that produced it.

Tensors are known by identity. The table holds them weakly, so recording needs no more memory than
the run itself; a dead tensor's ``id`` may be reused, so an entry counts only while its weak
reference still gives that very tensor.
"""

from __future__ import annotations

import operator
import weakref
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from fxquant.graph.meta import spec_of
from fxquant.graph.pytree import Step, parts
from fxquant.graph.symbolic_ints import Change

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.fx import Node

    from fxquant.graph.symbolic_ints import Trail


class Origin:
    """How a value is reached in the graph; parts of containers get their node on first use.

    Attributes:
        dims: per dimension, what can make its size differ in another run.
        depends: what can make the tensor's values differ in another run.
        sizes: numbers already handed out for the dimensions.
        frozen: made inside the model's own ``no_grad``.
        held: the name of the attribute for a parameter, buffer or constant.
    """

    __slots__ = (
        "depends",
        "dims",
        "frozen",
        "held",
        "node",
        "ref",
        "sizes",
        "step",
        "value",
        "whole",
    )

    def __init__(self, node: Node | None, whole: Origin | None = None, step: Step | None = None):
        self.node = node
        self.whole = whole
        self.step = step
        self.held: str | None = None
        self.ref: weakref.ref[Tensor] | None = None
        self.dims: tuple[Change, ...] = ()
        self.depends = Change.NEVER
        self.frozen = False
        self.sizes: dict[int, Trail] = {}
        self.value: Any = None

    @property
    def dynamic(self) -> tuple[int, ...]:
        """The dimensions that can have another size in another run."""
        return tuple(d for d, change in enumerate(self.dims) if change)


class Origins:
    """The table of live tensors and the nodes made lazily for parts of containers."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self.removable: list[Node] = []
        self.after_inputs: Node | None = None
        self._table: dict[int, Origin] = {}
        self._last_inserted: dict[Node, Node] = {}

    def find(self, tensor: Tensor) -> Origin | None:
        """The origin of a live tensor, or None if no recorded call made it."""
        origin = self._table.get(id(tensor))
        if origin is None or origin.ref is None or origin.ref() is not tensor:
            return None
        return origin

    def bind(self, tensor: Tensor, origin: Origin) -> None:
        """From now on this tensor is the value of that origin."""
        origin.ref = weakref.ref(tensor)
        self._table[id(tensor)] = origin

    def bind_all(
        self,
        value: Any,
        origin: Origin,
        finish: Callable[[Tensor, Origin], None],
        *,
        opaque: bool = False,
    ) -> None:
        """Bind every tensor inside ``value``; ``opaque`` looks into unknown objects as well."""
        if isinstance(value, Tensor):
            finish(value, origin)
            self.bind(value, origin)
            if origin.node is not None:
                origin.node.meta["dynamic"] = origin.dynamic
            return
        found = parts(value)
        if found is None and opaque and hasattr(value, "__dict__") and not callable(value):
            found = [(("attribute", name), part) for name, part in vars(value).items()]
        for step, part in found or ():
            child = Origin(None, origin, step)
            child.value = spec_of(part)
            self.bind_all(part, child, finish, opaque=opaque)

    def node(self, origin: Origin) -> Node:
        """The node of an origin, made now if it is a part that nobody used before."""
        if origin.node is None:
            if origin.whole is None or origin.step is None:
                msg = "an origin without node has no whole"
                raise RuntimeError(msg)
            whole = self.node(origin.whole)
            how, key = origin.step
            access: Any = operator.getitem if how == "item" else getattr
            origin.node = self.insert(whole, access, (whole, key))
            origin.node.meta["spec"] = origin.value
            origin.node.meta["dynamic"] = origin.dynamic
        return origin.node

    def create(self, op: str, target: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Node:
        """A new node at the graph's point of insertion."""
        # torch.fx walks arguments that are given at once, to look for symbolic numbers
        node = self.graph.create_node(op, target)
        if args:
            node.args = args
        if kwargs:
            node.kwargs = kwargs
        return node

    def insert(self, after: Node, target: Any, args: tuple[Any, ...]) -> Node:
        """A removable node right behind another one, with its place."""
        behind = after
        if after.op == "placeholder" and self.after_inputs is not None:
            behind = self.after_inputs
        # behind those put there before, so that parts and sizes keep the order of their use
        with self.graph.inserting_after(self._last_inserted.get(behind, behind)):
            op = "call_method" if isinstance(target, str) else "call_function"
            node = self.create(op, target, args)
        self._last_inserted[behind] = node
        for key in ("source", "module_path", "nn_module_stack"):
            if key in after.meta:
                node.meta[key] = after.meta[key]
        self.removable.append(node)
        return node
