"""Excluding and replacing quantizers: what is left hangs together and is what the runtime does."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, QuantScheme, prepare_model
from fxquant.errors import ConfigError, QuantizationError, SelectorError
from fxquant.nn import QuantizationMixin
from fxquant.quantization import affine
from fxquant.quantization.float import FloatQuantizeDequantize
from tests.helpers.modules import Branches, quantized

Edit = Callable[[QuantizationSimModel], object]


@pytest.fixture(scope="module")
def x() -> Tensor:
    torch.manual_seed(0)
    return torch.randn(4, 3, 8, 8)


@pytest.fixture(scope="module")
def calibrated(x: Tensor) -> QuantizationSimModel:
    torch.manual_seed(1)
    sim = QuantizationSimModel(Branches().eval(), x)
    sim.compute_encodings([x])
    return sim


@pytest.fixture
def sim(calibrated: QuantizationSimModel) -> QuantizationSimModel:
    return copy.deepcopy(calibrated)


def active(sim: QuantizationSimModel, path: str) -> list[str]:
    module = sim.model.get_submodule(path)
    if not isinstance(module, QuantizationMixin):
        return ["float"]
    return [n for n, _ in module.param_quantizers.active()] + [
        f"out{i}" for i, _ in module.output_quantizers.active()
    ]


EDITS: dict[str, Edit] = {
    "first layer": lambda s: s.exclude_layers_from_quantization("stem.0"),
    "producer behind a move": lambda s: s.exclude_layers_from_quantization("stem.1"),
    "container": lambda s: s.exclude_layers_from_quantization(["stem"]),
    "one branch of a concatenation": lambda s: s.exclude_layers_from_quantization("left"),
    "concatenation": lambda s: s.exclude_layers_from_quantization("cat"),
    "all convolutions": lambda s: s.exclude_layers_from_quantization(nn.Conv2d),
    "input": lambda s: s.exclude_layers_from_quantization("x_stub"),
    "sum": lambda s: s.exclude_layers_from_quantization(lambda p, m: p == "relu"),
    "everything": lambda s: s.exclude_layers_from_quantization("*"),
    "biases": lambda s: s.exclude_param_from_quantization("bias"),
    "weights": lambda s: s.exclude_param_from_quantization("weight"),
    "one weight": lambda s: s.exclude_param_from_quantization("join.weight"),
    "float16 sum": lambda s: s.set_activation_quantizers_to_float("relu", dtype=torch.float16),
    "float16 input": lambda s: s.set_activation_quantizers_to_float("x_stub", 5, 10),
    "blocks of 4": lambda s: s.set_blockwise_quantization_for_weights("fc", 4, True, 4),
    "blocks in a convolution": lambda s: s.set_blockwise_quantization_for_weights(
        "join", 8, True, 8
    ),
    "grouped blocks": lambda s: s.set_grouped_blockwise_quantization_for_weights(
        [nn.Linear], 4, True, 8, 4
    ),
}


@pytest.mark.parametrize("name", EDITS)
def test_what_is_left_is_what_the_runtime_computes(
    name: str, sim: QuantizationSimModel, x: Tensor, tmp_path: Path
) -> None:
    EDITS[name](sim)
    assert sim.export(tmp_path, "edited")
    if name != "everything":
        sim.compute_encodings([x])
        assert sim.export(tmp_path, "calibrated")


def test_an_int32_bias_needs_the_grids_of_input_and_weight(sim: QuantizationSimModel) -> None:
    assert active(sim, "left") == ["weight", "bias", "out0"]
    sim.exclude_layers_from_quantization("stem.1")
    # the pool moves the values of the relu, so both readers lost their input's grid
    assert active(sim, "left") == ["weight", "out0"]
    assert active(sim, "right") == ["weight", "out0"]
    assert "its input has no grid" in sim.explain("left")
    assert "excluded from quantization" in sim.explain("stem.1")
    sim.exclude_param_from_quantization("join.weight")
    assert active(sim, "join") == ["out0"] or active(sim, "join") == []
    assert active(sim, "fc") == ["weight", "bias"]


def test_all_ways_to_name_a_module(sim: QuantizationSimModel) -> None:
    chosen: list[Any] = [
        quantized(sim, "left"), "righ?", lambda m: isinstance(m, nn.Linear),
        lambda path, _: path == "add",
    ]  # fmt: skip
    sim.exclude_layers_from_quantization(chosen)
    assert [active(sim, p) for p in ("left", "right", "fc")] == [["float"]] * 3
    assert type(sim.model.left) is nn.Conv2d


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda s: s.exclude_layers_from_quantization("lefd"), "(?s)FXQ213.*'left'"),
        (lambda s: s.exclude_layers_from_quantization(nn.LSTM), "(?s)FXQ213.*QuantizedConv2d"),
        (lambda s: s.exclude_layers_from_quantization(nn.ReLU()), "(?s)FXQ213.*copy"),
        (lambda s: s.exclude_param_from_quantization("wieght"), "(?s)FXQ243.*'weight'"),
        (lambda s: s.set_blockwise_quantization_for_weights("add", 4, True, 4), "FXQ245"),
        (lambda s: s.set_blockwise_quantization_for_weights("fc", 4, True, 3), "(?s)FXQ246.*fc"),
        (lambda s: s.set_activation_quantizers_to_float("fc", 5, 10), "FXQ244"),
        (lambda s: s.set_percentile_value(99.0), "FXQ242"),
    ],
)
def test_what_matches_nothing_is_an_error(
    edit: Edit, message: str, calibrated: QuantizationSimModel
) -> None:
    with pytest.raises(ConfigError, match=message):
        edit(calibrated)


def test_what_is_excluded_already_is_not_quantized(sim: QuantizationSimModel) -> None:
    sim.exclude_layers_from_quantization("fc")
    with pytest.raises(SelectorError, match="FXQ241"):
        sim.exclude_layers_from_quantization("fc")


def test_blocks_lie_along_the_input_channels(sim: QuantizationSimModel) -> None:
    sim.set_blockwise_quantization_for_weights("join", 4, True, 8)
    weight = quantized(sim, "join").param_quantizers["weight"]
    assert (weight.shape, weight.block_size, weight.bitwidth) == ((8, 2, 1, 1), (1, 8, -1, -1), 4)
    assert weight.is_initialized()
    sim.set_grouped_blockwise_quantization_for_weights("fc", 4, True, 8, 2, 2)
    grouped = quantized(sim, "fc").param_quantizers["weight"]
    assert isinstance(grouped, affine.GroupedBlockQuantizeDequantize)
    assert (grouped.shape, grouped.block_grouping) == ((4, 4), (1, 2))


def test_transposed_convolutions_have_their_input_channels_first(x: Tensor) -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 6, 2))
    sim = QuantizationSimModel(model.eval(), x)
    sim.set_grouped_blockwise_quantization_for_weights("0", 4, True, 8, 1)
    weight = quantized(sim, "0").param_quantizers["weight"]
    assert (weight.shape, weight.block_size) == ((3, 6, 1, 1), (1, 1, -1, -1))


def test_shared_grids_stay_shared_as_floats(sim: QuantizationSimModel) -> None:
    sim.set_activation_quantizers_to_float(["left", "right", "cat"], dtype=torch.bfloat16)
    grids = [quantized(sim, p).output_quantizers[0] for p in ("left", "right", "cat")]
    assert all(isinstance(q, FloatQuantizeDequantize) for q in grids)
    assert grids[0] is grids[1] is grids[2]


def test_percentiles(x: Tensor) -> None:
    sim = QuantizationSimModel(
        Branches().eval(), x, quant_scheme=QuantScheme.post_training_percentile
    )
    sim.compute_encodings([x])
    wide = quantized(sim, "x_stub").output_quantizers[0].get_max()
    sim.set_percentile_value(90)
    sim.compute_encodings([x])
    narrow = quantized(sim, "x_stub").output_quantizers[0].get_max()
    assert wide is not None
    assert narrow is not None
    assert narrow < wide
    with pytest.raises(QuantizationError, match="FXQ415"):
        sim.set_percentile_value(10)


def test_the_original_model_comes_back(x: Tensor) -> None:
    model = Branches().eval()
    sim = QuantizationSimModel(model, x)
    sim.compute_encodings([x])
    back = sim.get_original_model()
    assert torch.equal(back(x), prepare_model(model, x)(x))
    assert not any(isinstance(m, QuantizationMixin) for m in back.modules())
    rounded = sim.get_original_model(qdq_weights=True)
    with torch.no_grad():
        want = quantized(sim, "fc").param_quantizers["weight"](model.fc.weight)
    assert torch.equal(rounded.get_parameter("fc.weight"), want)
    assert torch.equal(sim.model.get_parameter("fc.weight"), model.fc.weight)
    again = QuantizationSimModel(back, x)
    again.compute_encodings([x])
    assert torch.equal(again.model(x), sim.model(x))


def test_folded_parameters_change_nothing(
    sim: QuantizationSimModel, x: Tensor, tmp_path: Path
) -> None:
    before, weight = sim.model(x), sim.model.get_parameter("fc.weight").detach().clone()
    sim.fold_param_quantizers()
    assert torch.equal(sim.model(x), before)
    assert not torch.equal(sim.model.get_parameter("fc.weight"), weight)
    assert sim.export(tmp_path, "folded")


def test_each_of_several_selectors_must_change_something() -> None:
    x = torch.randn(2, 3)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU()).eval()
    sim = QuantizationSimModel(net, x)
    with pytest.raises(SelectorError, match="FXQ245: no weight of 1 "):
        sim.set_blockwise_quantization_for_weights(["2", "1"], 8, True, 2)
    with pytest.raises(SelectorError, match="FXQ244: no activation of 0 "):
        sim.set_activation_quantizers_to_float(["1", "0"], dtype=torch.float16)
