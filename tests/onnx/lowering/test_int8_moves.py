"""int8 values that are moved: onnxruntime loads the file and computes what it says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel

MOVES: dict[str, Callable[[Tensor], Tensor]] = {
    "view": lambda x: x.view(x.shape[0], -1, 4).reshape(x.shape),
    "flatten": lambda x: x.flatten(1).unflatten(1, (6, 8)),
    "transpose": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "unsqueeze": lambda x: x.unsqueeze(1).squeeze(1),
    "slice": lambda x: x[:, 1:5],
    "gather": lambda x: x[:, torch.tensor([0, 2, 1])],
    "expand": lambda x: x[:, :1].expand(-1, 4, -1),
    "tile": lambda x: torch.tile(x, (1, 2, 1)),
    "chunk": lambda x: x.chunk(2, 1)[1],
    "unbind": lambda x: x.unbind(1)[2],
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "interleave": lambda x: x.repeat_interleave(2, 1),
    "concat": lambda x: torch.cat([x[:, :2], x[:, 3:]], 1),
    "stack": lambda x: torch.stack([x, x], 1).flatten(1, 2),
    "max": lambda x: x.amax(1),
    "pool": lambda x: F.max_pool1d(x, 2).repeat(1, 1, 2),
    "pad": lambda x: F.pad(x, (0, 0, 1, 1)),
    "resize": lambda x: F.interpolate(x, size=8, mode="nearest"),
    "sum": lambda x: x[:, :1] + x,
    "mean": lambda x: (x[:, :1] + x).mean(1),
    "product": lambda x: x * x.unsqueeze(1).squeeze(1),
    "mean-behind": lambda x: x.unsqueeze(1).mean(2),
    "softmax": lambda x: x.transpose(1, 2).softmax(-1).transpose(1, 2),
    "norm": lambda x: F.layer_norm(x[:, 1:], (8,)),
    "attention": lambda x: (x[:, 1:] @ x.transpose(1, 2)[..., 1:]) @ x[:, 1:],
}


class Net(nn.Module):
    """Rows of a table or results of a layer, moved to a layer; another layer may read them too."""

    def __init__(self, move: Callable[[Tensor], Tensor], *, table: bool, shared: bool) -> None:
        super().__init__()
        self.first = nn.Embedding(11, 8) if table else nn.Linear(8, 8)
        self.move, self.shared = move, shared
        self.head, self.other = nn.Linear(8, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.first(x)
        result = self.head(self.move(y))
        return (result, self.other(y)) if self.shared else (result,)


@pytest.mark.parametrize("name", MOVES)
@pytest.mark.parametrize("table", [False, True], ids=["linear", "table"])
def test_a_move_of_bytes(name: str, table: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 11, (4, 6)) if table else torch.randn(4, 6, 8)
    net = Net(MOVES[name], table=table, shared=not table).eval()
    sim = QuantizationSimModel(net, x, "min_max", config={"activation_symmetric": not table})
    sim.compute_encodings([x])
    for opset in (13, 21):
        assert sim.export(tmp_path, "net", x, opset=opset)
        onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
        for node in onnx.load(tmp_path / "net.onnx").graph.node:
            if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
                assert len(node.input) == 3, f"{node.name} lacks a zero point"


@pytest.mark.parametrize("opset", [13, 15, 18, 19, 20, 21, 23])
def test_a_table_before_a_slice_in_every_opset(opset: int, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randint(0, 11, (4, 6))
    sim = QuantizationSimModel(Net(MOVES["mean"], table=True, shared=True).eval(), x, "min_max")
    sim.compute_encodings([x])
    assert sim.export(tmp_path, "net", x, opset=opset)
    kinds = [node.op_type for node in onnx.load(tmp_path / "net.onnx").graph.node]
    assert kinds.index("Slice") < kinds.index("DequantizeLinear", kinds.index("Slice"))


def test_both_operands_of_a_bilinear_layer(tmp_path: Path) -> None:
    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.both = nn.Linear(4, 8), nn.Linear(4, 8), nn.Bilinear(8, 8, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            a, b = self.a(x), self.b(x)
            return a @ b.t(), self.both(a, b)

    torch.manual_seed(0)
    x = torch.randn(6, 4)
    sim = QuantizationSimModel(Pair().eval(), x, "min_max")
    sim.compute_encodings([x])
    assert sim.export(tmp_path, "net", x)
    onnxruntime.InferenceSession(str(tmp_path / "net.onnx"))
