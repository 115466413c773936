"""torch's control flow operators, recorded as the Python they stand for.

A graph has neither branches nor loops. What `torch.cond` decides and how often `torch.while_loop`
and `map` turn is noted like any other decision that Python takes on a tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch._higher_order_ops.utils import _stack_pytree, _unstack_pytree
from torch._ops import HigherOrderOperator

from fxquant.errors import TraceError
from fxquant.graph.meta import user_source

if TYPE_CHECKING:
    from fxquant.graph.recorder import Recorder


def control_flow(func: Any) -> Callable[..., Any] | None:
    """How the recorder answers an operator that is given functions; None for other operators."""
    if not isinstance(func, HigherOrderOperator):
        return None
    answer: Callable[..., Any] = _KNOWN.get(func.name(), _refuse)
    return answer


def plain_call(function: Callable[..., Any], args: Any, kwargs: Any = None) -> Any:
    """What `torch.cond` compiles, called as it is."""
    return function(*args, **(kwargs or {}))


def _cond(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    predicate, first, second, operands = args
    taken = bool(predicate)
    recorder.look(recorder.depends(predicate), "torch.cond()", taken)
    with recorder:
        return (first if taken else second)(*operands)


def _while_loop(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    goes_on, body, carried, *more = args
    others = more[0] if more else ()
    while True:
        with recorder:
            predicate = goes_on(*carried, *others)
        turn = bool(predicate)
        recorder.look(recorder.depends(predicate), "torch.while_loop()", turn, loop=True)
        if not turn:
            return tuple(carried)
        with recorder:
            carried = body(*carried, *others)


def _map(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    body, mapped, others = args
    with recorder:
        rows = _unstack_pytree(mapped)
        return _stack_pytree([body(*row, *others) for row in rows])


def _refuse(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    where = user_source()
    raise TraceError(
        "FXQ114",
        f"the operator {func.name()!r} runs functions that a graph cannot hold",
        at=str(where) if where else None,
        fix="keep the module that calls it whole: modules_to_exclude=[...]",
    )


_KNOWN: dict[str, Callable[..., Any]] = {
    "cond": _cond,
    "while_loop": _while_loop,
    "map_impl": _map,
}
