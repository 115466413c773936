"""Functions of complex numbers that torch's exporter writes once they compute on pairs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fxquant.onnx.lowering.lower import lower
from fxquant.prepare import prepare_model
from fxquant.sim import QuantizationSimModel
from tests.helpers.lowering import run

F = torch.fft
WEIGHT = torch.view_as_complex(torch.linspace(-1, 1, 90).reshape(9, 5, 2))


def _written(x: Tensor) -> Any:
    waves = F.rfft(x)
    kept = torch.zeros(x.size(0), x.size(-1) // 2 + 1, dtype=torch.cfloat)
    kept[:, 1:5] = waves[:, 1:5]
    kept[..., 0] = 1.5
    return F.irfft(kept, n=x.size(-1))


def _made(x: Tensor) -> Any:
    waves = F.rfft(x)
    tail = [torch.zeros_like(waves[:, 4:]), waves.new_zeros(x.size(0), 2), torch.ones_like(waves)]
    return F.irfft(torch.cat([waves[:, :4], *tail], -1))


def _chosen(x: Tensor) -> Any:
    waves = F.rfft(x)
    loud = waves.abs() > waves.abs().mean(-1, keepdim=True)
    quiet = waves.masked_fill(loud, 2 - 1j)
    return F.irfft(torch.where(loud, waves * 2, quiet) + torch.where(loud, 0.5, waves))


def _mixed(x: Tensor) -> Any:
    mixed = torch.einsum("bi,io->bo", F.rfft(x) / 8, WEIGHT)
    return torch.view_as_real(torch.exp(mixed / 4))


def _padded(x: Tensor) -> Any:
    waves = nn.functional.pad(F.rfft(x)[:, :4], (1, 2))
    both = F.ifft(F.fft(waves, n=12), n=14)
    return F.irfft(both, n=40)


def _along_the_first_axis(x: Tensor) -> Any:
    return F.irfft(F.rfft(x.reshape(-1, 4, 4), dim=1), n=9, dim=1)


CASES = (_written, _made, _chosen, _mixed, _padded, _along_the_first_axis)


class Net(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Any:
        """[N, 16] -> what the function makes of it."""
        return self.function(x)


@pytest.mark.parametrize("function", CASES)
def test_the_file_computes_what_torch_does(function: Callable[[Tensor], Any]) -> None:
    torch.manual_seed(0)
    net = Net(function).eval()
    x = torch.randn(3, 16)
    lowered = lower(prepare_model(net, x), ((x,), {}))
    for other in (x, torch.randn(5, 16)):
        wanted = net(other).numpy()
        # onnxruntime's DFT has angles of up to 2 pi 40 in float32: a term is off by eps times that
        atol = 2 * np.pi * 40 * np.finfo(np.float32).eps * max(1.0, np.abs(wanted).max())
        got = run(lowered, [other])[0]
        assert got.shape == wanted.shape
        assert (np.abs(got - wanted) <= atol).all()


class Operator(nn.Module):
    """A Fourier layer that writes the low frequencies into zeros, sizes taken from its input."""

    def __init__(self) -> None:
        super().__init__()
        self.low = nn.Parameter(torch.randn(4, 4, 3, 3, dtype=torch.cfloat) * 0.3)
        self.high = nn.Parameter(torch.randn(4, 4, 3, 3, dtype=torch.cfloat) * 0.3)
        self.skip = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 4, H, W] -> [N, 4, H, W]."""
        waves = torch.fft.rfft2(x)
        out = torch.zeros(*x.shape[:3], x.size(-1) // 2 + 1, dtype=torch.cfloat)
        out[:, :, :3, :3] = torch.einsum("bixy,ioxy->boxy", waves[:, :, :3, :3], self.low)
        out[:, :, -3:, :3] = torch.einsum("bixy,ioxy->boxy", waves[:, :, -3:, :3], self.high)
        return torch.relu(torch.fft.irfft2(out, s=(x.size(-2), x.size(-1))) + self.skip(x))


def test_fourier_layers_in_a_row_are_exported(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 1), Operator(), Operator(), nn.Conv2d(4, 1, 1)).eval()
    x = torch.randn(4, 2, 8, 8)
    sim = QuantizationSimModel(net, x, "min_max")
    sim.compute_encodings([x])
    assert sim.export(tmp_path, "net", x)
