"""Bias correction: means of outputs come back, with data and without; the rest stays as it is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fxquant
from fxquant import QuantizationSimModel, correct_bias, fold_all_batch_norms, prepare_model
from fxquant.errors import CalibrationError, ConfigError, SelectorError, UncalibratedError
from fxquant.ptq import DataOptions, apply_gptq, reconstruct, restore, snapshot
from fxquant.ptq.techniques.expected_inputs import clipped_normal_mean, expected_inputs
from fxquant.quantization.affine import AffineQuantizer, BiasQuantizeDequantize
from tests.helpers.techniques import (
    images,
    normed,
    outputs,
    parameters,
    same,
    shifting_chip,
    simulation,
    sqnr,
    weight_quantizers,
)

if TYPE_CHECKING:
    from pathlib import Path

DATA = images()


def layer_means(sim: QuantizationSimModel, net: nn.Module, data: list[Tensor]) -> dict[str, Tensor]:
    """Mean errors of channels of the layers' outputs, layer by layer, against the float model."""
    folded = prepare_model(net, data[0])
    fold_all_batch_norms(folded)
    paths = [p for p, _ in sim.named_qmodules() if p in weight_quantizers(sim)]
    found: dict[str, list[Tensor]] = {p: [] for p in paths}
    for model in (sim.model, folded):
        handles = []
        for path in paths:

            def keep(_: nn.Module, __: Any, y: Tensor, path: str = path) -> None:
                axes = [a for a in range(y.dim()) if a != 1]
                found[path].append(y.detach().as_subclass(Tensor).mean(axes))

            handles.append(model.get_submodule(path).register_forward_hook(keep))
        outputs(model, [torch.cat(data)])
        for handle in handles:
            handle.remove()
    return {p: (a - b).abs() for p, (a, b) in found.items()}


def own_means(sim: QuantizationSimModel, net: nn.Module, data: list[Tensor]) -> dict[str, float]:
    """Mean errors of the layers' outputs with inputs of the float model: of the weights alone."""
    folded = prepare_model(net, data[0])
    fold_all_batch_norms(folded)
    found: dict[str, float] = {}
    for path, q in weight_quantizers(sim).items():
        exact = folded.get_submodule(path)
        layer: Any = sim.model.get_submodule(path)
        other = layer.get_original_module()
        other.weight = nn.Parameter(q.transform(other.weight.detach()).as_subclass(Tensor))

        def keep(_: nn.Module, args: Any, y: Tensor, path: str = path, other: Any = other) -> None:
            error = other(args[0]) - y
            found[path] = float(error.mean([a for a in range(y.dim()) if a != 1]).abs().mean())

        handle = exact.register_forward_hook(keep)
        outputs(folded, [torch.cat(data)])
        handle.remove()
    return found


def test_mean_errors_fall_to_a_tenth_on_data_that_were_not_seen() -> None:
    net, unseen = normed(), images(count=512, seed=7)
    seen = images(count=768, seed=3)
    sim = simulation(net, seen, 4)
    before, db = layer_means(sim, net, unseen), sqnr(net, sim, unseen)
    weights = {f"{n}.weight": sim.model.get_parameter(f"{n}.weight").clone() for n in before}
    report = correct_bias(sim, seen)
    after = layer_means(sim, net, unseen)
    for path in before:
        assert after[path].mean() < before[path].mean() / 10, str(report)
    assert sqnr(net, sim, unseen) > db + 1
    assert all(torch.equal(w, sim.model.get_parameter(n)) for n, w in weights.items())
    assert [r.path for r in report.layers] == ["stem", "depthwise", "point", "head"]
    assert [r.changed for r in report.layers] == ["bias", "bias", "new bias", "bias"]
    assert all((r.error_after or 0) < (r.error_before or 0) for r in report.layers)
    assert "new bias" in str(report)


