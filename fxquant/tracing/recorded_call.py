"""What is known of one call while it is written down."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.graph.python_state import version_of
from fxquant.graph.symbolic_ints import Change, Tracked, plain
from fxquant.tracing.shape_rules import Dims

if TYPE_CHECKING:
    from torch.fx import Node

    from fxquant.tracing.provenance import Origins


class Written:
    """A call being written: filled by the body of ``Recorder.writing``."""

    node: Node

    def __init__(
        self, op: str, target: Any, meta: dict[str, Any], args: Any, given: dict[str, Any]
    ) -> None:
        self.op = op
        self.target = target
        self.meta = meta
        self.args = args
        self.given = given
        self.name = str(getattr(target, "__name__", target))
        self.kwargs: dict[str, Any] = {}
        self.result: Any = None
        self.module: nn.Module | None = None


class Inputs:
    """The tensors and tracked numbers among a call's arguments."""

    def __init__(self, origins: Origins, values: Any) -> None:
        self.tensors: list[Tensor] = []
        self.sized = Change.NEVER
        self._collect(values)
        self.known: list[tuple[Tensor, Dims]] = []
        self.depends = self.sized
        for tensor in self.tensors:
            origin = origins.find(tensor)
            self.known.append((tensor, origin.dims if origin else (Change.NEVER,) * tensor.dim()))
            if origin is not None:
                self.depends = max(self.depends, origin.depends)
            elif isinstance(tensor, nn.Parameter):
                self.depends = Change.VALUE
        self._versions = [version_of(t) for t in self.tensors]

    def _collect(self, value: Any) -> None:
        if isinstance(value, Tensor):
            self.tensors.append(value)
        elif isinstance(value, Tracked):
            self.sized = max(self.sized, value.trail.change)
        elif isinstance(value, tuple | list):
            for part in value:
                self._collect(part)
        elif isinstance(value, dict):
            for part in value.values():
                self._collect(part)
        elif isinstance(value, slice):
            self._collect((value.start, value.stop, value.step))

    def mutated(self) -> list[Tensor]:
        """The tensors that the call wrote to."""
        pairs = zip(self.tensors, self._versions, strict=True)
        return [t for t, version in pairs if version_of(t) != version]


def has_tensor(value: Any) -> bool:
    """Whether a result holds a tensor anywhere."""
    if isinstance(value, Tensor):
        return True
    if isinstance(value, tuple | list):
        return any(has_tensor(v) for v in value)
    if isinstance(value, dict):
        return any(has_tensor(v) for v in value.values())
    return hasattr(value, "__dataclass_fields__") and any(map(has_tensor, vars(value).values()))


def plain_all(value: Any) -> Any:
    """Arguments with bare numbers in the place of tracked ones."""
    if isinstance(value, Tracked):
        return plain(value)
    if isinstance(value, torch.Size):
        return torch.Size(plain(v) for v in value)
    if isinstance(value, tuple | list):
        if not any(isinstance(v, Tracked | tuple | list | slice | dict) for v in value):
            return value
        changed = [plain_all(v) for v in value]
        if isinstance(value, list):
            return changed
        return type(value)(*changed) if hasattr(value, "_fields") else tuple(changed)
    if isinstance(value, dict):
        return {k: plain_all(v) for k, v in value.items()}
    if isinstance(value, slice):
        return slice(plain(value.start), plain(value.stop), plain(value.step))
    return value
