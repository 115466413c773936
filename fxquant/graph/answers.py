"""Calls that the recorder answers itself instead of writing them down: sizes, looks, metadata."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from fxquant.graph.calls import THROUGH, body_of
from fxquant.graph.sizes import Change
from fxquant.graph.strides import as_strided

if TYPE_CHECKING:
    from fxquant.graph.recorder import Recorder

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


def _look(recorder: Recorder, func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    value = func(*args, **kwargs)
    seen = value if isinstance(value, bool | int | float | complex) else None
    name = func.__name__.strip("_")
    recorder.look(recorder.depends((args, kwargs)), f"{name}()", seen)
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
    recorder.look(change, "number of items", len(value))
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
_LOOKS = [
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
    (_LOOKS, _look),
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
