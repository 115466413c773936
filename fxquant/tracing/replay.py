"""Proof that a recorded graph computes what the model computes: replay both, compare every bit.

Also makes the inputs that find silent failures: other values, another batch size.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.errors import TraceError
from fxquant.graph.kept_state import KeptState
from fxquant.graph.pytree import fresh_inputs, leaves, map_leaves, tensors
from fxquant.tracing.leaves import Leaves
from fxquant.tracing.record import Recording, Seen, record

Kept = Callable[[nn.Module], KeptState]


def _own_state(module: nn.Module) -> KeptState:
    return KeptState(module).copy()


@dataclass(frozen=True)
class Replay:
    """Whether two runs agree in every bit; falsy when not, and then ``why`` says where."""

    equal: bool
    why: str = ""

    def __bool__(self) -> bool:
        return self.equal


def replay_equal(
    recorded: Recording | nn.Module,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    kept: Kept = _own_state,
) -> Replay:
    """Run the recorded graph and the model on the same inputs and random numbers.

    All leaves of the outputs and the buffers afterwards are compared bit by bit (NaN equals NaN).
    Neither module nor input is changed.

    Args:
        recorded: the graph.
        model: the model.
        args: inputs.
        kwargs: keyword inputs.
        kept: gives the state that a module is put back to after a run.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    >>> x = torch.ones(1, 2)
    >>> bool(replay_equal(record(net, (x,), {}), net, (x,), {}))
    True
    """
    graph_module = recorded.graph_module if isinstance(recorded, Recording) else recorded

    def run(module: nn.Module) -> Seen:
        return _run(module, args, kwargs or {}, kept)

    return _compared(lambda: run(graph_module), lambda: run(model))


def replay_recorded(
    recording: Recording,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    kept: Kept = _own_state,
) -> Replay:
    """Run the recorded graph and compare with what the model computed while it was recorded.

    A model that draws random numbers differs here, since a recording takes them as they come.

    Args:
        recording: of the model.
        args: the inputs of the recording.
        kwargs: its keyword inputs.
        kept: see `replay_equal`.
    """
    seen = recording.seen
    if seen is None:
        return Replay(False, "what the model returned was not kept")
    graph = recording.graph_module
    return _compared(lambda: _run(graph, args, kwargs or {}, kept), lambda: seen)


def _compared(run: Callable[[], Seen], reference: Callable[[], Seen]) -> Replay:
    try:
        ours = run()
    except Exception as error:  # a graph that cannot run is a difference, whatever it raises
        return Replay(False, f"the graph raised {type(error).__name__}: {error}")
    theirs = reference()
    why = difference(ours.value, theirs.value)
    if why:
        return Replay(False, f"output{why}")
    for name, value in theirs.buffers.items():
        if name in ours.buffers and not same_bits(ours.buffers[name], value):
            return Replay(False, f"buffer {name!r} differs after the run")
    return Replay(True)


def _run(model: nn.Module, args: Any, kwargs: Any, kept: Kept) -> Seen:
    """Result and buffers after a run; the module's state and the random numbers are put back."""
    state = kept(model)
    after: dict[str, Tensor] = {}
    # generators other than torch's go on, so that who draws from them is found out
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _slow_attention():
        torch.manual_seed(0)
        # around fx.GraphModule.__call__, which prints a traceback of its own
        call = nn.Module.__call__ if isinstance(model, fx.GraphModule) else type(model).__call__
        try:
            result = call(model, *fresh_inputs(args), **fresh_inputs(kwargs))
        finally:
            after = state.put_back()
    return Seen(result, after)


@contextmanager
def _slow_attention() -> Iterator[None]:
    """torch's fused attention layers round differently from the operators they are made of."""
    was = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(was)


def difference(ours: Any, theirs: Any) -> str:
    """Where two nested results differ in a bit; the empty text if nowhere.

    Objects that are neither tensors nor plain values (caches) are not compared.

    >>> difference((torch.ones(1), 2), (torch.zeros(1), 2))
    '[0] differs: largest difference 1'
    """
    mine, other = dict(leaves(ours)), dict(leaves(theirs))
    for path, value in other.items():
        if isinstance(value, Tensor):
            if path not in mine or not isinstance(mine[path], Tensor):
                return f"{path} is missing"
            why = _tensor_difference(mine[path], value)
            if why:
                return f"{path} {why}"
        elif isinstance(value, bool | int | float | str) and mine.get(path) != value:
            return f"{path} is {mine.get(path)!r} instead of {value!r}"
    return ""


def _tensor_difference(ours: Tensor, theirs: Tensor) -> str:
    if ours.shape != theirs.shape:
        return f"has shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
    if ours.dtype != theirs.dtype:
        return f"is {ours.dtype} instead of {theirs.dtype}"
    if same_bits(ours, theirs):
        return ""
    gap = (ours.to(torch.float64) - theirs.to(torch.float64)).abs().max().item()
    return f"differs: largest difference {gap:.3g}"


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    """Equal in every value; NaN equals NaN."""
    if ours.shape != theirs.shape or ours.dtype != theirs.dtype:
        return False
    if torch.equal(ours, theirs):
        return True
    if not (ours.dtype.is_floating_point or ours.dtype.is_complex):
        return False
    nan = ours.isnan()
    if not torch.equal(nan, theirs.isnan()):
        return False
    return torch.equal(ours.masked_fill(nan, 0), theirs.masked_fill(nan, 0))


