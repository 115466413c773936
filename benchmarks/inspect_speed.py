"""Time to place and to inspect a graph of a thousand operators; preparing is not counted."""

from __future__ import annotations

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import insert_stubs, prepare_model
from fxquant.analysis.inspector import Inspector
from fxquant.config import QuantConfig
from fxquant.passes import simulation_pipeline
from fxquant.placement.regions import find_regions
from fxquant.quantization import QuantScheme
from fxquant.targets import load_target


class Chain(nn.Module):
    """Blocks of four operators: convolution, ReLU, convolution, sum."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.first = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(blocks))
        self.second = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(F.relu(first(x)))
        return x


def measure(blocks: int = 250) -> dict[str, float]:
    """Seconds of every step for a chain of `4 * blocks` operators."""
    torch.set_num_threads(1)
    x = torch.randn(1, 4, 4, 4)
    prepared = prepare_model(Chain(blocks).eval(), x)
    target = load_target("onnxruntime_x86")
    pipeline = simulation_pipeline(QuantConfig(), target, QuantScheme.min_max)
    found: dict[str, float] = {}
    placed = prepare_model(prepared, x)
    found["place"] = _seconds(lambda: pipeline(placed))
    parts = insert_stubs(prepared, regions=[f"first.{i}" for i in range(0, blocks, 2)])
    found["regions"] = _seconds(lambda: find_regions(parts))
    placed_parts = prepare_model(parts, x)
    found["place with regions"] = _seconds(lambda: pipeline(placed_parts))
    inspector = Inspector(target)
    report = inspector.inspect(prepared, x)
    found["inspect"] = _seconds(lambda: inspector.inspect(prepared, x))
    found["picture"] = _seconds(report.to_svg)
    return found


def _seconds(run: object) -> float:
    start = time.process_time()
    run()  # type: ignore[operator]
    return time.process_time() - start


if __name__ == "__main__":
    for name, seconds in measure().items():
        print(f"{name:20} {seconds:6.3f} s")
