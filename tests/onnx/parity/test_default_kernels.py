"""What a report says about CPUs whose kernels saturate, on whichever CPU this is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxquant.onnx.examine import examine
from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.integer.saturation import describe
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.parity.default_kernels import NO_VNNI, default_kernels
from fxquant.sim import QuantizationSimModel
from tests.helpers.nets import Attention, Residual, image, simulated


def residual() -> tuple[QuantizationSimModel, torch.Tensor]:
    torch.manual_seed(0)
    x = image(6)
    return simulated(Residual(), x, quant_scheme="min_max"), x


def test_what_is_lost_is_told_with_figures(tmp_path: Path) -> None:
    sim, x = residual()
    report = sim.export(tmp_path, "net", x)
    assert report.proven  # about exact kernels, on every CPU
    assert report.cpu == str(this_cpu())
    assert report.cpu in str(report)
    (run,) = report.kernels
    exact = IntegerModel(tmp_path / "net.onnx")
    saturating = IntegerModel(tmp_path / "net.onnx", cpu="avx2")
    names = exact.visible_names
    a, b = (m.run({"x": x.numpy()}, names) for m in (exact, saturating))
    differing = [n for n in names if not np.array_equal(a[n], b[n])]
    assert (run.differing, run.tensors) == (len(differing), len(names))
    assert run.differing > 0
    assert run.rows == 6
    assert run.sqnr is not None
    assert f"outputs keep {run.sqnr:.1f} dB" in str(report)
    if this_cpu().exact:
        assert (run.cpu, run.measured, run.explained) == (NO_VNNI, False, None)
    else:
        assert (run.measured, run.explained) == (True, True)
    assert json.loads((tmp_path / "net.report.json").read_text())["kernels"][0]["rows"] == 6


def test_the_verify_command_says_the_same(tmp_path: Path) -> None:
    sim, x = residual()
    report = sim.export(tmp_path, "net", x)
    examined = examine(tmp_path / "net.onnx", [x.numpy()])
    assert examined
    assert examined.kernels == report.kernels
    assert examined.cpu == report.cpu
    assert f"run on {report.cpu}" in str(examined)
    assert str(report.kernels[0]) in str(examined)


@pytest.mark.parametrize("how", [{"deploy": "avx2"}, {"config": "reduce_range"}])
def test_nothing_is_said_where_nothing_can_saturate(how: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = image(4)
    sim = simulated(Residual(), x, config=how.get("config"))
    report = sim.export(tmp_path, "net", x, deploy=how.get("deploy"))
    assert report.kernels == ()
    assert report.risks == ()
    assert "saturate" not in str(report)


def test_products_of_two_activations_are_counted(tmp_path: Path) -> None:
    """Weights of 7 bits do not help keys and values."""
    torch.manual_seed(0)
    x = torch.randn(4, 6, 8)
    sim = simulated(Attention(), x, config="reduce_range")
    report = sim.export(tmp_path, "net", x)
    assert report.proven
    assert [risk.dynamic for risk in report.risks] == [True, True]
    assert "session.x64quantprecision do not help these" in describe(report.risks, exact=True)
    assert sim.export(tmp_path, "unsigned", x, deploy="avx2").risks == ()


@pytest.mark.parametrize("seed", range(6))
def test_a_tiny_attention_is_proven_and_told(seed: int, tmp_path: Path) -> None:
    torch.manual_seed(seed)
    x = torch.randn(3, 5, 8)
    sim = simulated(Attention(), x, config="reduce_range", quant_scheme="min_max")
    report = sim.export(tmp_path, "net", x)
    assert report.proven
    assert report.risks
    assert len(report.kernels) == 1


def test_large_examples_are_run_in_part(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 300, 300)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, stride=8), nn.ReLU(), nn.Conv2d(4, 4, 1))
    sim = simulated(net, x[:2], quant_scheme="min_max")
    sim.export(tmp_path, "net", x[:2], prove=False)
    (run,) = default_kernels(tmp_path / "net.onnx", {"input": x.numpy()})
    assert 1 <= run.rows < 8
