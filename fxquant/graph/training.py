"""What a recording in evaluation does not show, so that the result trains like the original.

Modules that do nothing in evaluation, such as stochastic depth, leave no trace: they are found by
that, and kept whole. Attention that is called with `dropout_p=p if self.training else 0` shows a
zero: the probability is seen in a second recording in which these modules train. The same recording
shows which modules compute something else: those without parameters are kept whole, of the others
the graph holds what they compute in evaluation, and that is told.
"""

from __future__ import annotations

from collections import Counter
from itertools import zip_longest
from types import CodeType
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxquant import ops
from fxquant.graph.meta import Source, module_path, source
from fxquant.graph.rewriter import computes_floats

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

#: key of `node.meta`: dropout probability of an attention while training
TRAINING_DROPOUT = "training_dropout"
# rows that drop -> the argument that says how much
_PROBABILITIES = {"scaled_dot_product_attention": "dropout_p", "dropout": "p"}


def training_only(gm: fx.GraphModule) -> frozenset[str]:
    """Paths of modules whose code asks for `self.training` and that recorded nothing.

    Args:
        gm: a graph recorded in evaluation.
    """
    active = {parent for node in gm.graph.nodes for parent in _with_parents(module_path(node))}
    active |= {str(node.target) for node in gm.graph.nodes if node.op == "call_module"}
    return frozenset(
        path
        for path, module in gm.named_modules()
        if path and path not in active and asks_for_training(type(module))
    )


def training_askers(gm: fx.GraphModule, model: nn.Module) -> frozenset[str]:
    """Paths of modules that computed something and ask for `self.training`; the root is empty."""
    paths = {above for node in gm.graph.nodes for above in _with_parents(module_path(node))} | {""}
    return frozenset(p for p in paths if asks_for_training(type(model.get_submodule(p))))


def changed(
    gm: fx.GraphModule, trained: fx.GraphModule, askers: Collection[str]
) -> dict[str, Source | None]:
    """The modules that compute something else while they train, each with the first such line.

    Args:
        gm: recorded in evaluation.
        trained: recorded while the askers train.
        askers: see `training_askers`; the nearest one answers for what the modules below do.
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
    """A call without what is followed otherwise: training flags and probabilities of dropouts."""
    name = str(getattr(node.target, "__qualname__", node.target))
    row = ops.row_of(node, root)
    if row is not None and row.name in _PROBABILITIES:
        return name, ""
    given = {key: value for key, value in node.kwargs.items() if not isinstance(value, bool)}
    return name, str(fx.node.map_aggregate((node.args, given), _plain))


def _plain(value: Any) -> Any:
    known = isinstance(value, int | float | str) and not isinstance(value, bool)
    return value if known or value is None else type(value).__name__


def attentions(gm: fx.GraphModule, model: nn.Module) -> list[fx.Node]:
    """Calls of attention without dropout, and of dropout with probability zero.

    Those are meant that come from modules of the model whose code asks for `self.training`.
    """
    return [
        node
        for node in _droppers(gm)
        if not _probability(node, gm) and _may_drop(model.get_submodule(module_path(node)))
    ]


def mark_dropouts(gm: fx.GraphModule, trained: fx.GraphModule, model: nn.Module) -> None:
    """Note at each attention of a graph the dropout that the same call has in training.

    Args:
        gm: recorded in evaluation.
        trained: the same model, recorded while the modules that call attention train.
        model: the model.
    """
    there = {key: _probability(node, trained) for key, node in _numbered(trained).items()}
    here = {node: key for key, node in _numbered(gm).items()}
    for node in attentions(gm, model):
        dropout = there.get(here[node])
        if isinstance(dropout, float) and dropout:
            node.meta[TRAINING_DROPOUT] = dropout


def _droppers(gm: fx.GraphModule) -> list[fx.Node]:
    """Functions that drop with a probability that they are given."""
    functions = (node for node in gm.graph.nodes if node.op == "call_function")
    rows = ((node, ops.row_of(node, gm)) for node in functions)
    return [node for node, row in rows if row and row.name in _PROBABILITIES]


def _probability(node: fx.Node, root: fx.GraphModule) -> Any:
    row = ops.row_of(node, root)
    return ops.arguments(node, root)[_PROBABILITIES[row.name]] if row else None


def _may_drop(module: nn.Module) -> bool:
    return isinstance(module, nn.MultiheadAttention) or asks_for_training(type(module))


def _numbered(gm: fx.GraphModule) -> dict[tuple[str, str, int], fx.Node]:
    """The droppers by module, line and place among those of the line."""
    found: dict[tuple[str, str, int], fx.Node] = {}
    counts: Counter[tuple[str, str]] = Counter()
    for node in _droppers(gm):
        key = (module_path(node), str(source(node)))
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
