"""Results of an earlier run that a model keeps: a table of biases, a merged weight.

Such a tensor would be a constant of the graph, and the parameters that it was computed from would
have no part in it: training would leave them alone. Where the model computes it again once it is
gone, and to the same bits, it is recorded so.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from fxquant.errors import TraceError

_OWN = frozenset(("_parameters", "_buffers", "_modules"))


class Place(NamedTuple):
    """Where a module keeps a tensor: in an attribute, or under a key of a dict that is one."""

    module: str
    attribute: str
    key: Any = None
    in_dict: bool = False


def places_of(model: nn.Module, tensors: Iterable[Tensor]) -> list[Place]:
    """Where the modules of a model keep these tensors, apart from parameters and buffers."""
    wanted = {id(t) for t in tensors}
    found: list[Place] = []
    for path, module in model.named_modules() if wanted else ():
        for name, value in vars(module).items():
            if name in _OWN:
                continue
            if id(value) in wanted:
                found.append(Place(path, name))
            elif isinstance(value, dict):
                keys = [key for key, part in value.items() if _holds(part, wanted)]
                found += [Place(path, name, key, in_dict=True) for key in keys]
    return found


def _holds(value: Any, wanted: set[int]) -> bool:
    parts = value if isinstance(value, tuple | list) else (value,)
    return any(id(part) in wanted for part in parts)


def forget(model: nn.Module, places: Iterable[Place]) -> None:
    """Take the tensors out of a copy of the model."""
    for place in places:
        module = model.get_submodule(place.module)
        if place.in_dict:
            getattr(module, place.attribute).pop(place.key, None)
        elif isinstance(getattr(type(module), place.attribute, None), functools.cached_property):
            vars(module).pop(place.attribute, None)
        else:
            setattr(module, place.attribute, None)


def require_none_of(model: nn.Module, tensors: Iterable[Tensor], at: str | None) -> None:
    """Refuse tensors that were computed from the model's own parameters, not from its copy's.

    Raises:
        TraceError: FXQ125.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    for tensor in tensors:
        name = next((names[id(p)] for p in _leaves(tensor) if id(p) in names), None)
        if name is not None:
            what = f"a tensor that an earlier run computed from {name!r} is kept outside the model"
            fix = "empty that cache before, or keep it in an attribute of a module"
            raise TraceError("FXQ125", what, at=at, fix=fix)


def _leaves(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors with a gradient from which a tensor was computed."""
    waiting, seen = [tensor.grad_fn], set()
    while waiting:
        function: Any = waiting.pop()
        if function is None or function in seen:
            continue
        seen.add(function)
        if hasattr(function, "variable"):
            yield function.variable
        waiting += [above for above, _ in function.next_functions]
