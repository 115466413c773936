"""The tensors of a module, put back after every run with as few copies and readings as it takes.

A model and the graph that was recorded of it hold the same values, and only one of them runs at a
time: each is what the other one is put back from. Where all that a graph writes shows in the
versions of its parameters, those are not even read.
"""

from __future__ import annotations

import operator
import random
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxquant.graph.python_state import holds_nothing, version_of
from fxquant.graph.pytree import modules_of
from fxquant.nn import functional
from fxquant.nn.opaque import Opaque

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fxquant.graph.recorded_module import Known


class _Entry:
    """One tensor of a module: what holds it, its memory, and the values that belong there."""

    __slots__ = (
        "by_version", "bytes", "holder", "memory", "name", "path", "tensor", "value", "version",
    )  # fmt: skip

    def __init__(self, holder: Any, name: str, path: str, tensor: Tensor) -> None:
        self.holder, self.name, self.path, self.tensor = holder, name, path, tensor
        self.memory = tensor.detach()  # still there when `.data` is set, or the tensor resized
        self.bytes = self.memory.untyped_storage().nbytes()
        self.version = version_of(tensor)
        self.by_version = False
        self.value: Tensor | None = None

    def put_back(self) -> Tensor | None:
        """Put the tensor back; a copy of what a run left there, if that is something else."""
        tensor, memory, value = self.tensor, self.memory, self.value
        # the dictionaries of scripted modules are read-only views
        held = self.holder.get(self.name) if isinstance(self.holder, dict) else tensor
        stays = held is tensor and tensor.dtype == memory.dtype and tensor.is_set_to(memory)
        if stays and self.by_version and version_of(tensor) == self.version:
            return None
        if memory.untyped_storage().nbytes() != self.bytes:
            memory.untyped_storage().resize_(self.bytes)
        same = value is None or torch.equal(memory, value)
        if stays and same:
            return None
        left = held.detach().clone() if isinstance(held, Tensor) else None
        if held is not tensor:
            self.holder[self.name] = tensor
        if not stays:
            tensor.data = memory
        if value is not None and not same:
            memory.copy_(value)
        self.version = version_of(tensor)
        return left


class KeptState:
    """The parameters, buffers and plain tensors of a module, as they are when it is built.

    Args:
        module: whose they are.
        parameters: whether parameters are kept; a copy of them costs as much as a small run.
    """

    def __init__(self, module: nn.Module, *, parameters: bool = True) -> None:
        self._entries: dict[str, _Entry] = {}
        self._buffers: list[_Entry] = []
        self._holders: dict[int, tuple[Any, dict[str, Any]]] = {}  # copies of a module share them
        for path, part in modules_of(module):
            start = f"{path}." if path else ""
            if parameters:
                self._hold(part._parameters, start)
            self._buffers += self._hold(part._buffers, start)
            for name, value in vars(part).items():
                if not holds_nothing(value) and isinstance(value, Tensor):
                    self._entries[start + name] = _Entry(vars(part), name, start + name, value)

    def _hold(self, holder: Any, start: str) -> list[_Entry]:
        if id(holder) in self._holders:
            return []
        self._holders[id(holder)] = holder, dict(holder.items())
        found = [_Entry(holder, n, start + n, t) for n, t in holder.items() if t is not None]
        self._entries |= {entry.path: entry for entry in found}
        return found

    def copy(self) -> KeptState:
        """Keep copies of the values."""
        with torch.no_grad():
            for entry in self._entries.values():
                entry.value = entry.memory.clone()
        return self

    def pair(self, twin: KeptState, known: Known) -> None:
        """Keep the values in another module's tensors, where those have the same.

        Each of the two states is put back from the other one, so only one module runs at a time.

        Args:
            twin: the state of the other module.
            known: tensors of this one that equalled the other's when they had these versions.
        """
        with torch.no_grad():
            for path, entry in self._entries.items():
                other = twin._entries.get(path)
                if other is not None and _equal(entry, other, known):
                    entry.value, other.value = other.memory, entry.memory
            for entry in (*self._entries.values(), *twin._entries.values()):
                if entry.value is None:
                    entry.value = entry.memory.clone()

    def trust_versions(self) -> None:
        """Take parameters for unchanged whose version is: see `writes_show`."""
        for entry in self._entries.values():
            entry.by_version = isinstance(entry.tensor, nn.Parameter) and entry.version is not None

    def put_back(self) -> dict[str, Tensor]:
        """Put everything back; returns the buffers as they were before that."""
        with torch.no_grad():
            left = {e.path: t for e in self._entries.values() if (t := e.put_back()) is not None}
        for holder, items in self._holders.values():
            if isinstance(holder, dict) and not _same_items(holder, items):
                holder.clear()
                holder.update(items)
        values = {e.path: e.memory if e.value is None else e.value for e in self._buffers}
        return {path: left.get(path, value) for path, value in values.items()}


