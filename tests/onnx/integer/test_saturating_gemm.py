"""Products as x86 CPUs without VNNI add them, against a plain loop, and against this CPU."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fxquant.onnx.integer import IntegerModel
from fxquant.onnx.integer.saturation import saturations
from fxquant.onnx.ort.cpu import this_cpu
from fxquant.onnx.session import Level, open_session, packed

Array = NDArray[Any]
Attributes = dict[str, Any]


def summed(a: list[int], b: list[int], *, saturates: bool) -> int:
    """A sum of products, two by two in 16 bits."""
    a, b = [*a, 0], [*b, 0]
    pairs = [a[i] * b[i] + a[i + 1] * b[i + 1] for i in range(0, len(a) - 1, 2)]
    return sum(max(-32768, min(32767, p)) for p in pairs) if saturates else sum(pairs)


def product(a: Array, b: Array, zeros: tuple[int, int]) -> Array:
    """[M, K] and [K, N] without zero points: the CPU adds raw bytes, the rest is exact."""
    saturates = a.dtype == np.uint8 and b.dtype == np.int8
    y = np.zeros((a.shape[0], b.shape[1]), np.int32)
    for i, j in np.ndindex(*y.shape):
        row, column = [int(v) for v in a[i]], [int(v) for v in b[:, j]]
        total = summed(row, column, saturates=saturates)
        total -= zeros[0] * sum(column) + zeros[1] * sum(row) - zeros[0] * zeros[1] * len(row)
        y[i, j] = total
    return y


def integer_model(
    kind: str, x: Array, w: Array, zeros: tuple[int, int], *, stored: bool, **attributes: Any
) -> ir.Model:
    """A MatMulInteger or ConvInteger; the second operand is a constant or an input."""
    values = [ir.Value(name=name) for name in ("x", "w", "x_zero", "w_zero")]
    arrays = [x, w, x.dtype.type(zeros[0]), w.dtype.type(zeros[1])]
    for value, array in zip(values, arrays, strict=True):
        value.type = ir.TensorType(ir.DataType.from_numpy(array.dtype))
        value.shape = ir.Shape(array.shape)
    for value, array in list(zip(values, arrays, strict=True))[1 if stored else 2 :]:
        value.const_value = ir.Tensor(np.asarray(array), name=value.name)
    node = ir.node(kind, values, attributes or None, name="op")
    y = node.outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.INT32)
    inputs = [v for v in values if v.const_value is None]
    graph = ir.Graph(
        inputs, [y], nodes=[node], initializers=[v for v in values if v.const_value is not None],
        opset_imports={"": 21}, name="product",
    )  # fmt: skip
    return ir.Model(graph, ir_version=10)


def feeds(x: Array, w: Array, *, stored: bool) -> dict[str, Array]:
    return {"x": x} if stored else {"x": x, "w": w}


def drawn(seed: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """Bytes, most of them near the ends of their type, where sums saturate."""
    rng = np.random.default_rng(seed)
    info = np.iinfo(dtype)
    far = rng.choice([info.min, info.min + 1, info.max - 1, info.max], shape)
    near = rng.integers(info.min, info.max, shape, endpoint=True)
    return np.where(rng.random(shape) < 0.7, far, near).astype(dtype)


SIGNED = {"u8s8": (np.uint8, np.int8), "u8u8": (np.uint8, np.uint8), "s8s8": (np.int8, np.int8),
          "s8u8": (np.int8, np.uint8)}  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**16), m=st.integers(1, 3), k=st.integers(1, 9), n=st.integers(1, 3),
    types=st.sampled_from(sorted(SIGNED)), zeros=st.booleans(), stored=st.booleans(),
)  # fmt: skip
def test_products_saturate_pair_by_pair(
    seed: int, m: int, k: int, n: int, types: str, zeros: bool, stored: bool
) -> None:
    a, b = (drawn(seed + i, s, t) for i, (s, t) in
            enumerate(zip(((m, k), (k, n)), SIGNED[types], strict=True)))  # fmt: skip
    shifts = (3, 5) if zeros else (0, 0)
    model = integer_model("MatMulInteger", a, b, shifts, stored=stored)
    found = IntegerModel(model, cpu="avx2").run(feeds(a, b, stored=stored))["y"]
    assert np.array_equal(found, product(a, b, shifts))


@pytest.mark.parametrize(
    "batch", [((2, 3), ()), ((2, 3), (2, 3)), ((2, 1), (1, 3)), ((3,), (2, 3))]
)
def test_batches_of_products(batch: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    a, b = drawn(0, (*batch[0], 4, 7), np.uint8), drawn(1, (*batch[1], 7, 2), np.int8)
    model = integer_model("MatMulInteger", a, b, (9, 0), stored=False)
    found = IntegerModel(model, cpu="avx2").run({"x": a, "w": b})["y"]
    whole = np.broadcast_shapes(*batch)
    a, b = (np.broadcast_to(v, (*whole, *v.shape[-2:])) for v in (a, b))
    for place in np.ndindex(*whole):
        assert np.array_equal(found[place], product(a[place], b[place], (9, 0)))
    exact = IntegerModel(model).run({"x": a, "w": b})["y"]
    assert not np.array_equal(found, exact)  # the case would tell nothing else


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], Attributes]] = {
    "dense": ((2, 3, 5, 5), (4, 3, 3, 3), {}),
    "one place": ((1, 5, 3, 3), (2, 5, 1, 1), {}),
    "padded": ((1, 3, 4, 4), (2, 3, 3, 3), {"pads": [1, 0, 2, 1]}),
    "strided": ((1, 2, 7, 6), (2, 2, 3, 2), {"strides": [2, 3], "pads": [1] * 4}),
    "dilated": ((1, 2, 7, 7), (2, 2, 3, 3), {"dilations": [2, 3]}),
    "grouped": ((1, 6, 4, 4), (4, 3, 2, 2), {"group": 2, "pads": [1] * 4}),
    "depthwise": ((1, 4, 4, 4), (4, 1, 3, 3), {"group": 4, "pads": [1] * 4}),
    "signal": ((2, 3, 9), (2, 3, 4), {"pads": [1, 2], "strides": [2]}),
    "volume": ((1, 2, 3, 4, 3), (2, 2, 2, 2, 2), {"pads": [1] * 6}),
}


def windows(x: Array, w: Array, zero: int, attributes: Attributes) -> tuple[Array, list[int]]:
    """[places of the result, N, C, places of the kernel], padding filled with the zero point."""
    n = w.ndim - 2
    pads = attributes.get("pads", [0] * 2 * n)
    strides, dilations = (attributes.get(k, [1] * n) for k in ("strides", "dilations"))
    ends = [(0, 0), (0, 0), *zip(pads[:n], pads[n:], strict=True)]
    padded = np.pad(x, ends, constant_values=zero)
    sizes = [
        (s - d * (k - 1) - 1) // t + 1
        for s, d, k, t in zip(padded.shape[2:], dilations, w.shape[2:], strides, strict=True)
    ]
    found = []
    for place in np.ndindex(*sizes):
        cut = [
            slice(p * t, p * t + d * (k - 1) + 1, d)
            for p, t, d, k in zip(place, strides, dilations, w.shape[2:], strict=True)
        ]
        found.append(padded[(slice(None), slice(None), *cut)].reshape(*x.shape[:2], -1))
    return np.stack(found), sizes


def convolved(
    x: Array, w: Array, zero: int, attributes: Attributes, *, weights_first: bool
) -> Array:
    """A convolution in loops: by the place and then the channel, or the other way round."""
    seen, sizes = windows(x, w, zero, attributes)
    groups, width = attributes.get("group", 1), w.shape[1]
    out = len(w) // groups
    y = np.zeros((len(x), len(w), *sizes), np.int32)
    for p, i, channel in np.ndindex(len(seen), len(x), len(w)):
        group = channel // out
        window = seen[p, i, group * width : (group + 1) * width]
        weight = w[channel].reshape(width, -1)
        if not weights_first:
            window, weight = window.T, weight.T
        a, b = [int(v) for v in window.reshape(-1)], [int(v) for v in weight.reshape(-1)]
        if weights_first:
            saturates = w.dtype == np.uint8 and x.dtype == np.int8
        else:
            saturates = w.dtype == np.int8 and not (width == 1 and out == 1 and groups > 1)
        total = summed(a, b, saturates=saturates) - zero * sum(b)
        y[(i, channel, *np.unravel_index(p, sizes))] = total
    return y


@pytest.mark.parametrize("types", sorted(SIGNED))
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_of_integers(name: str, types: str) -> None:
    x_shape, w_shape, attributes = CONVOLUTIONS[name]
    x, w = drawn(0, x_shape, SIGNED[types][0]), drawn(1, w_shape, SIGNED[types][1])
    model = integer_model("ConvInteger", x, w, (7, 0), stored=True, **attributes)
    found = IntegerModel(model, cpu="avx2").run({"x": x})["y"]
    assert np.array_equal(found, convolved(x, w, 7, attributes, weights_first=True))


@pytest.mark.parametrize("weights", [np.int8, np.uint8])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_quantized_convolutions(name: str, weights: Any) -> None:
    x_shape, w_shape, attributes = CONVOLUTIONS[name]
    x, w = drawn(0, x_shape, np.uint8), drawn(1, w_shape, weights)
    sums = convolved(x, w, 7, attributes, weights_first=False)
    scale = np.float32(np.abs(sums).max() / 120)  # one number holds no ties and cuts nothing off
    model = quantized(x, w, scale, **attributes)
    found = IntegerModel(model, cpu="avx2").run({"x": x})["y"]
    wanted = np.rint(sums.astype(np.float32) * (np.float32(1) / scale)) + 128
    assert np.array_equal(found, wanted.astype(np.uint8))


def initializer(name: str, array: Array) -> ir.Value:
    tensor = ir.Tensor(array, name=name)
    kind, shape = ir.TensorType(tensor.dtype), ir.Shape(array.shape)
    return ir.Value(name=name, type=kind, shape=shape, const_value=tensor)


def quantized(x: Array, w: Array, scale: np.float32, **attributes: Any) -> ir.Model:
    """A QLinearConv with scales of one before its result."""
    one = np.float32(1.0)
    constants = {"xs": one, "xz": x.dtype.type(7), "w": w, "ws": one, "wz": w.dtype.type(0),
                 "ys": scale, "yz": np.uint8(128)}  # fmt: skip
    values = {n: initializer(n, np.asarray(v)) for n, v in constants.items()}
    given = ir.Value(name="x", type=ir.TensorType(ir.DataType.UINT8), shape=ir.Shape(x.shape))
    node = ir.node("QLinearConv", [given, *values.values()], attributes or None, name="op")
    y = node.outputs[0]
    y.name, y.type = "y", ir.TensorType(ir.DataType.UINT8)
    graph = ir.Graph([given], [y], nodes=[node], initializers=list(values.values()),
                     opset_imports={"": 21}, name="conv")  # fmt: skip
    return ir.Model(graph, ir_version=10)


# --- onnxruntime on the CPU at hand --------------------------------------------------------------


def here_and_there(model: ir.Model, given: dict[str, Array]) -> tuple[Array, Array]:
    with packed(model.clone()) as source:
        theirs = open_session(source, Level.ALL).run(given)["y"]
    return IntegerModel(model, cpu="here").run(given)["y"], theirs


@pytest.mark.parametrize("stored", [True, False])
@pytest.mark.parametrize("types", sorted(SIGNED))
@pytest.mark.parametrize("k", [1, 2, 7, 16, 33, 130])
def test_products_are_those_of_this_cpu(types: str, k: int, stored: bool) -> None:
    a, b = drawn(k, (5, k), SIGNED[types][0]), drawn(k + 1, (k, 9), SIGNED[types][1])
    model = integer_model("MatMulInteger", a, b, (3, 0), stored=stored)
    ours, theirs = here_and_there(model, feeds(a, b, stored=stored))
    assert np.array_equal(ours, theirs)


@pytest.mark.parametrize("types", sorted(SIGNED))
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_those_of_this_cpu(name: str, types: str) -> None:
    x_shape, w_shape, attributes = CONVOLUTIONS[name]
    x, w = drawn(0, x_shape, SIGNED[types][0]), drawn(1, w_shape, SIGNED[types][1])
    model = integer_model("ConvInteger", x, w, (7, 0), stored=True, **attributes)
    ours, theirs = here_and_there(model, {"x": x})
    assert np.array_equal(ours, theirs)
    if types.startswith("u8"):
        ours, theirs = here_and_there(quantized(x, w, np.float32(900.0), **attributes), {"x": x})
        assert np.array_equal(ours, theirs)


def dynamic(kind: str, shape: tuple[int, ...], outputs: int, **constants: Array) -> ir.Model:
    """A kernel that quantizes its float input itself."""
    stored = [initializer(n, v) for n, v in constants.items()]
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape(shape))
    domain = "com.microsoft" if kind == "DynamicQuantizeMatMul" else ""
    node = ir.node(kind, [x, *stored], domain=domain, name="op", num_outputs=outputs)
    types = [ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8][:outputs]
    for i, (value, kept) in enumerate(zip(node.outputs, types, strict=True)):
        value.name = f"y{i}"
        value.type = ir.TensorType(kept if outputs > 1 else ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=stored,
                     opset_imports={"": 21, "com.microsoft": 1}, name="dynamic")  # fmt: skip
    return ir.Model(graph, ir_version=10)


def assert_runs_like_here(model: ir.Model, x: Array) -> None:
    with packed(model.clone()) as source:
        theirs = open_session(source, Level.ALL).run({"x": x})
    executor = IntegerModel(model, cpu="here")
    ours = executor.run({"x": x})
    assert "onnxruntime" not in " ".join(p.kernel for p in executor.placement())
    for name, array in theirs.items():
        assert ours[name].dtype == array.dtype
        assert np.array_equal(ours[name], array)


@pytest.mark.parametrize(
    ("low", "high"), [(-1.0, 2.0), (0.5, 3.0), (-4.0, -1.0), (0.0, 0.0), (-1e-3, 900.0)]
)
def test_dynamic_quantization_finds_the_grid_of_the_runtime(low: float, high: float) -> None:
    x = np.random.default_rng(0).uniform(low, high, (40, 33)).astype(np.float32)
    assert_runs_like_here(dynamic("DynamicQuantizeLinear", x.shape, 3), x)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("k", [7, 16, 33])
def test_dynamic_products(kind: Any, columns: bool, bias: bool, k: int) -> None:
    rng = np.random.default_rng(k)
    x = (np.abs(rng.standard_normal((2, 6, k))) * 3).astype(np.float32)
    scales: tuple[int, ...] = (5,) if columns else ()
    given = {"w": drawn(k, (k, 5), kind), "s": rng.uniform(0.01, 0.02, scales).astype(np.float32),
             "z": np.full(scales, 3, kind)}  # fmt: skip
    if bias:
        given["b"] = rng.standard_normal(5).astype(np.float32)
    assert_runs_like_here(dynamic("DynamicQuantizeMatMul", x.shape, 1, **given), x)


def test_a_convolution_of_integers_saturates_where_its_weights_are_unsigned() -> None:
    x, w = drawn(0, (1, 3, 4, 4), np.int8), drawn(1, (2, 3, 2, 2), np.uint8)
    model = integer_model("ConvInteger", x, w, (0, 0), stored=True)
    assert [r.node for r in saturations(model.graph)] == ["op"]
    x, w = drawn(0, (1, 3, 4, 4), np.uint8), drawn(1, (2, 3, 2, 2), np.int8)
    assert saturations(integer_model("ConvInteger", x, w, (0, 0), stored=True).graph) == ()


def test_here_is_what_the_probe_says() -> None:
    a, b = np.full((1, 4), 255, np.uint8), np.full((4, 1), 127, np.int8)
    model = integer_model("MatMulInteger", a, b, (0, 0), stored=True)
    sums = {cpu: int(IntegerModel(model, cpu=cpu).run({"x": a})["y"][0, 0]) for cpu in
            ("exact", "avx2", "here")}  # fmt: skip
    assert sums["exact"] == 4 * 255 * 127
    assert sums["avx2"] == 2 * 32767
    assert sums["here"] == sums["exact" if this_cpu().exact else "avx2"]
