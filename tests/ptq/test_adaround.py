"""AdaRound by its name: the file reproduces the rounding, the float model is untouched."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import Adaround, AdaroundParameters, QuantizationSimModel, prepare_model
from fxquant.errors import CalibrationError, ConfigError, ExportError, SelectorError
from fxquant.ptq.solving.gradient_rounding import AdaroundOptions, Rows, adaround_on_rows
from fxquant.ptq.solving.grids import WeightGrid
from tests.helpers.techniques import (
    images,
    normed,
    outputs,
    same,
    scales,
    sqnr,
    weight_quantizers,
)

if TYPE_CHECKING:
    from pathlib import Path

DATA = images()


def parameters(**changes: Any) -> AdaroundParameters:
    given: dict[str, Any] = {"num_batches": 4, "default_num_iterations": 60}
    return AdaroundParameters(DATA, **(given | changes))


def test_a_rounded_model_and_its_file_give_a_simulation_that_is_better(tmp_path: Path) -> None:
    net = normed()
    before = copy.deepcopy(net.state_dict())
    found = Adaround.apply_adaround_with_report(net, DATA[0], parameters(), tmp_path, "r")
    assert all(
        torch.equal(a, b) for a, b in zip(before.values(), net.state_dict().values(), strict=True)
    )
    assert found.encodings == tmp_path / "r.encodings"
    assert [r.path for r in found.report.layers] == ["stem", "depthwise", "point", "head"]
    assert [r.activation for r in found.report.layers][3] == ""
    assert all(r.activation for r in found.report.layers[:3])
    for row in found.report.layers:
        assert min(row.adaround, row.nearest) < 0.9 * row.nearest or row.kept == "nearest"
        assert row.engine < row.nearest
    text = str(found.report)
    assert "adaround" in text
    assert "engine" in text
    sim = QuantizationSimModel(found.model, DATA[0], "min_max", 8, 4)
    loaded = sim.set_and_freeze_param_encodings(encoding_path=tmp_path / "r.encodings")
    assert sorted(loaded.loaded) == [f"{n}.weight" for n in ("depthwise", "head", "point", "stem")]
    sim.compute_encodings(DATA)
    plain = QuantizationSimModel(net, DATA[0], "tf_enhanced", 8, 4)
    plain.compute_encodings(DATA)
    assert sqnr(net, sim, DATA) > sqnr(net, plain, DATA) + 1
    for path, q in weight_quantizers(sim).items():  # frozen, and exactly the rounding
        weight: Any = sim.model.get_submodule(path).weight
        assert not q.overwritable
        assert torch.equal(q.transform(weight.detach()), weight)
        assert torch.equal(weight, found.model.get_parameter(f"{path}.weight"))
    before_more = scales(sim)
    sim.compute_encodings(DATA[:1])
    assert same(before_more, scales(sim))


def test_a_prepared_model_is_untouched_and_the_rounded_one_is_exported(tmp_path: Path) -> None:
    net = prepare_model(normed(), DATA[0])
    want = outputs(net, DATA)
    quick = parameters(default_num_iterations=10)
    rounded = Adaround.apply_adaround(net, DATA[0], quick, tmp_path, "r", 8)
    assert torch.equal(outputs(net, DATA), want)
    sim = QuantizationSimModel(rounded, DATA[0], "min_max", 8, 8)
    sim.set_and_freeze_param_encodings(tmp_path / "r.encodings")
    sim.compute_encodings(DATA)
    assert sim.export(tmp_path, "net")


def test_bits_of_single_layers_and_layers_that_are_ignored(tmp_path: Path) -> None:
    net = normed()
    found = Adaround.apply_adaround_with_report(
        net, DATA[0], parameters(), tmp_path, "r", 4, [(net.head, 8)], [net.depthwise, "point"]
    )
    assert {r.path: r.bitwidth for r in found.report.layers} == {"stem": 4, "head": 8}
    file = json.loads((tmp_path / "r.encodings").read_text())
    assert sorted(file["param_encodings"]) == ["head.weight", "stem.weight"]
    assert file["activation_encodings"] == {}
    assert {e["bitwidth"] for e in file["param_encodings"]["head.weight"]} == {8}
    left: Any = found.model.get_submodule("point").weight
    assert torch.equal(left, net.point.weight)


def test_the_loader_may_hold_labels_and_a_function_may_call_the_model(tmp_path: Path) -> None:
    net, labelled = normed(), [(x, torch.zeros(len(x))) for x in DATA]
    seen = []

    def forward(model: nn.Module, batch: Any) -> None:
        seen.append(len(batch[1]))
        model(batch[0])

    models = [
        Adaround.apply_adaround(
            net, DATA[0],
            AdaroundParameters(labelled, 2, default_num_iterations=20, forward_fn=f),
            tmp_path, "r",
        )
        for f in (None, forward)
    ]  # fmt: skip
    assert seen == [32, 32]
    states = [m.state_dict() for m in models]
    assert all(torch.equal(states[0][n], states[1][n]) for n in states[0])


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"num_batches": 9}, "FXQ455"),
        ({"data_loader": []}, "FXQ442"),
        ({"data_loader": 7}, "FXQ443"),
        ({"data_loader": [DATA[0] * torch.nan], "num_batches": 1}, "FXQ445"),
        ({"data_loader": [torch.zeros(2, 5, 3, 3)], "num_batches": 1}, "FXQ441"),
        ({"forward_fn": lambda *_: None}, "FXQ455"),
    ],
)
def test_bad_data_are_refused(change: dict[str, Any], code: str, tmp_path: Path) -> None:
    given: dict[str, Any] = {
        "data_loader": DATA,
        "num_batches": 4,
        "default_num_iterations": 5,
    } | change
    with pytest.raises(CalibrationError, match=code):
        Adaround.apply_adaround(normed(), DATA[0], AdaroundParameters(**given), tmp_path, "r")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"num_batches": 0}, "FXQ296"),
        ({"default_num_iterations": 0}, "FXQ296"),
        ({"default_beta_range": (20,)}, "FXQ206"),
        ({"default_warm_start": 1.5}, "FXQ206"),
        ({"default_reg_param": -1}, "FXQ206"),
    ],
)
def test_wrong_parameters_are_refused(change: dict[str, Any], code: str) -> None:
    with pytest.raises(ConfigError, match=code):
        parameters(**change)


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    net, given = normed(), parameters()
    call: Any = Adaround.apply_adaround
    sim = QuantizationSimModel(net, DATA[0])
    with pytest.raises(ConfigError, match="FXQ292"):
        call(sim.model, DATA[0], given, tmp_path, "r")
    with pytest.raises(ConfigError, match="FXQ207"):
        call(net, DATA[0], {"num_batches": 1}, tmp_path, "r")
    with pytest.raises(ConfigError, match="FXQ207"):
        call(net, DATA[0], given, tmp_path, "r", 4, [(net.bn1, 4)])
    with pytest.raises(ConfigError, match="FXQ207"):
        call(net, DATA[0], given, tmp_path, "r", 4, [net.head])
    with pytest.raises(SelectorError, match="FXQ213"):
        call(net, DATA[0], given, tmp_path, "r", 4, None, ["no_such_layer"])
    with pytest.raises(ExportError, match="FXQ541"):
        call(net, DATA[0], given, tmp_path, "a/b")
    assert not list(tmp_path.iterdir())


def test_integers_are_the_floors_or_one_above_and_the_loss_falls() -> None:
    rng = torch.Generator().manual_seed(0)
    few = torch.randn(1, 300, 3, generator=rng) @ torch.randn(3, 12, generator=rng)
    x = 0.1 * few + 0.01 * torch.randn(1, 300, 12, generator=rng)
    weight = torch.randn(1, 5, 12, generator=rng)
    bias = torch.randn(1, 5, generator=rng)
    for activation in (None, F.relu):
        rows = Rows(x, torch.baddbmm(bias[:, None], x, weight.mT), bias, activation)
        grid = WeightGrid.uniform(weight, 3)
        options = AdaroundOptions(iterations=500)
        found = adaround_on_rows(weight, rows, grid, options, batch=128, seed=3)
        share = weight / grid.spread(grid.scale)
        low, high = grid.spread(grid.low), grid.spread(grid.high)
        below = torch.floor(share).clamp(low, high)
        assert bool(((found == below) | (found == torch.minimum(below + 1, high))).all())
        losses = [float(rows.loss(grid.weight(k)).sum()) for k in (grid.nearest(weight), found)]
        assert losses[1] < 0.8 * losses[0]
        again = adaround_on_rows(weight, rows, grid, options, batch=128, seed=3)
        assert torch.equal(found, again)


def test_an_activation_in_the_loss_counts_what_it_lets_through() -> None:
    x, weight = torch.eye(2)[None], torch.tensor([[[-1.0, 2.0]]])
    plain = Rows(x, torch.bmm(x, weight.mT), torch.zeros(1, 1))
    after = Rows(plain.x, plain.y, plain.bias, F.relu)
    other = torch.tensor([[[-3.0, 1.0]]])
    assert plain.loss(other).item() == pytest.approx((2.0**2 + 1.0**2) / 2)
    assert after.loss(other).item() == pytest.approx(1.0 / 2)
    unused: Tensor = after.loss(weight)
    assert unused.item() == 0
