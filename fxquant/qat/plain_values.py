"""Nested Python values as JSON and tensors, and back, exactly: no pickle.

Optimizers and schedules keep their state in nested dicts, lists and tuples of numbers, texts and
tensors. JSON has no tuples, no keys but texts and no infinities, so these are marked; what is
something else, such as a function, is refused by its place.
"""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from fxquant.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

_MARK = "$"  # begins the only key of an object that is no dict
_DEPTH = 20  # each level is two or three in JSON, which is read to 64
_ARRAY, _COUNTER, _FLOAT, _PAIRS, _TENSOR, _TUPLE = (
    f"{_MARK}{kind}" for kind in ("array", "counter", "float", "pairs", "tensor", "tuple")
)


def taken_apart(value: Any, where: str, tensors: dict[str, Tensor], prefix: str) -> Any:
    """A value as JSON has it; its tensors are put aside.

    Args:
        value: dicts, lists, tuples, numbers, texts, None, tensors and arrays of numpy.
        where: how errors call it.
        tensors: where they are put.
        prefix: of their names.

    Raises:
        CheckpointError: FXQ617, something in it is of another kind.

    Example:
        >>> found = {}
        >>> taken_apart({"betas": (0.9, 0.5), "step": torch.ones(1)}, "optimizer", found, "x.")
        {'betas': {'$tuple': [0.9, 0.5]}, 'step': {'$tensor': 'x.0'}}
        >>> put_together({"betas": {"$tuple": [0.9, 0.5]}, "step": {"$tensor": "x.0"}}, found)
        {'betas': (0.9, 0.5), 'step': tensor([1.])}
    """
    return _Apart(tensors, prefix).of(value, where)


def put_together(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The value that was taken apart.

    Raises:
        ValueError: it is damaged.
    """
    if isinstance(value, list):
        return [put_together(v, tensors) for v in value]
    if not isinstance(value, dict):
        return value
    kind = next(iter(value), "")
    if len(value) == 1 and kind.startswith(_MARK):
        try:
            return _marked(kind, value[kind], tensors)
        except (KeyError, TypeError) as error:
            msg = f"{kind} does not stand for a value"
            raise ValueError(msg) from error
    return {key: put_together(v, tensors) for key, v in value.items()}


class _Apart:
    def __init__(self, tensors: dict[str, Tensor], prefix: str) -> None:
        self.tensors, self.prefix, self.depth = tensors, prefix, 0

    def of(self, value: Any, where: str) -> Any:
        self.depth += 1
        if self.depth > _DEPTH:
            what = f"values are nested more than {_DEPTH} deep, or hold themselves"
            raise CheckpointError("FXQ617", what, fix="store less of them")
        found = self._of(value, where)
        self.depth -= 1
        return found

    def _of(self, value: Any, where: str) -> Any:
        if value is None or type(value) in (bool, int, str):
            return value
        if type(value) is float:
            return value if math.isfinite(value) else {_FLOAT: repr(value)}
        if isinstance(value, Tensor):
            return {_TENSOR: self._kept(value)}
        if isinstance(value, (np.ndarray, np.generic)):
            return self._array(np.asarray(value), where)
        if isinstance(value, Counter):
            return {_COUNTER: self._pairs(value, where)}
        if isinstance(value, dict):
            return self._dict(value, where)
        if type(value) in (list, tuple):
            parts = [self.of(v, f"{where}[{i}]") for i, v in enumerate(value)]
            return parts if isinstance(value, list) else {_TUPLE: parts}
        what = f"{where} is a {type(value).__name__}, which is not stored"
        fix = "leave it out, or keep numbers, texts, lists, dicts and tensors"
        raise CheckpointError("FXQ617", what, fix=fix)

    def _dict(self, value: dict[Any, Any], where: str) -> Any:
        if all(type(k) is str and not k.startswith(_MARK) for k in value):
            return {k: self.of(v, f"{where}.{k}") for k, v in value.items()}
        return {_PAIRS: self._pairs(value, where)}

    def _pairs(self, value: Mapping[Any, Any], where: str) -> list[list[Any]]:
        return [[self.of(k, f"a key of {where}"), self.of(v, f"{where}.{k}")]
                for k, v in value.items()]  # fmt: skip

    def _array(self, value: np.ndarray[Any, Any], where: str) -> Any:
        # types that torch lacks, or safetensors does, are stored as wider integers or not at all
        if value.dtype.kind not in "biuf" or value.dtype == np.uint64:
            what = f"{where} is an array of {value.dtype}, which is not stored"
            raise CheckpointError("FXQ617", what, fix="convert it to int64 or float64")
        wide = value.astype(np.int64) if value.dtype.kind == "u" else value
        kept = self._kept(torch.from_numpy(np.ascontiguousarray(wide).reshape(value.shape)))
        return {_ARRAY: [kept, value.dtype.name]}

    def _kept(self, value: Tensor) -> str:
        name = f"{self.prefix}{len(self.tensors)}"
        plain = value.detach().as_subclass(Tensor)
        self.tensors[name] = plain.cpu().clone(memory_format=torch.contiguous_format)
        return name


def _marked(kind: str, value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if kind == _TUPLE:
        return tuple(put_together(value, tensors))
    if kind == _FLOAT:
        return float(value)
    if kind == _TENSOR:
        return tensors[value]
    if kind == _ARRAY:
        return tensors[value[0]].numpy().astype(value[1])[()]
    if kind in (_PAIRS, _COUNTER):
        found = {put_together(k, tensors): put_together(v, tensors) for k, v in value}
        return Counter(found) if kind == _COUNTER else found
    raise KeyError(kind)
