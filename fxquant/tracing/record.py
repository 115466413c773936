"""Record one run of a model as an ordinary fx graph.

Why not ``torch.fx.symbolic_trace``: it pretends, and fails on a third of real models (control
flow on shapes, ``len``, item assignment, wrappers). Here real tensors flow through the
real code and every torch call is written down beside it; what Python decided on values or sizes is
listed, so that nothing is narrowed in silence.
"""

from __future__ import annotations

import traceback
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn
from torch.ao.nn.quantized import FloatFunctional, FXFloatFunctional
from torch.autograd.graph import saved_tensors_hooks

from fxquant.errors import FxQuantError, TraceError
from fxquant.graph import kept_results
from fxquant.graph.meta import shown_file
from fxquant.graph.pytree import map_leaves, modules_of, tensors, tensors_of
from fxquant.graph.recorded_module import YIELDING, RecordedModule, fresh_copy, restore
from fxquant.tracing.arguments import Constant
from fxquant.tracing.hooks import remove
from fxquant.tracing.patches import forget_results, watching
from fxquant.tracing.recorded_call import plain_all
from fxquant.tracing.recorder import Recorder
from fxquant.tracing.signature import Given, bind_inputs, placeholders, write_back, write_output
from fxquant.tracing.specialization import Specialisation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.graph.recorded_module import Known
    from fxquant.tracing.leaves import Leaves

__all__ = ["Constant", "Recording", "Specialisation", "record"]


@dataclass(frozen=True)
class Seen:
    """What a model computed while it was recorded.

    Attributes:
        value: what it returned, without a gradient history.
        buffers: its buffers after the run, by name.
    """

    value: Any
    buffers: dict[str, Tensor]


@dataclass(frozen=True)
class Recording:
    """A recorded model.

    Attributes:
        graph_module: the graph over a fresh copy of the model; ``state_dict`` keys are the model's.
        specialisations: where the graph is narrower than the model.
        constants: tensors that came from outside of torch's sight.
        dropped: paths of outputs that hold no tensor and no plain value, and are None in the graph.
        seen: what the model itself computed in the run that was recorded.
        asked_for_training: whether the model's code read a training flag, beside what the modules
            do that are recorded as one call.
        known: parameters and buffers of the graph module that equal the model's.
    """

    graph_module: RecordedModule
    specialisations: tuple[Specialisation, ...]
    constants: tuple[Constant, ...] = ()
    dropped: tuple[str, ...] = ()
    seen: Seen | None = None
    asked_for_training: bool = True
    known: Known = field(default_factory=dict)


def record(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any] | None = None,
    *,
    leaves: Leaves | None = None,
) -> Recording:
    """Record one run of ``model(*args, **kwargs)``.

    Args:
        model: the model; it stays untouched and keeps its training flags.
        args: example inputs, never written to.
        kwargs: example keyword inputs.
        leaves: ``leaves(path, module)`` says which further modules become one ``call_module``.

    Returns:
        The graph module and what could not be followed.

    Raises:
        TraceError: the model is none, cannot run, or computes something a graph cannot hold.

    >>> import torch
    >>> recording = record(torch.nn.Sequential(torch.nn.ReLU()), (torch.zeros(1),), {})
    >>> [node.op for node in recording.graph_module.graph.nodes]
    ['placeholder', 'call_module', 'output']
    """
    check_model(model)
    given = bind_inputs(model, tuple(args), kwargs or {})
    run = _run(model, given, leaves)
    if any(c.attribute is None for c in run.recorder.writer.constants) and forget_results():
        run = _run(model, given, leaves)
    run = _without_earlier_results(run, model, given, leaves)
    recorder = run.recorder
    known = restore(run.copied, model, recorder.state.before)
    recorder.state.keep_caches()
    for module, key in recorder.spent_hooks:
        remove(module, key)
    _sweep(recorder)
    return Recording(
        RecordedModule(run.copied, recorder.graph, type(model).__name__),
        recorder.reads.specialisations(),
        tuple(recorder.writer.constants),
        run.dropped,
        run.seen,
        recorder.asked_for_training,
        known,
    )


