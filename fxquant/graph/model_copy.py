"""Deep copies of models that hold more than parameters: kept results, hooks, locks, weak refs.

``copy.deepcopy`` refuses tensors with a gradient history, locks, open files and generators, and it
does not copy functions: a hook that closes over its model would, on the copy, still change the
original. `deep_copy` fills the memo of ``copy.deepcopy`` for these before it runs. Most models hold
nothing of the kind: those are copied in one walk (`copy_plain`).
"""

from __future__ import annotations

import copy
import copyreg
import functools
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxquant.graph.python_state import per_class

# what copy.deepcopy hands on, or copies without anybody's help
_ATOMIC = (
    int, float, complex, str, bytes, bytearray, range, type, type(None), type(Ellipsis),
    types.BuiltinFunctionType, types.CodeType, torch.dtype, torch.device, torch.layout,
    torch.memory_format, torch.Size, fx.Graph, fx.Node,
)  # fmt: skip
_KINDS = frozenset((*_ATOMIC, bool))
_IMMUTABLE = _KINDS - {bytearray, fx.Graph, fx.Node}  # one copy may stand for all
# the methods by which a class changes how it is copied; of `__setstate__` any will do
_COPYING = ("__reduce__", "__reduce_ex__", "__getstate__", "__new__")

_Memo: TypeAlias = dict[Any, Any]
_Otherwise: TypeAlias = Callable[[Any, _Memo], Any]


def deep_copy(value: Any, *, known: Mapping[int, Any] | None = None) -> Any:
    """``copy.deepcopy`` of a model.

    Tensors with a history are copied without it. Functions whose closure, defaults or globals lead
    to a part of the model, and weak references to its modules, lead to the copied part in the copy.
    What cannot be copied (locks, files, generators) is shared with the original.

    Args:
        value: the model.
        known: what stands for parts of the model in the copy, by the identity of the part.
    """
    memo: _Memo = dict(known or {})
    copy_plain([value], memo)
    if id(value) in memo:
        return memo[id(value)]
    finish = prepare_memo([value], memo)
    copied = _Copier(memo, copy.deepcopy).copy(value)
    finish()
    return copied


def copy_plain(parts: Iterable[Any], memo: _Memo) -> None:
    """Fill a memo with copies of all of a model if one walk can copy it, else of its parameters.

    Args:
        parts: what is to be copied; it has to stay as long as the memo.
        memo: that of ``copy.deepcopy``.
    """
    tried = dict(memo)
    copier = _Copier(tried, _refuse_unless_plain)
    try:
        for part in parts:
            copier.copy(part)
    except _NotPlainError:
        # the parameters are most of the work, and their copies as good as others
        memo |= {key: part for key, part in tried.items() if type(part) is nn.Parameter}
        return
    kept = tried.pop(id(tried), [])  # where copy.deepcopy keeps what it met
    memo |= tried
    memo.setdefault(id(memo), []).extend(kept)


class _NotPlainError(Exception):
    """A part of a model is not for one walk to copy."""


def _refuse_unless_plain(value: Any, memo: dict[Any, Any]) -> Any:
    """A function that reaches nothing that could be a part of a model is a copy of its own."""
    if type(value) is types.FunctionType and all(type(p) in _KINDS for p in _reached(value)):
        return value
    raise _NotPlainError


class _Copier:
    """Copies what models consist of, as ``copy.deepcopy`` with the same memo does.

    Args:
        memo: that of ``copy.deepcopy``: copies by the identity of what they are copies of.
        otherwise: copies everything else, or refuses to.
    """

    def __init__(self, memo: _Memo, otherwise: _Otherwise) -> None:
        self.memo = memo
        self.otherwise = otherwise

    def copy(self, value: Any) -> Any:
        """The copy of a value."""
        kind = type(value)
        if kind in _IMMUTABLE:
            return value
        known = self.memo.get(id(value))
        if known is not None:
            return known
        if kind is dict or (kind is OrderedDict and not vars(value)):
            return self._dict(value, kind)
        if kind is tuple or kind is list or kind is set:
            return self._sequence(value, kind)
        if kind is nn.Parameter or kind is Tensor:
            return self._tensor(value)
        if _is_plain_module(kind):
            return self._module(value, kind)
        return self.otherwise(value, self.memo)

    def _dict(self, value: dict[Any, Any], kind: type[dict[Any, Any]]) -> dict[Any, Any]:
        made = self.memo[id(value)] = kind()
        self._fill(made, value)
        return made

    def _fill(self, made: dict[Any, Any], given: dict[Any, Any]) -> None:
        memo = self.memo
        for key, part in given.items():
            kind = type(part)
            if kind in _IMMUTABLE:
                copied = part
            elif kind is OrderedDict and not part and not vars(part) and id(part) not in memo:
                copied = memo[id(part)] = OrderedDict()  # a module has a dozen for its hooks
            else:
                copied = self.copy(part)
            made[key if type(key) in _IMMUTABLE else self.copy(key)] = copied

    def _sequence(self, value: Any, kind: Any) -> Any:
        if kind is list:
            made = self.memo[id(value)] = []
            made += map(self.copy, value)
            return made
        if all(type(part) in _IMMUTABLE for part in value):
            return value if kind is tuple else self.memo.setdefault(id(value), set(value))
        return self.otherwise(value, self.memo)  # such a tuple may hold itself

    def _module(self, value: Any, kind: Any) -> Any:
        made = self.memo[id(value)] = object.__new__(kind)
        state: dict[Any, Any] = {}
        self._fill(state, value.__getstate__())
        made.__setstate__(state)
        return made

    def _tensor(self, value: Any) -> Any:
        if value.grad_fn is not None:
            return self.otherwise(value, self.memo)
        if type(value) is Tensor and _has_values_only(value):
            storage, known = value.untyped_storage(), self.memo.setdefault("torch", {})
            if storage._cdata not in known and storage.nbytes() == value.nbytes:
                made = self.memo[id(value)] = value.clone()
                known[storage._cdata] = made.untyped_storage()  # views of it are to find it
                return made
        return copy.deepcopy(value, self.memo)


