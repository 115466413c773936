"""Proof that a prepared graph computes the same bits as its model, and where it begins to differ.

Three questions: the dummy input, other values, another batch size. Every run answers as much as it
can, and most models are proven by three runs beside the recording:

- the graph on the dummy input, against what the model returned while it was recorded. If that
  differs (random numbers, other kernels without gradients), the model runs there once more;
- the model and the graph at another batch size, on other values, few rows. That run of the model is
  one without a recorder, so it also shows what a model does otherwise while it is recorded. If it
  left something behind in Python (a counter), both run once more: the graph holds what was.

Only where the latter fails the questions are asked one by one: the model by itself on the dummy
input, then other values, then another batch size, each with a run of the model that tells whether
it takes such inputs and agrees with itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant.errors import TraceError
from fxquant.graph.kept_state import KeptState, writes_show
from fxquant.graph.node_walk import Environment, node_values
from fxquant.graph.python_state import state_of_python, unchanged
from fxquant.graph.pytree import fresh_inputs, map_leaves, tensors
from fxquant.graph.recorded_module import shadow
from fxquant.tracing.record import record
from fxquant.tracing.replay import (
    Replay,
    check_constants,
    difference,
    other_batch,
    other_values,
    replay_equal,
    replay_recorded,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from fxquant.tracing.leaves import Leaves
    from fxquant.tracing.record import Recording

__all__ = ["Proof", "Replay", "few_rows", "first_rows", "prove"]


_TRIES = 3  # values to try where Python decided on some


@dataclass(frozen=True)
class Proof:
    """What was found.

    Attributes:
        same: equal on the dummy input.
        values: equal on other values.
        batch: equal at another batch size, or the model itself knows only one.
        why: the first difference.
        at: the first node that differs.
        misshapen: on other inputs the graph cannot run, or its results have another shape.
        steady: two runs of the model itself, with the same random numbers of torch, agree.
    """

    same: bool
    values: bool = True
    batch: bool = True
    why: str = ""
    at: fx.Node | str | None = None
    misshapen: bool = False
    steady: bool = True


def prove(
    recording: Recording,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    leaves: Leaves | None = None,
) -> Proof:
    """Compare a graph with its model on three inputs; both are in evaluation.

    Args:
        recording: whose graph was prepared since.
        model: the original.
        args: the dummy input.
        kwargs: the dummy keyword input.
        leaves: as given to `record`.

    Raises:
        TraceError: FXQ109, a constant of the graph depends on the input.
    """
    ran = shadow(model)  # what the model keeps of its runs is not to change by a proof
    gm = recording.graph_module
    kept, theirs = KeptState(gm), KeptState(ran)
    kept.pair(theirs, recording.known)
    if writes_show(gm):
        kept.trust_versions()
    return _prove(recording, _Sides(gm, ran, kept, theirs, leaves), args, kwargs)


@dataclass(frozen=True)
class _Sides:
    """What is compared: a graph and its model, and what each is put back to after a run."""

    gm: fx.GraphModule
    model: nn.Module
    gm_state: KeptState
    model_state: KeptState
    leaves: Leaves | None

    def state(self, module: nn.Module) -> KeptState:
        """The state of one of the two."""
        return self.gm_state if module is self.gm else self.model_state

    def compared(self, inputs: Any) -> Replay:
        """Run both."""
        args, kwargs = inputs
        return replay_equal(self.gm, self.model, args, kwargs, kept=self.state)

    def model_alone(self, inputs: Any) -> Replay:
        """Run the model twice."""
        args, kwargs = inputs
        return replay_equal(self.model, self.model, args, kwargs, kept=self.state)

    def first_difference(self, inputs: Any) -> fx.Node | None:
        """The first node of the graph that differs from the model."""
        args, kwargs = inputs
        try:
            return first_difference(self.gm, self.model, args, kwargs, leaves=self.leaves)
        finally:
            self.gm_state.put_back()


def _prove(
    recording: Recording, sides: _Sides, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Proof:
    as_recorded = bool(replay_recorded(recording, args, kwargs, kept=sides.state))
    if not as_recorded:
        failed = _prove_dummy(sides, args, kwargs)
        if failed is not None:
            return failed
    unsteady = _prove_constants(recording, sides, args, kwargs)
    if unsteady is not None:
        return unsteady
    # a decision that comes out the same for one input may not for others
    decided = any(s.kind == "value" for s in recording.specialisations)
    elsewhere = None if decided else _elsewhere(recording, args, kwargs)
    if elsewhere is not None and _holds_again(sides, elsewhere):
        return Proof(same=True)
    if as_recorded:  # then nothing but the recording has run the model on the dummy input
        failed = _prove_dummy(sides, args, kwargs)
        if failed is not None:
            return failed
    for seed in range(_TRIES if decided else 1):
        varied = other_values(args, kwargs, seed=seed)
        values = sides.compared(varied) if _runs(sides, varied) else None
        if values is None:
            continue  # the model insists on certain values, such as lengths in order
        if not values:
            at = sides.first_difference(varied)
            shape = _is_misshapen(values) and _holds(sides.model_alone, varied)
            return Proof(True, values=False, batch=False, why=values.why, at=at, misshapen=shape)
    return _prove_batch(sides, other_batch(*few_rows(args, kwargs)))


def _prove_constants(
    recording: Recording, sides: _Sides, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Proof | None:
    """Refuse constants that depend on the input; a proof where the model draws them by itself."""
    if all(c.attribute is not None for c in recording.constants):
        return None
    try:
        varied = other_values(args, kwargs)
        check_constants(recording, sides.model, *varied, leaves=sides.leaves)
    except TraceError:
        failed = _prove_dummy(sides, args, kwargs)
        if failed is None or failed.steady:
            raise
        return failed
    return None


def _holds_again(sides: _Sides, inputs: Any) -> bool:
    """Whether both agree, and go on doing so where the run left something in Python."""
    before = state_of_python(sides.model)
    if not _holds(sides.compared, inputs):
        return False
    after = state_of_python(sides.model)
    return unchanged(before, after) or _holds(sides.compared, inputs)


def _prove_dummy(sides: _Sides, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Proof | None:
    """Where the graph differs from the model on the dummy input; None if nowhere."""
    found = sides.compared((args, kwargs))
    if found:
        return None
    at = sides.first_difference((args, kwargs))
    steady = _holds(sides.model_alone, (args, kwargs))
    return Proof(same=False, why=found.why, at=at, steady=steady)


def _elsewhere(recording: Recording, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Other values at another batch size; None if no batch axis is to be seen.

    Of two rows one is left, where Python decided on nothing: what a graph could hold of the two
    would be a number that no size led to. Else a row is added to few.
    """
    found = [t for t in tensors((args, kwargs)) if t.dim()]
    if found and found[0].shape[0] == 2 and not recording.specialisations:
        return other_values(*first_rows(args, kwargs, 1))
    return other_batch(*few_rows(args, kwargs))


