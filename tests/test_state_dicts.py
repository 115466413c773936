"""Weights as trainers write them, and what no weight may be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.checkpoint import load_checkpoint, save_checkpoint
from fxquant.cli.loading import build_model
from fxquant.errors import CheckpointError, ConfigError
from fxquant.io.state_dicts import located, renamed, wrong_tensors

FACTORY = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.register_buffer("mask", torch.zeros(2, 2))
        self.register_buffer("flag", torch.zeros(2, dtype=torch.bool))

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))
"""


@pytest.fixture(name="factory")
def _factory(tmp_path: Path) -> str:
    (tmp_path / "net.py").write_text(FACTORY)
    return f"{tmp_path / 'net.py'}:Net"


def weights(factory: str) -> dict[str, Tensor]:
    torch.manual_seed(3)
    return build_model(factory).state_dict()


def prefixed(state: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {f"{prefix}{name}": value for name, value in state.items()}


def inside(state: dict[str, Tensor], part: str, wrapper: str) -> dict[str, Tensor]:
    return {k.replace(f"{part}.", f"{part}.{wrapper}.", 1): v for k, v in state.items()}


State = dict[str, Tensor]
WRITTEN: dict[str, Callable[[State], Any]] = {
    "plain": lambda s: s,
    "model": lambda s: {"model": s, "optimizer": {"state": {}}, "epoch": 3},
    "state_dict": lambda s: {"state_dict": s, "best_acc1": 0.5, "arch": "net"},
    "model_state_dict": lambda s: {"model_state_dict": s, "optimizer_state_dict": {}, "loss": 1.0},
    "ema": lambda s: {"ema": s, "epoch": 1},
    "ema in module": lambda s: {"model_ema": {"module": s, "updates": 3}},
    "DataParallel": lambda s: prefixed(s, "module."),
    "DataParallel in a checkpoint": lambda s: {"state_dict": prefixed(s, "module.")},
    "DataParallel inside": lambda s: inside(s, "features", "module"),
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "both": lambda s: {"model": prefixed(s, "module._orig_mod.")},
    "averaged": lambda s: prefixed(s, "module.") | {"n_averaged": torch.tensor(7)},
    "lightning": lambda s: {"state_dict": prefixed(s, "model."), "pytorch-lightning_version": "2"},
    "lightning and compiled": lambda s: {"state_dict": prefixed(s, "net._orig_mod.")},
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_checkpoints_of_trainers_are_taken(kind: str, factory: str, tmp_path: Path) -> None:
    state = {k: v + 1 if v.is_floating_point() else v for k, v in weights(factory).items()}
    torch.save(WRITTEN[kind](state), tmp_path / "w.ckpt")
    found = build_model(factory, tmp_path / "w.ckpt").state_dict()
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], value) for name, value in state.items())


def test_weights_are_preferred_to_their_average(caplog: pytest.LogCaptureFixture) -> None:
    state = {"w": torch.ones(1)}
    assert located({"ema": {"w": torch.zeros(1)}, "model": state}, "f.pt") == (("model",), state)
    assert "'model' is taken; it also holds 'ema'" in caplog.text


@pytest.mark.parametrize("loaded", [[], {"epoch": 3}, {"model": {"lr": 0.1}}, {1: torch.ones(1)}])
def test_what_holds_no_weights(loaded: Any) -> None:
    assert located(loaded) is None


def test_names_are_changed_only_where_all_fit() -> None:
    own = {"a.module.w": 0, "b": 0}
    plain = {name: torch.ones(1) for name in own}
    assert renamed(plain, own) == plain
    assert renamed({"a.w": torch.ones(1), "b": torch.ones(1)}, own).keys() == own.keys()
    for other in ({"a.w": torch.ones(1)}, {"x.a.w": torch.ones(1), "y.b": torch.ones(1)}):
        assert renamed(other, own) == other
    # two names become one: nothing is guessed
    twice = {"module.b": torch.ones(1), "b": torch.zeros(1), "a.w": torch.ones(1)}
    assert renamed(twice, own) == twice


