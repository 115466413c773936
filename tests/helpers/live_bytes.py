"""Bytes of tensors that are alive at once, counted operator by operator: the same on every run."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """The most bytes that were alive of what operators made inside of the block.

    What an operator needs while it computes is not seen.

    Attributes:
        peak: bytes.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = self._total = 0
        self._known: dict[int, tuple[Any, int]] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        given = {t.untyped_storage()._cdata for t in _tensors((args, kwargs))}
        found = func(*args, **(kwargs or {}))
        for tensor in _tensors(found):
            storage = tensor.untyped_storage()
            if storage._cdata not in given:
                self._forget(storage._cdata)
                self._known[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
                self._total += storage.nbytes()
        if self._total > self.peak:  # or some of it is gone
            for key in [k for k, (ref, _) in self._known.items() if ref.expired()]:
                self._forget(key)
            self.peak = max(self.peak, self._total)
        return found

    def _forget(self, key: int) -> None:
        self._total -= self._known.pop(key, (None, 0))[1]


def _tensors(value: Any) -> list[Tensor]:
    leaves = (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
    return [tensor for tensor in leaves if not tensor.is_meta]
