"""A model's inputs as placeholders named like the arguments of its forward."""

from __future__ import annotations

import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from fxquant.errors import TraceError
from fxquant.graph.meta import spec_of
from fxquant.graph.origins import Origin
from fxquant.graph.sizes import Change, Trail, tracked
from fxquant.graph.structure import fresh_inputs

if TYPE_CHECKING:
    from fxquant.graph.recorder import Recorder


@dataclass(frozen=True)
class Given:
    """Inputs bound to the signature of forward: positional first, then by keyword."""

    names: tuple[str, ...]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def fresh(self) -> Given:
        """The same inputs in memory of their own."""
        return Given(self.names, fresh_inputs(self.args), fresh_inputs(self.kwargs))


def bind_inputs(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Given:
    """Find out which argument of forward each input is."""
    signature = inspect.signature(model.forward)
    try:
        bound = signature.bind(*args, **kwargs)
    except TypeError as error:
        raise TraceError(
            "FXQ101",
            f"forward of {type(model).__name__} does not take these inputs: {error}",
            at=f"{type(model).__name__}.forward{signature}",
            fix="give the inputs as a tuple, or a dict of keyword arguments, that forward takes",
        ) from error
    names: list[str] = []
    for parameter in signature.parameters.values():
        if parameter.name not in bound.arguments or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.kind is parameter.VAR_POSITIONAL:
            count = len(bound.arguments[parameter.name])
            names += [f"{parameter.name}_{i}" for i in range(count)]
        else:
            names.append(parameter.name)
    names = names[: len(bound.args)] + list(bound.kwargs)
    return Given(tuple(names), bound.args, bound.kwargs)


def placeholders(recorder: Recorder, given: Given) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Write a placeholder for each input; returns the inputs to run with."""
    values = [*given.args, *given.kwargs.values()]
    nodes = [recorder.graph.placeholder(name) for name in given.names]
    if nodes:
        recorder.origins.after_inputs = nodes[-1]
    changed = []
    for node, value in zip(nodes, values, strict=True):
        node.meta.update(recorder.place(), source=None, spec=spec_of(value))
        recorder.origins.bind_all(value, Origin(node), _finish, opaque=True)
        changed.append(_number(recorder, node, value))
    count = len(given.args)
    return tuple(changed[:count]), dict(zip(given.kwargs, changed[count:], strict=True))


def _finish(tensor: Tensor, origin: Origin) -> None:
    origin.dims = (Change.SIZE,) * tensor.dim()
    origin.depends = Change.VALUE


def _number(recorder: Recorder, node: Any, value: Any) -> Any:
    if type(value) not in {int, float}:
        return value
    return tracked(value, Trail(recorder, Change.VALUE, lambda: node))
