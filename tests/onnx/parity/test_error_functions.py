"""Rules of reductions, functions and normalizations: float64 values, and errors that hold float32.

Each rule is compared with the operator's definition on exact operands, with a float32 program, and
with what a small error of the operands does.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from fxquant.onnx.parity.error_analysis import Rounding
from fxquant.onnx.parity.error_bounds import ISLAND_ULPS, UNIT
from fxquant.onnx.parity.error_functions import RULES
from fxquant.onnx.parity.error_rules import Undecided, Valued, roundings
from tests.helpers.qdq import Graph

Array = NDArray[Any]


def rule(kind: str, *operands: Valued | None, outputs: int = 1, **attributes: Any) -> Valued:
    """The first result of an operator's rule."""
    values = [None if o is None else ir.Value(name=f"x{i}") for i, o in enumerate(operands)]
    node = ir.node(kind, values, attributes or None, num_outputs=outputs)
    return RULES[kind](node, operands, 21)[0]


def exact(x: Any) -> Valued:
    return Valued.exact(np.asarray(x, np.float64))


def numbers(*shape: int, seed: int = 0) -> Array:
    """Numbers that float32 holds, as float64."""
    found = np.random.default_rng(seed).normal(size=shape).astype(np.float32)
    return found.astype(np.float64)


# operator -> its definition in torch, which runs in either precision, and its attributes
FUNCTIONS: dict[str, Any] = {
    "Exp": torch.exp,
    "Log": lambda x: torch.log(x.abs()),
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Erf": torch.erf,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Softplus": F.softplus,
    "Sign": torch.sign,
    "Reciprocal": torch.reciprocal,
    "Sqrt": lambda x: torch.sqrt(x.abs()),
    "HardSigmoid": lambda x: (float(np.float32(0.2)) * x + 0.5).clamp(0, 1),
    "Elu": F.elu,
    "Softsign": F.softsign,
    "HardSwish": F.hardswish,
    "Mish": F.mish,
    "Gelu": F.gelu,
    "ReduceSum": lambda x: x.sum(-1, keepdim=True),
    "ReduceMean": lambda x: x.mean(-1, keepdim=True),
    "ReduceSumSquare": lambda x: (x * x).sum(-1, keepdim=True),
    "ReduceL1": lambda x: x.abs().sum(-1, keepdim=True),
    "ReduceL2": lambda x: (x * x).sum(-1, keepdim=True).sqrt(),
    "ReduceLogSumExp": lambda x: x.logsumexp(-1, keepdim=True),
    "CumSum": lambda x: x.cumsum(-1),
    "Softmax": lambda x: x.softmax(-1),
    "LogSoftmax": lambda x: x.log_softmax(-1),
    "LayerNormalization": lambda x: F.layer_norm(x, x.shape[-1:]),
    "RMSNormalization": lambda x: F.rms_norm(x, x.shape[-1:], eps=1e-5),
}
_POSITIVE = ("Log", "Sqrt")
_REDUCES = tuple(k for k in FUNCTIONS if k.startswith("Reduce"))


def applied(kind: str, x: Valued) -> Valued:
    if kind in _REDUCES:
        return rule(kind, x, Valued.exact(np.array([-1])))
    if kind == "CumSum":
        return rule(kind, x, Valued.exact(np.array(-1)))
    return rule(kind, x)


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_a_rule_gives_the_value_and_holds_a_float32_program(kind: str) -> None:
    x = numbers(4, 96)
    x = np.abs(x) + 0.01 if kind in _POSITIVE else x
    x = x.astype(np.float32).astype(np.float64)
    found = applied(kind, exact(x))
    right = FUNCTIONS[kind](torch.from_numpy(x)).numpy()
    assert found.value == pytest.approx(right, rel=1e-12, abs=1e-14)
    program = FUNCTIONS[kind](torch.from_numpy(x.astype(np.float32))).double().numpy()
    off = np.abs(program - right)
    assert (off <= found.error).all()
    # and no more than the implementations, whose last bits the constants stand for, may differ by
    sizes = np.abs(x).sum(-1, keepdims=True) + np.abs(right) + (x * x).sum(-1, keepdims=True)
    assert (found.error <= 3 * ISLAND_ULPS * UNIT * (sizes + 8)).all()


