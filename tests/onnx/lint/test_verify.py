"""The structural lint: one small model for each rule, and models that pass."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from fxquant.errors import ExportError
from fxquant.onnx.io.reader import tidy
from fxquant.onnx.lint.verify import VerifyReport, verify, verify_file, verify_model
from tests.helpers.qdq import Graph

_IMAGE: tuple[int | str, ...] = ("batch", 4, 8, 8)
_SHAPE = (4, 4, 3, 3)


def layer(g: Graph, *, zero: int = 0, relu: bool = False) -> ir.Value:
    """A quantized convolution of a quantized input."""
    x = g.quantized("x", g["x"], 0.02, 128)
    y = g.conv("conv", x, 0.02, _SHAPE)
    if relu:
        y = g.op("Relu", "relu", y)
    return g.quantized("y", y, 0.1, zero)


def good(g: Graph) -> ir.Value:
    return layer(g, relu=True)


def same_names(g: Graph) -> ir.Value:
    return g.op("Sqrt", "conv", layer(g))


def negative_scale(g: Graph) -> ir.Value:
    return g.quantized("x", g["x"], -0.02, 128)


def denormal_scale(g: Graph) -> ir.Value:
    return g.quantized("x", g["x"], 1e-41, 128)


def infinite_scale(g: Graph) -> ir.Value:
    return g.quantized("x", g["x"], np.inf, 128)


def computed_scale(g: Graph) -> ir.Value:
    scale = g.op("Abs", "abs", g.constant("raw", np.float32(0.1)))
    return g.op("DequantizeLinear", "dq", g.op("QuantizeLinear", "q", g["x"], scale), scale)


def three_scales_for_four_channels(g: Graph) -> ir.Value:
    weight = g.constant("w", np.ones((4, 4, 1, 1), np.int8))
    scales = g.constant("s", np.full(3, 0.1, np.float32))
    w = g.op("DequantizeLinear", "w.dq", weight, scales, g.constant("z", np.zeros(3, np.int8)),
             axis=0)  # fmt: skip
    return g.op("Conv", "conv", g["x"], w)


def axis_that_does_not_exist(g: Graph) -> ir.Value:
    weight = g.constant("w", np.ones((4, 4), np.int8))
    scales = g.constant("s", np.full(4, 0.1, np.float32))
    w = g.op("DequantizeLinear", "w.dq", weight, scales, g.constant("z", np.zeros(4, np.int8)),
             axis=5)  # fmt: skip
    return g.op("MatMul", "fc", g["x"], w)


def wrong_axis(g: Graph) -> ir.Value:
    x = g.quantized("x", g["x"], 0.02, 128)
    weight, _ = g.weight("w", (8, 8), axis=0)
    return g.quantized("y", g.op("MatMul", "fc", x, weight), 0.1, 0)


def wrong_bias_scale(g: Graph) -> ir.Value:
    x = g.quantized("x", g["x"], 0.02, 128)
    weight, scales = g.weight("w", _SHAPE)
    bias = g.bias("b", scales * np.float32(0.021))
    return g.quantized("y", g.op("Conv", "conv", x, weight, bias), 0.1, 0)


def wrong_bias_scale_of_a_product(g: Graph) -> ir.Value:
    x = g.quantized("x", g["x"], 0.02, 128)
    weight, scales = g.weight("w", (8, 6), axis=1)
    product = g.op("MatMul", "fc", x, weight)
    return g.quantized("y", g.op("Add", "add", product, g.bias("b", scales)), 0.1, 0)


def bias_with_a_zero_point(g: Graph) -> ir.Value:
    y = layer(g)
    g.constants["conv.bias_zero"].const_value = ir.Tensor(np.ones(4, np.int32))
    return y


def constant_behind_q(g: Graph) -> ir.Value:
    weight = g.quantized("w", g.constant("w", np.ones((8, 8), np.float32)), 0.1, 0, np.int8)
    return g.op("MatMul", "fc", g["x"], weight)


def nan_weight(g: Graph) -> ir.Value:
    return g.op("MatMul", "fc", g["x"], g.constant("w", np.full((8, 8), np.nan, np.float32)))


def no_zero_point(g: Graph) -> ir.Value:
    scale = g.constant("s", np.float32(0.1))
    return g.op("DequantizeLinear", "dq", g.op("QuantizeLinear", "q", g["x"], scale), scale)


def two_quantizers(g: Graph) -> ir.Value:
    y = g.conv("conv", g.quantized("x", g["x"], 0.02, 128), 0.02, _SHAPE)
    return g.op("Add", "add", g.quantized("a", y, 0.1, 0), g.quantized("b", y, 0.2, 0))


def a_float_reader(g: Graph) -> ir.Value:
    y = g.conv("conv", g.quantized("x", g["x"], 0.02, 128), 0.02, _SHAPE)
    return g.op("Sub", "sub", g.quantized("a", y, 0.1, 0), y)


def two_pairs(g: Graph) -> ir.Value:
    return g.quantized("b", g.quantized("a", g["x"], 0.1, 128), 0.2, 128)


def relu_above_zero(g: Graph) -> ir.Value:
    return layer(g, zero=9, relu=True)


def signed_activation(g: Graph) -> ir.Value:
    return g.quantized("x", g["x"], 0.1, 0, np.int8)


def typed_quantizer(g: Graph) -> ir.Value:
    grid = g.constant("s", np.float32(0.1)), g.constant("z", np.int8(0))
    q = g.op("QuantizeLinear", "q", g["x"], *grid, output_dtype=3)
    moved = g.op("Reshape", "reshape", q, g.constant("shape", np.array([-1])))
    return g.op("DequantizeLinear", "dq", moved, *grid)


def float_layer_between_integers(g: Graph) -> ir.Value:
    x = g.quantized("x", g["x"], 0.02, 128)
    w = g.constant("w", np.ones(_SHAPE, np.float32))
    return g.quantized("y", g.op("Conv", "conv", x, w), 0.1, 0)


def integer_weight_only(g: Graph) -> ir.Value:
    return g.op("MatMul", "fc", g["x"], g.weight("w", (8, 6), axis=1)[0])


def missing_quantizer(g: Graph) -> ir.Value:
    y = g.conv("conv", g.quantized("x", g["x"], 0.02, 128), 0.02, _SHAPE)
    return g.op("Sqrt", "sqrt", g.op("Relu", "relu", y))


def float_convolution_at_the_end(g: Graph) -> ir.Value:
    return g.conv("conv", g.quantized("x", g["x"], 0.02, 128), 0.02, _SHAPE)


def float_bias(g: Graph) -> ir.Value:
    x = g.quantized("x", g["x"], 0.02, 128)
    bias = g.constant("b", np.ones(4, np.float32))
    return g.quantized("y", g.op("Conv", "conv", x, g.weight("w", _SHAPE)[0], bias), 0.1, 0)


def float_bias_and_output(g: Graph) -> ir.Value:
    x = g.quantized("x", g["x"], 0.02, 128)
    product = g.op("MatMul", "fc", x, g.weight("w", (8, 6), axis=1)[0])
    return g.op("Add", "add", product, g.constant("b", np.ones(6, np.float32)))


def softmax_cut_off(g: Graph) -> ir.Value:
    return g.quantized("y", g.op("Softmax", "softmax", g["x"]), 0.5 / 256, 0)


def integer_softmax(g: Graph) -> ir.Value:
    # 1 / 0.003921569 is 254.99998: the kernel goes on with 254
    x = g.quantized("x", g["x"], 0.02, 128)
    return g.quantized("y", g.op("Softmax", "softmax", x), 1 / 255, 0)


def pool_between_grids(g: Graph) -> ir.Value:
    x = g.quantized("x", g["x"], 0.02, 128)
    pool = g.op("MaxPool", "pool", x, kernel_shape=[2, 2])
    return g.quantized("y", pool, 0.03, 128)


def concat_of_grids(g: Graph) -> ir.Value:
    a, b = g.quantized("a", g["x"], 0.02, 128), g.quantized("b", g["x"], 0.03, 128)
    return g.quantized("y", g.op("Concat", "concat", a, b, axis=1), 0.03, 128)


def concat_with_a_float(g: Graph) -> ir.Value:
    a = g.quantized("a", g["x"], 0.02, 128)
    return g.quantized("y", g.op("Concat", "concat", a, g["x"], axis=1), 0.02, 128)


def no_scales(g: Graph) -> ir.Value:
    grid = g.constant("s", np.zeros(0, np.float32)), g.constant("z", np.zeros(0, np.uint8))
    return g.op("DequantizeLinear", "dq", g.op("QuantizeLinear", "q", g["x"], *grid), *grid)


def zero_points_of_another_shape(g: Graph) -> ir.Value:
    scale = g.constant("s", np.full(4, 0.1, np.float32))
    zero = g.constant("z", np.zeros((1, 4), np.uint8))
    q = g.op("QuantizeLinear", "q", g["x"], scale, zero, axis=1)
    return g.op("DequantizeLinear", "dq", q, scale, zero, axis=1)


_CASES: list[tuple[Callable[[Graph], ir.Value], str, str, str]] = [
    (same_names, "FXQ514", "error", "conv"),
    (negative_scale, "FXQ515", "error", "x.q"),
    (denormal_scale, "FXQ515", "error", "x.q"),
    (infinite_scale, "FXQ515", "error", "x.q"),
    (computed_scale, "FXQ515", "warning", "q"),
    (three_scales_for_four_channels, "FXQ516", "error", "w.dq"),
    (axis_that_does_not_exist, "FXQ516", "error", "w.dq"),
    (wrong_axis, "FXQ517", "error", "fc"),
    (wrong_bias_scale, "FXQ518", "error", "b.dq"),
    (wrong_bias_scale_of_a_product, "FXQ518", "error", "b.dq"),
    (bias_with_a_zero_point, "FXQ518", "error", "conv.bias.dq"),
    (constant_behind_q, "FXQ519", "warning", "w.q"),
    (nan_weight, "FXQ520", "error", "fc"),
    (no_zero_point, "FXQ521", "warning", "q"),
    (two_quantizers, "FXQ522", "warning", "conv"),
    (a_float_reader, "FXQ522", "warning", "conv"),
    (two_pairs, "FXQ523", "warning", "b.q"),
    (relu_above_zero, "FXQ524", "warning", "relu"),
    (signed_activation, "FXQ525", "warning", "x.q"),
    (typed_quantizer, "FXQ525", "error", "q"),
    (float_layer_between_integers, "FXQ526", "warning", "conv"),
    (integer_weight_only, "FXQ527", "note", "fc"),
    (missing_quantizer, "FXQ572", "warning", "conv"),
    (float_convolution_at_the_end, "FXQ572", "note", "conv"),
    (float_bias, "FXQ573", "note", "conv"),
    (float_bias_and_output, "FXQ573", "warning", "add"),
    (softmax_cut_off, "FXQ574", "warning", "softmax"),
    (integer_softmax, "FXQ574", "warning", "softmax"),
    (pool_between_grids, "FXQ575", "warning", "pool"),
    (concat_of_grids, "FXQ576", "note", "concat"),
    (concat_with_a_float, "FXQ576", "warning", "concat"),
    (no_scales, "FXQ516", "error", "q"),
    (zero_points_of_another_shape, "FXQ516", "error", "q"),
]


def shown(value: ir.Value) -> ir.Value:
    """The value with a shape, which the checker wants of outputs."""
    value.shape = ir.Shape(["n", "c", "h", "w"])
    return value


def report_of(make: Callable[[Graph], ir.Value]) -> VerifyReport:
    g = Graph(x=_IMAGE)
    return verify_model(g.model(shown(make(g))))


def str_of(value: object) -> str:
    """A name for a case: the function, else nothing."""
    return getattr(value, "__name__", "")


@pytest.mark.parametrize(("make", "code", "severity", "node"), _CASES, ids=str_of)
def test_rule(make: Callable[[Graph], ir.Value], code: str, severity: str, node: str) -> None:
    report = report_of(make)
    found = {(f.code, f.severity, f.node) for f in report.findings}
    assert (code, severity, node) in found, str(report)
    assert bool(report) == (severity != "error" and not report.errors)
    assert all(f.what and f.fix for f in report.findings)


def test_a_bias_of_two_layers_is_told_for_the_one_it_does_not_fit() -> None:
    g = Graph(x=(1, 8, 6, 6))
    x = g.quantized("qx", g["x"], 0.02, 100)
    (first, scales), (second, _) = g.weight("w", (8, 8, 3, 3)), g.weight("v", (8, 8, 3, 3))
    bias = g.bias("b", np.float32(0.02) * scales)
    y = g.quantized("qy", g.op("Conv", "conv", x, first, bias), 0.1, 90)
    shared = g.op("Identity", "shared", bias)
    model = tidy(g.model(g.quantized("qz", g.op("Conv", "other", y, second, shared), 0.1, 90)))
    (found,) = [f for f in verify_model(model).findings if f.code == "FXQ518"]
    assert "weight scale of other: onnxruntime runs it in floating point" in found.what


def test_a_floating_point_file_is_told(tmp_path: Path) -> None:
    g = Graph(x=(2, 3))
    report = verify_file(g.save(tmp_path, g.op("Relu", "relu", g["x"])))
    assert [f.code for f in report.findings if f.severity == "warning"] == ["FXQ579"]


def test_a_good_model_has_no_findings() -> None:
    report = report_of(good)
    assert report
    assert report.findings == ()
    assert str(report) == "the model is well formed"


@pytest.mark.parametrize(("opset", "version"), [(27, 10), (9, 8), (21, 14)])
def test_versions_that_do_not_load(opset: int, version: int) -> None:
    g = Graph(x=_IMAGE)
    model = g.model(g.op("Relu", "relu", g["x"]), opset=opset)
    model.ir_version = version
    assert "FXQ512" in {f.code for f in verify_model(model).errors}


def test_what_the_checker_refuses_is_an_error() -> None:
    g = Graph(x=_IMAGE)
    report = verify_model(g.model(shown(g.op("NoSuchOperator", "no", g["x"]))))
    assert [f.code for f in report.errors] == ["FXQ513"]


def test_the_report_as_text_and_json() -> None:
    report = report_of(wrong_axis)
    assert "error   FXQ517  fc" in str(report)
    assert "fix: " in str(report)
    assert str(report).endswith("1 error(s), 0 warning(s), 0 note(s)")
    plain = json.loads(report.to_json())
    assert plain["ok"] is False
    assert plain["findings"][0]["code"] == "FXQ517"


def test_verify_raises_with_the_findings() -> None:
    g = Graph(x=_IMAGE)
    with pytest.raises(ExportError, match="FXQ517") as caught:
        verify(g.model(wrong_axis(g)))
    assert caught.value.code == "FXQ510"


def test_a_file_is_verified_where_it_lies(tmp_path: Path) -> None:
    g = Graph(x=_IMAGE)
    assert verify_file(g.save(tmp_path, shown(good(g))))
    g = Graph(x=_IMAGE)
    assert not verify_model(g.save(tmp_path, shown(wrong_axis(g))))


@pytest.mark.parametrize("content", [b"", b"no model", b"\x08\x0a"])
def test_a_file_that_is_no_model(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(content)
    report = None
    with contextlib.suppress(ExportError):
        report = verify_file(path)
    assert not report


@pytest.mark.parametrize("scale", [1 / 256, 0.9 / 255])
def test_a_softmax_grid_that_reaches_one(scale: float) -> None:
    def softmax(g: Graph) -> ir.Value:
        return g.quantized("y", g.op("Softmax", "softmax", g["x"]), scale, 0)

    assert bool(report_of(softmax).findings) == (scale < 1 / 256)


def test_what_the_runtime_mends_is_a_warning(tmp_path: Path) -> None:
    g = Graph(x=_IMAGE)
    out = shown(good(g))
    g.nodes.reverse()
    report = verify_file(g.save(tmp_path, out), risks=False)
    assert report
    assert [(f.code, f.severity) for f in report.findings] == [("FXQ513", "warning")]


def test_a_value_that_nothing_makes(tmp_path: Path) -> None:
    g = Graph(x=_IMAGE)
    out = shown(good(g))
    del g.nodes[0]
    report = verify_file(g.save(tmp_path, out))
    assert [f.code for f in report.errors] == ["FXQ513"]


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="FXQ511"):
        verify_file(tmp_path / "missing.onnx")
