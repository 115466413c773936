"""What the benchmarks measure with, beside `fxquant.onnx.ort.timing.fastest`."""

from __future__ import annotations

import ctypes
import gc
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from fxquant.onnx.ort.timing import NO_SPINNING
from fxquant.onnx.session import Level, open_session

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from torch import Tensor


def cpu_seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds of one call over all threads of the process, and its result."""
    begin = time.process_time()
    result = call()
    return time.process_time() - begin, result


def peak_bytes(call: Callable[[], Any]) -> tuple[int | None, Any]:
    """Most memory that a call added to what the process holds, and its result; Linux only."""
    status, clear = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not clear.exists():
        return None, call()
    gc.collect()
    # glibc keeps what was freed; reused, it would hide what the call needs
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
    before = _kilobytes(status, "VmRSS")
    clear.write_text("5")  # the peak begins anew
    result = call()
    return (_kilobytes(status, "VmHWM") - before) * 1024, result


def _kilobytes(status: Path, field: str) -> int:
    line = next(x for x in status.read_text().splitlines() if x.startswith(f"{field}:"))
    return int(line.split()[1])


def runner(path: Path, inputs: Sequence[Tensor]) -> Callable[[], Any]:
    """A call of an ONNX file in onnxruntime on one thread, fully optimized."""
    session = open_session(path, Level.ALL, threads=1, entries=NO_SPINNING)
    feeds = dict(zip(session.inputs, (x.numpy() for x in inputs), strict=True))
    return lambda: session.run(feeds)


def one_thread() -> None:
    """Let torch use one thread."""
    torch.set_num_threads(1)


def write_json(rows: Sequence[Mapping[str, Any]], path: str | None) -> None:
    """Rows as JSON, if a file is given."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(json.dumps(list(rows), indent=1) + "\n", encoding="utf-8")