def test_a_layer_without_a_bias_gets_one_on_its_int32_grid_or_is_reported(tmp_path: Path) -> None:
    net = normed()
    sim = simulation(net, DATA, 4)
    taken = snapshot(sim)
    want = outputs(sim.model, DATA)
    correct_bias(sim, DATA)
    point: Any = sim.model.get_submodule("point")
    assert point.bias.shape == (12,)
    assert isinstance(point.param_quantizers["bias"], BiasQuantizeDequantize)
    assert "it was given a bias" in sim.explain("point")
    assert not torch.equal(outputs(sim.model, DATA), want)
    assert sim.export(tmp_path, "net")
    restore(sim, taken)
    assert point.bias is None
    assert torch.equal(outputs(sim.model, DATA), want)
    report = correct_bias(sim, DATA, add_biases=False)
    assert point.bias is None
    assert report.skipped == {"point": "it has no bias, and none is to be added"}


def test_a_bias_that_does_not_help_is_taken_away_again() -> None:
    torch.manual_seed(0)
    linear: Any = nn.Linear(4, 3, bias=False)
    net = nn.Sequential(linear).eval()
    x = torch.randint(-1, 2, (64, 4)).float()
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[7.0, 1, 2, 3], [7, -1, 0, 1], [-7, 1, 1, 1]]))
    sim = simulation(net, [x], 8)
    for q in sim.quantizers():  # everything lies on its grid: there is nothing to correct
        if isinstance(q, AffineQuantizer):
            q.set_range(torch.full(q.shape, -128.0), torch.full(q.shape, 127.0))
    assert torch.equal(outputs(sim.model, [x]), outputs(net, [x]))
    report = correct_bias(sim, [x])
    assert [r.changed for r in report.layers] == ["nothing"]
    linear = sim.model.get_submodule("0")
    assert linear.bias is None
    assert "bias" not in linear.param_quantizers
    assert "it was given a bias" not in sim.explain("0")


def test_a_mean_of_what_the_activation_cuts_off_is_not_corrected() -> None:
    """Weights 7 and 1.45 round to 7 and 1: errors are 4.05 at -9, which is cut off, -1.35 at 3."""
    linear: Any = nn.Linear(2, 1)
    with torch.no_grad():
        linear.weight.copy_(torch.tensor([[7.0, 1.45]]))
        linear.bias.zero_()
    x = torch.tensor([[0.0, -9.0]] * 9 + [[0.0, 3.0]]).repeat(16, 1)
    sim = simulation(nn.Sequential(linear, nn.ReLU()).eval(), [x], 4)
    report = correct_bias(sim, [x])
    assert [r.changed for r in report.layers] == ["nothing"]
    alone = simulation(nn.Sequential(linear).eval(), [x], 4)
    assert [r.changed for r in correct_bias(alone, [x]).layers] == ["bias"]


def test_without_data_what_batch_norms_tell_is_corrected() -> None:
    net, unseen = normed(), images(count=512, seed=7)
    sim = simulation(net, DATA, 4)
    before = own_means(sim, net, unseen)
    report = correct_bias(sim, method="analytical")
    after = own_means(sim, net, unseen)
    assert [(r.path, r.method, r.changed) for r in report.layers] == [
        ("depthwise", "analytical", "bias"),
        ("point", "analytical", "new bias"),
    ]
    assert set(report.skipped) == {"stem", "head"}
    for path in ("depthwise", "point"):
        assert after[path] < before[path] / 2, path
    assert after["stem"] == before["stem"]


def test_with_data_it_measures_where_batch_norms_tell_nothing() -> None:
    net = normed()
    sim = simulation(net, DATA, 4)
    db = sqnr(net, sim, DATA)
    report = correct_bias(sim, DATA, "analytical")
    assert [r.method for r in report.layers] == [
        "empirical",
        "analytical",
        "analytical",
        "empirical",
    ]
    assert all((r.error_after or 0) <= (r.error_before or 0) for r in report.layers)
    assert sqnr(net, sim, DATA) > db


