"""What users do with a quantizer: calibrate, set, freeze, save, copy, move, train."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import nn

import fxquant.quantization as Q
from fxquant.errors import (
    CalibrationError,
    FxQuantError,
    QuantizationError,
    UncalibratedError,
)
from fxquant.quantization.affine.known import _stamp


def calibrated(*shape: int, symmetric: bool = False) -> Q.affine.QuantizeDequantize:
    q = Q.affine.QuantizeDequantize(shape, 8, symmetric)
    with q.compute_encodings():
        q(torch.randn(4, 5))
    return q


def same(a: Q.affine.AffineQuantizer, b: Q.affine.AffineQuantizer) -> bool:
    first, second = a.get_encodings(), b.get_encodings()
    assert first is not None
    return first.same_grid(second)


def test_nothing_is_known_before_calibration() -> None:
    q = Q.affine.QuantizeDequantize((3, 1), 8)
    assert not q.is_initialized()
    for value in (q.get_scale(), q.get_offset(), q.get_min(), q.get_max(), q.get_encodings()):
        assert value is None
    q.where = "input of conv1"
    with pytest.raises(UncalibratedError, match="input of conv1") as error:
        q(torch.randn(3, 4))
    assert error.value.code == "FXQ401"


def test_observing_passes_tensors_through() -> None:
    q = Q.affine.QuantizeDequantize((), 8)
    x = torch.randn(3)
    with q.compute_encodings():
        assert q(x) is x
        assert q.observing
    assert not q.observing


def test_a_quantizer_that_saw_nothing_keeps_what_it_had() -> None:
    q = Q.affine.QuantizeDequantize((), 8)
    with q.compute_encodings():
        q(torch.empty(0, 3))
    assert not q.is_initialized()
    q.set_range(-1.0, 1.0)
    with q.compute_encodings():
        pass
    assert q.min.item() == -1.0


def test_an_error_inside_leaves_the_range() -> None:
    q = Q.affine.QuantizeDequantize((), 8)
    q.set_range(-1.0, 1.0)

    def fail() -> None:
        with q.compute_encodings():
            q(torch.tensor([-9.0, 9.0]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert q.max.item() == 1.0
    assert not q.observing


def test_nested_calibration_ends_with_the_outer_one() -> None:
    q = Q.affine.QuantizeDequantize((), 8)
    with q.compute_encodings():
        with q.compute_encodings():
            q(torch.tensor([4.0]))
        assert not q.is_initialized()
        q(torch.tensor([-1.0]))
    assert (q.min.item(), q.max.item()) == (-1.0, 4.0)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", [(), (2, 1)])
def test_not_finite_data_name_the_tensor(bad: float, shape: tuple[int, ...]) -> None:
    q = Q.affine.QuantizeDequantize(shape, 8)
    q.where = "output of layer1.0.add"
    x = torch.randn(2, 3)
    x[1, 2] = bad
    with (
        pytest.raises(CalibrationError, match=r"(?s)FXQ402.*layer1\.0\.add"),
        q.compute_encodings(),
    ):
        q(x)
    assert not q.is_initialized()


def test_frozen_ranges_are_left_alone() -> None:
    q = calibrated()
    before = q.get_scale()
    q.allow_overwrite(False)
    with q.compute_encodings():
        x = torch.tensor([1e6])
        assert q(x) is x
    assert torch.equal(q.get_scale(), before)  # type: ignore[arg-type]
    q.allow_overwrite(True)
    with q.compute_encodings():
        q(torch.tensor([1e6]))
    assert not torch.equal(q.get_scale(), before)  # type: ignore[arg-type]


@pytest.mark.parametrize("inference", [False, True])
@pytest.mark.parametrize("shape", [(), (1, 2)])
def test_step_follows_every_way_to_write_a_range(shape: tuple[int, ...], inference: bool) -> None:
    q = Q.affine.QuantizeDequantize(shape, 8)
    q.set_range(-1.0, 2.0)
    x = torch.tensor([[100.0, 100.0]])

    def reaches(high: float) -> bool:
        return bool(((q(x) - high).abs() < high * 0.05).all())

    with torch.inference_mode(inference), torch.no_grad():
        q.max.fill_(50.0)
        assert reaches(50.0)
        q.max.copy_(torch.tensor(25.0))
        assert reaches(25.0)
        q.set_range(max=75)
        assert reaches(75.0)
    q.max = nn.Parameter(torch.full(shape, 60.0))
    assert reaches(60.0)
    q.max.data = torch.full(shape, 30.0)
    assert reaches(30.0)
    q.max.data.fill_(20.0)
    assert reaches(20.0)


@pytest.mark.parametrize("shape", [(), (1, 2)])
@pytest.mark.parametrize("fused", [False, True])  # fused steps do not advance the version counter
@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW])
def test_step_follows_every_optimizer(
    kind: type[torch.optim.SGD], fused: bool, shape: tuple[int, ...]
) -> None:
    q = Q.affine.QuantizeDequantize(shape, 8)
    q.set_range(-1.0, 2.0)
    x = torch.tensor([[100.0, 100.0]])
    optimizer = kind([q.max], lr=0.1, fused=fused)
    for training in (True, False, True, True, False):
        optimizer.zero_grad()
        before = q(x)
        before.sum().backward()
        with torch.set_grad_enabled(training):
            q(x)
        optimizer.step()
        with torch.set_grad_enabled(training):
            assert bool((q(x) < before).all())


def test_calibrated_without_gradients_trained_afterwards() -> None:
    q = Q.affine.QuantizeDequantize((), 8)
    with torch.inference_mode():
        with q.compute_encodings():
            q(torch.randn(9))
        q(torch.randn(9))
    x = torch.randn(9, requires_grad=True)
    q(x).sum().backward()
    assert x.grad is not None


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shape", [(), (4, 1)])
def test_state_dict_restores_bit_for_bit(symmetric: bool, shape: tuple[int, ...]) -> None:
    q = calibrated(*shape, symmetric=symmetric)
    file = io.BytesIO()
    torch.save(q.state_dict(), file)
    file.seek(0)
    fresh = Q.affine.QuantizeDequantize(shape, 8, symmetric)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    assert fresh.is_initialized()
    assert same(q, fresh)
    q.load_state_dict(Q.affine.QuantizeDequantize(shape, 8, symmetric).state_dict())
    assert not q.is_initialized()


def test_copies_are_independent() -> None:
    q = calibrated()
    q(torch.randn(3))
    for twin in (copy.deepcopy(q), pickle.loads(pickle.dumps(q))):
        assert same(q, twin)
        twin.set_range(-9.0, 9.0)
        assert not same(q, twin)


def test_a_quantizer_can_be_copied_while_it_observes() -> None:
    q = calibrated()
    with q.compute_encodings():
        q(torch.randn(3))
        copy.deepcopy(q)


def test_ranges_stay_float32_in_narrow_models() -> None:
    q = calibrated()
    scale = q.get_scale()
    model = nn.Sequential(nn.Linear(2, 2), q)
    for move in (model.half, model.bfloat16, model.double, lambda: model.to(torch.float16)):
        move()
        assert q.min.dtype is torch.float32
        assert torch.equal(q.get_scale(), scale)  # type: ignore[arg-type]


def test_changing_the_grid_keeps_the_range() -> None:
    q = Q.affine.QuantizeDequantize((), 8)
    q.set_range(-1.0, 3.0)
    q.bitwidth = 16
    assert (q.qmin, q.qmax, q.bitwidth) == (0, 65535, 16)
    assert q.get_scale().item() == pytest.approx(4 / 65535)  # type: ignore[union-attr]
    q.signed = True
    assert (q.qmin, q.qmax) == (-32768, 32767)
    q.signed = False
    assert (q.qmin, q.qmax) == (0, 65535)
    q.symmetric = True
    assert q.get_offset().item() == -32768.0  # type: ignore[union-attr]
    assert q.min.item() == -1.0


@pytest.mark.parametrize(
    "options",
    [{"qmin": 0}, {"bitwidth": 8, "qmin": 0, "qmax": 255}, {"qmin": 0, "qmax": 3, "signed": True}],
)
def test_a_grid_is_given_in_one_way(options: dict[str, int]) -> None:
    with pytest.raises(QuantizationError, match="FXQ410"):
        Q.affine.QuantizeDequantize((), **options)  # type: ignore[call-overload]


def test_ranges_must_be_finite_and_inputs_real() -> None:
    q = calibrated()
    with pytest.raises(QuantizationError, match="FXQ409"):
        q.set_range(max=float("nan"))
    with pytest.raises(QuantizationError, match="FXQ408"):
        q(torch.arange(3))
    with pytest.raises(QuantizationError, match="FXQ408"), q.compute_encodings():
        q(torch.arange(3))


def test_set_range_takes_numbers_and_smaller_shapes() -> None:
    q = Q.affine.QuantizeDequantize((2, 1), 8)
    q.set_range(-1, torch.tensor([[1.0], [2.0]]))
    assert q.min.flatten().tolist() == [-1.0, -1.0]
    assert q.max.flatten().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("block_size", [None, (-1, 5)])
def test_from_encodings(symmetric: bool, block_size: tuple[int, int] | None) -> None:
    q = Q.affine.QuantizeDequantize(
        (4, 2 if block_size else 1), 4, symmetric, block_size=block_size
    )
    with q.compute_encodings():
        q(torch.randn(4, 10))
    encoding = q.get_encodings()
    assert encoding is not None
    twin = Q.affine.QuantizeDequantize.from_encodings(encoding)
    torch.testing.assert_close(twin.get_scale(), encoding.scale)
    assert torch.equal(twin.get_offset(), encoding.offset)  # type: ignore[arg-type]
    assert (twin.bitwidth, twin.symmetric, twin.block_size) == (4, symmetric, block_size)


def test_dequantize_undoes_quantize() -> None:
    x = torch.randn(4, 5)
    quantize = Q.affine.Quantize((), 8)
    dequantize = Q.affine.Dequantize((), 8)
    with pytest.raises(UncalibratedError):
        dequantize(torch.zeros(1))
    for q in (quantize, dequantize):
        q.set_range(-2.0, 2.0)
    both = calibrated()
    both.set_range(-2.0, 2.0)
    assert torch.equal(dequantize(quantize(x)), both(x))
    assert torch.equal(dequantize(quantize(x).quantized_repr()), both(x))


def test_training_moves_a_range_to_where_the_data_are() -> None:
    q = Q.affine.QuantizeDequantize((), 4)
    q.set_range(-10.0, 10.0)
    x = torch.randn(4000)
    optimizer = torch.optim.Adam(q.parameters(), 0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (q(x) - x).square().mean().backward()
        optimizer.step()
    assert 1.5 < q.max.item() < 4.0
    assert -4.0 < q.min.item() < -1.5


def test_repr() -> None:
    q = Q.affine.QuantizeDequantize((8, 2), 8, True, block_size=(-1, 4))
    text = (
        "QuantizeDequantize(shape=(8, 2), block_size=(-1, 4), qmin=-128, qmax=127, symmetric=True)"
    )
    assert repr(q) == text


def test_the_ends_of_a_grid_may_stand_in_for_its_bits() -> None:
    q = Q.affine.QuantizeDequantize((4, 2), -7, 7, True, Q.analyzers.Percentile(99), (-1, 3))
    assert (q.qmin, q.qmax, q.symmetric, q.block_size) == (-7, 7, True, (-1, 3))
    assert isinstance(q.encoding_analyzer, Q.analyzers.Percentile)
    assert Q.affine.Quantize((), 0, 15).symmetric is False
    with pytest.raises(TypeError, match="multiple values"):
        Q.affine.Quantize((), 0, 15, qmax=15)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="8 were given"):
        Q.affine.Quantize((), 0, 15, True, None, None, None, None)  # type: ignore[call-overload]


WRONG: list[tuple[Callable[[], object], str]] = [
    (lambda: Q.affine.QuantizeDequantize(4, 8), "FXQ424: shape=4"),  # type: ignore[call-overload]
    (lambda: Q.affine.QuantizeDequantize("ab", 8), "FXQ424: shape='ab'"),  # type: ignore[arg-type]
    (lambda: Q.affine.QuantizeDequantize((0,), 8), "FXQ424"),
    (lambda: Q.affine.QuantizeDequantize((-4,), 8), "FXQ424"),
    (lambda: Q.affine.QuantizeDequantize((4,), 8, block_size=4), "FXQ424: block_size"),  # type: ignore[call-overload]
    (lambda: Q.affine.QuantizeDequantize((), 8.5), "FXQ410"),  # type: ignore[call-overload]
    (lambda: Q.affine.QuantizeDequantize((), "8"), "FXQ410"),  # type: ignore[call-overload]
    (lambda: Q.affine.QuantizeDequantize((), 8, 1.0), "FXQ410: symmetric=1.0"),  # type: ignore[call-overload]
    (lambda: Q.affine.QuantizeDequantize((), 64), "FXQ406"),
    (lambda: Q.affine.QuantizeDequantize((), 8, False, "minmax"), "FXQ425"),  # type: ignore[call-overload]
    (lambda: Q.affine.QuantizeDequantize((), 8, False, Q.analyzers.MinMax), "FXQ425"),  # type: ignore[call-overload]
    (lambda: ranged().set_range(1.0, -1.0), "FXQ409: a range cannot go from 1.0 to -1.0"),
    (lambda: ranged().set_range(torch.zeros(3)), "FXQ426"),
    (lambda: ranged()([1.0, 2.0]), "FXQ408.*list"),
    (lambda: Q.float.FloatQuantizeDequantize(dtype="float9"), "FXQ414.*float9"),
    (lambda: Q.affine.GroupedBlockQuantizeDequantize((4, 2)), "FXQ411"),
    (lambda: Q.analyzers.Percentile("a"), "FXQ415: percentile 'a'"),  # type: ignore[arg-type]
]


def ranged() -> Q.affine.QuantizeDequantize:
    q = Q.affine.QuantizeDequantize((), 8)
    q.set_range(-1.0, 1.0)
    return q


@pytest.mark.parametrize(("make", "message"), WRONG)
def test_mistakes_are_told_where_they_are_made(make: Callable[[], object], message: str) -> None:
    with pytest.raises(FxQuantError, match=message):
        make()


def test_block_sizes_by_position() -> None:
    q = Q.affine.QuantizeDequantize((4, 2), 4, True, None, (1, 4))
    assert q.block_size == (1, 4)
    g = Q.affine.GroupedBlockQuantizeDequantize((4, 2), 4, True, 8, None, (1, 4), (1, -1))
    assert (g.block_size, g.block_grouping) == ((1, 4), (1, -1))


@pytest.mark.parametrize("name", ["float16", "torch.bfloat16", "float8_e4m3fn", "float8_e5m2fnuz"])
def test_float_formats_by_name(name: str) -> None:
    q = Q.float.FloatQuantizeDequantize(dtype=name)
    assert q.dtype is getattr(torch, name.removeprefix("torch."))


def test_one_end_may_be_held() -> None:
    q = Q.affine.QuantizeDequantize((2, 1), 8)
    q.set_range(min=-1.0)
    assert not q.is_initialized()
    q.allow_overwrite(min=False)
    assert q.overwritable
    with q.compute_encodings():
        q(torch.tensor([[-5.0, 2.0], [0.5, 3.0]]))
    assert q.min.flatten().tolist() == [-1.0, -1.0]
    assert q.max.flatten().tolist() == [2.0, 3.0]
    q.allow_overwrite(max=False)
    assert not q.overwritable
    q.allow_overwrite(True)
    with q.compute_encodings():
        q(torch.tensor([[-5.0, 2.0], [0.5, 3.0]]))
    assert q.min.flatten().tolist() == [-5.0, 0.0]


def test_functions_take_numbers() -> None:
    x = torch.randn(9)
    scale, zero = torch.tensor(0.1), torch.tensor(-3.0)
    for run in (Q.affine.quantize, Q.affine.quantize_dequantize):
        assert torch.equal(run(x, 0.1, -3, 8), run(x, scale, zero, 8))
    integers = torch.arange(4)
    want = Q.affine.dequantize(integers, scale, zero)
    assert torch.equal(Q.affine.dequantize(integers, 0.1, -3), want)


@pytest.mark.parametrize("which", [0, 1])
def test_a_range_with_one_end_made_in_inference_mode_has_no_stamp(which: int) -> None:
    """Such tensors count no versions: whether they changed is told by their values alone."""
    ends = [torch.zeros(2), torch.ones(2)]
    with torch.inference_mode():
        ends[which] = ends[which] + 1
    assert _stamp(*ends) is None
    assert _stamp(torch.zeros(2), torch.ones(2)) is not None


def test_steps_and_offsets_have_the_gradient_of_a_trained_range() -> None:
    q = Q.affine.QuantizeDequantize((), 8)
    q.set_range(-1.0, 3.0)
    scale, offset, known = q.get_scale(), q.get_offset(), q.get_encodings()
    assert scale is not None
    assert offset is not None
    assert known is not None
    assert torch.equal(scale, known.scale)
    assert torch.equal(offset, known.offset)
    scale.backward()
    assert q.max.grad == pytest.approx(1 / 255)
    q.requires_grad_(False)
    assert not q.get_scale().requires_grad  # type: ignore[union-attr]
    with torch.no_grad():
        assert q.requires_grad_(True).get_scale().requires_grad is False  # type: ignore[union-attr]


def test_encodings_are_given_by_ends_or_by_bits() -> None:
    scale, offset = torch.tensor(0.5), torch.tensor(0.0)
    by_ends = Q.AffineEncoding(scale, offset, -8, 7, True)
    by_bits = Q.AffineEncoding(scale, offset, 4, True, True)
    named = Q.AffineEncoding(scale, offset, bitwidth=4, signed=True, symmetry=True)
    for encoding in (by_ends, by_bits, named):
        assert (encoding.qmin, encoding.qmax, encoding.symmetry) == (-8, 7, True)
        assert (encoding.num_steps, encoding.mapping) == (15, "affine")
    x = torch.tensor([0.3, 9.0])
    assert torch.equal(by_ends.quantize_dequantize(x), torch.tensor([0.5, 3.5]))
    with pytest.raises(QuantizationError, match="FXQ451"):
        by_ends.to(torch.int32)
    for wrong in ((), (1, 2, True, None, 5)):
        with pytest.raises(TypeError, match="an encoding takes"):
            Q.AffineEncoding(scale, offset, *wrong)


def test_functions_take_ends_blocks_and_steps_by_position() -> None:
    x, scale, zero = (
        torch.tensor([[-3.0, 0.6, 9.0, 1.0]]),
        torch.tensor([[1.0, 2.0]]),
        torch.zeros(1, 2),
    )
    for function in (Q.affine.quantize, Q.affine.quantize_dequantize):
        by_name = function(x, scale, zero, qmin=-2, qmax=1, block_size=(1, 2))
        assert torch.equal(function(x, scale, zero, -2, 1, (1, 2)), by_name)
        assert torch.equal(function(x, scale, zero, 2, True, (1, 2)), by_name)
        signed = function(x, scale, zero, num_steps=3, signed=True, block_size=(1, 2))
        assert torch.equal(signed, by_name)
    q = Q.affine.quantize(x, scale, zero, -2, 1, (1, 2))
    assert torch.equal(Q.affine.dequantize(q, scale, zero, (1, 2)), by_name)


def test_dequantize_takes_the_encoding_of_a_tensor() -> None:
    q, back = Q.affine.Quantize((), 4), Q.affine.Dequantize(())
    q.set_range(0.0, 1.5)
    x = torch.tensor([0.26, 9.0])
    assert torch.equal(back(q(x)), torch.tensor([0.3, 1.5]))
    with pytest.raises(UncalibratedError):
        back(torch.ones(2))