@pytest.mark.parametrize("kind", [k for k in FUNCTIONS if k != "Sign"])
def test_the_error_of_an_operand_is_carried_as_far_as_it_moves_the_result(kind: str) -> None:
    """Far more than roundings: within the slope times the error, and not much beyond."""
    x = np.abs(numbers(3, 8)) + 0.5
    error = 1e-4
    found = applied(kind, Valued(x, np.full(x.shape, error)))
    run = FUNCTIONS[kind]
    ends = [
        np.abs((run(torch.from_numpy(x + s * error)) - run(torch.from_numpy(x))).numpy())
        for s in (-1.0, 1.0)
    ]
    assert (np.maximum(*ends) <= found.error).all()
    signs = np.sign(np.random.default_rng(1).normal(size=(64, *x.shape)))
    worst = np.max(
        [np.abs((run(torch.from_numpy(x + s * error)) - run(torch.from_numpy(x))).numpy())
         for s in signs], 0,
    )  # fmt: skip
    assert (worst <= found.error * (1 + 1e-6)).all()
    tight = kind not in ("LayerNormalization", "RMSNormalization")
    assert found.error.max() <= (4 if tight else 40) * max(error * 8, worst.max())


def test_sums_over_axes_and_without_them() -> None:
    x = numbers(2, 3, 4)
    axes = Valued.exact(np.array([0, 2]))
    assert rule("ReduceSum", exact(x), axes, keepdims=0).value == pytest.approx(x.sum((0, 2)))
    assert rule("ReduceMean", exact(x), None, keepdims=0).value == pytest.approx(x.mean())
    assert rule("ReduceL1", exact(x), axes=[1]).value == pytest.approx(np.abs(x).sum(1)[:, None])
    assert rule("ReduceSum", exact(x), axes).value.shape == (1, 3, 1)
    with pytest.raises(Undecided):
        rule("ReduceSum", exact(x), None, noop_with_empty_axes=1)
    with pytest.raises(Undecided):
        rule("ReduceSum", exact(1.0))


def test_errors_of_reductions_are_those_of_their_terms() -> None:
    x = Valued(np.full((1, 4), 2.0), np.full((1, 4), 0.5))
    axes = Valued.exact(np.array([1]))
    assert rule("ReduceSum", x, axes).error[0, 0] == pytest.approx(2.0, rel=1e-5)
    assert rule("ReduceMean", x, axes).error[0, 0] == pytest.approx(0.5, rel=1e-5)
    assert rule("ReduceL1", x, axes).error[0, 0] == pytest.approx(2.0, rel=1e-5)
    # of a square: 2·2·0.5 + 0.5² for each term
    assert rule("ReduceSumSquare", x, axes).error[0, 0] == pytest.approx(9.0, rel=1e-5)
    # the root of 16 ± 9: 4 − √7 is more than √25 − 4
    assert rule("ReduceL2", x, axes).error[0, 0] == pytest.approx(4 - math.sqrt(7), rel=1e-5)


def test_a_root_near_zero_roots_the_error() -> None:
    found = rule("Sqrt", Valued(np.array([0.0, 4.0]), np.array([1e-4, 1e-4])))
    assert found.value.tolist() == [0.0, 2.0]
    assert found.error == pytest.approx([1e-2, 2.5e-5 + 4 * UNIT], rel=1e-4)
    assert rule("Sqrt", exact([9.0])).error[0] == 2 * UNIT * 3.0


def test_a_log_sum_of_exponentials_shares_the_errors_by_weight() -> None:
    x = Valued(np.array([[0.0, -100.0]]), np.array([[1e-3, 7.0]]))
    found = rule("ReduceLogSumExp", x, Valued.exact(np.array([1])), keepdims=0)
    assert found.value.shape == (1,)
    assert found.value[0] == pytest.approx(0.0, abs=1e-30)
    small = roundings(2) + 2 * ISLAND_ULPS * UNIT
    assert found.error[0] == pytest.approx(1e-3 + small, rel=1e-9)
    half = Valued(np.zeros((1, 2)), np.array([[1e-3, 0.0]]))
    equal = rule("ReduceLogSumExp", half, Valued.exact(np.array([1])))
    assert equal.error[0, 0] == pytest.approx(0.5e-3 + small + UNIT * math.log(2), rel=1e-9)
    far = rule("ReduceLogSumExp", exact([[50.0, 50.0]]), Valued.exact(np.array([1])))
    assert far.value[0, 0] == pytest.approx(50 + math.log(2))
    told = roundings(2) + 2 * ISLAND_ULPS * UNIT + UNIT * (100 + math.log(2))
    assert far.error[0, 0] == pytest.approx(told, rel=1e-9)


