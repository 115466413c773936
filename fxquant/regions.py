"""insert_stubs: quantize parts of a network without touching its code."""

from __future__ import annotations

import copy
import fnmatch
from typing import TYPE_CHECKING, Any

from torch import fx, nn

from fxquant import ops
from fxquant.errors import ConfigError, SelectorError, nearest
from fxquant.graph.regions import find_regions
from fxquant.passes.insert_stubs import InsertStubs
from fxquant.prepare import is_prepared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Selector = str | type[nn.Module] | Callable[[str, nn.Module], bool]


def insert_stubs(
    prepared: fx.GraphModule,
    regions: Iterable[Selector] | None = None,
    *,
    keep_float: Iterable[Selector] | None = None,
) -> fx.GraphModule:
    """Put QuantStub and DeQuantStub around parts of a prepared graph.

    Args:
        prepared: result of `prepare_model`; it is not changed.
        regions: what to quantize: module paths (with all that lies below), globs, module classes or
            predicates `(path, module) -> bool`.
        keep_float: what not to quantize, instead of `regions`.

    Returns:
        A copy with stubs on every edge between the chosen part and the rest.

    Raises:
        SelectorError: FXQ250, a selector matches nothing.
        ConfigError: FXQ251 neither or both of `regions` and `keep_float` are given, FXQ252 the graph
            is not prepared, FXQ253 it has stubs already.

    Example:
        >>> import torch
        >>> from fxquant import prepare_model
        >>> net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1))
        >>> part = insert_stubs(prepare_model(net, torch.randn(1, 3, 4, 4)), regions=["0"])
        >>> [n.name for n in part.graph.nodes if "quant" in n.name]
        ['quant_input_1', 'dequant__0']
    """
    if (regions is None) == (keep_float is None):
        raise ConfigError("FXQ251", "give either regions or keep_float", fix="insert_stubs(prepared, regions=[...])")
    if not is_prepared(prepared):
        raise ConfigError("FXQ252", "insert_stubs needs a prepared graph", fix="call prepare_model(model, dummy_input) first")
    if find_regions(prepared) is not None:
        raise ConfigError("FXQ253", "the model has stubs already", fix="take the stubs out of the model's code, or do not call insert_stubs")
    result = copy.deepcopy(prepared)
    chosen = _chosen(result, list(regions if regions is not None else keep_float or ()))
    if keep_float is not None:
        chosen = {n.name for n in _computing(result)} - chosen
    InsertStubs(nodes=frozenset(chosen))(result)
    return result


def _computing(gm: fx.GraphModule) -> list[fx.Node]:
    return [n for n in gm.graph.nodes if n.op == "call_module" and ops.row_of(n, gm) is not None]


def _chosen(gm: fx.GraphModule, selectors: list[Any]) -> set[str]:
    found: set[str] = set()
    nodes = _computing(gm)
    for selector in selectors:
        names = {n.name for n in nodes if _matches(gm, n, selector)}
        if not names:
            known = [str(n.target) for n in nodes]
            raise SelectorError("FXQ250", f"{selector!r} matches no module", fix=nearest(str(selector), known) or f"the modules are {', '.join(known[:12])}")
        found |= names
    return found


def _matches(gm: fx.GraphModule, node: fx.Node, selector: Any) -> bool:
    path = str(node.target)
    module = gm.get_submodule(path)
    if isinstance(selector, type):
        return isinstance(module, selector)
    if isinstance(selector, str):
        return path == selector or path.startswith(f"{selector}.") or fnmatch.fnmatchcase(path, selector)
    return bool(selector(path, module))
