"""One run of a graph on given inputs: what every value looks like, and what no input can change."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from fxquant.errors import ExportError
from fxquant.graph.pytree import map_leaves, tensors
from fxquant.onnx.runs.randomness import Draws
from fxquant.onnx.runs.visible_writes import writes_somewhere
from fxquant.tracing import hooks


@dataclass(frozen=True)
class Trial:
    """What a graph is run on.

    Attributes:
        values: of the placeholders in order.
        replaced: nodes whose values are replaced by others of the same shape.
    """

    values: list[Any]
    replaced: Mapping[fx.Node, Callable[[Tensor], Tensor]] = field(default_factory=dict)


class _Run(fx.Interpreter):
    def __init__(self, gm: fx.GraphModule, trial: Trial) -> None:
        super().__init__(gm)
        # the errors of a refused batch are expected
        self.extra_traceback = False
        self.trial = trial

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        change = self.trial.replaced.get(n)
        return value if change is None or not isinstance(value, Tensor) else change(value)


class Recorder(_Run):
    """Keeps the spec of every value, and the values that no input can change.

    Args:
        gm: the graph.
        trial: what it is run on.
        spec: what to keep of a value.
        tainted: nodes that input values can change.
        counted: node -> what to count in its value.

    Attributes:
        specs: node -> spec.
        values: node -> value, of nodes that are not tainted.
        counts: node -> what was counted.
        draws: nodes that drew random numbers.
    """

    def __init__(
        self, gm: fx.GraphModule, trial: Trial, *, spec: Callable[[Any], Any],
        tainted: set[fx.Node], counted: Mapping[fx.Node, Callable[[Any], Any]],
    ) -> None:  # fmt: skip
        super().__init__(gm, trial)
        self.spec = spec
        self.tainted = tainted
        self.counted = counted
        self.writes = writes_somewhere(gm)
        self.specs: dict[fx.Node, Any] = {}
        self.values: dict[fx.Node, Any] = {}
        self.counts: dict[fx.Node, Any] = {}
        self.draws = Draws()
        with torch.no_grad():
            self.run(*trial.values)

    def run_node(self, n: fx.Node) -> Any:
        with self.draws.watch(n, [self.env[i] for i in n.all_input_nodes]):
            value = super().run_node(n)
        self.specs[n] = self.spec(value)
        if n in self.counted:
            self.counts[n] = self.counted[n](value)
        if n not in self.tainted and n.op != "output":
            self.values[n] = map_leaves(value, _copied if self.writes else _plain)
        return value

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        if not hooks.hooked(module):
            return module(*args, **kwargs)
        with hooks.around(module, functools.partial(_watching_only, str(target))):
            return module(*args, **kwargs)


def _watching_only(path: str, key: int, hook: Any, module: Any, *given: Any) -> Any:
    """Run a hook; it may look but not change what goes into or comes out of its module."""
    before = [t._version for t in tensors(given)]
    result = hook(module, *given)
    if hooks.replaced(result, given) or before != [t._version for t in tensors(given)]:
        raise ExportError(
            "FXQ532",
            f"the forward hook {hooks.name_of(hook)!r} changes what {path!r} computes",
            at=path,
            fix="register it before prepare_model, which makes it a part of the graph",
        )
    return result


class _CaughtError(Exception):
    def __init__(self, found: tuple[Any, Any]) -> None:
        super().__init__("found")
        self.found = found


class _Catcher(_Run):
    """Stops at one node and hands out its arguments."""

    def __init__(self, gm: fx.GraphModule, trial: Trial, wanted: fx.Node) -> None:
        super().__init__(gm, trial)
        self.wanted = wanted

    def run_node(self, n: fx.Node) -> Any:
        if n is self.wanted:
            raise _CaughtError(self.fetch_args_kwargs_from_env(n))
        return super().run_node(n)


def arguments_at(gm: fx.GraphModule, node: fx.Node, trial: Trial) -> tuple[Any, Any]:
    """Real arguments (args, kwargs) of one node.

    Raises:
        ExportError: FXQ502, the node is never reached.
    """
    try:
        _Catcher(gm, trial, node).run(*trial.values)
    except _CaughtError as caught:
        return caught.found
    fix = "keep the module that holds it whole (modules_to_exclude), or report this with the model"
    raise ExportError("FXQ502", "the node is never reached", at=node, fix=fix)


def _plain(value: Any) -> Any:
    return value.detach().as_subclass(Tensor) if isinstance(value, Tensor) else value


def _copied(value: Any) -> Any:
    """A value that a later write does not change."""
    return _plain(value).clone() if isinstance(value, Tensor) else value
