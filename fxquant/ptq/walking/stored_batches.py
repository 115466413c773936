"""Batches for several walks, taken from an iterable once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant.ptq.walking.value_store import ValueStore
from fxquant.ptq.walking.walk import named_batches

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from torch import fx


class StoredBatches:
    """Batches that can be gone through more than once; in files, where memory is limited.

    Lists are gone through again themselves: the caller holds them.

    Args:
        gm: the graph, as for `Walk`.
        data: as for `Walk`.
        samples: as for `Walk`.
        max_memory: None: they lie in memory.
        folder: where files are.

    Raises:
        CalibrationError: as for `Walk`.
    """

    def __init__(
        self, gm: fx.GraphModule, data: Any, samples: int | None, max_memory: int | None,
        folder: str | Path | None,
    ) -> None:  # fmt: skip
        self._store = ValueStore(None if max_memory is None else 0, folder)
        self._data = data if isinstance(data, list | tuple) else None
        self._count = 0
        if self._data is None:
            for batch in named_batches(gm, data, samples):
                self._store.put(self._count, batch)
                self._count += 1

    def __enter__(self) -> StoredBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def __iter__(self) -> Iterator[Any]:
        if self._data is not None:
            return iter(self._data)
        return map(self._store.get, range(self._count))
