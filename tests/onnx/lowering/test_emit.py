"""Forms of operators that the samples of the table do not reach."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant.nn import functional as fn
from tests.helpers.lowering import check, graph_of


def image(*size: int) -> Tensor:
    return torch.randn(2, 4, *(size or (9, 11)))


def module_cases() -> dict[str, tuple[nn.Module, tuple[Any, ...]]]:
    """Modules with inputs."""
    flat, line, cube = torch.randn(2, 6), torch.randn(2, 4, 9), torch.randn(2, 4, 5, 6, 7)
    steps = torch.randn(2, 5, 6)
    cases: dict[str, tuple[nn.Module, tuple[Any, ...]]] = {
        "conv-same": (nn.Conv2d(4, 3, (4, 3), padding="same", dilation=2), (image(),)),
        "conv-valid": (nn.Conv2d(4, 3, 3, padding="valid"), (image(),)),
        "conv-no-batch": (nn.Conv2d(4, 3, 3), (image()[0],)),
        "conv3d": (nn.Conv3d(4, 2, 3, stride=2, padding=1), (cube,)),
        "conv_transpose-groups": (nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2), (image(),)),
        "conv_transpose-size": (nn.ConvTranspose1d(4, 6, 3, 2, 1), (line, [18])),
        "linear-no-bias": (nn.Linear(6, 3, bias=False), (flat,)),
        "linear-vector": (nn.Linear(6, 3), (flat[0],)),
        "linear-4d": (nn.Linear(6, 3), (torch.randn(2, 3, 4, 6),)),
        "prelu-channels": (nn.PReLU(4), (image(),)),
        "prelu-flat": (nn.PReLU(6), (flat,)),
        "gelu-tanh": (nn.GELU("tanh"), (flat,)),
        "softmax2d": (nn.Softmax2d(), (image(),)),
        "softplus-low": (nn.Softplus(2.0, 1.0), (flat,)),
        "batch_norm1d": (nn.BatchNorm1d(4), (line,)),
        "batch_norm-flat": (nn.BatchNorm1d(6), (flat,)),
        "batch_norm-plain": (nn.BatchNorm2d(4, affine=False), (image(),)),
        "instance_norm-affine": (nn.InstanceNorm2d(4, affine=True), (image(),)),
        "instance_norm-tracked": (nn.InstanceNorm2d(4, track_running_stats=True), (image(),)),
        "layer_norm-2d": (nn.LayerNorm((9, 11)), (image(),)),
        "layer_norm-no-bias": (nn.LayerNorm(11, bias=False), (image(),)),
        "group_norm-3d": (nn.GroupNorm(2, 4), (line,)),
        "max_pool-ceil": (nn.MaxPool2d(3, 2, 1, ceil_mode=True), (image(),)),
        "max_pool-dilated": (nn.MaxPool2d(3, 2, 1, dilation=2), (image(),)),
        "max_pool-indices": (nn.MaxPool2d(2, return_indices=True), (image(),)),
        "max_pool-no-batch": (nn.MaxPool2d(2), (image()[0],)),
        "avg_pool-ceil": (nn.AvgPool2d(3, 2, ceil_mode=True), (image(8, 8),)),
        "avg_pool-ceil-pad": (nn.AvgPool2d(3, 2, 1, ceil_mode=True), (image(8, 8),)),
        "avg_pool-ceil-out": (
            nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False), (image(8, 8),)),
        "avg_pool-divisor": (nn.AvgPool2d(3, 2, 1, divisor_override=5), (image(),)),
        "adaptive_avg-uneven": (nn.AdaptiveAvgPool2d((4, 5)), (image(),)),
        "adaptive_avg-one-axis": (nn.AdaptiveAvgPool2d((None, 1)), (image(),)),
        "adaptive_avg3d-uneven": (nn.AdaptiveAvgPool3d((2, 4, 3)), (cube,)),
        "adaptive_max-uneven": (nn.AdaptiveMaxPool2d((4, 5)), (image(),)),
        "adaptive_max-indices": (nn.AdaptiveMaxPool2d((3, 1), return_indices=True), (image(),)),
        "pad-circular": (nn.CircularPad2d((1, 2, 1, 0)), (image(),)),
        "pad-replicate": (nn.ReplicationPad3d(1), (cube,)),
        "upsample": (nn.Upsample(scale_factor=1.5, mode="bilinear"), (image(8, 8),)),
        "pixel_shuffle-deep": (nn.PixelShuffle(2), (torch.randn(2, 3, 8, 3, 3),)),
        "fold-padding": (nn.Fold((5, 5), 2, padding=1), (torch.randn(2, 8, 36),)),
        "unfold-strides": (nn.Unfold((2, 3), (2, 1), (1, 0), (1, 2)), (image(),)),
        "lstm-deep": (nn.LSTM(6, 4, 2, batch_first=True, bidirectional=True), (steps,)),
        "lstm-state": (nn.LSTM(6, 4, batch_first=False),
                       (steps, (torch.zeros(1, 5, 4), torch.ones(1, 5, 4)))),
        "lstm-no-bias": (nn.LSTM(6, 4, bias=False), (steps,)),
        "lstm-projected": (nn.LSTM(6, 4, proj_size=3, batch_first=True), (steps,)),
        "lstm-projected-deep": (nn.LSTM(6, 4, 2, proj_size=1, bidirectional=True), (steps,)),
        "lstm-projected-state": (nn.LSTM(6, 4, 2, proj_size=2, bidirectional=True), (
            steps, (torch.randn(4, 5, 2), torch.randn(4, 5, 4)))),
        "gru": (nn.GRU(6, 4, 2, batch_first=True), (steps,)),
        "gru-both": (nn.GRU(6, 4, batch_first=True, bidirectional=True), (steps,)),
        "rnn-relu": (nn.RNN(6, 4, 2, nonlinearity="relu", batch_first=True), (steps,)),
        "gru-no-batch": (nn.GRU(6, 4), (steps[0],)),
    }  # fmt: skip
    for mode in ("zeros", "reflect", "replicate", "circular"):
        conv = nn.Conv2d(4, 3, 3, padding=(1, 2), padding_mode=mode)
        cases[f"conv-{mode}"] = (conv, (image(),))
    return cases


_MODULES = module_cases()


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("name", list(_MODULES))
def test_module(name: str) -> None:
    module, inputs = _MODULES[name]
    for buffer in module.buffers():
        buffer.data = torch.rand_like(buffer, dtype=torch.float32).to(buffer.dtype) + 0.5
    gm = graph_of(module, *inputs)
    check(gm, _flat(inputs))


@pytest.mark.parametrize("opset", [13, 23])
@pytest.mark.parametrize(
    "name", ["gelu-tanh", "pad-circular", "layer_norm-2d", "conv-circular", "lstm-deep"]
)
def test_module_in_other_opsets(name: str, opset: int) -> None:
    module, inputs = _MODULES[name]
    check(graph_of(module, *inputs), _flat(inputs), opset=opset)


def _flat(inputs: tuple[Any, ...]) -> list[Tensor]:
    found: list[Tensor] = []
    for value in inputs:
        found += [value] if isinstance(value, Tensor) else []
        found += _flat(tuple(value)) if isinstance(value, list | tuple) else []
    return found


x = torch.randn(2, 3, 4)
ints = torch.randint(-5, 9, (2, 3))
bools = torch.tensor([[True, False, True], [False, False, True]])
_CALLS: dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]] = {
    "add-int-float": (fn.Add(), (ints, 1.5), {}),
    "add-int-tensor": (fn.Add(), (ints, torch.randn(2, 3)), {}),
    "add-bool": (fn.Add(), (bools, ints), {}),
    "div-ints": (fn.Divide(), (ints, 2), {}),
    "div-floor": (fn.Divide(), (x, 0.7), {"rounding_mode": "floor"}),
    "div-floor-ints": (fn.Divide(), (ints, 3), {"rounding_mode": "floor"}),
    "div-trunc": (fn.Divide(), (x, 0.7), {"rounding_mode": "trunc"}),
    "remainder-ints": (fn.Remainder(), (ints, 3), {}),
    "remainder-negative": (fn.Remainder(), (x, -0.7), {}),
    "pow-base": (fn.Pow(), (2.0, x), {}),
    "clamp-tensors": (fn.Clamp(), (x, torch.zeros(4)), {"max": torch.ones(4)}),
    "clamp-ints": (fn.Clamp(), (ints, 0, 5), {}),
    "round-decimals": (fn.Round(), (x,), {"decimals": 2}),
    "sum-ints": (fn.Sum(), (ints, 1), {}),
    "sum-bools": (fn.Sum(), (bools, 1), {}),
    "mean-image": (fn.Mean(), (image(), (2, 3)), {}),
    "mean-image-keep": (fn.Mean(), (image(), (-2, -1)), {"keepdim": True}),
    "std-correction": (fn.Std(), (x, 1), {"correction": 2}),
    "argmax-all": (fn.ArgMax(), (torch.randn(3, 4),), {}),
    "where-scalars": (fn.Where(), (bools, 1.0, 0.0), {}),
    "eq-bools": (fn.Equal(), (bools, bools), {}),
    "gt-ints": (fn.Greater(), (ints, 1.5), {}),
    "cat-ints": (fn.Concat(), ([ints, torch.randn(2, 3)],), {"dim": 1}),
    "cat-empty": (fn.Concat(), ([torch.zeros(0), x],), {"dim": 1}),
    "view-dynamic": (fn.View(), (x, -1, 2, 6), {}),
    "flatten-middle": (nn.Flatten(0, 1), (x,), {}),
    "repeat-more": (fn.Repeat(), (x, 2, 1, 1, 3), {}),
    "repeat_interleave-batch": (fn.RepeatInterleave(), (x, 3, 0), {}),
    "tile-less": (fn.Tile(), (x, (2,)), {}),
    "roll-flat": (fn.Roll(), (torch.randn(1, 4), 2), {}),
    "rot90-back": (fn.Rot90(), (image(), -1, (2, 3)), {}),
    "rot90-twice": (fn.Rot90(), (image(), 2, (2, 3)), {}),
    "movedim-two": (fn.MoveDim(), (image(), (1, 2), (-1, 1)), {}),
    "squeeze-all": (fn.Squeeze(), (torch.randn(2, 1, 3, 1),), {}),
    "split-last-short": (fn.Split(), (torch.randn(2, 7), 3, 1), {}),
    "unbind-last": (fn.Unbind(), (x, -1), {}),
    "getitem-negative": (fn.GetItem(), (x, (slice(None), -1, slice(-3, None))), {}),
    "getitem-list": (fn.GetItem(), (x, (slice(None), [2, 0])), {}),
    "getitem-none": (fn.GetItem(), (x, (slice(None), None, Ellipsis, 1)), {}),
    "setitem-number": (fn.SetItem(), (x, (slice(None), 1), 7.0), {}),
    "setitem-slice": (fn.SetItem(), (x, (slice(None), slice(1, 3)), torch.randn(2, 2, 4)), {}),
    "setitem-position": (fn.SetItem(), (x, (slice(None), 1), torch.randn(2, 4)), {}),
    "pad-negative": (fn.Pad(), (image(), (-1, 2, 1, -2)), {}),
    "scatter-number": (fn.Scatter(), (x, 2, torch.zeros(2, 3, 1, dtype=torch.int64), 3.0), {}),
    "norm-inf": (fn.Norm(), (x, float("inf"), 1), {}),
    "norm-3": (fn.Norm(), (x, 3, 1), {}),
    "interpolate-exact": (fn.Interpolate(), (image(),), {"size": (6, 20), "mode": "nearest-exact"}),
    "interpolate-cubic": (
        fn.Interpolate(), (image(),), {"scale_factor": 2.0, "mode": "bicubic"}),
    "interpolate-antialias": (
        fn.Interpolate(), (torch.randn(2, 3, 16, 12),),
        {"size": (7, 17), "mode": "bicubic", "antialias": True}),
    "interpolate-line": (fn.Interpolate(), (x,), {"size": 7, "mode": "linear"}),
    "interpolate-cube": (
        fn.Interpolate(), (torch.randn(2, 3, 4, 4, 4),), {"size": (6, 5, 7), "mode": "trilinear"}),
    "grid_sample-nearest": (fn.GridSample(), (image(), torch.rand(2, 5, 5, 2) * 2 - 1),
                            {"mode": "nearest", "padding_mode": "border", "align_corners": True}),
    "einsum-three": (fn.Einsum(), ("bi, ij, bj -> b", torch.randn(2, 3), torch.randn(3, 4),
                                   torch.randn(2, 4)), {}),
    "sdpa-mask": (fn.ScaledDotProductAttention(), tuple(torch.randn(3, 2, 2, 5, 4)),
                  {"attn_mask": torch.ones(5, 5, dtype=torch.bool).tril()}),
    "bmm": (fn.Bmm(), (torch.randn(2, 3, 4), torch.randn(2, 4, 5)), {}),
    "linear-dynamic": (fn.DynamicLinear(), (x, torch.randn(5, 4), torch.randn(5)), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(_CALLS))
def test_call(name: str) -> None:
    module, args, kwargs = _CALLS[name]
    gm = graph_of(module, *args, **kwargs)
    check(gm, _flat((*args, tuple(kwargs.values()))))
