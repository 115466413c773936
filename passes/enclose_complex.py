"""Let operations on complex numbers be one module whose inputs and outputs are real."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import fx, nn

from fxquant.graph.alias_analysis import written
from fxquant.graph.meta import Spec, TensorSpec, module_path, spec
from fxquant.graph.pass_infra import Fact, Pass
from fxquant.graph.recorded_module import RecordedModule
from fxquant.nn.functional import Functional
from fxquant.nn.opaque import Complex

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class EncloseComplex(Pass):
    """Operations that make or read complex numbers become one module between real values.

    Before::

        %fft  = fft_fft(%x)
        %real = getattr(%fft, 'real')

    After::

        %real = Complex[complex](%x)

    No runtime has complex numbers, and no grid can hold them. Complex values that are read beyond
    the module leave it as pairs of real numbers; complex parameters enter it so.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_WRITES})
    breaks: ClassVar[frozenset[Fact]] = frozenset({Fact.MODULES_ONLY})

    def run(self, rw: Rewriter) -> None:
        """Find the islands, then enclose them in order."""
        if not any(_is_complex(spec(node)) for node in rw.nodes):
            return
        for members in _islands(rw):
            _Island(rw, members).enclose()
        for node in reversed(rw.nodes):
            if node.target is torch.view_as_complex and not node.users:
                rw.erase(node)  # between two islands the pairs themselves are handed on


def _is_complex(found: Spec) -> bool:
    if isinstance(found, TensorSpec):
        return found.dtype.is_complex
    return isinstance(found, tuple | list) and any(map(_is_complex, found))


def _belongs(rw: Rewriter, node: fx.Node) -> bool:
    """Whether a node computes with complex numbers; modules with parameters stay where they are."""
    if not _is_call(rw, node) or isinstance(node.target, type):
        return False
    if written(node, rw.gm) is not None:
        return False
    if _is_size(node):
        complex_ = node.target != "size" or _is_complex(spec(node.all_input_nodes[0]))
        return complex_ and bool(node.users) and all(_belongs(rw, user) for user in node.users)
    return _is_complex(spec(node)) or _reads(rw, node)