def test_what_was_rounded_before_is_compared_with_the_float_model() -> None:
    net, unseen = normed(), images(count=512, seed=7)
    seen = images(count=512, seed=3)
    for first in (apply_gptq, reconstruct):
        sim = simulation(net, seen, 3)
        first(sim, seen)
        before, db = layer_means(sim, net, unseen), sqnr(net, sim, unseen)
        correct_bias(sim, seen)
        after = layer_means(sim, net, unseen)
        assert sqnr(net, sim, unseen) > db - 0.1
        total = [sum(float(v.sum()) for v in m.values()) for m in (before, after)]
        assert total[1] < total[0] * (0.2 if first is apply_gptq else 1.1)


@pytest.mark.parametrize(
    "kind", ["per tensor", "powers of two", "float biases", "blocks", "own biases"]
)
def test_every_grid(kind: str) -> None:
    net = normed()
    chip = shifting_chip()
    if kind == "own biases":
        own = {"scale": "own", "bitwidth": 8}
        chip = type(chip).model_validate(chip.model_dump() | {"bias": own})
    options: dict[str, Any] = {
        "per tensor": {"config": {"per_channel": False}},
        "float biases": {"config": {"quantize_bias": False}},
        "blocks": {},
    }.get(kind, {"target": chip})
    sim = simulation(net, DATA, 4, **options)
    if kind == "blocks":
        head = sim.model.get_submodule("head")
        sim.set_blockwise_quantization_for_weights([head], 4, True, 4)
        sim.compute_encodings(DATA)
    before = layer_means(sim, net, DATA)
    report = correct_bias(sim, DATA)
    after = layer_means(sim, net, DATA)
    assert sum(v.sum() for v in after.values()) < 0.35 * sum(v.sum() for v in before.values()), (
        report
    )
    point: Any = sim.model.get_submodule("point")
    bias = point.param_quantizers._modules.get("bias")
    assert (bias is None) == (kind == "float biases")


def test_frozen_grids_and_excluded_layers_stay() -> None:
    sim = simulation(normed(), DATA, 4)
    for _, q in sim.named_quantizers():
        q.allow_overwrite(False)
    ranges = sim.quantizer_state_dict()
    ranges = {n: t.clone() for n, t in ranges.items()}
    report = correct_bias(sim, DATA, modules_to_exclude="head")
    assert report.skipped == {"head": "it is excluded"}
    assert all(torch.equal(t, ranges[n]) for n, t in sim.quantizer_state_dict().items())


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ([], "FXQ442"),
        (7, "FXQ443"),
        ([DATA[0], DATA[0] * torch.nan], "FXQ445"),
        ([torch.full((2, 3, 10, 10), torch.inf)], "FXQ456"),
        ([torch.zeros(2, 5, 10, 10)], "FXQ441"),
    ],
)
def test_bad_data_are_refused_and_nothing_is_changed(data: Any, code: str) -> None:
    sim = simulation(normed(), DATA, 4)
    before = parameters(sim)
    with pytest.raises(CalibrationError, match=code):
        correct_bias(sim, data)
    assert same(before, parameters(sim))


def test_one_sample_and_other_batch_sizes() -> None:
    for data in ([DATA[0][:1]], [DATA[0], DATA[1][:5]], DATA[0]):
        report = correct_bias(simulation(normed(), DATA, 4), data)
        assert len(report.layers) == 4


def test_one_sample_does_not_decide_against_all_others() -> None:
    """What one sample tells of a mean is its own error: 1.4 dB were lost."""
    torch.manual_seed(0)
    layers = (nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8))
    net = nn.Sequential(*layers).eval()
    few, unseen = torch.randn(8, 16), [torch.randn(256, 16)]
    sim = simulation(net, [few], 4)
    before = sqnr(net, sim, unseen)
    report = correct_bias(sim, [few[:1]])
    assert {r.changed for r in report.layers} == {"nothing"}
    assert sqnr(net, sim, unseen) == before
    correct_bias(sim, [few])
    assert sqnr(net, sim, unseen) > before


