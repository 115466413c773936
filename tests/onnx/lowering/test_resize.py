"""Every interpolation between two convolutions: the file loads and runs at every level."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel

SIZE = (8, 7, 6)
HOWS: dict[str, Any] = {
    "uneven": {"size": (9, 5, 12)},
    "larger": {"size": (12, 14, 12)},
    "smaller": {"size": (4, 3, 2)},
    "factors": {"scale_factor": (0.5, 1.7, 2.0)},
    "recomputed": {"scale_factor": (1.3, 1.3, 1.3), "recompute_scale_factor": True},
}
MODES = {1: ("nearest", "linear", "area"), 2: ("nearest-exact", "bilinear", "bicubic", "area"),
         3: ("nearest", "trilinear", "area")}  # fmt: skip


class Between(nn.Module):
    def __init__(self, n: int, options: dict[str, Any]) -> None:
        super().__init__()
        kind: Any = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n - 1]
        self.before, self.after, self.options = kind(3, 6, 3, padding=1), kind(6, 3, 1), options

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.after(F.interpolate(self.before(x), **self.options))
        return y


def _options(n: int, mode: str, how: str, **more: Any) -> dict[str, Any]:
    given = {k: v if isinstance(v, bool) else v[:n] for k, v in HOWS[how].items()}
    return {**given, "mode": mode, **more}


def _cases() -> Iterator[Any]:
    for n, modes in MODES.items():
        for mode in modes:
            for how in HOWS:
                yield pytest.param(n, _options(n, mode, how), id=f"{mode}-{how}")
    for how in ("uneven", "smaller", "factors"):
        for more in ({"align_corners": True}, {"antialias": True}, ALIGNED):
            for mode in ("bilinear", "bicubic"):
                name = "-".join([mode, how, *more])
                yield pytest.param(2, _options(2, mode, how, **more), id=name)


ALIGNED = {"antialias": True, "align_corners": True}


@pytest.mark.parametrize(("n", "options"), list(_cases()))
def test_between_convolutions(n: int, options: dict[str, Any], tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, *SIZE[:n])
    opset = 21 if len(options) % 2 else 17
    sim = QuantizationSimModel(Between(n, options).eval(), x, "min_max")
    sim.compute_encodings([x])
    assert sim.export(tmp_path, "net", x, opset=opset)
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_BASIC", "ORT_ENABLE_EXTENDED", "ORT_ENABLE_ALL"):
        settings = onnxruntime.SessionOptions()
        settings.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
        session = onnxruntime.InferenceSession(str(tmp_path / "net.onnx"), settings)
        for given in (x, torch.randn(5, 3, *SIZE[:n]).clamp(-2, 2)):
            with torch.no_grad():
                wanted = sim.model(given).numpy()
            (found,) = session.run(None, {"x": given.numpy()})
            # a rounding tie before the last layer is a step of one of its six inputs
            assert np.abs(found - wanted).max() < 0.03 * np.abs(wanted).max()
    graph = onnx.load(tmp_path / "net.onnx").graph
    assert not any(
        a.name == "axes" for k in graph.node if k.op_type == "Resize" for a in k.attribute
    )