def test_running_sums_add_up_errors_and_magnitudes() -> None:
    x = Valued(np.array([1.0, -2.0, 3.0]), np.full(3, 0.25))
    found = rule("CumSum", x, Valued.exact(np.array(0)))
    assert found.value.tolist() == [1.0, -1.0, 2.0]
    wanted = np.array([0.25, 0.5, 0.75]) + roundings(3) * np.array([1.0, 3.0, 6.0])
    assert found.error == pytest.approx(wanted, rel=1e-12)


def test_averages_of_windows_and_of_everything() -> None:
    x = numbers(1, 2, 4, 4)
    error = np.full(x.shape, 0.125)
    whole = rule("GlobalAveragePool", Valued(x, error))
    assert whole.value == pytest.approx(x.mean((2, 3), keepdims=True))
    assert whole.error == pytest.approx(np.full((1, 2, 1, 1), 0.125), rel=1e-5)
    windows = rule("AveragePool", Valued(x, error), kernel_shape=[2, 2], strides=[2, 2])
    blocks = x.reshape(1, 2, 2, 2, 2, 2)
    assert windows.value == pytest.approx(blocks.mean((3, 5)))
    sizes = np.abs(blocks).mean((3, 5))
    assert windows.error == pytest.approx(0.125 + (roundings(4) + 2 * UNIT) * sizes, rel=1e-12)


def test_a_softmax_moves_by_its_logits_and_their_common_sum() -> None:
    x = Valued(np.array([[0.0, 0.0]]), np.array([[1e-3, 0.0]]))
    found = rule("Softmax", x)
    assert found.value.tolist() == [[0.5, 0.5]]
    small = roundings(2) + 2 * ISLAND_ULPS * UNIT
    # its own error and half of it through the sum, against the sum alone
    wanted = [0.5 * math.expm1(m + 0.5e-3 + small) + UNIT * 0.5 for m in (1e-3, 0.0)]
    assert found.error[0] == pytest.approx(wanted, rel=1e-9)
    logs = rule("LogSoftmax", x)
    assert logs.value[0] == pytest.approx([-math.log(2)] * 2)
    told = [m + 0.5e-3 + small + UNIT * math.log(2) for m in (1e-3, 0.0)]
    assert logs.error[0] == pytest.approx(told, rel=1e-9)


def test_what_underflows_in_a_softmax_has_no_distance() -> None:
    found = rule("Softmax", exact([[0.0, -1e4]]))
    assert found.value.tolist() == [[1.0, 0.0]]
    assert found.error[0, 1] == 0.0
    near = rule("Softmax", exact([[0.0, -20.0]]))
    y = math.exp(-20) / (1 + math.exp(-20))
    common = y * UNIT * 20 + roundings(2) + 2 * ISLAND_ULPS * UNIT
    wanted = y * math.expm1(UNIT * 20 + common) + UNIT * y
    assert near.error[0, 1] == pytest.approx(wanted, rel=1e-9, abs=0)
    masked = rule("Softmax", exact([[0.0, -np.inf]]))
    assert masked.value.tolist() == [[1.0, 0.0]]
    assert np.isfinite(masked.error).all()


@pytest.mark.parametrize("axis", [-1, 1])
def test_a_softmax_along_any_axis(axis: int) -> None:
    x = numbers(2, 3, 5)
    found = rule("Softmax", exact(x), axis=axis)
    assert found.value == pytest.approx(torch.from_numpy(x).softmax(axis).numpy())


# --- normalizations ------------------------------------------------------------------------------


