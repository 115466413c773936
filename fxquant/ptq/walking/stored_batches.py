"""Batches for several walks, taken from an iterable once."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, overload

from fxquant.ptq.walking.value_store import ValueStore

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class StoredBatches(Sequence[Any]):
    """Batches of an iterable, in memory or in files.

    Args:
        batches: what is gone through once; a list, which somebody holds, is not copied.
        max_memory: as for `Walk`: whether memory is limited.
        folder: where files are.
    """

    def __init__(
        self, batches: Iterable[Any], max_memory: int | None, folder: str | Path | None = None
    ) -> None:
        held = max_memory is None or isinstance(batches, list | tuple)
        self._store = ValueStore(None if held else 0, folder)
        count = 0
        for count, batch in enumerate(batches, 1):
            self._store.put(count - 1, batch)
        self._numbers = range(count)

    def __enter__(self) -> StoredBatches:
        return self

    def __exit__(self, *_: object) -> None:
        self._store.close()

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> StoredBatches: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, int):
            return self._store.get(self._numbers[index])
        part = copy.copy(self)
        part._numbers = self._numbers[index]
        return part
