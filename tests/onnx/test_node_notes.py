"""What viewers show of the nodes of an exported file."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import onnx
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel

if TYPE_CHECKING:
    from pathlib import Path

    import pytest


class Net(nn.Module):
    """Two layers with a residual."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.second(self.first(x) + x)
        return found


def exported(folder: Path, **options: Any) -> Path:
    torch.manual_seed(0)
    x = torch.randn(4, 3, 6, 6)
    sim = QuantizationSimModel(Net().eval(), x, "min_max")
    sim.compute_encodings([x])
    sim.export(folder, "net", prove=False, **options)
    return folder / "net.onnx"


def notes(path: Path) -> dict[str, dict[str, str]]:
    graph = onnx.load(path).graph
    return {n.name: {p.key: p.value for p in n.metadata_props} for n in graph.node}


def test_nodes_name_module_and_line_and_conversions_their_grid(tmp_path: Path) -> None:
    path = exported(tmp_path)
    found = notes(path)
    assert found["second"]["fxquant.module"] == "second"
    name, _, line = found["add"]["fxquant.source"].partition(":")
    assert name == "test_node_notes.py"
    with open(__file__, encoding="utf-8") as text:
        assert "self.first(x) + x" in text.readlines()[int(line) - 1]
    values = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    scale, zero = values["add.output_scale"], values["add.output_zero_point"]
    kind, _, ends = found["add.output_q"]["fxquant.grid"].partition(", ")
    assert kind == "uint8"
    low, high = (float(end) for end in ends.split(" to "))
    assert abs(low - float(scale) * -int(zero)) <= 1e-3 * abs(low)
    assert abs(high - float(scale) * (255 - int(zero))) <= 1e-3 * abs(high)
    assert found["second.weight_dq"]["fxquant.grid"].startswith("int8 x 4, steps of ")
    assert found["second.bias_dq"]["fxquant.grid"].startswith("int32 x 4, steps of ")


def test_bytes_do_not_depend_on_where_a_file_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = set()
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        monkeypatch.chdir(tmp_path / name)
        digests.add(hashlib.sha256(exported(tmp_path / name).read_bytes()).hexdigest())
    assert len(digests) == 1


def test_older_formats_have_no_notes(tmp_path: Path) -> None:
    assert not any(notes(exported(tmp_path, opset=17)).values())
