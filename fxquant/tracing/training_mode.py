"""What a recording in evaluation does not show, so that the result trains like the original.

Modules that do nothing in evaluation, such as stochastic depth, leave no trace: they are found by
that, and kept whole. A flag such as `training=self.training`, and attention that is called with
`dropout_p=p if self.training else 0`, look like a constant False and a zero: what such arguments
are in training is seen in a second recording in which the modules train. The same recording shows
which modules compute something else: those without parameters are kept whole, of the others the
graph holds what they compute in evaluation, and that is told.
"""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest
from types import CodeType
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxquant import ops
from fxquant.graph.meta import Source, computes_floats, module_path, source
from fxquant.graph.pytree import modules_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

#: key of `node.meta`: the arguments of `Op.mode` that are others in training, with their values
#: then; it is missing where the call was not seen in training
IN_TRAINING = "in_training"
_PLAIN = (bool, int, float)


def training_only(gm: fx.GraphModule) -> frozenset[str]:
    """Paths of modules whose code asks for `self.training` and that recorded nothing.

    Args:
        gm: a graph recorded in evaluation.
    """
    active = {parent for node in gm.graph.nodes for parent in _with_parents(module_path(node))}
    active |= {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    return frozenset(
        path
        for path, module in modules_of(gm)
        if path and path not in active and asks_for_training(type(module))
    )


def scopes(gm: fx.GraphModule) -> frozenset[str]:
    """Paths of modules that were recorded through; the root is empty."""
    above = {p for node in gm.graph.nodes for p in _with_parents(module_path(node))}
    return frozenset(above | {""})


def changed(
    gm: fx.GraphModule, trained: fx.GraphModule, askers: Collection[str]
) -> dict[str, Source | None]:
    """The modules that compute something else while they train, each with the first such line.

    Args:
        gm: recorded in evaluation.
        trained: recorded while the askers train.
        askers: those that ask for `self.training`; the nearest one answers for what the modules
            below do.
    """
    found: dict[str, Source | None] = {}
    here, there = _calls(gm), _calls(trained)
    for path in [*there, *(p for p in here if p not in there)]:
        for old, new in zip_longest(here.get(path, []), there.get(path, [])):
            if old is None or new is None or old[0] != new[0]:
                owner = next((p for p in (*_with_parents(path), "") if p in askers), path)
                found.setdefault(owner, source((new or old)[1]))
                break
    return found


def _calls(gm: fx.GraphModule) -> dict[str, list[tuple[Any, fx.Node]]]:
    """What each module computed: functions with their plain arguments."""
    found: dict[str, list[tuple[Any, fx.Node]]] = {}
    for node in gm.graph.nodes:
        if computes_floats(node):
            found.setdefault(module_path(node), []).append((_shown(node, gm), node))
    return found


def _shown(node: fx.Node, root: fx.GraphModule) -> tuple[str, str]:
    """A call without the arguments that are followed: training flags, probabilities of dropouts."""
    name = str(getattr(node.target, "__qualname__", node.target))
    row = ops.row_of(node, root)
    given: Any = (node.args, dict(node.kwargs))
    if row is not None and row.mode and node.op != "call_module":
        given = {k: v for k, v in _arguments(node, root).items() if k not in row.mode}
    return name, str(fx.node.map_aggregate(given, _plain))


def _arguments(node: fx.Node, root: fx.GraphModule) -> dict[str, Any]:
    try:
        return ops.arguments(node, root)
    except TypeError:  # it becomes an `Opaque` module with the arguments that it has
        return dict(enumerate(node.args)) | node.kwargs  # type: ignore[return-value]


def _plain(value: Any) -> Any:
    known = value is None or isinstance(value, bool | int | float | str)
    return value if known else type(value).__name__


def followers(gm: fx.GraphModule) -> list[fx.Node]:
    """Calls of functions that are given a training flag, or a probability."""
    functions = (n for n in gm.graph.nodes if n.op in ("call_function", "call_method"))
    rows = ((node, ops.row_of(node, gm)) for node in functions)
    return [node for node, row in rows if row and row.mode]


def may_follow(gm: fx.GraphModule) -> bool:
    """Whether any function is given what may be a training flag; of some, no row says so."""
    unknown = (n for n in gm.graph.nodes if n.op == "call_function" and ops.row_of(n, gm) is None)
    flagged = (isinstance(a, bool) for n in unknown for a in (*n.args, *n.kwargs.values()))
    return bool(followers(gm)) or any(flagged)


def mark_modes(gm: fx.GraphModule, trained: fx.GraphModule) -> None:
    """Note at each call of a graph which of its arguments follow the mode (`IN_TRAINING`).

    Args:
        gm: recorded in evaluation.
        trained: the same model, recorded while its modules train.
    """
    there = _numbered(trained)
    for key, node in _numbered(gm).items():
        row, other = ops.row_of(node, gm), there.get(key)
        if row is None or other is None or ops.row_of(other, trained) is not row:
            continue
        old, new = _arguments(node, gm), _arguments(other, trained)
        known = [n for n in row.mode if all(type(a.get(n)) in _PLAIN for a in (old, new))]
        node.meta[IN_TRAINING] = {n: new[n] for n in known if old[n] != new[n]}


def _numbered(gm: fx.GraphModule) -> dict[tuple[str, str, str, int], fx.Node]:
    """The followers by module, line, function and place among those of the line."""
    found: dict[tuple[str, str, str, int], fx.Node] = {}
    counts: Counter[tuple[str, str, str]] = Counter()
    for node in followers(gm):
        key = (module_path(node), str(source(node)), str(node.target))
        found[*key, counts[key]] = node
        counts[key] += 1
    return found


def _with_parents(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


def asks_for_training(kind: type[nn.Module]) -> bool:
    """Whether a class of the user's looks at `self.training` in one of its methods.

    >>> asks_for_training(nn.Dropout)
    False
    """
    home = kind.__module__
    example = home.startswith("fxquant.models")
    if home.startswith(("torch.", "fxquant.")) and not example:
        return False
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    codes = (getattr(f, "__code__", None) for base in own for f in vars(base).values())
    return any("training" in c.co_names for c in codes if isinstance(c, CodeType))
