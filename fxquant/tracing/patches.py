"""What torch's function mode does not show is caught by replacing entry points for a while.

``nn.Module.__call__`` (leaf modules and scopes), autograd functions (see ``autograd_functions``)
and scripted functions (one call each, or gradient and code would be lost), ``torch.vmap``
(tensors inside it cannot be known) and, because ``len`` and ``range`` insist on bare integers,
these two. So is the attribute `training` of modules, to know whether a recording followed it.
Caches of functions are emptied, too: a tensor of an earlier run would be a constant of
this one's graph. Other threads keep their behaviour; a lock lets one recording run at a time.
"""

from __future__ import annotations

import builtins
import functools
import gc
import sys
import threading
import types
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.abc import MetaPathFinder, SourceLoader
from importlib.machinery import ModuleSpec, PathFinder
from typing import TYPE_CHECKING, Any

import torch
import torch._higher_order_ops.utils
from torch import Tensor, nn
from torch._functorch import apis as transforms
from torch.autograd.function import FunctionMeta
from torch.utils.checkpoint import CheckpointFunction

from fxquant.errors import TraceError
from fxquant.graph.meta import user_source
from fxquant.graph.symbolic_ints import Tracked, plain, read_data
from fxquant.tracing.autograd_functions import Applied
from fxquant.tracing.canonical_calls import named, script_call
from fxquant.tracing.handlers import plain_call
from fxquant.tracing.hooks import hooked
from fxquant.tracing.leaves import is_leaf_class
from fxquant.tracing.recorded_call import plain_all

if TYPE_CHECKING:
    from fxquant.tracing.recorder import Recorder


_lock = threading.RLock()


@contextmanager
def watching(recorder: Recorder) -> Iterator[None]:
    """Route to the recorder what this thread calls beside functions of torch."""
    watch = _Watch(recorder, threading.get_ident())
    with _lock, ExitStack() as undo:
        undo.enter_context(_plain_imports())
        for owner, name, replacement in watch.replacements():
            undo.enter_context(_replaced(owner, name, replacement))
        if "torch._dynamo" in sys.modules:
            # compiled modules run their plain code, which can be recorded
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        yield


def _set_training(module: nn.Module, training: bool) -> None:
    vars(module)["training"] = training


@contextmanager
def _replaced(owner: Any, name: str, replacement: Any) -> Iterator[None]:
    inherited = name not in vars(owner)
    before = None if inherited else vars(owner)[name]
    setattr(owner, name, replacement)
    try:
        yield
    finally:
        if inherited:
            delattr(owner, name)
        else:
            setattr(owner, name, before)


@contextmanager
def _plain_imports() -> Iterator[None]:
    """Parts of torch that are imported meanwhile see the true `len` and `range`.

    torch's compiler, which `torch.cond` imports, keeps tables of builtins: they would hold the
    replacements for good.
    """
    finder = _Finder({"len": len, "range": range})
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)


class _Finder(MetaPathFinder):
    def __init__(self, plain_builtins: dict[str, Any]) -> None:
        self.plain = plain_builtins

    def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
        found = PathFinder.find_spec(name, path, target) if name.startswith("torch.") else None
        if found is not None and isinstance(found.loader, SourceLoader):
            load = found.loader.exec_module
            vars(found.loader)["exec_module"] = functools.partial(self._load, load)
        return found

    def _load(self, load: Callable[[types.ModuleType], None], module: types.ModuleType) -> None:
        before = {name: getattr(builtins, name) for name in self.plain}
        vars(builtins).update(self.plain)
        try:
            load(module)
        finally:
            vars(builtins).update(before)