def _has_values_only(value: Tensor) -> bool:
    """Whether a tensor on the CPU is contiguous, and nothing but its values."""
    plain = not (vars(value) or value.requires_grad or value.grad is not None)
    strided = value.layout is torch.strided and not value.is_quantized and value.is_contiguous()
    return plain and strided and value.is_cpu and not (value.is_conj() or value.is_neg())


@per_class
def _is_plain_module(kind: type) -> bool:
    """Whether objects of a class are modules that are copied by their dictionary alone."""
    return (
        issubclass(kind, nn.Module)
        and not hasattr(kind, "__deepcopy__")
        and all(getattr(kind, name) is getattr(nn.Module, name) for name in _COPYING)
        and not any(hasattr(kind, name) for name in ("__getnewargs__", "__getnewargs_ex__"))
        and not any("__slots__" in vars(base) for base in kind.__mro__)
        and kind not in copyreg.dispatch_table
    )


def prepare_memo(roots: Iterable[Any], memo: dict[int, Any]) -> Callable[[], None]:
    """Fill the memo of a deep copy of `roots`; call the result once the copy is made."""
    plan = _Plan(memo)
    for root in roots:
        plan.visit(root)
    plan.prepare()
    return plan.finish


@dataclass
class _Plan:
    """What is to be done beside ``copy.deepcopy``, found by walking as it does."""

    memo: dict[int, Any]
    seen: dict[int, Any] = field(default_factory=dict)  # keeps temporary objects alive, too
    functions: list[types.FunctionType] = field(default_factory=list)
    references: list[weakref.ref[Any]] = field(default_factory=list)
    later: list[Callable[[], None]] = field(default_factory=list)

    def visit(self, value: Any) -> None:
        """Walk everything that a deep copy would reach."""
        waiting, seen = [value], self.seen
        while waiting:
            part = waiting.pop()
            if type(part) in _KINDS or id(part) in seen or isinstance(part, _ATOMIC):
                continue
            seen[id(part)] = part
            if id(part) not in self.memo:
                waiting += [p for p in self._parts(part) if type(p) not in _KINDS]

    def _parts(self, part: Any) -> Iterable[Any]:
        """The direct parts of an object; what needs help is noted."""
        if _is_plain_module(type(part)):
            return self._of_module(part)
        if isinstance(part, Tensor):
            return self._of_tensor(part)
        if isinstance(part, types.FunctionType):
            self.functions.append(part)
        elif isinstance(part, weakref.ref):
            self.references.append(part)
        elif isinstance(part, types.MethodType):
            return (part.__self__, part.__func__)
        elif isinstance(part, torch.Generator):
            self.memo[id(part)] = part.clone_state()
        elif isinstance(part, np.ndarray):
            return part.ravel().tolist() if part.dtype == object else ()
        elif isinstance(part, dict):
            return [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple | set | frozenset):
            return part
        else:
            return self._of_object(part)
        return ()

    def _of_module(self, module: Any) -> list[Any]:
        """Its attributes without the empty dictionaries: a module has a dozen for its hooks."""
        found = []
        for part in module.__getstate__().values():
            if type(part) is not OrderedDict or part:
                found.append(part)
            elif id(part) not in self.seen:
                self.seen[id(part)] = part
                self.memo.setdefault(id(part), OrderedDict())
        return found

    def _of_tensor(self, tensor: Tensor) -> Iterable[Any]:
        if tensor.grad_fn is None:
            return vars(tensor).values()
        self.memo[id(tensor)] = tensor.detach().clone()
        return ()

    def _of_object(self, part: Any) -> Iterable[Any]:
        """What the object would be made of anew; an object that says no is shared."""
        if hasattr(part, "__deepcopy__"):
            return vars(part).values() if hasattr(part, "__dict__") else ()
        try:
            made_of = part.__reduce_ex__(4)
        except Exception:  # each kind of object has its own way to say that it cannot be copied
            if not isinstance(part, nn.Module):  # its author's error, for copy.deepcopy to raise
                self.memo[id(part)] = part
            return ()
        if isinstance(made_of, str):
            return ()
        _, args, *state = made_of
        return [*args, *state[:1], *(item for items in state[1:3] for item in items or ())]

    def prepare(self) -> None:
        """Put functions and references that lead to parts of the model into the memo."""
        if not self.functions and not self.references:
            return
        owned = {key for key, part in self.seen.items() if not isinstance(part, _PASSING)}
        while self.functions:
            function = self.functions.pop()
            if id(function) not in self.memo and _leads_to(function, owned):
                self._rebind(function, owned)
        for reference in self.references:
            target = reference()
            if id(target) in owned and isinstance(target, nn.Module):
                self._refer(reference, target)

    def _rebind(self, function: types.FunctionType, owned: set[int]) -> None:
        """A function of the same code over the copies of what this one is over."""
        found = {n: v for n, v in _globals_of(function).items() if id(v) in owned}
        names = {**function.__globals__, **found} if found else function.__globals__
        cells = tuple(map(self._cell, function.__closure__ or ()))
        code, name = function.__code__, function.__name__
        made = types.FunctionType(code, names, name, None, cells or None)
        self.memo[id(function)] = made
        for given in (function.__defaults__, function.__kwdefaults__):
            self.visit(given)

        def complete() -> None:
            made.__defaults__ = copy.deepcopy(function.__defaults__, self.memo)
            made.__kwdefaults__ = copy.deepcopy(function.__kwdefaults__, self.memo)
            made.__qualname__, made.__doc__ = function.__qualname__, function.__doc__
            vars(made).update(vars(function))
            names.update({n: copy.deepcopy(value, self.memo) for n, value in found.items()})

        self.later.append(complete)

    def _cell(self, cell: types.CellType) -> types.CellType:
        """The copy of a closure's cell; functions that share a cell go on sharing it."""
        known: types.CellType | None = self.memo.get(id(cell))
        if known is not None:
            return known
        made = self.memo[id(cell)] = types.CellType()
        self.seen[id(cell)] = cell
        self.visit(_contents(cell))

        def fill() -> None:
            for content in _contents(cell):
                made.cell_contents = copy.deepcopy(content, self.memo)

        self.later.append(fill)
        return made

    def _refer(self, reference: weakref.ref[Any], target: nn.Module) -> None:
        """A module that a weak reference names is made now, and filled when all is copied."""
        if id(target) not in self.memo:
            if hasattr(target, "__deepcopy__"):
                return
            made = self.memo[id(target)] = type(target).__new__(type(target))
            state = vars(target)
            self.later.insert(0, lambda: vars(made).update(copy.deepcopy(state, self.memo)))
        self.memo[id(reference)] = weakref.ref(self.memo[id(target)])

    def finish(self) -> None:
        """Fill what was put into the memo unfinished."""
        for step in self.later:
            step()


