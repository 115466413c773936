"""What the small networks are made of: layers with norms, and the form of a table's entry."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Shape: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Entry:
    """A network of a table.

    Attributes:
        make: builds the module.
        shapes: of its inputs, the batch first.
        sizes: other shapes of the inputs that the float model takes too.
        inputs: makes the inputs of shapes; default: normal numbers.
    """

    make: Callable[[], nn.Module]
    shapes: tuple[Shape, ...]
    sizes: tuple[tuple[Shape, ...], ...] = ()
    inputs: Callable[[Sequence[Shape]], tuple[Tensor, ...]] | None = None

    def model(self) -> nn.Module:
        """The network in evaluation mode, its statistics and biases not trivial."""
        torch.manual_seed(0)
        model = self.make()
        for module in model.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                nn.init.uniform_(module.bias, -0.3, 0.3)
                nn.init.uniform_(module.weight, 0.7, 1.3)
                if module.running_mean is not None and module.running_var is not None:
                    nn.init.uniform_(module.running_mean, -0.2, 0.2)
                    nn.init.uniform_(module.running_var, 0.3, 1.0)
        return model.eval()

    def example(self, shapes: Sequence[Shape] | None = None, seed: int = 1) -> tuple[Tensor, ...]:
        """Inputs of these shapes; the same for a seed."""
        torch.manual_seed(seed)
        given = self.shapes if shapes is None else shapes
        return self.inputs(given) if self.inputs else tuple(torch.randn(s) for s in given)


def image(batch: int = 3, channels: int = 3, height: int = 16, width: int = 16) -> tuple[Shape]:
    """The shapes of one image input."""
    return ((batch, channels, height, width),)


def cbr(
    a: int, b: int, k: int = 3, s: int = 1, *, g: int = 1, d: int = 1, act: Any = nn.ReLU
) -> nn.Sequential:
    """Convolution, batch norm, activation; the size stays but for the stride."""
    layers = [nn.Conv2d(a, b, k, s, d * (k // 2), d, g, bias=False), nn.BatchNorm2d(b)]
    return nn.Sequential(*layers, *([act()] if act else []))


class Stages(nn.Module):
    """A backbone: features of strides 2, 4, 8 ..."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        ins = (3, *widths[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(cbr(a, b, 3, 2), cbr(b, b)) for a, b in zip(ins, widths, strict=True)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        found = []
        for stage in self.stages:
            x = stage(x)
            found.append(x)
        return found