def test_layer_norms_scale_and_shift() -> None:
    x, scale, bias = numbers(2, 3, 4), numbers(3, 4, seed=1), numbers(3, 4, seed=2)
    found = rule("LayerNormalization", exact(x), exact(scale), exact(bias), axis=1, epsilon=0.1)
    a, b = (torch.from_numpy(v) for v in (scale, bias))
    right = F.layer_norm(torch.from_numpy(x), (3, 4), a, b, 0.1)
    assert found.value == pytest.approx(right.numpy())
    shifted = rule(
        "LayerNormalization", exact(x), exact(scale), Valued(bias, np.full((3, 4), 0.5)), axis=1,
        epsilon=0.1,
    )  # fmt: skip
    assert shifted.error - found.error == pytest.approx(np.full(x.shape, 0.5))
    with pytest.raises(Undecided):  # a scale that is broadcast
        rule("LayerNormalization", exact(x), exact(numbers(4)), axis=1)


def test_an_rms_norm_takes_no_mean_away() -> None:
    x = numbers(2, 6) + 3
    found = rule("RMSNormalization", exact(x), exact(np.full(6, 2.0)), epsilon=1e-3)
    right = F.rms_norm(torch.from_numpy(x), (6,), torch.full((6,), 2.0).double(), 1e-3)
    assert found.value == pytest.approx(right.numpy())


def test_instance_norms_are_over_places() -> None:
    x, scale, bias = numbers(2, 3, 4, 5), numbers(3, seed=1), numbers(3, seed=2)
    found = rule("InstanceNormalization", exact(x), exact(scale), exact(bias), epsilon=0.01)
    a, b = (torch.from_numpy(v) for v in (scale, bias))
    right = F.instance_norm(torch.from_numpy(x), None, None, a, b, eps=0.01)
    assert found.value == pytest.approx(right.numpy())


def test_batch_norms_are_as_wrong_as_the_worse_of_two_programs() -> None:
    x, scale, bias, mean = (numbers(2, 3, 4), *(numbers(3, seed=s) for s in (1, 2, 3)))
    # where x lies by the mean, taking it away costs nothing and folding it into the bias much
    x, mean = (x + 1000).astype(np.float32).astype(np.float64), np.full(3, 1000.0)
    variance = np.abs(numbers(3, seed=4)) + 0.5
    operands = [exact(v) for v in (x, scale, bias, mean, variance)]
    found = rule("BatchNormalization", *operands, epsilon=0.01)
    of = torch.from_numpy
    right = F.batch_norm(of(x), of(mean), of(variance), of(scale), of(bias), eps=0.01)
    assert found.value == pytest.approx(right.numpy())
    a, b, m, v, t = (
        np.asarray(n, np.float32) for n in (scale, bias, mean, variance, x)
    )  # fmt: skip
    a, b, m, v = (n.reshape(1, -1, 1) for n in (a, b, m, v))
    factor = a / np.sqrt(v + np.float32(0.01))
    for program in ((t - m) * factor + b, t * factor + (b - m * factor)):
        assert (np.abs(program - found.value) <= found.error).all()
    assert found.error.max() < 1e-3


def test_attributes_reach_the_definitions() -> None:
    x = numbers(64)
    cut = torch.from_numpy(x)
    assert rule("Elu", exact(x), alpha=0.5).value == pytest.approx(F.elu(cut, 0.5).numpy())
    assert rule("Gelu", exact(x), approximate="tanh").value == pytest.approx(
        F.gelu(cut, approximate="tanh").numpy()
    )


def test_gelus_have_the_slope_of_their_steepest_place() -> None:
    error = 1e-3
    found = rule("Gelu", Valued(np.array([1.5]), np.array([error])))
    ends = torch.tensor([1.5 - error, 1.5, 1.5 + error], dtype=torch.float64)
    run = F.gelu(ends).numpy()
    moved = max(abs(run[0] - run[1]), abs(run[2] - run[1]))
    wanted = 1.2 * (moved + ISLAND_ULPS * UNIT * run[1]) + 8 * UNIT * 1.5
    assert found.error[0] == pytest.approx(wanted, rel=1e-6)


# --- the judgement -------------------------------------------------------------------------------