# they have no state of their own; what they hold is looked at instead
_PASSING = (types.FunctionType, types.MethodType, tuple, frozenset, weakref.ref, *_ATOMIC)


def _leads_to(value: Any, owned: set[int]) -> bool:
    """Whether a function, or what a closure holds, reaches a part of the model."""
    waiting, seen = [value], set()
    while waiting:
        part = waiting.pop()
        if id(part) in owned:
            return True
        if id(part) in seen:
            continue
        seen.add(id(part))
        waiting += _reached(part)
    return False


def _reached(part: Any) -> Iterator[Any]:
    if isinstance(part, types.FunctionType):
        for cell in part.__closure__ or ():
            yield from _contents(cell)
        yield from (*(part.__defaults__ or ()), *(part.__kwdefaults__ or {}).values())
        yield from _globals_of(part).values()
    elif isinstance(part, types.MethodType):
        yield from (part.__self__, part.__func__)
    elif isinstance(part, functools.partial):
        yield from (part.func, *part.args, *part.keywords.values())
    elif isinstance(part, dict):
        yield from part.values()
    elif isinstance(part, list | tuple | set | frozenset):
        yield from part


def _contents(cell: types.CellType) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # a name that was not assigned yet
        return []


def _globals_of(function: types.FunctionType) -> dict[str, Any]:
    """Modules, tensors and containers among the globals that a function names."""
    waiting, names = [function.__code__], set()
    while waiting:
        code = waiting.pop()
        names |= set(code.co_names)
        waiting += [c for c in code.co_consts if isinstance(c, types.CodeType)]
    found = {n: function.__globals__[n] for n in names if n in function.__globals__}
    return {n: v for n, v in found.items() if isinstance(v, nn.Module | Tensor | dict | list | set)}


__all__ = ["deep_copy", "prepare_memo"]
