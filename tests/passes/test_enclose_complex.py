"""Operations on complex numbers become modules between real values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, prepare_model
from fxquant.errors import ExportError
from fxquant.graph.meta import TensorSpec, spec
from fxquant.nn.opaque import Complex
from fxquant.onnx import lower
from fxquant.passes import EncloseComplex
from tests.helpers.golden import assert_rewrites

X = torch.randn(2, 4, 8)


class Filter(nn.Module):
    """A product in the frequency domain with a parameter; a mask computed from what is there."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, dtype=torch.cfloat))
        self.mask = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Any:
        waves = torch.fft.rfft(x) * self.weight
        return torch.fft.irfft(waves * self.mask(waves.abs()), n=8)


def test_islands_hand_each_other_pairs_of_real_numbers() -> None:
    assert_rewrites(
        EncloseComplex(),
        Filter(),
        """
              %x            = input
            - %fft_rfft     = fft_rfft(%x)
              %weight       = attr[weight]
            - %mul          = .mul(%fft_rfft, %weight)
            - %abs_1        = .abs(%mul)
            + %view_as_real = view_as_real(%weight)
            + %complex_1    = Complex[complex](%x, %view_as_real)
            + %getitem      = getitem(%complex_1, 0)
            + %getitem_1    = getitem(%complex_1, 1)
            - %mask         = linear[mask](%abs_1)
            + %mask         = linear[mask](%getitem_1)
            + %complex_2    = Complex[complex_1](%getitem, %mask)
            + return %complex_2
            - %mul_1        = .mul(%mul, %mask)
            - %fft_irfft    = fft_irfft(%mul_1, n=8)
            - return %fft_irfft
        """,
        inputs=X,
    )


def test_no_complex_value_is_left_and_none_has_a_grid() -> None:
    net = Filter().eval()
    gm = prepare_model(net, X)
    with torch.no_grad():
        assert torch.equal(gm(X), net(X))
    made = [n for n in gm.graph.nodes if n.op == "call_module"]
    assert sum(isinstance(gm.get_submodule(str(n.target)), Complex) for n in made) == 2
    assert not any(spec(n).dtype.is_complex for n in made if isinstance(spec(n), TensorSpec))
    sim = QuantizationSimModel(gm, X, "tf")
    sim.compute_encodings(lambda model, _: model(X), None)


def test_sizes_that_are_taken_late_are_taken_again_inside() -> None:
    class Correlation(nn.Module):
        def forward(self, x: Tensor) -> Any:
            waves = torch.fft.rfft(x, dim=1)
            loudest = waves.abs().mean(1)
            return torch.fft.irfft(waves * waves.conj(), dim=1, n=x.size(1)), loudest.amax(-1)

    net = Correlation()
    gm = prepare_model(net, X)
    assert not any(_is_complex(n) for n in gm.graph.nodes)
    for x in (X, torch.randn(3, 4, 8)):
        for got, wanted in zip(gm(x), net(x), strict=True):
            assert torch.equal(got, wanted)


def _is_complex(node: torch.fx.Node) -> bool:
    found = spec(node)
    return isinstance(found, TensorSpec) and found.dtype.is_complex


def test_complex_results_are_refused_by_name() -> None:
    class Spectrum(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.fft.fft(x)

    gm = prepare_model(Spectrum(), X)
    assert torch.equal(gm(X), torch.fft.fft(X))
    with pytest.raises(ExportError, match=r"FXQ534.*complex numbers"):
        lower(gm, ((X,), {}))