def test_wrong_arguments_are_refused() -> None:
    sim = simulation(normed(), DATA)
    correct_bias: Any = fxquant.correct_bias
    with pytest.raises(ConfigError, match="FXQ205"):
        correct_bias(sim, DATA, "emprical")
    with pytest.raises(ConfigError, match="FXQ205"):
        correct_bias(sim)
    with pytest.raises(ConfigError, match="FXQ297"):
        correct_bias(normed(), DATA)
    with pytest.raises(ConfigError, match="FXQ296"):
        correct_bias(sim, DATA, options=DataOptions(held_out=1))
    with pytest.raises(SelectorError, match="FXQ213"):
        correct_bias(sim, DATA, modules_to_exclude="nothing")
    fresh = QuantizationSimModel(normed(), DATA[0])
    for data, method in ((DATA, "empirical"), (None, "analytical")):
        with pytest.raises(UncalibratedError, match="FXQ401"):
            correct_bias(fresh, data, method)


ENDS = st.sampled_from([(0.0, math.inf), (0.0, 6.0), (-1.0, 1.0), (-math.inf, 0.5)])


@settings(max_examples=80, deadline=None)
@given(st.floats(-4, 4), st.floats(0.01, 3), ENDS)
def test_the_mean_of_a_clipped_normal_is_its_integral(
    mean: float, deviation: float, ends: tuple[float, float]
) -> None:
    points = torch.linspace(-9, 9, 20_001, dtype=torch.float64)
    density = torch.exp(-0.5 * points.square()) / math.sqrt(2 * math.pi)
    values = (mean + deviation * points).clamp(*ends)
    want = torch.trapezoid(values * density, points)
    found = clipped_normal_mean(torch.tensor([mean]), torch.tensor([deviation]), *ends)
    # the inputs are float32, the integral is good to the square of its step
    assert found.item() == pytest.approx(want.item(), abs=2e-6)


def test_means_of_inputs_are_those_of_samples() -> None:
    """Through ReLU, ReLU6, a stub, a mean and a flatten; statistics by chance from the norms."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8),
        nn.ReLU6(), nn.AvgPool2d(2), nn.Dropout(), nn.Flatten(), nn.Linear(32, 4),
    ).eval()  # fmt: skip
    norms: list[Any] = [net[1], net[4]]
    with torch.no_grad():
        for norm in norms:
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
    sim = QuantizationSimModel(net, torch.randn(2, 3, 4, 4))
    found = {str(n.target): m for n, m in expected_inputs(sim.model).items()}
    assert set(found) == {"3", "9"}
    rng = torch.Generator().manual_seed(0)
    noise = torch.randn(200_000, 8, generator=rng)
    for path, norm, high in (("3", norms[0], math.inf), ("9", norms[1], 6.0)):
        drawn = noise * norm.weight.detach() + norm.bias.detach()
        want = drawn.clamp(0, high).mean(0)
        means = found[path] if path == "3" else found[path].reshape(8, 4)[:, 0]
        # the mean of so many samples is good to their deviation over the root of their number
        torch.testing.assert_close(means.float(), want, atol=6 * 2 / 200_000**0.5, rtol=0)
    assert torch.equal(found["9"].reshape(8, 4), found["9"].reshape(8, 4)[:, :1].expand(8, 4))


def test_a_weight_that_changed_after_folding_tells_nothing() -> None:
    net = prepare_model(normed(), DATA[0])
    fold_all_batch_norms(net)
    sim = simulation(net, DATA)
    assert {str(n.target) for n in expected_inputs(sim.model)} == {"depthwise", "point"}
    with torch.no_grad():
        net.get_parameter("stem.weight").mul_(2)
    sim = simulation(net, DATA)
    assert {str(n.target) for n in expected_inputs(sim.model)} == {"point"}