def judged(value: float, zero: int, integers: tuple[int, int], scale: float = 0.5) -> bool:
    """Whether two integers of one value on a grid of uint8 are both explained."""
    g = Graph(x=(1,))
    g.quantized("y", g.op("Neg", "neg", g["x"]), scale, zero)
    rounding = Rounding(g.model(g.nodes[-1].outputs[0]), {"x": np.array([-value], np.float32)})
    ours, theirs = (np.array([i], np.uint8) for i in integers)
    found = rounding.of_integers("y_q", ours, theirs)
    assert found is not None
    assert found.allowed[0] == UNIT * (abs(value / scale) + abs(value / scale + zero))
    return bool(found.explained[0])


@pytest.mark.parametrize(
    ("value", "zero", "integers", "explained"),
    [
        (1.25, 10, (12, 13), True),  # 12.5 is a tie
        (1.25, 10, (13, 12), True),
        (1.25, 10, (12, 14), False),
        (1.25, 10, (11, 12), False),
        (1.25 - 2**-7, 10, (12, 13), False),
        (1.25 + 2**-7, 10, (12, 13), False),
        (500.0, 10, (255, 255), True),  # beyond the end of the grid
        (-500.0, 10, (0, 0), True),
        (-500.0, 10, (0, 1), False),
        (500.0, 10, (255, 254), False),
    ],
)
def test_integers_are_explained_that_the_exact_value_reaches(
    value: float, zero: int, integers: tuple[int, int], explained: bool
) -> None:
    assert judged(value, zero, integers) is explained


def test_floats_are_explained_within_the_error_of_the_exact_value() -> None:
    g = Graph(x=(1,), y=(1,))
    model = g.model(g.op("Add", "sum", g["x"], g["y"]))
    rounding = Rounding(model, {"x": np.array([1.0], np.float32), "y": np.array([2.0], np.float32)})
    allowed = 3 * UNIT
    for ours, theirs, explained in (
        (3.0, 3 + allowed, True),
        (3 + allowed, 3.0, True),
        (3.0, 3 + 2.1 * allowed, False),
        (3 - 2.1 * allowed, 3.0, False),
        (7.0, 7.0, True),  # what is equal needs no explanation
    ):
        found = rounding.of_floats("sum.out", np.array([ours]), np.array([theirs]))
        assert found is not None
        assert bool(found.explained[0]) is explained
        assert found.allowed.tolist() == [allowed]
    assert rounding.of_floats("sum.out", np.zeros(2), np.zeros(2)) is None
    assert rounding.of_floats("nothing", np.zeros(1), np.zeros(1)) is None


def test_an_error_without_a_bound_explains_nothing() -> None:
    g = Graph(x=(1,), y=(1,))
    quotient = g.op("Div", "div", g["x"], g.op("Sub", "sub", g["y"], g["y"]))
    g.quantized("z", quotient, 0.5, 10)
    model = g.model(g.nodes[-1].outputs[0])
    rounding = Rounding(model, {"x": np.array([1.0], np.float32), "y": np.array([3.0], np.float32)})
    found = rounding.of_integers("z_q", np.array([255], np.uint8), np.array([255], np.uint8))
    assert found is not None
    assert not found.explained[0]


def test_what_no_rule_covers_is_not_judged() -> None:
    g = Graph(x=(2, 2))
    g.quantized("y", g.op("Det", "det", g["x"]), 0.5, 10)
    rounding = Rounding(g.model(g.nodes[-1].outputs[0]), {"x": np.eye(2, dtype=np.float32)})
    one = np.array(12, np.uint8)
    assert rounding.of_integers("y_q", one, one) is None
    assert rounding.at("det.out") is None


@pytest.mark.parametrize(("kind", "times"), [("Add", 1), ("Exp", 2), ("Reshape", 0)])
def test_float16_rounds_results_once_and_composed_ones_twice(kind: str, times: int) -> None:
    g = Graph(x=(1,))
    g["x"].type = ir.TensorType(ir.DataType.FLOAT16)
    other = {"Add": [g["x"]], "Reshape": [g.constant("shape", np.array([1, 1]))]}.get(kind, [])
    model = g.model(g.op(kind, "op", g["x"], *other))
    found = Rounding(model, {"x": np.array([0.75], np.float16)}).at("op.out")
    assert found is not None
    size = float(np.abs(found.value).max())
    unit = 2.0**-11
    assert found.error.max() == pytest.approx(times * unit * size, rel=0.05, abs=1e-12)