def _without_earlier_results(
    run: _Run, model: nn.Module, given: Given, leaves: Leaves | None
) -> _Run:
    """The run, or one that computes what the model keeps of earlier ones and returns the same."""
    held = run.recorder.writer.held
    places = kept_results.places_of(run.copied, held.values())
    tries = [places, *([p] for p in places)] if len(places) > 1 else [places]
    for some in tries[:_TRIES] if places else ():
        try:
            again = _Attempt(model, given, leaves, forgotten=some).run(grad=True)
        except (_ForwardError, FxQuantError):
            continue  # it is no result of a run, but a constant of the author's
        mine, others = _strided(again.seen.value), _strided(run.seen.value)
        same = len(mine) == len(others) and all(map(torch.equal, mine, others))
        if same and len(again.recorder.writer.constants) < len(held):
            run, held = again, again.recorder.writer.held
            break
    left = {c.name: str(c.source) if c.source else None for c in run.recorder.writer.constants}
    for name, tensor in held.items():
        kept_results.require_none_of(model, [tensor], left.get(name))
    return run


_TRIES = 5  # recordings at most


def check_model(model: nn.Module) -> None:
    """Models that cannot be recorded, each with the way out."""
    if not isinstance(model, nn.Module):
        raise TraceError(
            "FXQ103",
            f"a model must be a torch.nn.Module, not {type(model).__name__}",
            fix="wrap a function in a module whose forward calls it",
        )
    _check_structure(model)
    if isinstance(model, torch.jit.ScriptModule):
        raise TraceError(
            "FXQ104",
            "a scripted or traced torch.jit module hides its Python code",
            fix="give the nn.Module from which it was made",
        )
    taken = _GRAPH_NAMES & {*model._modules, *model._parameters, *model._buffers}
    if taken:
        raise TraceError(
            "FXQ113",
            f"{min(taken)!r} is an attribute of every torch.fx.GraphModule",
            at=min(taken),
            fix="give it another name, or wrap the model: nn.Sequential(model)",
        )
    for path, module in modules_of(model):
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise TraceError(
                "FXQ105",
                f"{type(module).__name__} runs the model in several places at once",
                at=path or None,
                fix="give the wrapped model: model.module",
            )
        if _is_quantized(module):
            raise TraceError(
                "FXQ106",
                f"module {path!r} is quantized already ({type(module).__name__})",
                at=path or None,
                fix="give the float model",
            )


def _check_structure(model: nn.Module) -> None:
    """Modules that are no tree, and tensors that a graph of dense tensors cannot hold."""
    fix = "call super().__init__() first in its __init__"
    waiting: list[tuple[str, nn.Module, frozenset[int]]] = [("", model, frozenset())]
    while waiting:
        path, module, above = waiting.pop()
        if "_modules" not in vars(module):
            what = f"{type(module).__name__} was never initialized as a module"
            raise TraceError("FXQ117", what, at=path or None, fix=fix)
        if id(module) in above:
            what = f"the module {path!r} holds itself: modules are a tree"
            raise TraceError("FXQ117", what, at=path, fix="keep the outer one in a list")
        for name, tensor in [*module._parameters.items(), *module._buffers.items()]:
            if tensor is not None and tensor.layout != torch.strided:
                what = f"{name!r} is a tensor of {tensor.layout}"
                raise TraceError("FXQ117", what, at=path or None, fix="store it with .to_dense()")
        inside = above | {id(module)}
        parts = ((n, m) for n, m in module._modules.items() if m is not None)
        waiting += [(f"{path}.{n}" if path else n, m, inside) for n, m in parts]


# what a graph module has beyond a module, and cannot do without
_GRAPH_NAMES = (
    frozenset({*dir(fx.GraphModule), "meta", "_graph"}) - frozenset(dir(nn.Module)) - YIELDING
)


def _is_quantized(module: nn.Module) -> bool:
    home = type(module).__module__
    parts = home.split(".")
    if isinstance(module, FloatFunctional | FXFloatFunctional):
        return False  # a place to observe sums and products of floats; it lives among the others
    return (parts[0] == "torch" and "quantized" in parts) or (
        home.startswith("fxquant.") and hasattr(module, "input_quantizers")
    )


@dataclass(frozen=True)
class _Run:
    recorder: Recorder
    copied: nn.Module
    dropped: tuple[str, ...]
    seen: Seen


class _HistoryNeededError(RuntimeError):
    """The model differentiates inside its forward."""


class _ForwardError(Exception):
    """The user's forward raised; ``last`` is the last call that still worked."""

    def __init__(self, error: Exception, last: fx.Node | None) -> None:
        super().__init__(str(error))
        self.error = error
        self.last = last


