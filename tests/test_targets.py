"""Targets: the files, what they refuse by name, and that every offer agrees with onnxruntime."""

from __future__ import annotations

import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxquant import QuantizationSimModel, Target, prepare_model
from fxquant.analysis.shifts import check_shifts
from fxquant.errors import ConfigError, ExportError, SelectorError
from fxquant.passes.align_grids import AlignGrids
from fxquant.passes.align_shifts import AlignShifts
from fxquant.passes.approximate import Approximate, listed
from fxquant.quantization.affine.pof2 import PowerOfTwoQuantizeDequantize
from fxquant.targets import OperatorRule, Shifts, available, load_target
from tests.helpers.grids import output_of, param_of

if TYPE_CHECKING:
    from pathlib import Path

_X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Every operator that grids have rules about: residual sum, pools, concatenation, depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.fc = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.c1(x))
        y = F.leaky_relu(self.c2(x), 0.1)
        x = torch.cat([F.avg_pool2d(x + y, 2)[:, :4], F.max_pool2d(y, 2)[:, 4:]], 1)
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def net() -> fx.GraphModule:
    torch.manual_seed(0)
    return prepare_model(Net().eval(), _X)


def simulated(net: nn.Module, target: Target | str, **config: Any) -> QuantizationSimModel:
    sim = QuantizationSimModel(net, _X, target=target, config=config)
    sim.compute_encodings([_X])
    return sim


# --- files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", available())
def test_every_file_follows_the_schema_and_names_itself(name: str) -> None:
    target = load_target(name)
    assert target.name == name
    assert target.description.endswith(".")


@pytest.mark.parametrize("name", available())
def test_every_operator_of_a_file_has_a_row(name: str) -> None:
    from fxquant.ops import TABLE

    target = load_target(name)
    named = {
        *target.operators,
        *target.absorbs,
        *target.shares,
        *target.align,
        *(target.moves or ()),
    }
    named |= {operator for group in target.supergroups for operator in group}
    assert named <= set(TABLE.rows)


@pytest.mark.parametrize("alias", ["AMD_AIE2_Nx4_Overlay_cfg0", "AMD_AIE2_5x4_Overlay", "AIE2_x"])
def test_targets_answer_to_the_names_of_their_chips(alias: str) -> None:
    assert load_target(alias).name == "amd_aie2"


def test_an_unknown_target_is_an_error_with_the_nearest_name() -> None:
    with pytest.raises(SelectorError, match="onnxruntime_x86") as caught:
        load_target("onnxruntime_x68")
    assert caught.value.code == "FXQ260"


def test_a_target_can_be_handed_in(net: fx.GraphModule) -> None:
    mine = Target(name="mine", operators={"linear": OperatorRule(output="required")})
    sim = simulated(net, mine)
    owners = {n for n, m in sim.named_qmodules() if any(True for _ in m.param_quantizers.active())}
    assert owners == {"fc"}


def test_bits_that_nothing_names_are_the_targets(net: fx.GraphModule) -> None:
    wide = load_target("qualcomm_htp").activation.model_copy(update={"bitwidth": 16})
    target = load_target("qualcomm_htp").model_copy(update={"activation": wide})
    sim = QuantizationSimModel(net, _X, target=target)
    assert output_of(sim.model, "add").bitwidth == 16
    assert (
        output_of(
            QuantizationSimModel(net, _X, default_output_bw=8, target=target).model, "add"
        ).bitwidth
        == 8
    )


# --- constraints ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "arguments", "says"),
    [
        (
            {"only": {"mode": ["nearest"]}},
            {"mode": "linear"},
            "mode='linear' has no integer kernel",
        ),
        ({"limits": {"stride": (1, 4)}}, {"stride": (2, 8)}, "stride=(2, 8) has no integer kernel"),
        ({"limits": {"kernel": (1, 3)}}, {"weight": torch.ones(4, 2, 5, 5)}, "(it takes 1 to 3)"),
        (
            {"limits": {"in_channels": (1, 3)}},
            {"weight": torch.ones(4, 2, 1, 1), "groups": 2},
            "=4",
        ),
        ({"only": {"rank": [4]}}, {"input": torch.ones(2, 2)}, "rank=2"),
    ],
)
def test_a_breach_names_argument_value_and_what_is_allowed(
    rule: dict[str, Any], arguments: dict[str, Any], says: str
) -> None:
    assert says in str(OperatorRule(**rule).violation(arguments))


def test_a_rule_without_constraints_takes_everything() -> None:
    assert OperatorRule().violation({"stride": (9, 9)}) is None


# --- every offer, and every refusal --------------------------------------------------------------

_BITS = (2, 3, 4, 6, 8, 12, 16, 24)


