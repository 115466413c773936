"""Gradients of functions at poles of their derivatives, where rounding has moved values there.

A square root has no finite slope at zero. A network in floating point hardly ever computes one
there; in simulation every value below half a step is rounded to zero, and one infinite gradient
makes all weights not-a-number. The straight-through estimator takes the derivative at the rounded
value for that at the value itself, which is a finite number, so at a pole it is taken where the
cell of values that are rounded there ends: half a step away. Every value of the cell has a
derivative at least as steep, and the surrogate is bounded by the step of the grid.

    y  = f(x)                       as the runtime computes it
    dx = g * f'(x + side * step/2)  where x is a pole, `side` being where f is defined; the mean of
                                    both sides where it is on both, as 1 / x
    dx = g * f'(x)                  elsewhere

Which side of the pole the value was on is not known, so the two sides count alike: odd derivatives
cancel. A value that lies on no grid came to the pole by arithmetic on rounded values, as the square
root of a sum of squares of zeros does; its gradient is zero, as PyTorch has it for norms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

STEP = "_grid_step"  # attribute of a tensor that a compiler traces, which knows no subclasses


@dataclass(frozen=True, slots=True)
class Pole:
    """Where a derivative is infinite.

    Attributes:
        at: the argument.
        side: 1.0 if the function is defined above it, -1.0 below it, 0.0 on both sides.
    """

    at: float
    side: float


@dataclass(frozen=True, slots=True)
class _Argument:
    """An argument of a call: its position and its name."""

    position: int
    name: str

    def of(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """The argument."""
        return args[self.position] if len(args) > self.position else kwargs.get(self.name)

    def put(
        self, x: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[tuple[Any, ...], Mapping[str, Any]]:
        """The call with another argument."""
        if len(args) <= self.position:
            return args, {**kwargs, self.name: x}
        return (*args[: self.position], x, *args[self.position + 1 :]), kwargs


@dataclass(frozen=True, slots=True)
class _Poles:
    """Poles of a call, where all of these arguments are at one; by the arguments of the call."""

    arguments: tuple[_Argument, ...]
    poles: Callable[[tuple[Any, ...], Mapping[str, Any]], tuple[Pole, ...]]


def _always(*poles: Pole) -> Callable[..., tuple[Pole, ...]]:
    return lambda args, kwargs: poles


def _of_power(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[Pole, ...]:
    exponent = args[1] if len(args) > 1 else kwargs.get("exponent")
    if isinstance(exponent, Tensor):
        return (Pole(0.0, 1.0),)
    if not isinstance(exponent, int | float) or exponent == 0 or exponent >= 1:
        return ()
    return (Pole(0.0, 0.0 if float(exponent).is_integer() else 1.0),)


_ABOVE_ZERO, _AROUND_ZERO = _always(Pole(0.0, 1.0)), _always(Pole(0.0, 0.0))
_BELOW_ONE = _always(Pole(-1.0, 1.0), Pole(1.0, -1.0))
_OF_FIRST: dict[str, Callable[..., tuple[Pole, ...]]] = {
    "sqrt rsqrt log log2 log10 lgamma digamma entr": _ABOVE_ZERO,
    "reciprocal __rdiv__ __rtruediv__": _AROUND_ZERO,
    "log1p": _always(Pole(-1.0, 1.0)),
    "acosh arccosh": _always(Pole(1.0, 1.0)),
    "asin arcsin acos arccos atanh arctanh erfinv": _BELOW_ONE,
    "logit ndtri": _always(Pole(0.0, 1.0), Pole(1.0, -1.0)),
    "pow float_power __pow__": _of_power,
}
_OF_SECOND: dict[str, Callable[..., tuple[Pole, ...]]] = {
    "div divide true_divide __div__ __truediv__": _AROUND_ZERO,
    "xlogy": _ABOVE_ZERO,
}
_OF_BOTH: dict[str, Callable[..., tuple[Pole, ...]]] = {"hypot": _AROUND_ZERO}
_HOMES = (Tensor, torch, torch.special)
_FIRST, _SECOND = _Argument(0, "input"), _Argument(1, "other")
_TABLES = (((_FIRST,), _OF_FIRST), ((_SECOND,), _OF_SECOND), ((_FIRST, _SECOND), _OF_BOTH))
_POLES: dict[Any, _Poles] = {
    getattr(home, name): _Poles(arguments, poles)
    for arguments, table in _TABLES
    for names, poles in table.items()
    for name in names.split()
    for home in _HOMES
    if hasattr(home, name)
}


class _WithValue(torch.autograd.Function):
    """A value with the gradient of another tensor."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Any:
        return g, None


def register(func: Callable[..., Any], *, like: Callable[..., Any]) -> None:
    """A function with the arguments and the poles of another one."""
    _POLES[func] = _POLES[like]


def run(
    func: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    plainly: Callable[..., Any] | None = None,
) -> Any:
    """Call an operator of a simulation; its gradient is finite at poles.

    Args:
        func: the operator.
        args: its arguments.
        kwargs: its keyword arguments.
        plainly: calls it where no pole is met, with the same three arguments.
    """
    poles = _POLES.get(func)
    if poles is not None and torch.is_grad_enabled() and not torch.compiler.is_exporting():
        out = _bounded(func, poles, args, kwargs)
        if out is not None:
            return out
    return func(*args, **kwargs) if plainly is None else plainly(func, args, kwargs)


def _bounded(
    func: Callable[..., Any],
    poles: _Poles,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Tensor | None:
    """The result, or None where no pole is met."""
    values = [argument.of(args, kwargs) for argument in poles.arguments]
    if not all(isinstance(x, Tensor) and x.is_floating_point() for x in values):
        return None
    if not any(x.requires_grad for x in values):
        return None
    steps = [_step_of(x) for x in values]
    values = [x if type(x) is Tensor else x.as_subclass(Tensor) for x in values]
    at = [(functools.reduce(torch.logical_and, [x == pole.at for x in values]), pole)
          for pole in poles.poles(args, kwargs)]  # fmt: skip
    # a compiler does not look at values, and on an accelerator looking is a wait
    looking = not torch.compiler.is_compiling() and values[0].is_cpu
    met = [(mask, pole) for mask, pole in at if not looking or bool(mask.any())]
    if not met:
        return None
    with torch.no_grad():
        value = func(*args, **kwargs)
    sides = []
    for side in (1.0, -1.0):
        call = args, kwargs
        for argument, x, step in zip(poles.arguments, values, steps, strict=True):
            call = argument.put(_moved(x, met, step, side), *call)
        sides.append(func(*call[0], **call[1]))
    return _WithValue.apply(sides[0] * 0.5 + sides[1] * 0.5, value)  # type: ignore[no-any-return, no-untyped-call]


def _moved(
    x: Tensor, met: Sequence[tuple[Tensor, Pole]], step: Tensor | None, side: float
) -> Tensor:
    """The argument with its poles moved to where the function has a derivative."""
    moved = x
    for mask, pole in met:
        half = 0.5 * (pole.side or side)
        away = x.detach() + half if step is None else x + half * step
        moved = torch.where(mask, away, moved)
    return moved


def _step_of(x: Tensor) -> Tensor | None:
    """Step of the grid that a tensor lies on, laid against it; None if it lies on none."""
    noted: Tensor | None = getattr(x, STEP, None)
    encoding: Any = getattr(x, "encoding", None)
    if noted is not None or torch.compiler.is_compiling() or not hasattr(encoding, "qmin"):
        return noted
    scale: Tensor = encoding.scale.detach().to(x.dtype)
    return scale.amax() if encoding.block_size is not None or scale.numel() == 1 else scale