@contextmanager
def buffers_kept(module: nn.Module) -> Iterator[None]:
    """Put buffers and plain tensors back afterwards, values and identity."""
    kept = KeptState(module, parameters=False).copy()
    try:
        yield
    finally:
        kept.put_back()


@contextmanager
def random_numbers_kept() -> Iterator[None]:
    """Put the states of torch's, numpy's and Python's own generators back afterwards."""
    mine, numpys = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    try:
        with torch.random.fork_rng(devices):
            yield
    finally:
        random.setstate(mine)
        np.random.set_state(numpys)


def _same_items(holder: dict[str, Any], items: dict[str, Any]) -> bool:
    return list(holder) == list(items) and all(map(operator.is_, holder.values(), items.values()))


def _equal(entry: _Entry, other: _Entry, known: Known) -> bool:
    """Whether two tensors have the same values in memory of their own."""
    mine, there = entry.memory, other.memory
    if (mine.shape, mine.dtype, mine.device) != (there.shape, there.dtype, there.device):
        return False
    if mine.untyped_storage()._cdata == there.untyped_storage()._cdata:
        return False
    tensor, version = known.get(id(entry.tensor), (None, None))
    if tensor is entry.tensor and version is not None and version == entry.version:
        return True
    return torch.equal(mine, there)


# memory that torch loses sight of, and kernels that write statistics without a word
_WRITERS = (torch.batch_norm, torch.instance_norm)
_HIDDEN = frozenset(("data", "data_ptr", "numpy", *(f.__name__ for f in _WRITERS)))
_STATISTICS = (functional.DynamicBatchNorm, functional.DynamicInstanceNorm)
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def writes_show(gm: fx.GraphModule) -> bool:
    """Whether every write of a graph to a parameter raises the version of the parameter.

    Writes through `.data` do not, nor those of kernels to the statistics of batch norms; and nobody
    knows what other people's functions do.

    >>> from fxquant import prepare_model
    >>> writes_show(prepare_model(nn.Linear(2, 2), torch.zeros(1, 2)))
    True
    """
    return all(_shows(node, gm) for node in gm.graph.nodes)


def _shows(node: fx.Node, gm: fx.GraphModule) -> bool:
    if node.op == "call_module":
        return all(map(_is_torchs_module, gm.get_submodule(str(node.target)).modules()))
    if node.op not in ("call_function", "call_method"):
        return True
    return _is_torchs(node.target) and not (node.target is getattr and node.args[1] in _HIDDEN)


def _is_torchs_module(module: nn.Module) -> bool:
    held = vars(module)
    if "forward" in held or any(held[name] for name in _HOOKS) or isinstance(module, _STATISTICS):
        return False
    if isinstance(module, Opaque):
        return _is_torchs(module.function)
    return type(module).__module__.startswith(("torch.nn.", "fxquant.nn."))


def _is_torchs(function: Any) -> bool:
    """Whether a function, or a method of tensors by its name, is torch's or Python's own."""
    if isinstance(function, str):
        return function not in _HIDDEN
    home = str(getattr(function, "__module__", None) or "builtins").partition(".")[0]
    known = home in ("torch", "_operator", "builtins", "math")
    return known and getattr(function, "__name__", "") not in _HIDDEN
