"""Calls of autograd functions, written down as one node each.

Models keep ``apply`` of their functions under names of their own (``squash = Squash.apply``), and
releases of torch differ in whether a line of Python runs behind it, so replacing the method would
miss calls. Every release looks attributes of the class up for each call: ``_backward_cls``, while
the gradient mode of the caller is still in force, then ``forward``, and last ``setup_context`` if
the function has one. The forward that torch gets here runs the real one and writes the call down.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch.autograd.function import FunctionMeta, _SingleLevelFunction

from fxquant.tracing.canonical_calls import autograd_call
from fxquant.tracing.recorded_call import plain_all

if TYPE_CHECKING:
    from fxquant.tracing.recorder import Recorder


_LOOKED_UP = frozenset(("_backward_cls", "forward", "setup_context"))


class Applied:
    """Watches the look-ups of one recording.

    Args:
        recorder: where calls are written down.
        thread: the thread that is recorded.
    """

    def __init__(self, recorder: Recorder, thread: int) -> None:
        self.recorder = recorder
        self.thread = thread
        self._begun: tuple[Any, bool] | None = None  # whose call, in which mode of gradients
        self._ran: Any = None  # whose forward is over and whose context is not set up
        self._before: Callable[[Any, str], Any] = FunctionMeta.__getattribute__

    def look_up(self, kind: Any, name: str) -> Any:
        """What ``FunctionMeta.__getattribute__`` is for the time of the run."""
        found = self._before(kind, name)
        if name not in _LOOKED_UP or self._off:
            return found
        if name == "_backward_cls":
            self._begun = kind, torch.is_grad_enabled()
        elif name == "forward" and self._begun is not None and self._begun[0] is kind:
            grad, self._begun = self._begun[1], None
            return self._forward(kind, found, grad=grad)
        elif name == "setup_context" and self._ran is kind:
            self._ran = None
            return self._quietly(found)
        return found

    @property
    def _off(self) -> bool:
        recorder = self.recorder
        return recorder.quiet > 0 or recorder.closed or threading.get_ident() != self.thread

    def _forward(self, kind: Any, run: Callable[..., Any], *, grad: bool) -> Callable[..., Any]:
        own_setup = kind.setup_context is not _SingleLevelFunction.setup_context

        @functools.wraps(run)
        def forward(*given: Any) -> Any:
            args = given if own_setup else given[1:]  # without the context
            with (
                torch.set_grad_enabled(grad),
                torch._C.DisableTorchFunction(),
                self.recorder.writing("call_function", autograd_call(kind), args, {}) as written,
                torch.no_grad(),
            ):
                written.result = run(*plain_all(given))
            self._ran = kind if own_setup else None
            return written.result

        return forward

    def _quietly(self, setup: Callable[..., Any]) -> Callable[..., Any]:
        """What a function computes for its backward is no part of the model."""

        def setup_context(*given: Any) -> None:
            self.recorder.quiet += 1
            try:
                setup(*plain_all(given))
            finally:
                self.recorder.quiet -= 1

        return setup_context
