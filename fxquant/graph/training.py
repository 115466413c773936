"""What a recording in evaluation does not show, so that the result trains like the original.

Modules that do nothing in evaluation, such as stochastic depth, leave no trace: they are found by
that, and kept whole. Attention that is called with `dropout_p=p if self.training else 0` shows a
zero: the probability is seen in a second recording in which these modules train.
"""

from __future__ import annotations

from types import CodeType
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxquant import ops
from fxquant.graph.meta import module_path, source

if TYPE_CHECKING:
    from collections.abc import Iterator

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


def attentions(gm: fx.GraphModule) -> list[fx.Node]:
    """Calls of attention without dropout, and of dropout with probability zero.

    Those are meant that come from modules whose code asks for `self.training`.
    """
    return [
        node
        for node in _droppers(gm)
        if not _probability(node, gm) and _may_drop(gm.get_submodule(module_path(node)))
    ]


def mark_dropouts(gm: fx.GraphModule, trained: fx.GraphModule) -> None:
    """Note at each attention of a graph the dropout that the same call has in training.

    Args:
        gm: recorded in evaluation.
        trained: the same model, recorded while the modules that call attention train.
    """
    there = {_key(node): _probability(node, trained) for node in _droppers(trained)}
    for node in attentions(gm):
        dropout = there.get(_key(node))
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


def _key(node: fx.Node) -> tuple[str, str]:
    return module_path(node), str(source(node))


def _with_parents(path: str) -> Iterator[str]:
    while path:
        yield path
        path = path.rpartition(".")[0]


def asks_for_training(kind: type[nn.Module]) -> bool:
    """Whether a class of the user's looks at `self.training` in one of its methods.

    >>> asks_for_training(nn.Dropout)
    False
    """
    if kind.__module__.startswith(("torch.", "fxquant.")):
        return False
    own = kind.__mro__[: kind.__mro__.index(nn.Module)]
    codes = (getattr(f, "__code__", None) for base in own for f in vars(base).values())
    return any("training" in c.co_names for c in codes if isinstance(c, CodeType))
