"""Values of a graph's nodes, in memory up to a limit and in files beyond it.

Memory is counted by storage: views of one tensor count once. What is written out is the oldest
value that is larger than a page; it is read again when it is asked for, and forgotten after its
last use like the others. What is computed from the values needs memory too: whoever computes says
how much, and values make room for it.
"""

from __future__ import annotations

import ctypes
import itertools
import math
import sys
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fxquant.graph.pytree import map_leaves, tensors
from fxquant.quantization.tensor import DequantizedTensor, adopt, plain

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterator

_SMALLEST = 4096  # bytes; below that a file costs more than it frees
# of the limit: what may be freed before it is given back
_SHARE = 1 / 16
# of glibc; elsewhere memory goes back by itself, or not at all
_library = ctypes.CDLL(None) if sys.platform == "linux" else None
_trim = getattr(_library, "malloc_trim", None)
_mallopt = getattr(_library, "mallopt", None)
# its parameters, and what they are by default and at most
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_SMALL_BLOCK, _LARGE_BLOCK = 128 * 1024, 32 * 1024 * 1024


@contextmanager
def returning_freed(max_memory: int | None) -> Iterator[None]:
    """Let the C library give large blocks back as soon as they are freed, where memory is limited.

    glibc keeps freed blocks of up to 32 MB once it has seen some of that size, which may be more
    than the limit. Afterwards it does so again.
    """
    if max_memory is None or _mallopt is None:
        yield
        return
    _mallopt(_MMAP_THRESHOLD, _SMALL_BLOCK)
    _mallopt(_TRIM_THRESHOLD, _SMALL_BLOCK)
    try:
        yield
    finally:
        _mallopt(_MMAP_THRESHOLD, _LARGE_BLOCK)
        _mallopt(_TRIM_THRESHOLD, 2 * _LARGE_BLOCK)


class _Written:
    """A tensor in a file; no dataclass, whose fields would count as parts of a nested value."""

    def __init__(self, tensor: Tensor, path: Path) -> None:
        self.path, self.shape = path, tuple(tensor.shape)
        self.dtype, self.device, self.nbytes = tensor.dtype, tensor.device, tensor.nbytes
        self.kind = type(tensor) if isinstance(tensor, DequantizedTensor) else None
        self.encoding = getattr(tensor, "encoding", None)
        numbers = plain(tensor).detach().cpu().contiguous().reshape(-1)
        path.write_bytes(numbers.view(torch.uint8).numpy().data)

    def read(self) -> Tensor:
        flat = torch.empty(math.prod(self.shape), dtype=self.dtype)
        with self.path.open("rb") as file:  # not mapped: the mapped pages would count as well
            file.readinto(flat.view(torch.uint8).numpy().data)
        value = flat.reshape(self.shape).to(self.device)
        return value if self.kind is None else adopt(value, self.encoding, self.kind)


class ValueStore:
    """Values by key; tensors beyond `max_memory` bytes lie in a temporary folder.

    Args:
        max_memory: bytes of the values, together with what is reserved for computing; None: no
            limit.
        folder: where the temporary folder is made.

    Attributes:
        peak: most bytes that were held in memory.
        written: bytes that were written to files.
        least: most bytes that were reserved: what would have been needed without any value.
    """

    def __init__(self, max_memory: int | None = None, folder: str | Path | None = None) -> None:
        self.max_memory = max_memory
        self.peak = self.written = self.least = 0
        self._values: dict[Hashable, Any] = {}
        self._bytes: dict[int, list[int]] = {}  # storage -> [bytes, uses]
        self._held = self._reserved = self._freed = 0
        self._numbers = itertools.count()
        self._home = folder
        self._folder: TemporaryDirectory[str] | None = None

    def __enter__(self) -> ValueStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Forget all values and remove the files."""
        self._values.clear()
        self._bytes.clear()
        self._held = 0
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def put(self, key: Hashable, value: Any) -> None:
        """Keep a value."""
        self.drop(key)
        self._values[key] = value
        self._count(value, 1)
        self._make_room()
        self.peak = max(self.peak, self._held)

    @contextmanager
    def reserving(self, count: int) -> Iterator[None]:
        """Let values leave room for so many bytes that are computed with meanwhile."""
        self._reserved += count
        self.least = max(self.least, self._reserved)
        self._make_room()
        try:
            yield
        finally:
            self._reserved -= count

    def size_of(self, key: Hashable) -> int:
        """Bytes of a value, wherever it lies."""
        sizes: list[int] = []
        map_leaves(
            self._values[key],
            lambda x: sizes.append(x.nbytes) if isinstance(x, Tensor | _Written) else None,
        )
        return sum(sizes)

    def return_freed(self) -> None:
        """Give memory that values have left back to the system, where it is limited.

        The C library keeps what is freed, in pieces between what is not; of values that come and
        go it keeps more than the values are.
        """
        self._freed = 0
        if self.max_memory is not None and _trim is not None:
            _trim(0)

    def _make_room(self) -> None:
        if self.max_memory is None:
            return
        self._spill(max(0, self.max_memory - self._reserved))
        if self._freed > _SHARE * self.max_memory:
            self.return_freed()

    def get(self, key: Hashable) -> Any:
        """The value; one that lies in files is read for this use only."""
        return map_leaves(self._values[key], lambda x: x.read() if isinstance(x, _Written) else x)

    def drop(self, key: Hashable) -> None:
        """Forget a value."""
        if key not in self._values:
            return
        value = self._values.pop(key)
        self._count(value, -1)
        map_leaves(value, lambda x: x.path.unlink() if isinstance(x, _Written) else None)

    def _count(self, value: Any, change: int) -> None:
        for tensor in tensors(value):
            storage = tensor.untyped_storage()
            entry = self._bytes.setdefault(storage.data_ptr(), [storage.nbytes(), 0])
            if entry[1] == 0:
                self._held += entry[0]
            entry[1] += change
            if entry[1] == 0:
                self._held -= entry[0]
                del self._bytes[storage.data_ptr()]

    def _spill(self, limit: int) -> None:
        """Write values to files, the oldest first, until the rest fits."""
        for key in list(self._values):
            if self._held <= limit:
                return
            value = self._values[key]
            if not any(t.nbytes > _SMALLEST for t in tensors(value)):
                continue
            self._values[key] = map_leaves(value, self._write)
            self._count(value, -1)
            self._count(self._values[key], 1)

    def _write(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or leaf.nbytes <= _SMALLEST:
            return leaf
        if self._folder is None:
            self._folder = TemporaryDirectory(prefix="fxquant-", dir=self._home)
        self.written += leaf.nbytes
        self._freed += leaf.nbytes
        return _Written(leaf, Path(self._folder.name) / f"{next(self._numbers)}.bin")
