"""Precisions set by hand: what moves along, what a target makes of it; files keep their proof."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant
from fxquant import QuantizationSimModel
from fxquant.errors import ConfigError, FxQuantError, SelectorError
from fxquant.fingerprint import CALIBRATED, changed_since
from fxquant.precision.sites import find_sites
from fxquant.ptq.snapshot import restore, snapshot
from fxquant.quantization import affine
from tests.helpers.modules import Branches, quantized
from tests.helpers.shipped import Shipped

if TYPE_CHECKING:
    from pathlib import Path


def made(scheme: str = "tf_enhanced", **options: Any) -> tuple[QuantizationSimModel, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 8, 8)
    sim = QuantizationSimModel(Branches().eval(), x, scheme, **options)
    sim.compute_encodings([x])
    return sim, x


@pytest.fixture(scope="module")
def calibrated() -> tuple[QuantizationSimModel, Tensor]:
    return made()


@pytest.fixture
def sim(calibrated: tuple[QuantizationSimModel, Tensor]) -> QuantizationSimModel:
    return copy.deepcopy(calibrated[0])


def grids(sim: QuantizationSimModel) -> dict[str, tuple[int, Tensor, Tensor]]:
    return {
        name: (q.bitwidth, q.min.detach().clone(), q.max.detach().clone())
        for name, q in sim.named_quantizers()
        if isinstance(q, affine.AffineQuantizer)
    }


def same(a: Any, b: Any) -> bool:
    return list(a) == list(b) and all(
        a[n][0] == b[n][0] and torch.equal(a[n][1], b[n][1]) and torch.equal(a[n][2], b[n][2])
        for n in a
    )


def test_what_is_tied_to_a_grid_moves_along_and_the_target_says_what_it_computes(
    sim: QuantizationSimModel,
) -> None:
    computes = (
        "onnxruntime_x86 computes it in floating point: what it reads has 16 bits, "
        "and integer kernels take 2 to 8"
    )
    # the concatenation puts both branches on one grid, and the join reads it
    assert str(sim.set_precision("join", activation="int16")) == "\n".join([
        "left: 8 bits -> 16 bits",
        f"cat: {computes}",
        f"join: {computes}",
    ])  # fmt: skip
    homes = [quantized(sim, p).output_quantizers[0] for p in ("left", "right", "cat")]
    assert homes[0].bitwidth == 16
    assert all(q is homes[0] for q in homes)
    assert "its grid was set to 16 bits" in sim.explain("left")


@pytest.mark.parametrize(
    ("arg", "asked", "changed"),
    [
        ("left", {"param": 4}, ["left.weight"]),
        ("left", {"param": {"weight": "int4"}}, ["left.weight"]),
        ("stem", {"param": 4}, ["stem.0.weight"]),
        (nn.Linear, {"param": 4}, ["fc.weight"]),
        (nn.Linear, {"activation": 16}, ["mean"]),
        ("conv2d", {"param": 4}, ["stem.0.weight", "left.weight", "right.weight", "join.weight"]),
        (["le*", "fc"], {"param": 3}, ["left.weight", "fc.weight"]),
        ("x", {"activation": 16}, ["x_stub"]),
        ("right", {"output": 16}, ["left"]),
        ("add", {"activation": 16}, ["join", "stem.1"]),
        ("fc", {"activation": 16, "param": 4}, ["mean", "fc.weight"]),
        (lambda path, m: path == "fc", {"param": "float"}, ["fc.weight"]),
    ],
)
def test_selectors_name_modules_operators_and_ends_of_the_graph(
    sim: QuantizationSimModel, arg: Any, asked: dict[str, Any], changed: list[str]
) -> None:
    assert list(sim.set_precision(arg, **asked).changed) == changed


def test_a_node_and_the_output_name_what_they_read() -> None:
    sim, _ = made(config={"quantize_outputs": True})
    assert list(sim.set_precision("output", activation=16).changed) == ["fc"]
    node = next(n for n in sim.model.graph.nodes if n.name == "fc")
    assert list(sim.set_precision(node, activation=4).changed) == ["mean"]


@pytest.mark.parametrize(
    "scheme", ["min_max", "tf_enhanced", "percentile", "mse", "moving_average"]
)
def test_activations_have_the_ranges_that_calibration_would_choose(scheme: str) -> None:
    # weights have no say in it: calibration observes what quantized weights compute
    sim, _ = made(scheme, default_output_bw=8)
    other, _ = made(scheme, default_output_bw=16)
    for pattern in ("conv2d", "linear", "add", "mean"):
        sim.set_precision(pattern, activation=16)
    assert same(grids(sim), grids(other))
    for pattern in ("conv2d", "linear", "add", "mean"):
        sim.set_precision(pattern, activation=8)
    assert same(grids(sim), grids(made(scheme)[0]))


@pytest.mark.parametrize("scheme", ["min_max", "tf_enhanced"])
@pytest.mark.parametrize("per_channel", [True, False])
def test_weights_have_the_ranges_that_their_values_ask_for(scheme: str, per_channel: bool) -> None:
    config = {"per_channel": per_channel}
    sim, _ = made(scheme, config=config)
    other, _ = made(scheme, default_param_bw=4, config=config)
    sim.set_precision(["conv2d", "linear"], param=4)
    mine, theirs = grids(sim), grids(other)
    weights = [n for n in mine if "param_quantizers" in n]
    assert len(weights) == 5
    assert same({n: mine[n] for n in weights}, {n: theirs[n] for n in weights})


def test_a_range_that_calibration_did_not_choose_is_kept_and_data_choose_it_anew(
    sim: QuantizationSimModel, calibrated: tuple[QuantizationSimModel, Tensor]
) -> None:
    q = quantized(sim, "mean").output_quantizers[0]
    q.set_range(-3.0, 5.0)
    found = sim.set_precision("fc", activation=16)
    assert (q.min.item(), q.max.item(), q.bitwidth) == (-3.0, 5.0, 16)
    assert "mean: its range was kept; pass data= to have it chosen for its new bits" in found.notes
    before = grids(sim)
    sim.set_precision("fc", activation=8, data=[calibrated[1]])
    after = grids(sim)
    moved = [n for n in after if not same({n: before[n]}, {n: after[n]})]
    assert moved == ["mean.output_quantizers.0"]
    assert q.max.item() < 5.0


def test_data_that_are_none_change_nothing(
    sim: QuantizationSimModel, calibrated: tuple[QuantizationSimModel, Tensor]
) -> None:
    quantized(sim, "mean").output_quantizers[0].set_range(-3.0, 5.0)
    before, y = grids(sim), sim.model(calibrated[1])
    with pytest.raises(FxQuantError):
        sim.set_precision(["fc", "left"], activation=16, param=4, data=[calibrated[1] * torch.nan])
    assert same(grids(sim), before)
    assert torch.equal(sim.model(calibrated[1]), y)


def test_weights_that_were_edited_are_still_known(sim: QuantizationSimModel) -> None:
    def stale() -> list[str]:
        return changed_since(sim.model, sim.model.meta.get(CALIBRATED))

    fxquant.set_precision(sim, "fc", param=4)
    assert not stale()
    with torch.no_grad():
        sim.model.get_parameter("fc.weight").mul_(3.0)
    assert stale() == ["fc.weight"]


def test_floating_point_takes_the_bias_along_and_both_come_back(
    sim: QuantizationSimModel, calibrated: tuple[QuantizationSimModel, Tensor]
) -> None:
    before, y = grids(sim), sim.model(calibrated[1])
    sim.set_precision("conv2d", activation="float")
    layer = quantized(sim, "left")
    assert [name for name, _ in layer.param_quantizers.active()] == ["weight"]
    assert quantized(sim, "stem.1").output_quantizers[0] is None
    sim.set_precision("conv2d", activation=8)
    assert (
        layer.param_quantizers["bias"].input_quantizer
        is (quantized(sim, "stem.1").output_quantizers[0])
    )
    assert same(grids(sim), before)
    assert torch.equal(sim.model(calibrated[1]), y)


def test_a_snapshot_undoes_it(sim: QuantizationSimModel, calibrated: Any) -> None:
    before, y = grids(sim), sim.model(calibrated[1])
    taken = snapshot(sim)
    sim.set_precision("conv2d", activation="float", param=4)
    sim.set_precision("linear", activation=16)
    restore(sim, taken)
    assert same(grids(sim), before)
    assert torch.equal(sim.model(calibrated[1]), y)


@pytest.mark.parametrize(
    ("arg", "asked"),
    [
        (["left", "fc"], {"param": 4}),
        ("left", {"activation": 16}),
        ("join", {"activation": 16, "param": 4}),
        ("add", {"activation": "float"}),
        ("fc", {"param": "float"}),
        ("conv2d", {"activation": "float", "param": 4}),
        ("right", {"param": 3}),
    ],
)
def test_files_keep_their_proof(
    sim: QuantizationSimModel, calibrated: Any, arg: Any, asked: dict[str, Any], tmp_path: Path
) -> None:
    x = calibrated[1]
    sim.set_precision(arg, **asked)
    assert sim.export(tmp_path, "net")
    expected = sim.model(x).detach()
    shipped = [torch.as_tensor(found[0]) for found in Shipped(tmp_path / "net.onnx").run([x])]
    # the head writes floats: one step of what it reads moves them by a step times a weight
    step = float(expected.abs().max()) / 128
    assert all(float((y - expected).abs().max()) <= 2 * step for y in shipped)


def test_shared_weights_move_together() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(x)))  # type: ignore[no-any-return]

    x = torch.randn(16, 6)
    sim = QuantizationSimModel(Tied().eval(), x, "min_max")
    sim.compute_encodings([x])
    sim.set_precision("a", param=4)
    assert quantized(sim, "b").param_quantizers["weight"].bitwidth == 4


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        ({"arg": "conv2d"}, "FXQ264"),
        ({"arg": "conv2d", "activation": 1}, "FXQ263"),
        ({"arg": "conv2d", "activation": True}, "FXQ263"),
        ({"arg": "conv2d", "activation": "int99"}, "FXQ263"),
        ({"arg": "conv2d", "activation": "fp16"}, "FXQ263"),
        ({"arg": "lefd", "activation": 8}, "FXQ213"),
        ({"arg": "stem.2", "param": 8}, "FXQ265"),
        ({"arg": "x", "param": 8}, "FXQ265"),
        ({"arg": "fc", "output": 8}, "FXQ265"),
        ({"arg": "stem.1", "activation": 8}, "FXQ265"),
        ({"arg": "left", "param": {"wait": 8}}, "FXQ265"),
    ],
)
def test_mistakes_change_nothing(
    sim: QuantizationSimModel, asked: dict[str, Any], code: str
) -> None:
    before = grids(sim)
    with pytest.raises(FxQuantError) as error:
        sim.set_precision(**asked)
    assert error.value.code == code
    assert error.value.fix
    assert same(grids(sim), before)


@pytest.mark.parametrize(
    ("target", "asked", "offers"),
    [
        ("generic_pof2", {"activation": 6}, "it offers 4 bits, 8 bits, 16 bits"),
        ("generic_pof2", {"activation": "float"}, "it offers 4 bits, 8 bits, 16 bits"),
        ("amd_aie2", {"activation": 16}, "it offers 8 bits"),
        ("amd_aie2", {"param": 3}, "it offers 4 bits, 5 bits, 6 bits, 7 bits, 8 bits"),
        ("qualcomm_htp", {"param": "float"}, "it offers 4 bits, 8 bits"),
    ],
)
def test_what_a_chip_lacks_is_refused(target: str, asked: dict[str, Any], offers: str) -> None:
    sim, _ = made("min_max", target=target)
    with pytest.raises(ConfigError) as error:
        sim.set_precision("conv2d", **asked)
    assert error.value.code == "FXQ262"
    assert error.value.fix == offers


def test_positions_of_powers_of_two_are_searched_anew_with_data() -> None:
    sim, x = made(target="generic_pof2")
    other, _ = made(target="generic_pof2", default_output_bw=16)
    found = sim.set_precision("conv2d", activation=16)
    assert any("its range was kept" in note for note in found.notes)
    sim, x = made(target="generic_pof2")
    assert not sim.set_precision("conv2d", activation=16, data=[x]).notes
    for path in ("x_stub", "stem.1", "left"):
        mine, theirs = (quantized(s, path).output_quantizers[0] for s in (sim, other))
        assert torch.equal(mine.get_scale(), theirs.get_scale()), path


def test_a_frozen_grid_is_refused(sim: QuantizationSimModel) -> None:
    quantized(sim, "left").param_quantizers["weight"].allow_overwrite(False)
    with pytest.raises(ConfigError, match="FXQ266"):
        sim.set_precision("conv2d", param=4)
    assert not sim.set_precision("left", param=8).changed  # nothing would change
    assert sim.set_precision("right", param=4).changed


def test_a_range_that_mathematics_gives_stays_and_takes_other_bits() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 6)
    net = nn.Sequential(nn.Linear(6, 6), nn.Sigmoid(), nn.Linear(6, 4)).eval()
    sim = QuantizationSimModel(net, x)
    sim.compute_encodings([x])
    assert list(sim.set_precision("2", activation=16).changed) == ["1"]
    q = quantized(sim, "1").output_quantizers[0]
    assert (q.bitwidth, q.min.item(), q.max.item()) == (16, 0.0, 1.0)


def test_regions_have_grids_inside_only() -> None:
    from fxquant.nn import DeQuantStub, QuantStub

    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), QuantStub(), nn.Conv2d(4, 4, 3), DeQuantStub(), nn.ReLU()
    )
    x = torch.randn(2, 3, 8, 8)
    sim = QuantizationSimModel(net.eval(), x, "min_max")
    sim.compute_encodings([x])
    assert sim.set_precision("conv2d", param=4).changed == {"2.weight": ("8 bits", "4 bits")}
    with pytest.raises(SelectorError, match="FXQ265"):
        sim.set_precision("0", param=4)


def test_what_is_read_is_numbered_as_the_quantizers_of_inputs_are() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = self.first(x)
            y = torch.where(y > 0, x.shape[0], y)  # the size takes no quantizer
            return self.last(y)  # type: ignore[no-any-return]

    x = torch.randn(2, 3, 8, 8)
    sim = QuantizationSimModel(Net().eval(), x)
    sim.compute_encodings([x])
    module = quantized(sim, "where")
    node = next(n for n in sim.model.graph.nodes if n.target == "where")
    assert [(i, s.name) for i, s in find_sites(sim.model).operands[node]] == [(1, "first")]
    module.input_quantizers[1] = own = affine.QuantizeDequantize((), 4)
    own.set_range(-1.0, 1.0)
    sites = find_sites(sim.model)
    assert [(i, s.quantizer) for i, s in sites.operands[node]] == [(1, own)]