@dataclass(frozen=True)
class _Watch:
    """The replacements of one recording."""

    recorder: Recorder
    thread: int

    def replacements(self) -> list[tuple[Any, str, Any]]:
        """Owner, attribute and what it is for the time of the run."""
        script = torch.jit.ScriptFunction
        applied = Applied(self.recorder, self.thread)
        return [
            (nn.Module, "__call__", self._module_call(nn.Module.__call__)),
            (nn.Module, "training", property(self._training, _set_training)),
            (FunctionMeta, "__getattribute__", lambda kind, name: applied.look_up(kind, name)),
            (CheckpointFunction, "apply", classmethod(self._checkpoint(CheckpointFunction.apply))),
            (script, "__call__", self._scripted(vars(script)["__call__"])),
            (transforms, "vmap_impl", self._vmap(vars(transforms)["vmap_impl"])),
            (torch._higher_order_ops.utils, "_hop_compile_and_call", plain_call),
            (builtins, "len", self._length(len)),
            (builtins, "range", _range_of(range)),
        ]

    @property
    def off(self) -> bool:
        """Whether a call is not this recording's to see."""
        recorder = self.recorder
        return recorder.quiet > 0 or recorder.closed or threading.get_ident() != self.thread

    def _training(self, module: nn.Module) -> bool:
        """The flag of a module; the recorder is told that the model's own code asked for it."""
        if "training" not in vars(module):
            raise AttributeError("training")  # noqa: EM101 -- a scripted module goes on to look
        if not self.off:
            self.recorder.asked_for_training = True
        return bool(vars(module)["training"])

    def _module_call(self, before: Callable[..., Any]) -> Callable[..., Any]:
        recorder = self.recorder

        def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if self.off:
                return before(module, *args, **kwargs)
            path = recorder.state.modules.get(id(module))
            if path and _is_leaf(recorder, path, module):
                if hooked(module):
                    with recorder.around_hooks(module, path):
                        return before(module, *args, **kwargs)
                return recorder.call_leaf(module, path, args, kwargs)
            with recorder.scope(path, type(module)):
                return before(module, *args, **kwargs)

        return call

    def _checkpoint(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def apply(cls: Any, function: Callable[..., Any], keep_rng: Any, *args: Any) -> Any:
            if self.off:
                return before(function, keep_rng, *args)
            # re-entrant checkpointing hides the forward in a function: record what it runs
            return function(*args)

        return apply

    def _scripted(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def call(function: Any, *args: Any, **kwargs: Any) -> Any:
            run = functools.partial(before, function)
            if self.off:
                return run(*args, **kwargs)
            return self._as_one(script_call(function), run, args, kwargs)

        return call

    def _vmap(self, before: Callable[..., Any]) -> Callable[..., Any]:
        def vmap_impl(function: Any, *args: Any, **kwargs: Any) -> Any:
            # function, in_dims, out_dims, randomness, chunk_size, then the arguments
            if self.off:
                return before(function, *args, **kwargs)
            self._refuse_captured(function)
            head, rest = args[:4], args[4:]
            run = functools.partial(before, function, *head)
            called = named(
                lambda *a, **k: before(function, *head, *a, **k),
                f"vmap_{getattr(function, '__name__', 'function').strip('<>')}",
                "mapped",
            )
            return self._as_one(called, run, rest, kwargs)

        return vmap_impl

    def _refuse_captured(self, function: Any) -> None:
        for tensor in _captured(function):
            known = self.recorder.state.tensors.get(id(tensor), ("", None))[1] is tensor
            if known or self.recorder.origins.find(tensor) is not None:
                where = user_source()
                raise TraceError(
                    "FXQ110",
                    "a function under torch.vmap uses a tensor of its surroundings",
                    at=str(where) if where else None,
                    fix="hand the tensor to the function as an argument (in_dims=None keeps it "
                    "whole), or keep the module as a leaf",
                )

    def _as_one(self, target: Any, run: Any, args: Any, kwargs: Any) -> Any:
        """Write one call of a function whose inside torch does not show."""
        with (
            torch._C.DisableTorchFunction(),
            self.recorder.writing("call_function", target, args, kwargs) as written,
        ):
            written.result = run(*plain_all(args), **plain_all(kwargs))
        return written.result

    def _length(self, before: Callable[[Any], int]) -> Callable[[Any], int]:
        def length(value: Any, /) -> int:
            if not isinstance(value, Tensor) or self.off or value.dim() == 0:
                return before(value)
            size: int = self.recorder.sizes(value)[0]
            return size

        return length


def _is_leaf(recorder: Recorder, path: str, module: nn.Module) -> bool:
    # a forward of the module's own is somebody's patch: nobody but its author knows what it does
    known = is_leaf_class(type(module)) and "forward" not in vars(module)
    wanted = known or (recorder.leaves is not None and recorder.leaves(path, module))
    # functional_call swaps parameters: then the node would compute with the wrong ones
    return wanted and recorder.state.holds(module)


def _captured(function: Any) -> Iterator[Tensor]:
    """Tensors that a function holds in its closure, defaults or partial arguments."""
    if isinstance(function, functools.partial):
        yield from _tensors_of([function.func, *function.args, *function.keywords.values()])
    elif isinstance(function, nn.Module):
        yield from (*function.parameters(), *function.buffers())
    elif isinstance(function, types.MethodType):
        yield from _held(function.__self__, function.__func__)
    elif isinstance(function, types.FunctionType):
        cells = [c.cell_contents for c in function.__closure__ or ()]
        modules = [c for c in cells if isinstance(c, nn.Module)]
        others = [c for c in cells if not isinstance(c, nn.Module)]
        yield from _tensors_of([*others, *(function.__defaults__ or ())])
        for module in modules:
            yield from _held(module, function)


def _held(owner: Any, function: Any) -> Iterator[Tensor]:
    """Tensors of a module that a function, going by the names in it, reads."""
    if not isinstance(owner, nn.Module):
        return
    names = set(getattr(function, "__code__", _held.__code__).co_names)
    if "__call__" in names or any(name in names for name in owner._modules):
        yield from (*owner.parameters(), *owner.buffers())
    for held in (owner._parameters, owner._buffers):
        yield from (t for name, t in held.items() if name in names and t is not None)


def _tensors_of(values: list[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, list | tuple):
            yield from _tensors_of(list(value))
        else:
            yield from _captured(value)


def _range_of(before: type[range]) -> Any:
    """``range`` that reports a loop over a size; ``isinstance(x, range)`` keeps working."""

    class Meta(type):
        def __call__(cls, *args: Any) -> Any:
            for value in args:
                if isinstance(value, Tracked):
                    read_data(value, "range()", plain(value))
            return before(*map(plain, args))

        def __instancecheck__(cls, value: Any) -> bool:
            return isinstance(value, before)

        def __subclasscheck__(cls, kind: type) -> bool:
            return issubclass(kind, before)

    return Meta("range", (), {})


# their caches hold no tensors of models, and much depends on them
_OURS = sys.stdlib_module_names | {"fxquant", "numpy", "torch", "torchgen"}


def forget_results() -> bool:
    """Empty the ``functools.lru_cache`` of every function of the models' packages.

    Returns:
        Whether any had kept a result.
    """
    found = False
    for cached in gc.get_objects():
        if type(cached) is not functools._lru_cache_wrapper:  # isinstance would run foreign code
            continue
        package = (getattr(cached, "__module__", None) or "").partition(".")[0]
        if package not in _OURS and cached.cache_info().currsize:
            cached.cache_clear()
            found = True
    return found
