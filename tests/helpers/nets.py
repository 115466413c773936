"""Small quantized networks for tests of lowering."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn

from fxquant.nn import QuantizationMixin
from fxquant.nn.containers import QuantizerDict
from fxquant.prepare import prepare_model
from fxquant.sim import QuantizationSimModel


class Residual(nn.Module):
    """A convolution with batch norm, a shortcut, a pool and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 3, H, W] -> [N, 5]."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(x + self.conv2(x))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


class Attention(nn.Module):
    """Self-attention over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))
        self.proj = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[N, L, 8] -> [N, L, 8]."""
        n, length, width = x.shape
        layers = (self.query, self.key, self.value)
        q, k, v = (f(x).reshape(n, length, 2, 4).transpose(1, 2) for f in layers)
        y = nn.functional.scaled_dot_product_attention(q, k, v)
        return self.proj(y.transpose(1, 2).reshape(n, length, width))  # type: ignore[no-any-return]


def prepared(net: nn.Module, *inputs: Any) -> fx.GraphModule:
    """The net as a prepared graph."""
    made = prepare_model(net.eval(), inputs if len(inputs) > 1 else inputs[0])
    assert isinstance(made, fx.GraphModule)
    return made


def simulated(net: nn.Module, *inputs: Any, **options: Any) -> QuantizationSimModel:
    """The net, simulated and calibrated on its inputs."""
    example = inputs if len(inputs) > 1 else inputs[0]
    sim = QuantizationSimModel(net.eval(), example, **options)
    sim.compute_encodings([example])
    return sim


def param_quantizers(gm: fx.GraphModule, path: str) -> QuantizerDict:
    """The quantizers of a module's parameters."""
    module = gm.get_submodule(path)
    assert isinstance(module, QuantizationMixin)
    return module.param_quantizers


def image(batch: int = 2) -> Tensor:
    """A batch of images for `Residual`."""
    return torch.randn(batch, 3, 8, 8)
