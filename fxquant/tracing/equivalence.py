"""Proof that a prepared graph computes the same bits as its model, and where it begins to differ.

Three questions: the dummy input, other values, another batch size. The last two are asked together
on few rows, and apart only when that fails: most models answer with two small runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant.graph.node_walk import Environment, node_values
from fxquant.graph.pytree import fresh_inputs, map_leaves, tensors
from fxquant.graph.recorded_module import shadow, state_kept
from fxquant.tracing.record import record
from fxquant.tracing.replay import (
    Replay,
    check_constants,
    difference,
    other_batch,
    other_values,
    replay_equal,
)

if TYPE_CHECKING:
    from fxquant.tracing.leaves import Leaves
    from fxquant.tracing.record import Recording

__all__ = ["Proof", "Replay", "few_rows", "prove"]


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
    with state_kept(ran) as known, state_kept(recording.graph_module, known=known):
        return _prove(recording, ran, args, kwargs, leaves)


def _prove(
    recording: Recording,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    leaves: Leaves | None,
) -> Proof:
    gm = recording.graph_module
    found = _compared(gm, model, (args, kwargs))
    if not found:
        at = first_difference(gm, model, args, kwargs, leaves=leaves)
        steady = _holds(model, model, (args, kwargs))
        return Proof(same=False, why=found.why, at=at, steady=steady)
    few = few_rows(args, kwargs)
    check_constants(recording, model, *other_values(args, kwargs), leaves=leaves)
    other = other_batch(*few)
    if other is not None and _holds(gm, model, other):
        return Proof(same=True)
    decided = any(s.kind == "value" for s in recording.specialisations)
    for seed in range(_TRIES if decided else 1):
        varied = other_values(args, kwargs, seed=seed)
        values = _compared(gm, model, varied) if _runs(model, varied) else None
        if values is None:
            continue  # the model insists on certain values, such as lengths in order
        if not values:
            at = first_difference(gm, model, *varied, leaves=leaves)
            shape = _is_misshapen(values) and _holds(model, model, varied)
            return Proof(True, values=False, batch=False, why=values.why, at=at, misshapen=shape)
    return _prove_batch(gm, model, other)


def _is_misshapen(found: Replay) -> bool:
    return found.why.startswith("the graph raised") or " has shape " in found.why


def _prove_batch(gm: fx.GraphModule, model: nn.Module, other: Any) -> Proof:
    if other is None:
        return Proof(same=True)
    if not _holds(model, model, other):
        return Proof(same=True)  # the model itself knows one batch size only
    found = _compared(gm, model, other)
    shape = _is_misshapen(found)
    return Proof(same=True, batch=bool(found), why=found.why, misshapen=shape)


def _compared(gm: nn.Module, model: nn.Module, inputs: Any) -> Replay:
    args, kwargs = inputs
    return replay_equal(gm, model, args, kwargs, parameters_kept=True)


def _runs(model: nn.Module, inputs: Any) -> bool:
    # such as the replay says of what it runs first, and that is the model here
    return not _compared(model, model, inputs).why.startswith("the graph raised")


def _holds(gm: nn.Module, model: nn.Module, inputs: Any) -> bool:
    try:
        return bool(_compared(gm, model, inputs))
    except Exception:  # a model may refuse made-up inputs in any way
        return False


def few_rows(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The first rows of inputs: enough to see a difference, cheap to run.

    The batch is the first axis of the first tensor; tensors with another first axis stay whole. One
    row more is never the batch that was there.
    """
    found = [t for t in tensors((args, kwargs)) if t.dim()]
    batch = found[0].shape[0] if found else 0
    rows = 1 if batch == 3 else 2

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