WRONG: list[tuple[str, Callable[[Tensor], Tensor], str]] = [
    ("head.weight", lambda t: t.to(torch.int8), "torch.int8 where the model has torch.float32"),
    ("head.weight", lambda t: t > 0, "torch.bool where"),
    ("head.weight", lambda t: t.to(torch.int64), "torch.int64 where"),
    ("head.weight", lambda t: t.to(torch.complex64), "torch.complex64 where"),
    ("head.weight", lambda t: t.to(torch.float8_e4m3fn), "torch.float8_e4m3fn where"),
    ("head.weight", lambda t: t.to_sparse(), "no plain tensor"),
    ("head.weight", lambda t: t.double() * 1e300, "infinity"),
    ("head.weight", lambda t: t * float("nan"), "NaN"),
    ("head.bias", lambda t: t + float("inf"), "infinity"),
    ("mask", lambda t: t * float("nan"), "NaN"),
    ("features.1.running_var", lambda t: t + float("inf"), "infinity"),
    ("features.1.num_batches_tracked", lambda t: t + 0.5, "torch.float32 where"),
    ("features.1.num_batches_tracked", lambda t: t > 0, "torch.bool where"),
    ("flag", lambda t: t.to(torch.float32), "torch.float32 where"),
    ("flag", lambda t: t.to(torch.int64), "torch.int64 where"),
]


@pytest.mark.parametrize(("name", "change", "says"), WRONG)
def test_what_no_weight_may_be(
    name: str, change: Callable[[Tensor], Tensor], says: str, factory: str, tmp_path: Path
) -> None:
    state = weights(factory)
    state[name] = change(state[name])
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ConfigError, match=f"FXQ715.*{name} (holds|is) .*{says}"):
        build_model(factory, tmp_path / "w.pt")


def test_what_a_weight_may_be(factory: str) -> None:
    model, state = build_model(factory), weights(factory)
    state["mask"] = state["mask"] - float("inf")  # a mask of attention
    state["flag"] = state["flag"].to(torch.uint8)
    state["head.weight"] = state["head.weight"].to(torch.bfloat16)
    state["head.bias"] = state["head.bias"].double()
    state["features.1.num_batches_tracked"] = torch.tensor(3, dtype=torch.int32)
    assert not list(wrong_tensors(model, state))


def damaged(sim: QuantizationSimModel, name: str, value: float) -> None:
    with torch.no_grad():
        sim.model.state_dict()[name].fill_(value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("0.weight", float("nan"), "0.weight holds NaN"),
        ("0.bias", float("inf"), "0.bias holds infinity"),
        ("1.output_quantizers.0.min", float("nan"), "1.output_quantizers.0 has no range"),
        ("1.output_quantizers.0.max", float("inf"), "1.output_quantizers.0 has no range"),
        ("1.output_quantizers.0.min", 1e9, "1.output_quantizers.0 has no range"),
    ],
)
def test_checkpoints_with_numbers_that_mean_nothing(
    name: str, value: float, says: str, tmp_path: Path
) -> None:
    x = torch.randn(4, 3)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    sim, other = QuantizationSimModel(net, x), QuantizationSimModel(net, x)
    save_checkpoint(sim, tmp_path / "new")  # not calibrated: its ranges are NaN
    load_checkpoint(other, tmp_path / "new")
    sim.compute_encodings([x])
    before = {n: t.clone() for n, t in other.model.state_dict().items()}
    quantizers = {n: q.is_initialized() for n, q in sim.named_quantizers()}
    assert all(quantizers.values())
    damaged(sim, name, value)
    for _, quantizer in sim.named_quantizers():  # what a file says of them is not checked by NaN
        quantizer.is_initialized = lambda: True  # type: ignore[method-assign]
    save_checkpoint(sim, tmp_path / "bad")
    with pytest.raises(CheckpointError, match=f"FXQ607.*{says}"):
        load_checkpoint(other, tmp_path / "bad")
    for key, tensor in other.model.state_dict().items():
        assert torch.equal(tensor, before[key]) or bool(tensor.isnan().all())
