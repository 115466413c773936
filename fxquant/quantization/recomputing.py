"""Results of quantizers are computed again for the backward pass where their input stays anyway.

A layer keeps its inputs for the backward pass. If the input of the quantizer before it is kept as
well, because its range learns, because it is a parameter or because the operator that computed it
keeps its result (a softmax, a ReLU), then training in simulation needs two tensors where training
in floating point needs one. So while an operator computes from results of quantizers, hooks look at
what it saves: of what lies in the memory of such a result it is only noted how to compute it, by
the same steps and therefore to the last bit, once for all operators that save it.

In the same way the input of a range that learns is not kept where an elementwise function computed
it that keeps its own argument, such as a GELU.

Where other hooks are active (activation checkpointing, saving on another device), these decide what
is kept, and tensors are saved as they are.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from fxquant.errors import QuantizationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_NAME = "_quantizer_result"

#: functions of one tensor, by their node in the graph, which keeps the tensor
_FUNCTIONS: dict[str, Callable[[Any], Tensor]] = {
    "GeluBackward0": lambda n: F.gelu(n._saved_self, approximate=n._saved_approximate),
    "SiluBackward0": lambda n: F.silu(n._saved_self),
    "MishBackward0": lambda n: F.mish(n._saved_self),
    "HardswishBackward0": lambda n: F.hardswish(n._saved_self),
    "HardtanhBackward0": lambda n: F.hardtanh(n._saved_self, n._saved_min_val, n._saved_max_val),
}

#: operators that lay out a tensor anew
_COPIES: set[Callable[..., Any]] = {
    torch.reshape,
    torch.flatten,
    torch.clone,
    Tensor.reshape,
    Tensor.flatten,
    Tensor.clone,
    Tensor.contiguous,
}


class Result:
    """The result of a quantizer, and how to compute it again.

    Attributes:
        compute: gives the input and the result; None where it is not to be computed again.
        computed: both, from when they are computed to the quantizer's own backward pass.
    """

    __slots__ = ("address", "compute", "computed", "version")

    def __init__(self) -> None:
        self.compute: Callable[[], tuple[Tensor, Tensor]] | None = None
        self.computed: list[tuple[Tensor, Tensor]] = []
        self.address = self.version = -1

    def compute_from(
        self, given: Callable[[], Tensor], compute: Callable[[Tensor], Tensor]
    ) -> None:
        """Say how to compute the result: from an input that stays in memory or is computed."""

        def both() -> tuple[Tensor, Tensor]:
            x = given()
            return x, compute(x)

        self.compute = both

    def note(self, y: Tensor) -> None:
        """Remember the tensor as it is now."""
        if self.compute is not None and y.numel():
            self.address, self.version = y.untyped_storage().data_ptr(), y._version
            setattr(y, _NAME, self)

    def holds(self, saved: Tensor) -> bool:
        """Whether a tensor lies in the memory of the result, and this is as it was."""
        return saved.untyped_storage().data_ptr() == self.address and saved._version == self.version

    def __reduce__(self) -> Any:
        return Result, ()  # how a tensor was computed is not written to files

    def values(self) -> Tensor:
        """The result, bit for bit."""
        if not self.computed and self.compute is not None:
            with torch.no_grad():
                self.computed.append(self.compute())
        return self.computed[0][1]


@dataclass(frozen=True, slots=True)
class Kept:
    """A tensor that stays in memory, and its version."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, x: Tensor) -> Kept:
        """The tensor as it is now, apart from the graph that computed it."""
        return cls(x.detach(), x._version)

    def unpack(self) -> Tensor:
        """The tensor; nobody else looks at versions of what hooks keep."""
        if self.tensor._version != self.version:
            raise QuantizationError(
                "FXQ450",
                "a tensor that the backward pass needs was modified by an in-place operation",
                fix="run backward before it, or write to a copy",
            )
        return self.tensor


@dataclass(frozen=True, slots=True)
class _View:
    """A view of the result of a quantizer."""

    of: Result
    size: torch.Size
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def at(cls, view: Tensor, of: Result) -> _View:
        return cls(of, view.size(), view.stride(), int(view.storage_offset()))

    def unpack(self) -> Tensor:
        return self.of.values().as_strided(self.size, self.stride, self.offset)


def run(func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Call an operator; what it saves of results that can be computed again is not kept."""
    if torch.compiler.is_compiling():
        return func(*args, **kwargs)
    given = [found for a in (*args, *kwargs.values()) for found in _results(a)]
    if not given or not torch.is_grad_enabled() or not hooks_are_free():
        return func(*args, **kwargs)
    with saved_tensors_hooks(functools.partial(_pack, given), _unpack):
        out = func(*args, **kwargs)
    if args and given[0][0] is args[0]:
        _carry(out, *given[0], functools.partial(_call, func, args[1:], kwargs))
    given.clear()  # what was saved holds on to its hooks
    return out


def _call(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], x: Tensor) -> Tensor:
    return func(x, *args, **kwargs)  # type: ignore[no-any-return]


def _carry(out: Any, source: Tensor, result: Result, move: functools.partial[Tensor]) -> None:
    """What only moves a result can be computed from it again; a view lies in its memory."""
    if isinstance(out, tuple | list):
        for part in out:
            _carry(part, source, result, move)
    elif not isinstance(out, Tensor):
        return
    elif result.holds(out):
        setattr(out, _NAME, result)
    elif move.args[0] in _COPIES:
        moved = Result()
        moved.compute_from(_View.at(source, result).unpack, move)
        moved.note(out)


def hand_over(x: Tensor, out: Tensor) -> None:
    """The same tensor as another object."""
    found: Result | None = getattr(x, _NAME, None)
    if found is not None:
        setattr(out, _NAME, found)


def _results(value: Any) -> list[tuple[Tensor, Result]]:
    if isinstance(value, tuple | list):
        return [found for part in value for found in _results(part)]
    found = getattr(value, _NAME, None) if isinstance(value, Tensor) else None
    # as long as an argument lies there, nothing else can
    return [] if found is None or not found.holds(value) else [(value, found)]


def _pack(given: list[tuple[Tensor, Result]], saved: Tensor) -> Kept | _View:
    for _, result in given:
        if result.holds(saved):
            return _View.at(saved, result)
    return Kept.of(saved)


def _unpack(kept: Kept | _View) -> Tensor:
    with torch.no_grad():
        return kept.unpack()


def hooks_are_free() -> bool:
    """Whether nobody else decides what is kept for the backward pass."""
    autograd: Any = torch._C._autograd
    enabled: bool = autograd._saved_tensors_hooks_is_enabled()
    return enabled and autograd._top_saved_tensors_default_hooks(False) is None


def function_of(x: Tensor) -> Callable[[], Tensor] | None:
    """Computes a tensor again from what the operator that computed it keeps, or None."""
    node = x.grad_fn
    compute = None if node is None else _FUNCTIONS.get(node.name())
    return None if compute is None else functools.partial(compute, node)
