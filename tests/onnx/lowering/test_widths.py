"""Every width exports and agrees with onnxruntime within one step, or is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant.quantization as Q
from fxquant import QuantizationSimModel
from fxquant.errors import ExportError
from fxquant.quantization.affine import BiasQuantizeDequantize

FLOATS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8e4m3": torch.float8_e4m3fn,
    "float8e5m2": torch.float8_e5m2,
}


class Grid(NamedTuple):
    """One column or row of the table."""

    kind: str  # tensor, channel, block, lpbq, none, or a float type
    bits: int = 0
    signed: bool = False
    symmetric: bool = False

    def __str__(self) -> str:
        if not self.bits:
            return self.kind
        sign = "s" if self.signed else "u"
        return f"{self.kind}-{sign}{self.bits}{'sym' if self.symmetric else ''}"


ACTIVATIONS = [
    *(Grid("tensor", bits, signed, symmetric)
      for bits in range(2, 17) for signed in (False, True) for symmetric in (False, True)),
    *map(Grid, FLOATS),
]  # fmt: skip
WEIGHTS = [
    *(Grid("tensor", bits, True, True) for bits in range(2, 17)),
    *(Grid("channel", bits, True, True) for bits in range(2, 17)),
    Grid("channel", 8), Grid("channel", 4, True), Grid("channel", 8, False, True),
    *(Grid("block", bits, True, True) for bits in (2, 4, 8, 16)),
    Grid("lpbq", 4, True, True), *map(Grid, FLOATS), Grid("none"),
]  # fmt: skip
USUAL_A = [Grid("tensor", 8), Grid("tensor", 16), Grid("tensor", 4), Grid("float16")]
USUAL_W = [Grid("channel", 8, True, True)]
USUAL = [(a, w) for a in ACTIVATIONS for w in USUAL_W if a.bits in (0, 2, 3, 4, 7, 8, 9, 15, 16)]
USUAL += [(a, w) for a in USUAL_A[:1] for w in WEIGHTS]
REST = [(a, w) for a in ACTIVATIONS for w in WEIGHTS if (a, w) not in USUAL]


class Net(nn.Module):
    """A convolution and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.fc = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 4, 8, 8] -> [N, 16]."""
        y = F.max_pool2d(F.relu(self.conv(x)), 4)
        return self.fc(y.flatten(1))  # type: ignore[no-any-return]


torch.manual_seed(0)
NET, X = Net().eval(), torch.randn(4, 4, 8, 8)


def activation(grid: Grid) -> Q.QuantizerBase:
    if grid.kind in FLOATS:
        return Q.float.FloatQuantizeDequantize(dtype=FLOATS[grid.kind])
    return Q.affine.QuantizeDequantize((), grid.bits, grid.symmetric, signed=grid.signed)


def weight(grid: Grid, w: Tensor) -> Q.QuantizerBase | None:
    if grid.kind == "none":
        return None
    if grid.kind in FLOATS:
        return Q.float.FloatQuantizeDequantize(dtype=FLOATS[grid.kind])
    shape = {"tensor": (), "channel": (w.shape[0], *[1] * (w.dim() - 1))}.get(grid.kind)
    if shape is not None:
        return Q.affine.QuantizeDequantize(shape, grid.bits, grid.symmetric, signed=grid.signed)
    blocks = (1, w.shape[1] // 2, *w.shape[2:])
    shape = (w.shape[0], 2, *[1] * (w.dim() - 2))
    if grid.kind == "block":
        return Q.affine.QuantizeDequantize(shape, grid.bits, True, block_size=blocks)
    groups = (1, -1, *[1] * (w.dim() - 2))
    return Q.affine.GroupedBlockQuantizeDequantize(
        shape, grid.bits, True, 8, block_size=blocks, block_grouping=groups
    )


def simulation(a: Grid, w: Grid) -> QuantizationSimModel:
    """The net with quantizers assigned by hand."""
    sim = QuantizationSimModel(NET, X)
    new: dict[int, Any] = {}
    for module in sim.qmodules():
        for index, old in module.output_quantizers.active():
            new.setdefault(id(old), activation(a))
            module.output_quantizers[index] = new[id(old)]
        own = dict(module.param_quantizers.active()).get("weight")
        if own is not None:
            new[id(own)] = module.param_quantizers["weight"] = weight(w, module.weight)  # type: ignore[arg-type]
    for module in sim.qmodules():
        bias = dict(module.param_quantizers.active()).get("bias")
        if isinstance(bias, BiasQuantizeDequantize):
            pair = [new[id(q)] for q in (bias.input_quantizer, bias.weight_quantizer)]
            whole = all(isinstance(q, Q.affine.QuantizeDequantize) for q in pair)
            module.param_quantizers["bias"] = BiasQuantizeDequantize(*pair) if whole else None
    sim.compute_encodings([X])
    return sim


def label(value: object) -> str:
    return str(value)


def agrees(a: Grid, w: Grid, folder: Path) -> None:
    # the proof compares every tensor at both levels and raises beyond one step
    report = simulation(a, w).export(folder, "net")
    assert report
    assert report.proven


@pytest.mark.parametrize(("a", "w"), USUAL, ids=label)
def test_a_width_agrees_with_the_runtime(a: Grid, w: Grid, tmp_path: Path) -> None:
    agrees(a, w, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("a", ACTIVATIONS, ids=label)
def test_every_width_agrees_with_the_runtime(a: Grid, tmp_path: Path) -> None:
    for other, w in REST:
        if other == a:
            agrees(a, w, tmp_path)


# (activation, weight, opset, code) of what ONNX, or an older opset, cannot say
REFUSED = [
    (Grid("tensor", 16), USUAL_W[0], 20, "FXQ505"),
    (Grid("tensor", 12), USUAL_W[0], 20, "FXQ505"),
    (Grid("tensor", 24), USUAL_W[0], 21, "FXQ505"),
    (Grid("tensor", 8), Grid("channel", 16, True, True), 20, "FXQ505"),
    (Grid("float8e4m3"), USUAL_W[0], 18, "FXQ528"),
    (Grid("tensor", 8), Grid("float8e5m2"), 18, "FXQ528"),
]


@pytest.mark.parametrize(("a", "w", "opset", "code"), REFUSED, ids=label)
def test_what_an_opset_cannot_say_is_refused_by_name(
    a: Grid, w: Grid, opset: int, code: str, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=code):
        simulation(a, w).export(tmp_path, "net", opset=opset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("opset", [13, 18, 20, 23])
def test_narrow_widths_are_stored_in_bytes_before_opset_21(opset: int, tmp_path: Path) -> None:
    sim = simulation(Grid("tensor", 6), Grid("channel", 3, True, True))
    assert sim.export(tmp_path, "net", opset=opset)


@pytest.mark.parametrize("bits", [(4, 4), (5, 3), (8, 4), (16, 8), (16, 16)])
def test_default_bitwidths(bits: tuple[int, int], tmp_path: Path) -> None:
    sim = QuantizationSimModel(NET, X, default_output_bw=bits[0], default_param_bw=bits[1])
    sim.compute_encodings([X])
    assert sim.export(tmp_path, "net")
