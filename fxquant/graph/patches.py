"""What torch's function mode does not show is caught by replacing three entry points for a while.

``nn.Module.__call__`` (leaf modules and scopes), ``autograd.Function.apply`` (kept as one call,
or its gradient would be lost) and ``torch.compile`` (told to run the plain code). Other threads
keep torch's own behaviour; a lock lets one recording run at a time.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.autograd.function import _SingleLevelFunction
from torch.utils.checkpoint import CheckpointFunction

from fxquant.graph.calls import autograd_call
from fxquant.graph.leaves import is_leaf_class
from fxquant.graph.recorder import plain_all

if TYPE_CHECKING:
    from fxquant.graph.recorder import Recorder

_lock = threading.RLock()


@contextmanager
def watching(recorder: Recorder) -> Iterator[None]:
    """Route module calls, autograd functions and compiled code of this thread to the recorder."""
    with _lock, ExitStack() as undo:
        undo.enter_context(_module_calls(recorder, threading.get_ident()))
        undo.enter_context(_autograd_functions(recorder, threading.get_ident()))
        if "torch._dynamo" in sys.modules:
            undo.enter_context(torch.compiler.set_stance("force_eager"))
        yield


@contextmanager
def _module_calls(recorder: Recorder, thread: int) -> Iterator[None]:
    before = nn.Module.__call__

    def call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if recorder.quiet or threading.get_ident() != thread:
            return before(module, *args, **kwargs)
        path = recorder.state.modules.get(id(module))
        if path and _is_leaf(recorder, path, module):
            return recorder.call_leaf(module, path, args, kwargs)
        with recorder.scope(path, type(module)):
            return before(module, *args, **kwargs)

    nn.Module.__call__ = call  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.__call__ = before  # type: ignore[method-assign]


def _is_leaf(recorder: Recorder, path: str, module: nn.Module) -> bool:
    wanted = is_leaf_class(type(module)) or (
        recorder.leaves is not None and recorder.leaves(path, module)
    )
    # functional_call swaps parameters: then the node would compute with the wrong ones
    return wanted and recorder.state.holds(module)


@contextmanager
def _autograd_functions(recorder: Recorder, thread: int) -> Iterator[None]:
    own = vars(_SingleLevelFunction).get("apply")
    before = own or vars(torch._C._FunctionBase)["apply"]

    def inherited(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return before.__get__(None, cls)(*args, **kwargs)

    def apply(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if recorder.quiet or recorder.closed or threading.get_ident() != thread:
            return inherited(cls, *args, **kwargs)
        if cls is CheckpointFunction:
            # re-entrant checkpointing hides the forward in a function: record what it runs
            return args[0](*args[2:])
        with (
            torch._C.DisableTorchFunction(),
            recorder.writing("call_function", autograd_call(cls), args, kwargs) as written,
        ):
            written.result = inherited(cls, *plain_all(args), **plain_all(kwargs))
        return written.result

    _set_apply(classmethod(apply))
    try:
        yield
    finally:
        _set_apply(own)


def _set_apply(method: Any) -> None:
    if method is None:
        del _SingleLevelFunction.apply  # type: ignore[attr-defined]
    else:
        _SingleLevelFunction.apply = method  # type: ignore[attr-defined]
