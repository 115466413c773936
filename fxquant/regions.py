"""insert_stubs: quantize parts of a network without touching its code."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant.errors import ConfigError
from fxquant.graph.selectors import chosen_nodes, computing_nodes, holds_tensors
from fxquant.passes.insert_stubs import InsertStubs
from fxquant.placement.regions import find_regions
from fxquant.prepare import is_prepared

if TYPE_CHECKING:
    from collections.abc import Iterable

    from fxquant.graph.selectors import NodeSelector


def insert_stubs(
    prepared: fx.GraphModule,
    regions: Iterable[NodeSelector] | None = None,
    *,
    keep_float: Iterable[NodeSelector] | None = None,
) -> fx.GraphModule:
    """Put QuantStub and DeQuantStub around parts of a prepared graph.

    Neighbours that are both chosen have no boundary between them.

    Args:
        prepared: result of `prepare_model`; it is not changed.
        regions: what to quantize: module paths (with all that lies below), globs, module classes,
            predicates `(path, module) -> bool`, or ranges of modules: `("first", "last")`,
            `slice("first", "last")` or "first..last".
        keep_float: what not to quantize, instead of `regions`.

    Returns:
        A copy with stubs on every edge between the chosen part and the rest.

    Raises:
        SelectorError: FXQ213 a selector matches nothing, FXQ250 a range has no path.
        ConfigError: FXQ251 neither or both of `regions` and `keep_float` are given, FXQ252 the
            graph is not prepared, FXQ253 it has stubs already, FXQ254 nothing is left to quantize.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from fxquant import prepare_model
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        >>> part = insert_stubs(prepare_model(net, torch.randn(1, 3, 4, 4)), regions=["0"])
        >>> [n.name for n in part.graph.nodes if "quant" in n.name]
        ['quant_input_1', 'dequant__0']
    """
    if (regions is None) == (keep_float is None):
        fix = "insert_stubs(prepared, regions=[...])"
        raise ConfigError("FXQ251", "give either regions or keep_float", fix=fix)
    if not is_prepared(prepared):
        fix = "call prepare_model(model, dummy_input) first"
        raise ConfigError("FXQ252", "insert_stubs needs a prepared graph", fix=fix)
    if find_regions(prepared) is not None:
        fix = "take the stubs out of the model's code, or do not call insert_stubs"
        raise ConfigError("FXQ253", "the model has stubs already", fix=fix)
    result = copy.deepcopy(prepared)
    given = regions if regions is not None else keep_float
    several = hasattr(given, "__iter__") and not isinstance(given, str)
    selectors: list[Any] = list(given or ()) if several or given is None else [given]
    chosen = set(chosen_nodes(result, selectors))
    if keep_float is not None:
        chosen = set(computing_nodes(result)) - chosen
    if not chosen:
        what = "no region is given" if regions is not None else "everything is kept in float"
        fix = "name a part of the network, or do not call insert_stubs to quantize all of it"
        raise ConfigError("FXQ254", f"nothing would be quantized: {what}", fix=fix)
    _join(result, chosen)
    InsertStubs(nodes=frozenset(n.name for n in chosen))(result)
    return result


def _join(gm: fx.GraphModule, chosen: set[fx.Node]) -> None:
    """Choose what only hands values on between chosen nodes: elements of tuples and their like."""
    computing = set(computing_nodes(gm))
    for node in gm.graph.nodes:
        glue = node.op in ("call_function", "call_method", "call_module") and node not in computing
        made = [n for n in node.all_input_nodes if n.op != "get_attr" and holds_tensors(n)]
        if glue and made and all(n in chosen for n in made):
            chosen.add(node)