def other_values(
    args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, *, seed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs of the same shapes with other values.

    Floats are normal with the observed mean and deviation, integers stay in the observed range;
    a tensor of at most two values (a mask) keeps its rows.
    """
    rng = torch.Generator().manual_seed(seed)
    return _varied(args, kwargs or {}, lambda t: _vary(t, t.shape, rng))


def other_batch(
    args: tuple[Any, ...], kwargs: dict[str, Any] | None = None, *, seed: int = 0
) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
    """Inputs with one more sample and other values; None if no batch axis is to be seen.

    The batch is the first axis of the first tensor; tensors whose first axis has another size (a
    table of positions, a single number) keep theirs.

    >>> other_batch((torch.zeros(2, 3),), {})[0][0].shape
    torch.Size([3, 3])
    """
    found = [t for t in tensors((args, kwargs or {})) if t.dim()]
    if not found:
        return None
    batch = found[0].shape[0]
    rng = torch.Generator().manual_seed(seed)

    def grow(tensor: Tensor) -> Tensor:
        if tensor.dim() == 0 or tensor.shape[0] != batch:
            return _vary(tensor, tensor.shape, rng)
        return _vary(tensor, torch.Size((batch + 1, *tensor.shape[1:])), rng)

    return _varied(args, kwargs or {}, grow)


def _varied(
    args: tuple[Any, ...], kwargs: dict[str, Any], change: Callable[[Tensor], Tensor]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    def vary(leaf: Any) -> Any:
        return change(leaf) if isinstance(leaf, Tensor) else leaf

    with torch.no_grad():
        return map_leaves(args, vary), map_leaves(kwargs, vary)


def _vary(tensor: Tensor, shape: torch.Size, rng: torch.Generator) -> Tensor:
    value = tensor.detach()
    if value.numel() == 0 or value.dim() == 0 or _keeps_rows(value):
        return _repeat_rows(value, shape)
    if value.dtype.is_floating_point:
        wide = value.double()
        kind = torch.float64 if value.dtype is torch.float64 else torch.float32
        drawn = torch.randn(shape, generator=rng, dtype=kind)
        made = drawn.mul_(wide.std(correction=0).item()).add_(wide.mean().item()).to(value.dtype)
    elif value.dtype.is_complex:
        made = torch.randn(shape, generator=rng, dtype=value.dtype) * value.abs().max().cpu()
    else:
        low, high = int(value.min()), int(value.max())
        made = torch.randint(low, high + 1, shape, generator=rng, dtype=value.dtype)
    return made.to(value.device).requires_grad_(tensor.requires_grad)


def _keeps_rows(value: Tensor) -> bool:
    """Masks and tables: at most two values, or an integer tensor whose rows are all equal."""
    if value.dtype.is_complex:
        return False
    if value.dtype is torch.bool or _at_most_two(value):
        return True
    if value.dtype.is_floating_point:
        return False
    steps = value.diff(dim=-1) if value.dim() else value
    counts_up = steps.numel() > 0 and bool((steps == 1).all())
    return counts_up or (value.shape[0] > 1 and bool((value == value[:1]).all()))


def _at_most_two(value: Tensor) -> bool:
    """Whether a tensor has one or two values; the first of many tell, and spare the sorting."""
    few = value.reshape(-1)[:1000]
    return len(torch.unique(few)) <= 2 and len(torch.unique(value)) <= 2


def _repeat_rows(value: Tensor, shape: torch.Size) -> Tensor:
    if value.dim() == 0 or value.shape == shape:
        return value.clone()
    rows = torch.arange(shape[0], device=value.device) % max(value.shape[0], 1)
    return value[rows].clone()


def check_constants(
    recording: Recording,
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    leaves: Leaves | None = None,
) -> None:
    """Refuse constants that were computed from the input where torch could not see it.

    Args:
        recording: a recording of the model.
        model: the model.
        args: inputs with other values than the recorded ones.
        kwargs: the same for keyword inputs.
        leaves: as given to ``record``.

    Raises:
        TraceError: a constant differs in a second run; its line is named.
    """
    unknown = [c for c in recording.constants if c.attribute is None]
    if not unknown:
        return
    again = record(model, args, kwargs or {}, leaves=leaves)
    others = [c for c in again.constants if c.attribute is None]
    for first, second in zip(unknown, others, strict=False):
        if same_bits(first.value, second.value):
            continue
        line = f" ({first.source.text})" if first.source else ""
        raise TraceError(
            "FXQ109",
            "a tensor is computed from the input by something that torch does not show, such as "
            f"numpy, vmap or another library{line}",
            at=str(first.source) if first.source else first.name,
            fix="compute it with torch functions, or put it into a module of its own and keep "
            "that module as a leaf (modules_to_exclude)",
        )
