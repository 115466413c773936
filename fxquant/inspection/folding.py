"""A graph folded by module and by repetition: what is shown of a large network at first.

Why runs of the order of execution and not sets of modules: a module that is called twice, or around
another one, would make groups that need each other. A run of neighbours in a topological order has
all it reads before itself, so groups never form a cycle, whatever the network looks like.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

_LONGEST_PERIOD = 16  # children of a module that may repeat together
_FLAT = 48  # children that one group shows; more are cut into sections
_SECTION = 24


@dataclass(frozen=True)
class FoldNode:
    """One operator, as far as folding is concerned.

    Attributes:
        name: name of the node; unique.
        path: dotted path of its module; the last part is the operator's own.
        operator: what it computes.
        shape: shape of its result.
        inputs: names of the operators that it reads, all of them earlier ones.
        inserted: it is none of the network's operators, such as a quantizer at a boundary: where it
            stands makes no structure another one.
    """

    name: str
    path: str
    operator: str
    shape: tuple[int, ...]
    inputs: tuple[str, ...]
    inserted: bool = False


@dataclass(frozen=True)
class Leaf:
    """One operator in a folded graph.

    Attributes:
        label: the last parts of its path, as far as no group says them.
        first: its place in the order of execution.
    """

    label: str
    first: int

    @property
    def last(self) -> int:
        """The place behind it."""
        return self.first + 1


@dataclass(frozen=True)
class Group:
    """A run of operators that is shown as one box until it is opened.

    Attributes:
        kind: "module"; "stack", whose children are repetitions of one structure; "member", one of
            these where it is no module; or "section", a part of a long list.
        label: how it is called inside of its parent.
        path: dotted path of the module; for a stack, of the modules in it.
        children: what it shows when it is opened, in the order of execution.
    """

    kind: str
    label: str
    path: str
    children: tuple[Child, ...]

    @property
    def first(self) -> int:
        """Place of its first operator in the order of execution."""
        return self.children[0].first

    @property
    def last(self) -> int:
        """The place behind its last operator."""
        return self.children[-1].last


Child = Leaf | Group


def fold(nodes: Sequence[FoldNode]) -> Group:
    """Fold a graph.

    Neighbours below one module form a group; a module of one operator is that operator. In a group,
    neighbours of the same structure become a stack: as many children with the same operators on the
    same shapes, wired alike among themselves. What differs in precision only is the same.

    Args:
        nodes: operators in the order of execution.

    Returns:
        The root; its children are what is shown at first.

    Example:
        >>> nodes = [FoldNode("x", "x", "input", (4,), ())]
        >>> for i in range(6):
        ...     for op in ("norm", "fc"):
        ...         inputs = (nodes[-1].name,)
        ...         nodes.append(FoldNode(f"{op}_{i}", f"blocks.{i}.{op}", op, (4,), inputs))
        >>> print(outline(fold(nodes), nodes))
        x: input
        blocks x 6
          blocks.0
            norm: norm
            fc: fc
    """
    places = {n.name: i for i, n in enumerate(nodes)}
    reads: list[tuple[int, ...]] = []
    for node in nodes:
        direct = (places[name] for name in node.inputs)
        seen = (reads[i] if nodes[i].inserted else (i,) for i in direct)
        reads.append(tuple(itertools.chain.from_iterable(seen)))
    folder = _Folder(nodes, reads)
    items = [(i, tuple(n.path.split("."))) for i, n in enumerate(nodes)]
    return Group("module", "", "", tuple(folder.children(items, ())))


def outline(root: Group, nodes: Sequence[FoldNode]) -> str:
    """A folded graph as indented text; of a stack, its first member."""
    return "\n".join(_lines(root, nodes, 0))


def _lines(group: Group, nodes: Sequence[FoldNode], depth: int) -> Iterator[str]:
    for child in group.children:
        space = "  " * depth
        if isinstance(child, Leaf):
            yield f"{space}{child.label}: {nodes[child.first].operator}"
            continue
        times = f" x {len(child.children)}" if child.kind == "stack" else ""
        yield f"{space}{child.path or child.label}{times}"
        yield from _lines(child, nodes, depth + 1)
        # members of a stack are alike
        if group.kind == "stack":
            return


_Item = tuple[int, tuple[str, ...]]


class _Folder:
    """Folds from the inside to the outside."""

    def __init__(self, nodes: Sequence[FoldNode], reads: Sequence[tuple[int, ...]]) -> None:
        self._nodes, self._reads = nodes, reads
        own = (not n.inserted for n in nodes)
        self._rank = [0, *itertools.accumulate(own)]  # operators of the network before a place
        self._numbers: dict[object, int] = {}

    def children(self, items: Sequence[_Item], above: tuple[str, ...]) -> list[Child]:
        """What a module shows, of the operators that it has."""
        depth = len(above)
        found: list[Child] = []
        runs = itertools.groupby(items, lambda item: item[1][depth : depth + 1])
        for _, run in runs:
            found += self._run(list(run), above)
        return _sections(self._stacks(found, ".".join(above)))

    def _run(self, run: list[_Item], above: tuple[str, ...]) -> list[Child]:
        """Neighbours that go on with the same name below a module."""
        depth = len(above)
        if len(run) == 1 or any(len(path) <= depth + 1 for _, path in run):
            return [Leaf(".".join(path[depth:]), place) for place, path in run]
        path = run[0][1][: depth + 1]
        inside = self.children(run, path)
        label = path[-1]
        if len(inside) > 1:
            return [Group("module", label, ".".join(path), tuple(inside))]
        only = inside[0]  # a module around one thing is that thing
        if isinstance(only, Leaf):
            return [Leaf(f"{label}.{only.label}", only.first)]
        whole = only.kind == "stack"
        label = label if whole else f"{label}.{only.label}"
        return [Group(only.kind, label, ".".join(path) if whole else only.path, only.children)]

    # --- repetition ------------------------------------------------------------------------------

    def _stacks(self, children: list[Child], above: str) -> list[Child]:
        numbers = [self._number(c) for c in children]
        longest = min(_LONGEST_PERIOD, len(children) // 2)
        equal = {p: _equal_ahead(numbers, p) for p in range(1, longest + 1)}
        found: list[Child] = []
        i = 0
        while i < len(children):
            period, times = self._best(children, equal, i)
            if times > 1:
                found.append(self._stack(children[i : i + period * times], period, above))
            else:
                found.append(children[i])
            i += period * times
        return found

    def _best(
        self, children: Sequence[Child], equal: dict[int, list[int]], i: int
    ) -> tuple[int, int]:
        """Period and number of the repetition that covers most from a child on; (1, 1) for none."""
        best = (1, 1)
        for period, ahead in equal.items():
            if i >= len(ahead):
                continue
            times = ahead[i] // period + 1
            times = self._alike(children, i, period, times)
            size = children[min(i + period, len(children)) - 1].last - children[i].first
            if _pays(size, times) and period * times > best[0] * best[1]:
                best = period, times
        return best

    def _alike(self, children: Sequence[Child], i: int, period: int, times: int) -> int:
        """How many repetitions are wired alike inside, when their parts are alike."""
        if period == 1 or times == 1:
            return times
        wiring = None
        for k in range(times):
            member = children[i + k * period : i + (k + 1) * period]
            found = self._wiring(member[0].first, member[-1].last)
            if wiring is None:
                wiring = found
            elif found != wiring:
                return k
        return times

    def _stack(self, children: list[Child], period: int, above: str) -> Group:
        members = []
        for k in range(0, len(children), period):
            part = tuple(children[k : k + period])
            only = part[0]
            if period == 1 and isinstance(only, Group) and only.kind == "module":
                members.append(only)
            else:
                members.append(Group("member", _span(part), "", part))
        label = _span(tuple(children))
        path = f"{above}.{label}" if above else label
        return Group("stack", label, path, tuple(members))

    def _number(self, child: Child) -> int:
        """The same number for children of the same structure."""
        key = self._form(child), self._wiring(child.first, child.last)
        return self._numbers.setdefault(key, len(self._numbers))

    def _form(self, child: Child) -> tuple[object, ...]:
        if isinstance(child, Leaf):
            node = self._nodes[child.first]
            return () if node.inserted else (node.operator, node.shape)
        forms = (self._form(c) for c in child.children)
        return child.kind, tuple(form for form in forms if form)

    def _wiring(self, first: int, last: int) -> tuple[tuple[int, ...], ...]:
        """What operators of a run read, counted from its begin; -1 is anything before."""
        rank = self._rank
        return tuple(
            tuple(rank[r] - rank[first] if r >= first else -1 for r in self._reads[i])
            for i in range(first, last) if not self._nodes[i].inserted
        )  # fmt: skip


def _equal_ahead(numbers: Sequence[int], period: int) -> list[int]:
    """From each place on, how many neighbours equal what comes one period later."""
    found = [0] * len(numbers)
    for i in range(len(numbers) - period - 1, -1, -1):
        if numbers[i] == numbers[i + period]:
            found[i] = found[i + 1] + 1
    return found


def _pays(size: int, times: int) -> bool:
    """Whether a stack hides more than it costs to open it."""
    return (times >= 2 and size >= 5) or (times >= 6 and size >= 2)


def _sections(children: list[Child]) -> list[Child]:
    """A list that is too long to look at, in parts."""
    while len(children) > _FLAT:
        parts = [tuple(children[i : i + _SECTION]) for i in range(0, len(children), _SECTION)]
        children = [Group("section", _span(part), "", part) for part in parts]
    return children


def _span(part: tuple[Child, ...]) -> str:
    """First and last label of neighbours."""
    first, last = part[0].label, part[-1].label
    return first if len(part) == 1 else f"{first} … {last}"
