"""What a recording in evaluation does not show, so that the result trains like the original.

Modules that do nothing in evaluation, such as stochastic depth, leave no trace: they are found by
that, and kept whole. Attention that is called with `dropout_p=p if self.training else 0` shows a
zero: the probability is seen in a second recording in which these modules train.
"""

from __future__ import annotations

from collections import Counter
from types import CodeType
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxquant import ops
from fxquant.graph.meta import module_path, source

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
    """Paths of modules without parameters that computed something and ask for `self.training`.

    A module with parameters is what quantization is for: it is recorded as it evaluates.
    """
    paths = {module_path(node) for node in gm.graph.nodes} - {""}
    found = ((path, model.get_submodule(path)) for path in paths)
    return frozenset(
        path
        for path, module in found
        if asks_for_training(type(module)) and next(module.parameters(), None) is None
    )


def changed(gm: fx.GraphModule, trained: fx.GraphModule, paths: Iterable[str]) -> frozenset[str]:
    """The modules among `paths` that called other functions while they trained."""
    return frozenset(path for path in paths if _called(gm, path) != _called(trained, path))


def _called(gm: fx.GraphModule, path: str) -> list[str]:
    return [str(node.target) for node in gm.graph.nodes if module_path(node) == path]


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
