"""Make in-place operations return a new tensor instead."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, TypeAlias

from fxquant.graph.alias_analysis import (
    aliases,
    assigned,
    changes_type,
    disjoint,
    plain_arguments,
    plain_target,
    view_of,
    written,
)
from fxquant.graph.meta import TensorSpec, spec
from fxquant.graph.pass_infra import Fact, Pass
from fxquant.nn.functional import SetItem, ViewAs

if TYPE_CHECKING:
    from torch import fx

    from fxquant.graph.rewriter import Rewriter


@dataclass(frozen=True)
class RemoveWrites(Pass):
    """In-place operations become ordinary ones; whoever reads the tensor later reads the result.

    Before::

        %relu = relu_(%x)
        %add  = add(%x, %relu)

    After::

        %relu = relu(%x)
        %add  = add(%relu, %relu)

    `x[i] = y` becomes a `SetItem` module, and so does the way back from a view that was written to
    the tensor it is a part of. A write into a parameter or buffer stays, and so does a write into a
    tensor of which another view is read afterwards; both are logged.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_MODULES})
    gives: ClassVar[frozenset[Fact]] = frozenset({Fact.NO_WRITES})

    def run(self, rw: Rewriter) -> None:
        """Walk the writes in order; each is judged by the graph as the earlier ones left it."""
        order = {node: number for number, node in enumerate(rw.nodes)}
        views: _Views = {}
        for node in rw.nodes:
            target = written(node, rw.gm)
            if target is not None:
                write = _Write(rw, node, target, order, views)
                reason = write.objection()
                if reason:
                    rw.skip(node, reason)
                else:
                    write.remove()


# the new value of a view that was written to -> (the view, the new value of what it is a view of)
_Views: TypeAlias = "dict[fx.Node, tuple[fx.Node, fx.Node]]"


class _Write:
    """One in-place operation: `node` writes into `target`."""

    def __init__(
        self,
        rw: Rewriter,
        node: fx.Node,
        target: fx.Node,
        order: dict[fx.Node, int],
        views: _Views,
    ) -> None:
        self.rw, self.node, self.target, self.order = rw, node, target, order
        self.views = views
        self.now = order[node]
        self.bases = self._bases()

    def _late(self, of: fx.Node) -> list[fx.Node]:
        """The consumers of a node after the write."""
        return [user for user in of.users if self.order.get(user, -1) > self.now]

    def _base(self, view: fx.Node) -> fx.Node | None:
        """What a node is a view of, or was before it was written to."""
        found = self.views.get(view)
        return found[1] if found else view_of(view, self.rw.gm)

    def _place(self, view: fx.Node) -> fx.Node:
        """The node whose arguments say which part of its base a view is."""
        found = self.views.get(view)
        return found[0] if found else view

    def _bases(self) -> list[tuple[fx.Node, fx.Node]]:
        """(view, what it is a view of), from the target up, as far as something is read later."""
        chain: list[tuple[fx.Node, fx.Node]] = []
        needed, view = 0, self.target
        while (base := self._base(view)) is not None:
            chain.append((view, base))
            if self._late(base) and not self._is_written_back(view, base):
                needed = len(chain)
            view = base
        return chain[:needed]

    def _is_written_back(self, view: fx.Node, base: fx.Node) -> bool:
        """Whether the program itself goes on with `base[i] = view`, as `x[i] += 1` does."""
        first = min(self._late(base), key=lambda n: self.order[n])
        given = assigned(first)
        index = self.rw.arguments(self._place(view)).get("index")
        return (
            view is self.target
            and written(first, self.rw.gm) is base
            and given == (index, self.node)
        )

    def objection(self) -> str | None:
        """Why the write has to stay, or None."""
        if not isinstance(spec(self.target), TensorSpec):
            return "what it writes into is no single tensor"
        if self.rw.module(self.node) is None and assigned(self.node) is None:
            if plain_target(self.node) is None:
                return "it has no form that returns a new tensor"
            if changes_type(self.node):
                return "written out of place, its result would have another type"
        return self._witness()

    def _witness(self) -> str | None:
        """What could tell whether memory was written, or None."""
        known = {self.node, self.target, *(base for _, base in self._chain())}
        for alias in aliases(self.target, self.rw.gm):
            if alias.op == "get_attr":
                return f"it changes {alias.target}, which outlives the call"
            if alias in known or self.order.get(alias, self.now) > self.now:
                continue
            late = self._late(alias)
            if late and not disjoint(alias, self.target, self.rw.gm):
                return f"{late[0].name} reads {alias.name} afterwards, which may share its memory"
        return None

    def _chain(self) -> list[tuple[fx.Node, fx.Node]]:
        chain, view = [], self.target
        while (base := self._base(view)) is not None:
            chain.append((view, base))
            view = base
        return chain

    def remove(self) -> None:
        """Rewrite the operation and let later consumers read its result."""
        later = self._late(self.target)
        self._become_plain()
        self.rw.redirect(self.target, self.node, later)
        self._write_back()

    def _become_plain(self) -> None:
        node = self.node
        module, given = self.rw.module(node), assigned(node)
        if module is not None:
            self.rw.set_flag(module, "inplace", False)
        elif given is not None:
            self.rw.become_module(node, SetItem(), self.target, *given, name="setitem")
            node.meta["spec"] = spec(self.target)
        else:
            args, kwargs = plain_arguments(node)
            self.rw.become_call(node, plain_target(node), *args, kwargs=kwargs)

    def _write_back(self) -> None:
        """Put the new value of a view into what it is a view of."""
        value = self.node
        for view, base in self.bases:
            later = self._late(base)
            given = self.rw.arguments(self._place(view))
            with self.rw.after(value):
                if "index" in given:
                    made = self.rw.new_module(
                        SetItem(),
                        base,
                        given["index"],
                        value,
                        like=self.node,
                        name="setitem",
                        spec=spec(base),
                    )
                else:
                    made = self.rw.new_module(
                        ViewAs(), value, base, like=self.node, name="view_as", spec=spec(base)
                    )
            self.order[made] = self.now
            self.views[value] = (self._place(view), made)
            self.rw.redirect(base, made, later)
            value = made