def _offers() -> list[Any]:
    found = []
    for name in available():
        target = load_target(name)
        acts = [
            b for b in _BITS if not target.activation.bitwidths or b in target.activation.bitwidths
        ]
        weights = [b for b in _BITS if not target.weight.bitwidths or b in target.weight.bitwidths]
        pairs = (
            {(a, 8) for a in acts}
            | {(8, w) for w in weights}
            | {(16, 16)} & {(a, w) for a in acts for w in weights}
        )
        for (act, weight), symmetric in itertools.product(sorted(pairs), (None, True, False)):
            kind = "symmetric" if symmetric else "asymmetric"
            if symmetric is None or kind in target.activation.symmetries:
                found.append((name, act, weight, symmetric))
    return found


@pytest.mark.parametrize(("name", "act", "weight", "symmetric"), _offers())
def test_the_file_agrees_with_the_simulation_within_a_step(
    net: fx.GraphModule, tmp_path: Path, name: str, act: int, weight: int, symmetric: bool | None
) -> None:
    sim = simulated(
        net, name, activation_bitwidth=act, weight_bitwidth=weight, activation_symmetric=symmetric
    )
    if max(act, weight) > 16:
        with pytest.raises(ExportError, match="FXQ505") as caught:
            sim.export(tmp_path, "net", _X)
        assert caught.value.at is not None
        return
    report = sim.export(tmp_path, "net", _X)
    assert report.max_steps <= 1
    if act <= 12:  # a float sum is good to a step of 16 bits, but not one layer after another
        assert max(level.max_steps for level in report.levels) <= 1