def _run(model: nn.Module, given: Given, leaves: Leaves | None) -> _Run:
    """Run a fresh copy under a recorder.

    Gradients are on, so that the model's own ``no_grad`` and autograd functions show. A model that
    only runs without (``numpy()`` of a result, writes to parameters) gets a second try.
    """
    attempt = _Attempt(model, given, leaves)
    try:
        return attempt.run(grad=True)
    except _ForwardError as first:
        history = isinstance(first.error, _HistoryNeededError)
        try:
            return attempt.run(grad=history, keep=True)
        except _ForwardError:  # the first failure is the one worth telling
            raise attempt.explain(first) from first.error


class _Attempt:
    """One model with its inputs, run once or twice."""

    def __init__(
        self,
        model: nn.Module,
        given: Given,
        leaves: Leaves | None,
        forgotten: Sequence[kept_results.Place] = (),
    ) -> None:
        self.model = model
        self.forgotten = forgotten
        self.given = given
        self.leaves = leaves

    def run(self, *, grad: bool, keep: bool = False) -> _Run:
        """Record; ``keep`` holds on to what a backward inside forward needs."""
        copied = fresh_copy(self.model)
        kept_results.forget(copied, self.forgotten)
        given = self.given.fresh()
        hooks = nullcontext() if keep else saved_tensors_hooks(_forget, _unpack)
        with torch.set_grad_enabled(grad), hooks:
            recorder = Recorder(copied, self.leaves, _call.__code__)
            args, kwargs = placeholders(recorder, given)
            try:
                value = self._forward(recorder, copied, args, kwargs)
                with torch._C.DisableTorchFunction():
                    seen = _seen(copied, value)
                write_back(recorder)
                dropped = write_output(recorder, value)
            finally:
                recorder.closed = True
        return _Run(recorder, copied, dropped, seen)

    @staticmethod
    def _forward(recorder: Recorder, copied: nn.Module, args: Any, kwargs: Any) -> Any:
        try:
            with watching(recorder), recorder:
                return _call(copied, args, kwargs)
        except FxQuantError:
            raise
        except Exception as error:  # a user's forward may raise anything
            last = next(iter(reversed(recorder.graph.nodes)), None)
            raise _ForwardError(error, last) from error

    def explain(self, failure: _ForwardError) -> TraceError:
        """The user's failure with the line and the last call that still worked."""
        error = failure.error
        where = _user_line(error)
        last = f", after {failure.last.format_node()}" if failure.last is not None else ""
        return TraceError(
            "FXQ107",
            f"forward of {type(self.model).__name__} raised {type(error).__name__}: {error}",
            at=f"{where}{last}" if where else last.removeprefix(", ") or None,
            fix="model(*inputs) must run by itself on these inputs; their shapes and dtypes are "
            f"{', '.join(map(_short, [*self.given.args, *self.given.kwargs.values()]))}",
        )


def _call(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The boundary between our frames and the user's."""
    return model(*args, **kwargs)


def _seen(model: nn.Module, value: Any) -> Seen:
    """Copies: what the run wrote to the state of the model is undone when it is recorded."""

    def kept(leaf: Any) -> Any:
        return leaf.detach().clone() if isinstance(leaf, Tensor) else plain_all(leaf)

    return Seen(map_leaves(value, kept), {n: kept(b) for n, b in tensors_of(model)[1].items()})


def _strided(value: Any) -> list[Tensor]:
    return [t for t in tensors(value) if t.layout == torch.strided]


def _forget(tensor: Tensor) -> None:
    """Nobody runs backward while recording: saved activations would only cost memory."""


def _unpack(forgotten: None) -> Tensor:
    msg = "backward needs what recording threw away"
    raise _HistoryNeededError(msg)


def _user_line(error: Exception) -> str | None:
    """``file.py:12`` of the innermost of the user's frames in a traceback."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        shown = shown_file(frame.filename)
        if shown is not None:
            return f"{shown}:{frame.lineno}"
    return None


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


def _sweep(recorder: Recorder) -> None:
    """Erase what was made for a use that never came: sizes, parts, parameters."""
    removable = set(recorder.origins.removable)
    for node in reversed(list(recorder.graph.nodes)):
        if node in removable and not node.users:
            recorder.graph.erase_node(node)