def _is_misshapen(found: Replay) -> bool:
    return found.why.startswith("the graph raised") or " has shape " in found.why


def _prove_batch(sides: _Sides, other: Any) -> Proof:
    if other is None:
        return Proof(same=True)
    if not _holds(sides.model_alone, other):
        return Proof(same=True)  # the model itself knows one batch size only
    found = sides.compared(other)
    shape = _is_misshapen(found)
    return Proof(same=True, batch=bool(found), why=found.why, misshapen=shape)


def _runs(sides: _Sides, inputs: Any) -> bool:
    # such as the replay says of what it runs first, and that is the model here
    return not sides.model_alone(inputs).why.startswith("the graph raised")


def _holds(compared: Callable[[Any], Replay], inputs: Any) -> bool:
    try:
        return bool(compared(inputs))
    except Exception:  # a model may refuse made-up inputs in any way
        return False


def few_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first rows of inputs: enough to see a difference, cheap to run.

    The batch is the first axis of the first tensor; tensors with another first axis stay whole. One
    row more is never the batch that was there.
    """
    found = [t for t in tensors((args, kwargs)) if t.dim()]
    return first_rows(args, kwargs, 1 if found and found[0].shape[0] == 3 else 2)


def first_rows(args: tuple[Any, ...], kwargs: dict[str, Any], rows: int) -> Any:
    """The first rows of all tensors that have the first one's number of rows, if it has more."""
    found = [t for t in tensors((args, kwargs)) if t.dim()]
    batch = found[0].shape[0] if found else 0

    def cut(leaf: Any) -> Any:
        whole = not isinstance(leaf, Tensor) or not leaf.dim() or leaf.shape[0] != batch
        return leaf if whole or batch < rows else leaf[:rows]

    return map_leaves(args, cut), map_leaves(kwargs, cut)


def values_of(gm: fx.GraphModule, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The value of every node that was reached, by name."""
    holders = [str(n.target) for n in gm.graph.nodes if n.op == "placeholder"]
    ordered = [*args, *(kwargs[name] for name in holders[len(args) :] if name in kwargs)]
    found: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(0)
        try:
            for node, value in node_values(Environment(gm), fresh_inputs(ordered)):
                found[node.name] = fresh_inputs(value)  # later nodes may write into it
        except Exception:  # the node that raised is the one after the last value
            return found
    return found


def first_difference(
    gm: fx.GraphModule,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    leaves: Leaves | None = None,
) -> fx.Node | None:
    """The first node of a prepared graph whose value is not what the model computes there.

    The model is recorded anew on these inputs: nodes keep their names through preparation, so both
    graphs can be compared node by node. None if they agree, or took different ways from the start.
    """
    theirs = values_of(record(model, args, kwargs, leaves=leaves).graph_module, args, kwargs)
    ours = values_of(gm, args, kwargs)
    nodes: list[fx.Node] = list(gm.graph.nodes)
    for node in nodes:
        if node.op in ("placeholder", "output", "get_attr") or node.name not in theirs:
            continue
        if node.name not in ours or difference(ours[node.name], theirs[node.name]):
            return node
    return None
