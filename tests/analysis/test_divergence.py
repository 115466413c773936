"""The first tensor that differs is found, whoever computes it, and values come out in files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.analysis.debugging.divergence import FLOAT, INTEGER, first_divergence
from fxquant.analysis.debugging.layer_outputs import save_layer_outputs
from fxquant.errors import ConfigError
from fxquant.onnx.ort.cpu import this_cpu
from tests.helpers.modules import quantized

X = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(4))
OFF, ALL = (f"onnxruntime, optimizations {level}" for level in ("off", "all"))


class Net(nn.Module):
    """Convolutions, and an input that is called as a module is."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.relu = nn.Conv2d(3, 6, 3), nn.ReLU()
        self.x, self.fc = nn.Conv2d(6, 6, 3), nn.Linear(96, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.x(self.relu(self.first(x)))
        return self.fc(y.flatten(1))  # type: ignore[no-any-return]


def simulated() -> QuantizationSimModel:
    torch.manual_seed(0)
    sim = QuantizationSimModel(Net().eval(), X[:1], "min_max")
    sim.compute_encodings([X])
    return sim


def test_nothing_diverges_where_all_compute_alike() -> None:
    found = first_divergence(simulated(), X)
    assert found.compared == (FLOAT, INTEGER, OFF, ALL)
    assert [row.module for row in found.rows] == ["x_stub", "relu", "x", "flatten"]
    exact = (INTEGER, OFF) if not this_cpu().exact else (INTEGER, OFF, ALL)
    for other in (FLOAT, *exact):
        assert found.first(other) is None, str(found)
        assert found.outputs.get(other, 0.0) < 0.01
    assert all(row.float_db is not None and row.float_db > 25 for row in found.rows)
    assert json.loads(found.to_json())["first"][INTEGER] is None


def test_a_kernel_that_computes_otherwise_is_the_first_one() -> None:
    sim = simulated()
    # the simulation alone computes this module so: a file knows nothing of it
    module = quantized(sim, "x")

    def shifted(layer: Any, y: Tensor, *, params: dict[str, Tensor], **_: Any) -> Tensor:
        weight, bias = (params[n].dequantize() for n in ("weight", "bias"))
        return torch.conv2d(y.dequantize(), weight, bias) * 1.2

    module.set_kernel(shifted)
    found = first_divergence(sim, X)
    for other in (INTEGER, OFF):
        first = found.first(other)
        assert first is not None, str(found)
        assert first.module == "x"
        assert "test_divergence.py" in first.source
    first = found.first(FLOAT)
    assert first is not None
    assert first.module == "x"
    assert f"{INTEGER}: more than 1 step(s) first at x" in str(found)
    assert found.outputs[INTEGER] > 0.1


@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_all_values_are_in_the_files(tmp_path: Path, form: Any) -> None:
    sim = simulated()
    data = [X[:4], X[4:].mT.contiguous().mT]  # the second one does not lie in a row
    files = save_layer_outputs(sim, data, tmp_path / "new", form=form, max_memory=10_000)
    assert [f.name for f in files] == [
        f"{way}_{i}.{form}" for i in (0, 1) for way in ("float", "simulation")
    ]
    exact, found = (_load(path) for path in files[2:])
    torch.manual_seed(0)
    net = Net().eval()
    with torch.no_grad():
        y = net.first(X[4:])
        np.testing.assert_array_equal(exact["first"], y)
        np.testing.assert_allclose(exact["fc"], net(X[4:]), rtol=1e-6, atol=1e-6)
        np.testing.assert_array_equal(found["fc"], sim.model(X[4:]))
    names = {"x", "x_stub", "first", "relu", "x@x_1", "fc"}
    assert names <= exact.keys() == found.keys()
    np.testing.assert_array_equal(found["x"], X[4:])
    assert found["x@x_1"].shape == (4, 6, 4, 4)


def _load(path: Path) -> dict[str, Any]:
    if path.suffix == ".npz":
        with np.load(path) as file:
            return dict(file)
    return {name: tensor.numpy() for name, tensor in load_file(path).items()}


def test_an_unknown_form_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FXQ238"):
        save_layer_outputs(simulated(), [X], tmp_path, form="pickle")  # type: ignore[arg-type]
