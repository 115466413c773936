"""Calls that the recorder answers itself instead of writing them down.

- Sizes, metadata and data-dependent reads: Python gets its answer, and the recording remembers.
- torch's control flow operators, recorded as the Python they stand for: a graph has neither
  branches nor loops. What `torch.cond` decides and how often `torch.while_loop` and `map` turn is
  noted like any other decision that Python takes on a tensor.
- `as_strided` where it makes overlapping windows: strides are facts of one run's memory; at
  another batch size they differ, and a runtime has none.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch._higher_order_ops.utils import _stack_pytree, _unstack_pytree
from torch._ops import HigherOrderOperator

from fxquant.errors import TraceError
from fxquant.graph.meta import user_source
from fxquant.graph.symbolic_ints import Change
from fxquant.tracing.canonical_calls import THROUGH, body_of
from fxquant.tracing.recorded_call import plain_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.tracing.recorder import Recorder


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
    recorder.read_data(recorder.depends(predicate), "torch.cond()", taken)
    with recorder:
        return (first if taken else second)(*operands)


def _while_loop(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    goes_on, body, carried, *more = args
    others = more[0] if more else ()
    while True:
        with recorder:
            predicate = goes_on(*carried, *others)
        turn = bool(predicate)
        recorder.read_data(recorder.depends(predicate), "torch.while_loop()", turn, loop=True)
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


_Axes: TypeAlias = "list[tuple[int, int]]"


def _arguments(
    input: Tensor, size: Any, stride: Any, storage_offset: int | None = None
) -> tuple[Tensor, Any, Any, int | None]:
    return input, plain_all(tuple(size)), plain_all(tuple(stride)), storage_offset


class Windows(NamedTuple):
    """Windows along `dim`, after `dim` and the next dimension are taken as one if `joined`."""

    dim: int
    length: int
    step: int
    joined: bool


def windows(
    tensor: Tensor, size: Sequence[int], stride: Sequence[int], offset: int | None
) -> Windows | None:
    """The windows that `as_strided` makes, or None if it makes something else.

    >>> import torch
    >>> windows(torch.zeros(2, 3, 4), (2, 5, 4), (12, 2, 1), None)
    Windows(dim=1, length=4, step=2, joined=True)
    """
    wanted = list(zip(size, stride, strict=True))
    axes = list(zip(tensor.shape, tensor.stride(), strict=True))
    if offset not in (None, tensor.storage_offset()):
        return None
    if len(wanted) == len(axes) + 1:
        tries = [(axes, d, False) for d in range(len(axes))]
    elif len(wanted) == len(axes):
        pairs = [d for d in range(len(axes) - 1) if axes[d][1] == axes[d + 1][0] * axes[d + 1][1]]
        merged = [(axes[d][0] * axes[d + 1][0], axes[d + 1][1]) for d in pairs]
        tries = [
            ([*axes[:d], m, *axes[d + 2 :]], d, True) for d, m in zip(pairs, merged, strict=True)
        ]
    else:
        return None
    found = (_windows_along(base, wanted, d, joined) for base, d, joined in tries)
    return next((f for f in found if f is not None), None)


def _windows_along(base: _Axes, wanted: _Axes, dim: int, joined: bool) -> Windows | None:
    """Windows along one of the axes (size and stride of each) that give the wanted ones."""
    whole, unit = base[dim]
    (count, far), (length, near) = wanted[dim : dim + 2]
    others = wanted[:dim] == base[:dim] and wanted[dim + 2 :] == base[dim + 1 :]
    if not others or not unit or near != unit or far <= 0 or far % unit:
        return None
    step = far // unit
    return Windows(dim, length, step, joined) if count == (whole - length) // step + 1 else None


def as_strided(recorder: Recorder, func: Any, args: Any, kwargs: Any) -> Any:
    """Record windows as `unfold`, and everything else as it is."""
    tensor, size, stride, offset = _arguments(*args, **kwargs)
    found = windows(tensor, size, stride, offset)
    if found is None:
        return recorder.call(func, args, kwargs)
    with recorder:
        whole = tensor.flatten(found.dim, found.dim + 1) if found.joined else tensor
        return whole.unfold(found.dim, found.length, found.step).movedim(-1, found.dim + 1)


Answer: TypeAlias = Callable[["Recorder", Any, tuple[Any, ...], dict[str, Any]], Any]


def _shape(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return torch.Size(recorder.sizes(args[0]))


def _size(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    tensor, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim")
    return torch.Size(recorder.sizes(tensor)) if dim is None else recorder.sizes(tensor)[dim]


def _length(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return recorder.sizes(args[0])[0] if args[0].dim() else func(*args)


def _numel(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return math.prod(recorder.sizes(args[0]))


def _just_run(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return func(*args, **kwargs)


def _data_read(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = func(*args, **kwargs)
    seen = value if isinstance(value, bool | int | float | complex) else None
    name = func.__name__.strip("_")
    recorder.read_data(recorder.depends((args, kwargs)), f"{name}()", seen)
    return value


def _unpack(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = recorder.call(func, args, kwargs)
    tensor = args[0] if args else kwargs.get("tensor", kwargs.get("input"))
    last = args[-1] if len(args) > 1 and isinstance(args[-1], int) else 0
    dim = kwargs.get("dim", last)
    if not isinstance(tensor, Tensor) or isinstance(dim, str):
        return value
    origin = recorder.origins.find(tensor)
    change = origin.dims[dim] if origin and origin.dims else Change.NEVER
    recorder.read_data(change, "number of items", len(value))
    return value


def _divide(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.div(2.0, x)` divides, `2.0 / x` multiplies by the reciprocal: they differ in a bit.

    The number is written as a tensor, so that the two stay apart.
    """
    if len(args) == 2 and type(args[0]) in (int, float) and isinstance(args[1], Tensor):
        dtype = args[1].dtype if args[1].is_floating_point() else None
        args = (torch.tensor(float(args[0]), dtype=dtype, device=args[1].device), args[1])
    return recorder.call(func, args, kwargs)


