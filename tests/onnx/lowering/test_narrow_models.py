"""A whole model in another float type is refused with the reason, before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from fxquant import QuantizationSimModel
from fxquant.errors import ExportError


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_that_are_not_float32_are_refused(dtype: torch.dtype, tmp_path: Path) -> None:
    x = torch.randn(2, 8, dtype=dtype)
    sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)).to(dtype), x)
    sim.compute_encodings([x])
    with pytest.raises(ExportError, match=r"0\.weight is torch\.\w+: integer kernels") as caught:
        sim.export(tmp_path, "m", x)
    assert caught.value.code == "FXQ549"
    assert "model.float()" in str(caught.value.fix)
    assert not any(tmp_path.iterdir())


def test_an_input_that_onnxruntime_cannot_be_given_is_refused(tmp_path: Path) -> None:
    x = torch.randn(2, 8, dtype=torch.bfloat16)
    sim = QuantizationSimModel(nn.Sequential(nn.ReLU()), x)
    sim.compute_encodings([x])
    with pytest.raises(ExportError) as caught:
        sim.export(tmp_path, "m", x)
    assert caught.value.code == "FXQ553"
    assert not any(tmp_path.iterdir())
