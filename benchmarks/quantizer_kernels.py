"""What a quantizer costs, in multiples of copying the tensor; tiny tensors in microseconds.

Run: OMP_NUM_THREADS=1 python -m benchmarks.quantizer_kernels [--compile] [--json FILE] [ELEMENTS]

Every variant takes turns with a copy, and the fastest round of each counts (see `fastest`); not
all variants at once, which would empty the caches for each other. The allocator is told to keep
memory: a tensor above 32 MB is otherwise page-faulted anew on every operator, which costs more than
all arithmetic; the script starts itself again with that setting.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import click
import torch

from benchmarks.measure import one_thread, write_json
from fxquant.io.text_tables import table
from fxquant.onnx.ort.timing import fastest
from fxquant.quantization import affine

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    Call = Callable[[], object]

ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 32), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
TINY = 1000  # elements up to which the cost of a call counts
# goals as multiples of a copy: forward, with backward, with the gradient of the range, compiled
TENSOR, PARTS, COMPILED = (4.0, 9.0, 14.0), (4.0, 9.0, 22.0), 2.5
# goals in microseconds
CALL = (10.0, 30.0, 30.0)


def variants(n: int, *, compiled: bool) -> dict[str, tuple[float | None, Call]]:
    """Goal and call by name."""
    x = torch.randn(n)
    rows = x.view(8, -1)
    kinds = {"tensor": ((), None, x), "channel": ((8, 1), None, rows)}
    if n > TINY:
        kinds["block"] = ((8, n // 8 // 50), (1, -1), rows)  # type: ignore[assignment]
    found: dict[str, tuple[float | None, Call]] = {}
    for kind, (shape, block, source) in kinds.items():
        goals = TENSOR if kind == "tensor" else PARTS
        if n <= TINY:
            goals = CALL
        for symmetric in (True, False):
            q, learned = (
                affine.QuantizeDequantize(shape, 8, symmetric, block_size=block) for _ in range(2)
            )
            q.set_range(-3.0, 3.0)
            learned.set_range(-3.0, 3.0)
            q.requires_grad_(False)
            name = f"{kind}, {'symmetric' if symmetric else 'asymmetric'}"
            tiny_parts = n <= TINY and kind != "tensor"
            calls = forward(q, source), both(q, source), both(learned, source)
            steps = ("forward", "with backward", "with the range's gradient")
            for step, goal, call in zip(steps, goals, calls, strict=True):
                found[f"{name}: {step}"] = (None if tiny_parts else goal, call)
            if compiled and n > TINY:
                torch.compiler.reset()
                call = forward(torch.compile(q, fullgraph=True, dynamic=False), source)
                found[f"{name}: compiled forward"] = (COMPILED, call)
    return found


def forward(q: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> Call:
    """Inference."""

    def call() -> object:
        with torch.no_grad():
            return q(x)

    call()
    return call


def both(q: affine.QuantizeDequantize, x: torch.Tensor) -> Call:
    """Forward and backward."""
    source = x.clone().requires_grad_()
    gradient = torch.randn_like(x)

    def call() -> object:
        source.grad = None
        q(source).backward(gradient)
        return source.grad

    return call


def measure(n: int, *, compiled: bool) -> list[Mapping[str, object]]:
    """One row a variant: its goal, its multiple of a copy and microseconds."""
    x, y = torch.randn(n), torch.empty(n)
    rows = variants(n, compiled=compiled)
    rounds = 60 if n <= TINY else 40 if n <= 2_000_000 else 10
    spent: dict[str, tuple[float, float]] = {}
    for name, (_, call) in rows.items():
        for _ in range(5):
            call()
        found = fastest({"copy": lambda: y.copy_(x), "variant": call}, rounds=rounds)
        spent[name] = found["variant"], found["copy"]
    return [
        {
            "elements": n,
            "variant": name,
            "copies": round(spent[name][0] / spent[name][1], 2),
            "microseconds": round(spent[name][0] * 1e6, 1),
            "goal": goal,
        }
        for name, (goal, _) in rows.items()
    ]


@click.command()
@click.argument("elements", nargs=-1, type=int)
@click.option("--compile", "compiled", is_flag=True, help="Measure compiled quantizers too.")
@click.option("--json", "path", metavar="FILE", help="Write the rows here too.")
def main(elements: tuple[int, ...], compiled: bool, path: str | None) -> None:
    """Multiples of a copy; microseconds up to a thousand elements."""
    if any(name not in os.environ for name in ALLOCATOR):
        again = [sys.executable, "-m", "benchmarks.quantizer_kernels", *sys.argv[1:]]
        os.execve(sys.executable, again, os.environ | ALLOCATOR)
    one_thread()
    torch.manual_seed(0)
    sizes = elements or (16, 1_000_000, 10_000_000)
    rows = [row for n in sizes for row in measure(n, compiled=compiled)]
    unit = {True: "us", False: "copies"}
    cells = [
        (
            str(r["elements"]),
            str(r["variant"]),
            str(r["copies"]),
            str(r["microseconds"]),
            "" if r["goal"] is None else f"{r['goal']:g} {unit[int(str(r['elements'])) <= TINY]}",
        )
        for r in rows
    ]
    click.echo(table(("elements", "variant", "copies", "us", "goal"), cells))
    write_json(rows, path)


if __name__ == "__main__":
    main()