@pytest.mark.parametrize("weight_symmetric", [None, False])
@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("name", available())
def test_granularity_and_symmetry_of_weights(
    net: fx.GraphModule, tmp_path: Path, name: str, per_channel: bool, weight_symmetric: bool | None
) -> None:
    config = {"per_channel": per_channel, "weight_symmetric": weight_symmetric}
    grid = load_target(name).weight
    possible = ("per_channel" if per_channel else "per_tensor") in grid.granularities
    possible &= weight_symmetric is None or "asymmetric" in grid.symmetries
    if not possible:
        with pytest.raises(ConfigError, match=name):
            simulated(net, name, **config)
        return
    report = simulated(net, name, **config).export(tmp_path, "net", _X)
    assert max(level.max_steps for level in report.levels) <= 1


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"activation_bitwidth": 16}, "activation_bitwidth=16"),
        ({"weight_bitwidth": 2}, "weight_bitwidth=2"),
        ({"activation_symmetric": False}, "activation_symmetric=False"),
        ({"weight_symmetric": False}, "weight_symmetric=False"),
        ({"per_channel": True}, "per_channel=True"),
    ],
)
def test_what_a_target_cannot_do_is_refused_by_name(
    net: fx.GraphModule, config: dict[str, Any], says: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        simulated(net, "amd_aie2", **config)
    assert caught.value.code == "FXQ262"
    assert says in str(caught.value)
    assert "amd_aie2" in str(caught.value)


# --- powers of two -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["amd_aie2", "generic_pof2"])
def test_every_step_is_a_power_of_two(net: fx.GraphModule, name: str) -> None:
    for path, quantizer in simulated(net, name).named_quantizers():
        scale = quantizer.get_scale()
        assert scale is not None, path
        assert bool((torch.frexp(scale).mantissa == 0.5).all()), path


def test_biases_have_the_grid_that_the_file_names(net: fx.GraphModule) -> None:
    own = param_of(simulated(net, "amd_aie2").model, "c1", "bias")
    product = param_of(simulated(net, "generic_pof2").model, "c1", "bias")
    assert isinstance(own, PowerOfTwoQuantizeDequantize)
    assert (own.bitwidth, own.rounding) == (8, "std_round")
    assert product.bitwidth == 32


def test_a_supergroup_has_one_grid_at_its_end(net: fx.GraphModule) -> None:
    sim = simulated(net, "amd_aie2")
    grids = {n: m.output_quantizers[0] for n, m in sim.named_qmodules()}
    assert grids["c2"] is None
    assert grids["leaky_relu"] is not None
    plain = {n: m.output_quantizers[0] for n, m in simulated(net, "generic_pof2").named_qmodules()}
    assert plain["c2"] is not None


def test_concatenations_share_where_the_chip_cannot_rescale(net: fx.GraphModule) -> None:
    sim = simulated(net, "amd_aie2")
    grids = {n: m.output_quantizers[0] for n, m in sim.named_qmodules()}
    assert grids["cat"] is grids["avg_pool2d"]
    assert grids["cat"] is grids["leaky_relu"]


# --- alignment, shifts, approximations: on request only ------------------------------------------


def test_operands_are_aligned_with_their_result_on_request(net: fx.GraphModule) -> None:
    sim = simulated(net, "generic_pof2")
    model = sim.model
    relu, add = (output_of(model, n) for n in ("relu", "add"))
    add.set_position(3)
    outcome = AlignGrids(operators=("add",))(model)
    assert outcome.modified
    assert int(relu.get_position()) == 3
    assert "cannot rescale" in sim.explain("relu")
    assert not AlignGrids(operators=("add",))(model).modified


def test_alignment_says_what_it_leaves_alone() -> None:
    class M(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.sigmoid() + x

    sim = simulated(prepare_model(M(), _X), "generic_pof2")
    outcome = AlignGrids(operators=("add",))(sim.model)
    assert any("fixed" in skip.reason for skip in outcome.skips)


def test_shifts_are_reported_and_repaired_on_request_only(net: fx.GraphModule) -> None:
    sim = simulated(net, "amd_aie2")
    report = check_shifts(sim.model, sim.target)
    assert report, str(report)
    assert {r.kind for r in report.rows} == {"cut", "bias", "read", "write"}
    weight = param_of(sim.model, "c1", "weight")
    weight.set_position(18)
    before = weight.get_position().clone()
    report = check_shifts(sim.model, sim.target)
    assert not report
    assert "c1" in str(report)
    assert "0 to 16" in str(report)
    assert json.loads(report.to_json())["fits"] is False
    assert torch.equal(weight.get_position(), before), "a report changes nothing"
    AlignShifts(limits=sim.target.shifts)(sim.model)
    assert check_shifts(sim.model, sim.target)


@pytest.mark.parametrize("kind", ["cut to the left", "bias", "read", "write"])
def test_every_shift_can_be_repaired(net: fx.GraphModule, kind: str) -> None:
    sim = simulated(net, "amd_aie2")
    if kind == "cut to the left":
        output_of(sim.model, "relu").set_position(20)
    elif kind == "bias":
        param_of(sim.model, "c1", "bias").set_position(-9)
    elif kind == "read":
        output_of(sim.model, "relu").set_position(11)
        output_of(sim.model, "leaky_relu").set_position(2)
    else:
        output_of(sim.model, "add").set_position(20)
    assert not check_shifts(sim.model, sim.target)
    AlignShifts(limits=sim.target.shifts)(sim.model)
    assert check_shifts(sim.model, sim.target), str(check_shifts(sim.model, sim.target))


def test_the_documented_formulas_of_shifts(net: fx.GraphModule) -> None:
    sim = simulated(net, "amd_aie2")
    places = {"relu": 4, "leaky_relu": 6, "add": 5, "x_stub": 5}
    for name, place in places.items():
        output_of(sim.model, name).set_position(place)
    param_of(sim.model, "c1", "weight").set_position(8)
    param_of(sim.model, "c1", "bias").set_position(7)
    found = {
        (r.module, r.kind): (r.value, r.low, r.high)
        for r in check_shifts(sim.model, sim.target).rows
    }
    assert found["c1", "cut"] == (8 + 5 - 4, 0, 16)
    assert found["c1", "bias"] == (8 + 5 - 7, min(0, -(24 - (8 + 9))), 16)
    assert found["add", "read"] == (6 - 4, 0, 7)
    assert found["add", "write"] == (4 - 5, -7, 25)


def test_steps_that_are_no_powers_of_two_have_no_shifts(net: fx.GraphModule) -> None:
    sim = simulated(net, "onnxruntime_x86")
    assert check_shifts(sim.model, Target(name="t", shifts=Shifts(cut=(0, 1)))).rows == ()


def test_mathematics_is_approximated_on_request_and_listed() -> None:
    class M(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return F.leaky_relu(F.silu(x) + F.relu6(x), 0.2)

    prepared = prepare_model(M(), _X)
    outcome = Approximate(operators=("silu", "leaky_relu"))(prepared)
    assert outcome.changes == 2
    assert isinstance(prepared.get_submodule("silu"), nn.Hardswish)
    assert isinstance(prepared.get_submodule("relu6"), nn.ReLU6)
    lines = listed(prepared)
    assert len(lines) == 2
    assert "silu became hardswish" in lines[0] or "silu became hardswish" in lines[1]
    assert all("test_targets.py:" in line for line in lines)


def test_a_rounding_that_onnx_cannot_say_is_noted(net: fx.GraphModule, tmp_path: Path) -> None:
    base = load_target("amd_aie2")
    up = base.activation.model_copy(update={"rounding": "half_up"})
    sim = simulated(net, base.model_copy(update={"activation": up}))
    report = sim.export(tmp_path, "net", _X)
    assert report.max_steps <= 1, "the modes differ at ties only"
    note = next(n for n in report.notes if "half_up" in n)
    assert "ONNX cannot say" in note
    assert "half_up" in (tmp_path / "net.report.json").read_text()
    plain = simulated(net, "amd_aie2").export(tmp_path, "plain", _X)
    assert not any("rounding" in n for n in plain.notes), "weights may be rounded in any way"


@pytest.mark.parametrize("name", available())
def test_a_transformer_agrees_too(tmp_path: Path, name: str) -> None:
    x = torch.randn(2, 5, 8)
    sim = QuantizationSimModel(Attention().eval(), x, target=name)
    sim.compute_encodings([x])
    assert sim.export(tmp_path, "net", x).max_steps <= 1


class Attention(nn.Module):
    """One block: layer norm, attention, GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(8), nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
        y = (q @ k.transpose(-1, -2) / 3).softmax(-1) @ v
        return x + F.gelu(self.out(y))