def _is_call(rw: Rewriter, node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") or rw.module(node, Functional) is not None


def _reads(rw: Rewriter, node: fx.Node) -> bool:
    called = _is_call(rw, node) and node.target != "size"
    return called and any(_is_complex(spec(n)) for n in node.all_input_nodes)


def _is_size(node: fx.Node) -> bool:
    """Whether a node is a size of a tensor or computes with sizes."""
    space = getattr(node.target, "__module__", "")
    return node.target == "size" or (type(spec(node)) is int and space in ("_operator", "math"))


def _islands(rw: Rewriter) -> list[list[fx.Node]]:
    """Connected operations on complex numbers; no value leaves an island and comes back into it."""
    exits: dict[fx.Node, int] = {}  # how many islands lie above a node at most, its own not counted
    island: dict[fx.Node, list[fx.Node]] = {}
    for node in rw.nodes:
        inside = _belongs(rw, node)
        inputs = node.all_input_nodes
        exits[node] = max((exits[n] + (n in island and not inside) for n in inputs), default=0)
        if not inside:
            continue
        members = [node]
        for above in inputs:
            if above in island and exits[above] == exits[node] and above not in members:
                members = [*island[above], *members]
        island |= dict.fromkeys(members, members)
    found = {id(members): set(members) for members in island.values()}
    return [[n for n in rw.nodes if n in members] for members in found.values()]


class _Island:
    """Operations that become one module."""

    def __init__(self, rw: Rewriter, members: list[fx.Node]) -> None:
        self.rw, self.members = rw, members
        self.inside = set(members)
        self.graph = fx.Graph()
        self.operands: list[fx.Node] = []
        self.copies: dict[fx.Node, fx.Node] = {}

    def enclose(self) -> None:
        """Build the module, call it, and let everybody read its results."""
        order = {node: number for number, node in enumerate(self.rw.nodes)}
        consumers = {n: [u for u in n.users if u not in self.inside] for n in self.members}
        results = [n for n in self.members if consumers[n]]
        if not results:
            return
        first = min((u for n in results for u in consumers[n]), key=order.__getitem__)
        outer = self._outer()
        for node in outer:
            if node.op == "get_attr" and order[node] > order[first]:
                self.rw.move_before(first, node)
        made = (n for n in outer if n.op != "get_attr")
        last = max(made, key=order.__getitem__, default=None)
        if last is not None and order[last] > order[first]:
            self.rw.skip(self.members[0], f"{last.name} is made after {first.name}")
            return
        with self.rw.before(first):
            self._build(results)
            call = self._call(results)
            for number, node in enumerate(results):
                self._hand_out(call, number if len(results) > 1 else None, node, consumers[node])
        for node in reversed(self.members):
            self.rw.erase(node)

    def _outer(self) -> set[fx.Node]:
        """What the members read from outside; sizes are computed again within the module."""
        outer: set[fx.Node] = set()
        pending = [n for m in self.members for n in m.all_input_nodes]
        while pending:
            node = pending.pop()
            if node in self.inside or node in outer:
                continue
            if _is_size(node):
                pending += node.all_input_nodes
            else:
                outer.add(node)
        return outer

    def _build(self, results: list[fx.Node]) -> None:
        for node in self.members:
            self._copy(node)
        values = [self._as_real(self.graph, n, self.copies[n]) for n in results]
        self.graph.output(tuple(values) if len(values) > 1 else values[0])

    def _copy(self, node: fx.Node) -> fx.Node:
        """A node of the body: a member, a size of an operand, or an operand itself."""
        if node in self.copies:
            return self.copies[node]
        if node not in self.inside and not _is_size(node):
            self.copies[node] = self._operand(node)
            return self.copies[node]
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._copy)
        module = self.rw.module(node, Functional)
        if module is not None:
            made = self.graph.call_function(type(module).function, args, kwargs)
        else:
            made = self.graph.create_node(node.op, node.target, args, kwargs)
        self.copies[node] = made
        return made

    def _operand(self, node: fx.Node) -> fx.Node:
        """An input of the module; complex values come in as pairs of real numbers."""
        # not called as outside: nodes of the body that came before may have that name
        given = self.graph.placeholder(f"operand_{len(self.operands)}")
        if not _is_complex(spec(node)):
            self.operands.append(node)
            return given
        self.operands.append(self._pairs(node))
        return self.graph.call_function(torch.view_as_complex, (given,))

    def _pairs(self, node: fx.Node) -> fx.Node:
        if node.target is torch.view_as_complex:
            return node.all_input_nodes[0]
        if node.op != "get_attr":  # what is stored is no view
            node = self.rw.call_function(torch.resolve_conj, node, like=node)
        pairs = self.rw.call_function(torch.view_as_real, node, like=node)
        pairs.meta["spec"] = _real(spec(node))
        return pairs

    @staticmethod
    def _as_real(graph: fx.Graph, node: fx.Node, value: fx.Node) -> fx.Node:
        if not _is_complex(spec(node)):
            return value
        return graph.call_function(
            torch.view_as_real, (graph.call_function(torch.resolve_conj, (value,)),)
        )

    def _call(self, results: list[fx.Node]) -> fx.Node:
        like = self.members[-1]
        body = RecordedModule(nn.Module(), self.graph, "Body")
        path = self.rw.add_module(module_path(like), "complex", Complex(body))
        call = self.rw.call_module(path, *self.operands, like=like)
        specs = tuple(_real(spec(n)) for n in results)
        call.meta["spec"] = specs if len(specs) > 1 else specs[0]
        self.rw.explain(call, "it computes with complex numbers: it stays in floating point")
        return call

    def _hand_out(
        self, call: fx.Node, number: int | None, node: fx.Node, consumers: list[fx.Node]
    ) -> None:
        value = call
        if number is not None:
            value = self.rw.call_function(operator.getitem, call, number, like=node)
            value.meta["spec"] = _real(spec(node))
        elif not _is_complex(spec(node)):
            value.meta |= {k: v for k, v in node.meta.items() if k != "spec"}
        if _is_complex(spec(node)):
            value = self.rw.call_function(torch.view_as_complex, value, like=node)
        self.rw.redirect(node, value, consumers)


def _real(found: Any) -> Any:
    """What a complex tensor looks like as pairs."""
    if not _is_complex(found):
        return found
    dtype = torch.float64 if found.dtype is torch.complex128 else torch.float32
    return TensorSpec((*found.shape, 2), dtype)
