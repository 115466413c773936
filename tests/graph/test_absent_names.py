"""Names of modules that preparation has changed: an error says what became of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel, prepare_model
from fxquant.errors import QuantizationError, SelectorError
from fxquant.graph.selectors import chosen_nodes
from fxquant.quantization import affine

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.act = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.normed: Any = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
        self.unused = nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.bn(self.conv(x))).flatten(2).transpose(1, 2)
        x, _ = self.attention(x, x, x, need_weights=False)
        y: Tensor = F.gelu(self.normed(x)).mean(1)
        return y


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


NAMES = {
    "bn": ("'bn' was folded into 'conv'", "name 'conv'"),
    "b*": ("'bn' was folded into 'conv'", "fold_batch_norms=false"),
    "bn.weight": ("'bn' was folded into 'conv'", "name 'conv'"),
    "attention.scaled_dot_product_attention": ("taken apart", "name 'attention.attention'"),
    "attention.out_proj": ("read by 'attention.linear_1'", "name 'attention.linear_1'"),
    "attention.in_proj_weight": ("is a parameter", "'attention.linear', with a rule for its 'wei"),
    "conv.bias": ("'conv.bias' is a parameter", "'conv', with a rule for its 'bias'"),
    "normed.parametrizations.weight": ("folded into the weights of 'normed'", "name 'normed'"),
    "unused": ("nothing calls 'unused'", "leave it out"),
    "unused.weight": ("is a parameter", "no operator reads it"),
    "nothing": ("'nothing' matches no module", ""),
}


@pytest.mark.parametrize("name", NAMES)
def test_rules_for_what_preparation_has_changed(name: str) -> None:
    what, fix = NAMES[name]
    for config in ({"layers": {name: {"output": {"bitwidth": 16}}}}, {"keep_float": [name]}):
        with pytest.raises(SelectorError, match="FXQ213") as error:
            QuantizationSimModel(net(), X, config=config)
        assert what in error.value.what
        assert fix in str(error.value.fix)


def test_the_place_that_is_named_takes_the_rule() -> None:
    sim = QuantizationSimModel(net(), X, config={"layers": {"conv": {"output": {"bitwidth": 16}}}})
    assert dict(sim.named_qmodules())["act"].output_quantizers[0].bitwidth == 16
    unfolded = {"fold_batch_norms": False, "keep_float": ["bn"]}
    QuantizationSimModel(net(), X, config=unfolded)


CALLS: dict[str, Callable[[QuantizationSimModel], object]] = {
    "FXQ240": lambda sim: sim.explain("bn"),
    "FXQ241": lambda sim: sim.exclude_layers_from_quantization("bn"),
    "FXQ243": lambda sim: sim.exclude_param_from_quantization("bn.weight"),
}


@pytest.mark.parametrize("code", CALLS)
def test_a_simulation_tells_what_became_of_a_name(code: str) -> None:
    with pytest.raises(SelectorError, match=rf"{code}.*was folded into 'conv'"):
        CALLS[code](QuantizationSimModel(net(), X))


def test_a_container_is_explained_by_what_is_in_it() -> None:
    text = QuantizationSimModel(net(), X).explain("attention")
    assert "attention.linear_1" in text
    assert "attention.softmax" in text


def test_regions_of_what_is_not_called() -> None:
    with pytest.raises(SelectorError, match="FXQ213: nothing calls 'unused'"):
        chosen_nodes(prepare_model(net(), X), ["unused"])


def test_predicates_that_raise_are_named() -> None:
    def wrong(path: str, module: nn.Module) -> bool:
        raise KeyError(path)

    with pytest.raises(SelectorError, match="FXQ214: the predicate wrong raised KeyError"):
        prepare_model(net(), X, modules_to_exclude=wrong)


def test_quantizers_beyond_what_a_module_takes_and_makes() -> None:
    sim = QuantizationSimModel(net(), X)
    module: Any = sim.model.get_submodule("attention.attention")
    new = affine.QuantizeDequantize(shape=(), bitwidth=8)
    for home, count in ((module.output_quantizers, 1), (module.input_quantizers, 2)):
        for position in (count, 7):
            with pytest.raises(QuantizationError, match=f"FXQ427: {position} is no .* are {count}"):
                home[position] = new
        with pytest.raises(QuantizationError, match="FXQ427"):
            home.append(new)
        home[count - 1] = new
        assert len(home) == count


def test_modules_with_several_results_take_as_many_quantizers() -> None:
    class Cell(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.LSTM(3, 4, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.cell(x)

    sim = QuantizationSimModel(Cell().eval(), torch.randn(2, 5, 3))
    home: Any = sim.model.get_submodule("cell").output_quantizers
    home[2] = affine.QuantizeDequantize(shape=(), bitwidth=8)
    with pytest.raises(QuantizationError, match="FXQ427: 3 is no position"):
        home[3] = None
