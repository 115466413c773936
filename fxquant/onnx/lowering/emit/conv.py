"""Convolutions, with every padding that PyTorch has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fxquant.onnx.lowering.context import Call, static_sizes
from fxquant.onnx.lowering.emit import phases
from fxquant.onnx.lowering.emit.spatial import pad_value
from fxquant.onnx.lowering.emitters import emits

if TYPE_CHECKING:
    import onnx_ir as ir


@emits("conv1d", "conv2d", "conv3d")
def _conv(c: Call) -> ir.Value:
    x, weight = c.spec(), c.spec("weight")
    n = weight.rank - 2
    kernel, dilation = static_sizes(weight.shape[2:], "the kernel"), c.ints("dilation", n)
    begin, end = _padding(c, n, kernel, dilation)
    blocks = phases.axes_of(c, begin)
    if blocks is not None:
        return phases.convolve(c, blocks)
    value, batched = _batched(c, c.tensor(), x.rank == n + 1)
    mode = getattr(c.module, "padding_mode", "zeros")
    if mode != "zeros":
        value = _padded(c, value, begin, end, mode)
        begin = end = [0] * n
    y = c.op(
        "Conv", value, c.parameter("weight"), c.parameter("bias"), kernel_shape=kernel,
        strides=c.ints("stride", n), dilations=dilation, pads=[*begin, *end],
        group=int(c.static("groups")),
    )  # fmt: skip
    c.builder.main(y)
    return y if batched else c.squeeze(y, [0])


@emits("conv_transpose1d", "conv_transpose2d", "conv_transpose3d")
def _conv_transpose(c: Call) -> ir.Value:
    x, weight = c.spec(), c.spec("weight")
    n = weight.rank - 2
    padding = c.ints("padding", n)
    value, batched = _batched(c, c.tensor(), x.rank == n + 1)
    y = c.op(
        "ConvTranspose", value, c.parameter("weight"), c.parameter("bias"),
        kernel_shape=static_sizes(weight.shape[2:], "the kernel"), strides=c.ints("stride", n),
        dilations=c.ints("dilation", n), pads=padding * 2,
        output_padding=_output_padding(c, n), group=int(c.static("groups")),
    )  # fmt: skip
    c.builder.main(y)
    return y if batched else c.squeeze(y, [0])


def _output_padding(c: Call, n: int) -> list[int]:
    wanted = c.node.kwargs.get("output_size") or (c.node.args[1:] and c.node.args[1])
    if c.module is None or not wanted or not hasattr(c.module, "transposed"):
        return c.ints("output_padding", n)
    # called with the size that the result shall have: what is missing to it is padded
    stride, padding, dilation = (c.ints(k, n) for k in ("stride", "padding", "dilation"))
    kernel = static_sizes(c.spec("weight").shape[2:], "the kernel")
    given = static_sizes(c.spec().shape[-n:], "the input")
    result = static_sizes(c.out.shape[-n:], "the result")
    least = [(given[i] - 1) * stride[i] - 2 * padding[i] + dilation[i] * (kernel[i] - 1) + 1
             for i in range(n)]  # fmt: skip
    return [r - s for r, s in zip(result, least, strict=True)]


def _padding(
    c: Call, n: int, kernel: list[int], dilation: list[int]
) -> tuple[list[int], list[int]]:
    padding: Any = c.static("padding")
    if padding == "valid":
        return [0] * n, [0] * n
    if padding == "same":
        total = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
        return [t // 2 for t in total], [t - t // 2 for t in total]
    pads = c.ints("padding", n)
    return pads, pads


def _batched(c: Call, x: ir.Value, single: bool) -> tuple[ir.Value, bool]:
    """The input with a batch axis, and whether it had one."""
    return (c.unsqueeze(x, [0]), False) if single else (x, True)


def _padded(c: Call, x: ir.Value, begin: list[int], end: list[int], mode: str) -> ir.Value:
    """Padding by the tensor's own values: it stays on its grid, and the kernel reads integers."""
    held = c.held("input")
    shape = held.spec.shape
    y = pad_value(c, x, [0, 0, *begin], [0, 0, *end], mode, shape=shape)
    if held.grid is None:
        return y
    return c.on_grid(y, held.grid, f"{c.path}.padded")
