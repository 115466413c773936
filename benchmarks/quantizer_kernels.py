"""What a quantizer costs, in multiples of copying the tensor.

Run: ``OMP_NUM_THREADS=1 python benchmarks/quantizer_kernels.py [--elements 1000000]``

CPU time of one thread. Every repetition measures the copy and all variants once, so a busy machine
slows all of them alike; shown are medians of the ratios to the copy of the same repetition.
Tensors above 32 MB are page-faulted anew on every operator unless the allocator keeps them: set
``MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296`` to measure arithmetic.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from typing import TYPE_CHECKING

import torch

from fxquant.quantization import affine

if TYPE_CHECKING:
    from collections.abc import Callable

Variant = tuple[str, float, "Callable[[], object]"]


def quantizer(shape: tuple[int, ...], *, symmetric: bool, learn: bool) -> affine.QuantizeDequantize:
    """A calibrated 8-bit quantizer that clips a little."""
    q = affine.QuantizeDequantize(shape, 8, symmetric)
    q.set_range(-3.0, 3.0)
    q.requires_grad_(learn)
    return q


def forward(q: affine.QuantizeDequantize, x: torch.Tensor) -> Callable[[], object]:
    """Inference."""

    def call() -> object:
        with torch.no_grad():
            return q(x)

    return call


def both(q: affine.QuantizeDequantize, x: torch.Tensor) -> Callable[[], object]:
    """Forward and backward."""
    source = x.clone().requires_grad_()
    gradient = torch.randn_like(x)

    def call() -> object:
        source.grad = None
        q(source).backward(gradient)
        return source.grad

    return call


def calibration(q: affine.QuantizeDequantize, x: torch.Tensor) -> Callable[[], object]:
    """Observing one tensor."""
    context = q.compute_encodings()
    context.__enter__()
    return lambda: q(x)


def variants(n: int) -> list[Variant]:
    """Name, goal as a multiple of a copy, and call."""
    x = torch.randn(n)
    rows = x.view(8, -1)
    channels = (rows.shape[0], 1)
    found: list[Variant] = []
    for symmetric in (True, False):
        kind = "symmetric" if symmetric else "asymmetric"
        fixed = quantizer((), symmetric=symmetric, learn=False)
        learned = quantizer((), symmetric=symmetric, learn=True)
        found += [
            (f"forward, {kind}", 4, forward(fixed, x)),
            (f"forward + backward, {kind}", 9, both(fixed, x)),
            (f"forward + backward with range, {kind}", 14, both(learned, x)),
        ]
    fixed = quantizer(channels, symmetric=True, learn=False)
    learned = quantizer(channels, symmetric=True, learn=True)
    found += [
        ("forward, per channel", 5, forward(fixed, rows)),
        ("forward + backward, per channel", 9, both(fixed, rows)),
        ("forward + backward with range, per channel", 20, both(learned, rows)),
        ("min-max calibration", 4, calibration(quantizer((), symmetric=False, learn=False), x)),
    ]
    return found


def seconds(call: Callable[[], object], calls: int) -> float:
    """Mean CPU time of one call: others on the machine are not counted."""
    begin = time.process_time()
    for _ in range(calls):
        call()
    return (time.process_time() - begin) / calls


def measure(n: int, repetitions: int) -> dict[str, tuple[float, float, float]]:
    """Goal, ratio to a copy, and microseconds of every variant."""
    x, y = torch.randn(n), torch.empty(n)
    calls = max(3, min(2000, 20_000_000 // max(n, 1000)))
    rows = variants(n)
    for _, _, call in rows:
        call()
    ratios: dict[str, list[float]] = {name: [] for name, _, _ in rows}
    times: dict[str, list[float]] = {name: [] for name, _, _ in rows}
    for _ in range(repetitions):
        copy = seconds(lambda: y.copy_(x), calls)
        for name, _, call in rows:
            spent = seconds(call, calls)
            ratios[name].append(spent / copy)
            times[name].append(spent * 1e6)
    return {
        name: (goal, statistics.median(ratios[name]), statistics.median(times[name]))
        for name, goal, _ in rows
    }


def main() -> None:
    """Print one table a size."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--elements", type=int, nargs="*", default=[16, 100_000, 1_000_000])
    parser.add_argument("--repetitions", type=int, default=7)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for n in options.elements:
        lines = [f"{n} elements: multiples of a copy (goal), microseconds"]
        for name, (goal, ratio, spent) in measure(n, options.repetitions).items():
            lines.append(f"  {name:<45} {ratio:7.2f} ({goal:g})  {spent:10.1f}")
        sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
