"""Models beyond what one protobuf message can hold."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from fxquant import QuantizationSimModel
from fxquant.onnx.io.writer import write_model
from fxquant.onnx.lint.verify import verify_model
from fxquant.onnx.session import Level, open_session

if TYPE_CHECKING:
    from typing import Any

_SCRIPT = """
import resource, sys
import torch
from torch import nn
from fxquant import QuantizationSimModel

torch.manual_seed(0)
layers = [nn.utils.skip_init(nn.Linear, *((16384, 8192) if i % 2 else (8192, 16384)))
          for i in range(4)]
with torch.no_grad():
    for layer in layers:
        layer.weight.uniform_(-0.01, 0.01)
        layer.bias.zero_()
x = torch.randn(1, 8192)
# the weights stay in floating point, so that the file is as large as the model
sim = QuantizationSimModel(nn.Sequential(*layers).eval(), x, quant_scheme="min_max",
                           config={"keep_float": ["*"]})
sim.export(sys.argv[1], "large", prove=False)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is Linux's")
def test_more_than_two_gigabytes_need_less_than_eight(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(tmp_path)], capture_output=True, text=True, check=True
    )
    peak, stored = int(done.stdout), (tmp_path / "large.onnx.data").stat().st_size
    assert stored > 2 << 30
    assert (tmp_path / "large.onnx").stat().st_size < 1 << 16
    assert peak < 8e9
    weights = ir.load(tmp_path / "large.onnx").graph.initializers
    last = weights["3.weight"].const_value
    assert last is not None
    assert 0 < float(np.abs(np.asarray(last.numpy()[:4])).max()) <= 0.01


def _small() -> tuple[Any, torch.Tensor]:
    x = torch.randn(2, 300)
    sim = QuantizationSimModel(nn.Sequential(nn.Linear(300, 300)).eval(), x, "min_max")
    sim.compute_encodings([x])
    return sim, x


def test_weights_beside_the_file_are_found_again(tmp_path: Path) -> None:
    from fxquant.onnx.lowering.lower import lower

    sim, x = _small()
    model = lower(sim.model, sim.example).model
    write_model(model, tmp_path / "whole.onnx")
    files = write_model(model, tmp_path / "apart.onnx", external_from=0)
    assert [f.name for f in files] == ["apart.onnx.data", "apart.onnx"]
    runs = [
        open_session(tmp_path / f"{name}.onnx", Level.ALL).run({"input": x.numpy()})["output"]
        for name in ("whole", "apart")
    ]
    assert np.array_equal(runs[0], runs[1])


def test_the_checker_sees_shapes_of_large_weights_without_their_bytes() -> None:
    from fxquant.onnx.lowering.lower import lower

    sim, _ = _small()
    model = lower(sim.model, sim.example).model
    assert verify_model(model)
    weight = model.graph.initializers["0.weight"]
    weight.const_value = ir.Tensor(np.zeros((300, 299), np.int8), name="0.weight")
    weight.shape = ir.Shape((300, 299))
    assert not verify_model(model)
