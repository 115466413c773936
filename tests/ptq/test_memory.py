"""Memory of reconstruction: what deciding a layer takes is known, and a limit is kept."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from fxquant import QuantizationSimModel
from fxquant.ptq import ReconstructionOptions, reconstruct
from fxquant.ptq.engine import _Reconstruction
from fxquant.ptq.layer_walk import _one_batch
from fxquant.ptq.sampling import Sampling
from fxquant.ptq.working_memory import copied_bytes, working_bytes
from tests.helpers.live_bytes import LiveBytes

if TYPE_CHECKING:
    from pathlib import Path

    from fxquant.ptq.layer_walk import Visit

RNG = torch.Generator().manual_seed(0)


def rows(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=RNG)


def simulation(model: nn.Module, x: torch.Tensor, bits: int = 4) -> QuantizationSimModel:
    sim = QuantizationSimModel(model.eval(), x[:4], default_param_bw=bits)
    sim.compute_encodings([x])
    return sim


@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(320, 320), rows(9000, 320)),  # factored in float32
        (nn.Linear(160, 640), rows(9000, 160)),  # many outputs, factored in float64
        (nn.Linear(48, 700), rows(5000, 48)),  # several steps are tried
        (nn.Conv2d(64, 32, 3), rows(8, 64, 30, 30)),
        (nn.Conv2d(96, 96, 3, groups=96), rows(8, 96, 30, 30)),
        (nn.ConvTranspose2d(32, 32, 3, stride=2), rows(8, 32, 16, 16)),
    ],
    ids=["square", "wide", "narrow", "convolution", "depthwise", "transposed"],
)
def test_what_a_layer_takes_is_known(
    layer: nn.Module, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed: list[tuple[int, int]] = []
    visit = _Reconstruction._visit

    def counted(self: _Reconstruction, visited: Visit) -> Any:
        own = working_bytes(visited.layer, Sampling(8192, 8, 0).positions(visited.layer), 1 / 8)
        own += _one_batch(visited.layer.node, visited.walk, visited.sim)
        with LiveBytes() as live:
            found = visit(self, visited)
        needed.append((live.peak, own))
        return found

    monkeypatch.setattr(_Reconstruction, "_visit", counted)
    sim = simulation(nn.Sequential(nn.Identity(), layer), x)
    reconstruct(sim, list(x.split(max(1, len(x) // 8))), ReconstructionOptions(samples=10**5))
    ((peak, known),) = needed
    assert 0.3 * known < peak <= known


def network() -> nn.Module:
    torch.manual_seed(0)
    wide = [nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.ReLU()) for _ in range(2)]
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *wide, nn.Flatten(2))


def test_a_limit_is_kept_by_all_that_is_alive(tmp_path: Path) -> None:
    images = rows(96, 3, 32, 32)
    limit, peaks, weights = 9_000_000, [], []
    for most in (None, limit):
        sim = simulation(network(), images[:8])
        options = ReconstructionOptions(max_memory=most, folder=tmp_path, columns=2048)
        with LiveBytes() as live:
            # batches that nobody else holds
            report = reconstruct(sim, (x.clone() for x in images.split(6)), options)
        peaks.append(live.peak)
        weights.append([p.detach().clone() for p in sim.model.parameters()])
    assert peaks[0] > 1.5 * limit
    assert report.least_bytes <= limit
    assert peaks[1] <= 1.1 * limit
    assert "max_memory" not in str(report)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_a_limit_that_cannot_be_kept_is_said_before_and_after(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sim = simulation(nn.Sequential(nn.Linear(320, 320)), rows(300, 320))
    caplog.set_level(logging.WARNING, "fxquant")
    with pytest.raises(KeyboardInterrupt):
        reconstruct(sim, _interrupting(), ReconstructionOptions(max_memory=10**6))
    assert "max_memory is 1 MB, but 0 alone takes about" in caplog.text
    report = reconstruct(sim, [rows(300, 320)], ReconstructionOptions(max_memory=10**6))
    assert report.least_bytes > 10**6 + copied_bytes(sim.model)
    assert "max_memory of 1 MB was exceeded" in str(report)


def _interrupting() -> Any:
    yield from ()
    raise KeyboardInterrupt
