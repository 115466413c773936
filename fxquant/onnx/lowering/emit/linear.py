"""Matrix products."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fxquant.nn import QuantizationMixin
from fxquant.nn.dense import Dense
from fxquant.onnx.lowering.context import Call, UnsupportedError
from fxquant.onnx.lowering.emitters import emits
from fxquant.onnx.lowering.stored_weights import PLAIN, TRANSPOSED, Arrangement
from fxquant.onnx.runs.observed import Dim
from fxquant.quantization.affine import AffineQuantizer, BiasQuantizeDequantize

if TYPE_CHECKING:
    import onnx_ir as ir

    from fxquant.onnx.lowering.values import LoweredValue


@emits("linear")
def _linear(c: Call) -> ir.Value | LoweredValue:
    x, rank, module = c.tensor(), c.spec().rank, c.module
    if not isinstance(module, Dense) and c.spec("weight").rank != 2:
        msg = "the weight has no two dimensions"
        raise UnsupportedError(msg)
    several = isinstance(module, Dense) and bool(module.batch)
    if rank == 2 and not several:
        return _gemm(c, x)
    if not several and _is_integer(c):
        return _on_rows(c)
    # stored transposed: onnxruntime has an integer kernel for a product, not for one with Transpose
    form = _form(module) if isinstance(module, Dense) else TRANSPOSED
    y = c.builder.main(c.op("MatMul", x, c.parameter("weight", form)))
    bias = c.parameter("bias")
    return y if bias is None else c.op("Add", y, bias)


def _form(module: Dense) -> Arrangement:
    """The weight as `[..., in, out]`."""
    if module.order == (0, 1):
        return PLAIN
    return Arrangement(module.order, matrix=(len(module.batch), len(module.inputs)))


def _gemm(c: Call, x: ir.Value) -> ir.Value:
    if isinstance(c.module, Dense):
        return c.op("Gemm", x, c.parameter("weight", _form(c.module)), c.parameter("bias"))
    return c.op("Gemm", x, c.parameter("weight"), c.parameter("bias"), transB=1)


def _is_integer(c: Call) -> bool:
    """Whether operand, weight and bias lie on integer grids, as the integer kernel wants them."""
    module = c.module
    quantized = isinstance(module, QuantizationMixin) and all(
        isinstance(module.param_quantizers[name], AffineQuantizer | BiasQuantizeDequantize)
        for name in ("weight", "bias")
        if name in module.param_quantizers
    )
    x = c.held("input")
    plain = isinstance(x.spec.shape[-1], int) and sum(isinstance(s, Dim) for s in x.spec.shape) <= 1
    return quantized and plain and c.arguments["bias"] is not None and x.integers is not None


def _on_rows(c: Call) -> ir.Value | LoweredValue:
    """`[..., K] -> [rows, K] -> Gemm -> [rows, N] -> [..., N]`, reshaped as integers.

    onnxruntime joins a product with the sum that adds its bias only where all sizes are static;
    with a dynamic batch the sum would stay in floating point. On rows it is one integer Gemm.
    """
    rows = c.held("input").on_rows(c.builder).value(c.builder)
    gemm = _gemm(c, rows)
    y = c.around.reshaped_output(c, c.builder.main(gemm))
    return c.reshape(gemm, c.out.shape, c.held("input")) if y is None else y


@emits("matmul")
def _matmul(c: Call) -> ir.Value:
    (a, b), _ = c.operands("input", "other")
    return c.op("MatMul", a, b)


@emits("bmm")
def _bmm(c: Call) -> ir.Value:
    return c.op("MatMul", c.tensor("input"), c.tensor("mat2"))


@emits("baddbmm")
def _baddbmm(c: Call) -> ir.Value:
    product = c.builder.main(c.op("MatMul", c.tensor("batch1"), c.tensor("batch2")))
    return _weighted_sum(c, product)


@emits("addmm")
def _addmm(c: Call) -> ir.Value:
    a, b = c.tensor("mat1"), c.tensor("mat2")
    beta, alpha = float(c.static("beta")), float(c.static("alpha"))
    return c.op("Gemm", a, b, c.value(c["input"], "input"), alpha=alpha, beta=beta)


def _weighted_sum(c: Call, product: ir.Value) -> ir.Value:
    """`beta * input + alpha * product`."""
    beta, alpha = c.static("beta"), c.static("alpha")
    if alpha != 1:
        product = c.op("Mul", product, c.number(alpha))
    if beta == 0:
        return product
    x = c.value(c["input"], "input")
    if beta != 1:
        x = c.op("Mul", x, c.number(beta))
    return c.op("Add", product, x)


@emits("einsum")
def _einsum(c: Call) -> ir.Value:
    equation, operands = c.static("equation"), c["operands"]
    if not isinstance(equation, str):
        msg = "the equation is given as lists of numbers"
        raise UnsupportedError(msg)
    values = [c.value(x, "operands") for x in operands]
    return c.op("Einsum", *values, equation=equation.replace(" ", ""))


@emits("outer")
def _outer(c: Call) -> ir.Value:
    (a, b), _ = c.operands("input", "vec2")
    return c.op("Mul", c.unsqueeze(a, [1]), b)
