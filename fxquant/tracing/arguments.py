"""Python values as arguments of fx nodes: tensors and sizes become nodes, the rest literals.

A tensor that no recorded call made is a parameter or buffer of the model (``get_attr`` of its
name) or a constant: it came through something torch does not show (numpy, a Python cache, a plain
attribute) and is kept as a buffer that is not saved.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fxquant.errors import TraceError
from fxquant.graph.meta import Source, spec_of
from fxquant.graph.python_state import holds_nothing
from fxquant.graph.pytree import modules_of, tensors_of
from fxquant.graph.symbolic_ints import Change, Tracked
from fxquant.tracing.provenance import Origin, Origins

if TYPE_CHECKING:
    from torch.fx import Node

_LITERALS = (
    bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout,
    torch.memory_format, type(Ellipsis), range, enum.Enum, torch._ops.OpOverload,
)  # fmt: skip


# what nn.Module keeps its own tensors in
_CONTAINERS = frozenset({"_parameters", "_buffers", "_modules"})


@dataclass(frozen=True)
class Constant:
    """A tensor that reached the graph from outside of what torch shows.

    Attributes:
        name: the buffer that holds it.
        value: the tensor as it was met first.
        source: the user's line that used it first.
        attribute: path of the plain attribute of a module that holds it, if one does. Such a
            constant is the author's intention; one without may have been computed from the input.
    """

    name: str
    value: Tensor
    source: Source | None
    attribute: str | None


class State:
    """The model's own tensors and modules by identity, as they were before the run."""

    def __init__(self, root: nn.Module) -> None:
        self.root = root
        parameters, buffers = tensors_of(root)
        named = [*parameters.items(), *buffers.items()]
        self.tensors = {id(t): (name, t) for name, t in named}
        self.modules = {id(m): path for path, m in modules_of(root)}
        self.before = named
        self.attributes = {id(t): (path, t) for path, t in plain_tensors(root)}
        self.caches: dict[str, Tensor] = {}  # buffers that the run replaced by other shapes

    def is_unsaved(self, name: str) -> bool:
        """Whether a name is that of a buffer that `state_dict` leaves out."""
        owner, _, leaf = name.rpartition(".")
        known = any(name == held for held, _ in self.before)
        return known and leaf in self.root.get_submodule(owner)._non_persistent_buffers_set

    def keep_caches(self) -> None:
        """Leave caches as the run left them; call when everything else is as it was before."""
        for name, value in self.caches.items():
            owner, _, leaf = name.rpartition(".")
            self.root.get_submodule(owner)._buffers[leaf] = value

    def holds(self, module: nn.Module) -> bool:
        """Whether a module still has the tensors it had before the run (nobody swapped them)."""
        return all(
            t is None or id(t) in self.tensors
            for m in module.modules()
            for t in (*m._parameters.values(), *m._buffers.values())
        )


def plain_tensors(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    for path, module in modules_of(root):
        for name, value in vars(module).items():
            if holds_nothing(value):
                continue
            if isinstance(value, Tensor):
                yield f"{path}.{name}".lstrip("."), value
            elif isinstance(value, list | tuple | dict) and name not in _CONTAINERS:
                items = value.items() if isinstance(value, dict) else enumerate(value)
                for key, item in items:
                    if isinstance(item, Tensor):
                        yield f"{path}.{name}[{key!r}]".lstrip("."), item


class Writer:
    """Writes Python values as arguments of nodes."""

    def __init__(self, origins: Origins, state: State) -> None:
        self.origins = origins
        self.state = state
        self.constants: list[Constant] = []
        self.source: Source | None = None
        self.meta: dict[str, Any] = {}
        self.kept: list[Tensor] = []
        self.held: dict[str, Tensor] = {}  # the tensors of `constants`, as the model has them

    def write(self, value: Any) -> Any:
        """The fx argument for a Python value."""
        if isinstance(value, Tensor):
            return self.origins.node(self.origin(value))
        if isinstance(value, Tracked):
            return value.trail.node()
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, _LITERALS):
            return value
        return self._write_container(value)

    def _write_container(self, value: Any) -> Any:
        if isinstance(value, torch.Size):
            return tuple(self.write(v) for v in value)
        if isinstance(value, slice):
            return slice(self.write(value.start), self.write(value.stop), self.write(value.step))
        if is_dataclass(value) and not isinstance(value, type):
            return self._write_dataclass(value)
        if isinstance(value, dict):
            return self._write_dict(value)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            # built by a call: fx loses the class of a named tuple inside a dict
            return self._build(type(value), tuple(self.write(v) for v in value), {}, value)
        if isinstance(value, tuple):
            return tuple(self.write(v) for v in value)
        if isinstance(value, list):
            return [self.write(v) for v in value]
        return self._object(value)

    def _write_dataclass(self, value: Any) -> Any:
        known = {f.name: getattr(value, f.name, None) for f in fields(value) if f.init}
        given = {k: self.write(v) for k, v in known.items() if v is not None}
        return self._build(type(value), (), given, value)

    def _write_dict(self, value: dict[Any, Any]) -> Any:
        written = {k: self.write(v) for k, v in value.items()}
        if type(value) is dict:
            return written
        kind = type(value) if isinstance(value, OrderedDict) else dict
        return self._build(kind, (written,), {}, value)

    def _build(self, kind: type, args: tuple[Any, ...], kwargs: dict[str, Any], value: Any) -> Node:
        node = self.origins.create("call_function", kind, args, kwargs)
        node.meta.update(self.meta, spec=spec_of(value))
        self.origins.removable.append(node)
        return node

    def _object(self, value: Any) -> Node:
        """Anything fx cannot spell: an attribute of the graph module."""
        name = self._free("_object")
        setattr(self.state.root, name, value)
        return self._attribute(name, value)

    def _attribute(self, name: str, value: Any) -> Node:
        node = self.origins.create("get_attr", name)
        node.meta.update(self.meta, spec=spec_of(value))
        self.origins.removable.append(node)
        return node

    def _free(self, stem: str) -> str:
        taken = self.state.root
        return next(n for i in range(10**6) if not hasattr(taken, n := f"{stem}_{i}"))

    def origin(self, tensor: Tensor) -> Origin:
        """Where a tensor came from; parameters, buffers and constants are bound on first use."""
        found = self.origins.find(tensor)
        if found is None:
            name, known = self.state.tensors.get(id(tensor), ("", None))
            if known is not tensor:
                name = self._constant(tensor)
            found = Origin(self._attribute(name, tensor))
            found.held = name
            found.dims = (Change.NEVER,) * tensor.dim()
            found.depends = Change.VALUE if isinstance(tensor, nn.Parameter) else Change.NEVER
            self.origins.bind(tensor, found)
        return found

    def _constant(self, tensor: Tensor) -> str:
        if torch._C._functorch.is_functorch_wrapped_tensor(tensor):
            raise TraceError(
                "FXQ111",
                "a transform of torch.func (grad, jvp, vmap) runs around recorded calls",
                at=str(self.source) if self.source else None,
                fix="put the transform into a module of its own and keep that module as a leaf "
                "(modules_to_exclude)",
            )
        name = self._free("_constant")
        with torch.no_grad():
            value = tensor.detach().clone()
        self.state.root.register_buffer(name, value, persistent=False)
        path, known = self.state.attributes.get(id(tensor), ("", None))
        attribute = path if known is tensor else None
        # the tensor itself is kept alive by the table of constants: its id stays its own
        self.constants.append(Constant(name, value, self.source, attribute))
        self.kept.append(tensor)
        self.held[name] = tensor
        return name
