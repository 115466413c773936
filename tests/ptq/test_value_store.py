"""Values in memory up to a limit: what computing needs is left free, files give back every bit."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest
import torch

from fxquant.ptq.walking.value_store import ValueStore
from fxquant.quantization import affine

if TYPE_CHECKING:
    from pathlib import Path

PAGE = 1 << 16


def held(store: ValueStore, keys: range) -> list[int]:
    """Keys whose values lie in memory: reading one gives the very tensor."""
    return [k for k in keys if store.get(k) is store.get(k)]


def test_values_make_room_for_what_is_computed_and_stay_out(tmp_path: Path) -> None:
    values = [torch.randn(PAGE // 4) for _ in range(4)]
    with ValueStore(4 * PAGE, tmp_path) as store:
        for key, value in enumerate(values):
            store.put(key, value)
        assert store.written == 0
        with store.reserving(2 * PAGE):
            assert store.written == 2 * PAGE
            assert held(store, range(4)) == [2, 3]
            store.put(4, values[0].clone())
            assert held(store, range(5)) == [3, 4]
        store.put(5, values[0].clone())
        assert held(store, range(6)) == [3, 4, 5]
        with store.reserving(9 * PAGE):  # more than there is: nothing is held
            assert held(store, range(6)) == []
        assert all(torch.equal(store.get(k), v) for k, v in enumerate(values))
    assert not list(tmp_path.iterdir())


def test_files_give_back_types_shapes_and_encodings(tmp_path: Path) -> None:
    q = affine.QuantizeDequantize((), 8)
    q.set_range(-1.0, 2.0)
    values = {
        "half": torch.randn(30, 100).half(),
        "steps": torch.arange(5000)[::2],
        "grid": q(torch.randn(20, 300)).detach(),
        "flags": torch.randn(9000) > 0,
    }
    with ValueStore(0, tmp_path) as store:
        for name, value in values.items():
            store.put(name, value)
        for name, value in values.items():
            found = store.get(name)
            assert type(found) is type(value)
            assert found.dtype == value.dtype
            assert torch.equal(found, value)
        assert torch.equal(store.get("grid").encoding.scale, values["grid"].encoding.scale)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_freed_values_leave_the_process(tmp_path: Path) -> None:
    def resident() -> int:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * 4096

    count, size = 400, 1 << 18
    with ValueStore(count * size, tmp_path) as store:
        before = resident()
        for key in range(count):
            store.put(key, torch.ones(size // 4))
        assert resident() - before > 0.9 * count * size
        with store.reserving(count * size):
            store.return_freed()
            assert resident() - before < 0.1 * count * size
