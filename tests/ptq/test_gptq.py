"""GPTQ by its name: as published, never worse on data held out, on any grid."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fxquant import QuantizationSimModel
from fxquant.errors import CalibrationError, ConfigError, UncalibratedError
from fxquant.ptq import GptqParams, apply_gptq
from tests.helpers.techniques import (
    images,
    normed,
    on_its_grid,
    parameters,
    same,
    scales,
    shifting_chip,
    simulation,
    sqnr,
)

DATA = images()


@pytest.mark.parametrize("options", [{}, {"config": {"per_channel": False}}, {"target": "pof2"}])
def test_outputs_come_nearer_and_weights_lie_on_their_grids(options: dict[str, Any]) -> None:
    if "target" in options:
        options = {"target": shifting_chip()}
    net = normed()
    sim = simulation(net, DATA, 4, **options)
    biases = {n: p for n, p in parameters(sim).items() if n.endswith(".bias")}
    before = sqnr(net, sim, DATA)
    report = apply_gptq(sim, DATA)
    assert sqnr(net, sim, DATA) > before + 1
    assert on_its_grid(sim)
    assert [r.path for r in report.layers] == ["stem", "depthwise", "point", "head"]
    assert all(r.error_after <= r.error_before for r in report.layers)
    assert {r.changed for r in report.layers} <= {"weight", "nothing"}
    assert all(torch.equal(b, sim.model.get_parameter(n)) for n, b in biases.items())


def test_the_published_form_keeps_the_scales() -> None:
    sim = simulation(normed(), DATA, 4)
    before = scales(sim)
    report = apply_gptq(sim, DATA, GptqParams(num_batches=2, search_scale=False))
    assert report.samples == 64
    assert same(before, scales(sim))


def test_bad_data_and_wrong_options_are_refused_and_nothing_is_changed() -> None:
    sim = simulation(normed(), DATA, 4)
    before = parameters(sim)
    cases: list[tuple[Any, str]] = [
        ([], "FXQ442"), ([DATA[0] * torch.nan], "FXQ445"), (7, "FXQ443"),
        ([DATA[0], torch.full((2, 3, 10, 10), torch.inf)], "FXQ446"),
    ]  # fmt: skip
    for data, code in cases:
        with pytest.raises(CalibrationError, match=code):
            apply_gptq(sim, data)
    with pytest.raises(CalibrationError, match="FXQ455"):
        apply_gptq(sim, DATA, GptqParams(num_batches=99))
    bad: list[dict[str, Any]] = [{"damping": 0}, {"damping": "a"}]
    for wrong in bad:
        with pytest.raises(ConfigError, match="FXQ298"):
            GptqParams(**wrong)
    with pytest.raises(ConfigError, match="FXQ297"):
        apply_gptq(DATA, sim)  # type: ignore[arg-type]
    assert same(before, parameters(sim))
    with pytest.raises(UncalibratedError, match="FXQ401"):
        apply_gptq(QuantizationSimModel(normed(), DATA[0]), DATA)