def _where(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """`torch.where(mask)` is another function than the one that chooses."""
    if len(args) + len(kwargs) == 1:
        mask = args[0] if args else next(iter(kwargs.values()))
        return recorder.call(torch.nonzero, (mask,), {"as_tuple": True})
    return recorder.call(func, args, kwargs)


def _through(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    given = inspect.signature(func).bind(*args, **kwargs)
    given.apply_defaults()
    asked = given.arguments
    if asked["need_weights"] and not asked["training"]:
        # in evaluation it would leave its dropout out, which then would be missed in training
        asked["training"] = True
        with recorder:
            return body_of(func, evaluating=True)(*given.args, **given.kwargs)
    with recorder:
        return body_of(func)(*args, **kwargs)


def _getters(*names: str) -> list[Any]:
    return [getattr(Tensor, n).__get__ for n in names if hasattr(Tensor, n)]


def _setters(*names: str) -> list[Any]:
    return [getattr(Tensor, n).__set__ for n in names]


def _methods(*names: str) -> list[Any]:
    return [getattr(Tensor, n) for n in names if hasattr(Tensor, n)]


_METADATA = [
    *_getters(
        "dtype", "device", "ndim", "layout", "requires_grad", "is_leaf", "grad_fn", "is_cuda",
        "is_sparse", "is_quantized", "is_meta", "is_mkldnn", "is_mps", "is_xpu", "is_nested",
        "_version", "itemsize", "nbytes", "names", "grad", "output_nr", "_base", "is_cpu",
    ),
    *_methods(
        "dim", "stride", "is_floating_point", "is_complex", "is_contiguous", "data_ptr",
        "element_size", "get_device", "__repr__", "__format__", "__hash__", "register_hook",
        "retain_grad", "storage_offset", "untyped_storage", "ndimension", "is_signed",
        "has_names", "is_pinned", "is_shared", "is_inference", "_is_view",
    ),
    torch.is_floating_point, torch.is_complex, torch.is_grad_enabled, torch._assert,
    torch._C._set_grad_enabled, torch.get_default_dtype, torch.is_inference_mode_enabled,
    torch.result_type, torch.promote_types, torch.can_cast,
    *_setters("requires_grad", "grad"),
]  # fmt: skip
_DATA_READS = [
    *_methods(
        "item", "tolist", "__bool__", "__int__", "__float__", "__index__", "__complex__", "numpy",
        "__array__", "equal", "allclose", "__contains__", "is_nonzero", "is_same_size",
    ),
    torch.equal, torch.allclose, torch.is_nonzero,
]  # fmt: skip
_DIVISIONS = [torch.div, torch.divide, torch.true_divide]
_UNPACKS = [torch.unbind, Tensor.unbind, torch.split, Tensor.split]

_ANSWERS: dict[Any, Answer] = {}
for _functions, _answer in (
    (_METADATA, _just_run),
    (_DATA_READS, _data_read),
    (_UNPACKS, _unpack),
    (_DIVISIONS, _divide),
    ([torch.where], _where),
    ([torch.as_strided, Tensor.as_strided], as_strided),
    (list(THROUGH), _through),
    (_getters("shape"), _shape),
    ([Tensor.size], _size),
    ([Tensor.__len__], _length),
    ([Tensor.numel, Tensor.nelement, torch.numel], _numel),
):
    for _function in _functions:
        _ANSWERS[_function] = _answer


def answer_of(func: Any) -> Answer | None:
    """How the recorder answers a function itself; None if the call is to be written down."""
    try:
        return _ANSWERS.get(func)
    except TypeError:  # an unhashable callable is nobody's special case
        return None
