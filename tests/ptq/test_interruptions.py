"""A technique that is interrupted leaves a simulation as it was before."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import nn

from fxquant import QuantizationSimModel, reestimate_bn_stats
from fxquant.nn import QuantizationMixin
from fxquant.ptq import (
    FinetuneParams,
    ReconstructionOptions,
    apply_gptq,
    apply_seq_mse,
    choose_activation_ranges,
    correct_bias,
    fast_finetune,
    reconstruct,
)
from fxquant.ptq.solving.refinement import RefinementOptions
from fxquant.quantization import QuantizerBase

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

X = torch.randn(24, 3, 10, 10, generator=torch.Generator().manual_seed(0))


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(),
        nn.Flatten(), nn.Dropout(0.1), nn.Linear(288, 16), nn.ReLU(), nn.Linear(16, 4),
    )  # fmt: skip


def simulation(activations: int = 8) -> QuantizationSimModel:
    torch.manual_seed(0)
    sim = QuantizationSimModel(
        network().eval(), X[:4], default_param_bw=4, default_output_bw=activations
    )
    sim.compute_encodings(list(X.split(4)))
    sim.model.train()
    next(sim.model.children()).eval()  # flags differ, and have to come back so
    return sim


def state_of(sim: QuantizationSimModel) -> dict[str, Any]:
    """All that a technique could leave behind, in a form that can be compared."""
    found: dict[str, Any] = {
        name: (value.dtype, value.flatten().tolist())
        for name, value in sim.model.state_dict().items()
    }
    for path, module in sim.model.named_modules():
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
        found[f"module {path}"] = id(module), module.training, tuple(map(len, hooks))
        if isinstance(module, QuantizerBase):
            names = ("_held", "_overwritable", "_frozen", "_enabled")
            found[f"quantizer {path}"] = [str(vars(module).get(name)) for name in names]
        if isinstance(module, QuantizationMixin):
            found[f"originals {path}"] = sorted(vars(module).get(module.FLOAT_VALUES, {}))
    for path, parameter in sim.model.named_parameters():
        found[f"flags {path}"] = id(parameter), parameter.requires_grad, parameter.grad is None
    return found | {"torch": (torch.is_grad_enabled(), torch.get_num_threads())}


TECHNIQUES: dict[str, tuple[Callable[[QuantizationSimModel, Any], object], int]] = {
    "compute_encodings": (lambda sim, data: sim.compute_encodings(data), 8),
    "reconstruct": (reconstruct, 8),
    "reconstruct with ranges": (reconstruct, 4),
    "gptq": (apply_gptq, 8),
    "seq_mse": (apply_seq_mse, 8),
    "fast_finetune": (
        lambda sim, data: fast_finetune(
            sim, data, FinetuneParams(refinement=RefinementOptions(iterations=3))
        ),
        8,
    ),
    "activation ranges": (choose_activation_ranges, 4),
    "correct_bias": (correct_bias, 8),
    "batch norms": (reestimate_bn_stats, 8),
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_nothing_is_left_half_done(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    technique, bits = TECHNIQUES[name]
    calls, last, relu = 0, 10**9, nn.ReLU.forward

    def forward(self: nn.ReLU, x: torch.Tensor) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == last:
            raise KeyboardInterrupt
        return relu(self, x)

    def loader(stop: int) -> Iterator[torch.Tensor]:
        for number, batch in enumerate(X.split(4)):
            if number == stop:
                raise KeyboardInterrupt
            yield batch

    sim = simulation(bits)
    before = state_of(sim)
    monkeypatch.setattr(nn.ReLU, "forward", forward)
    for stop in (0, 4):
        with pytest.raises(KeyboardInterrupt):
            technique(sim, loader(stop))
        assert state_of(sim) == before
    other = simulation(bits)
    calls = 0
    technique(other, loader(99))
    total = calls
    # inside of modules: at the beginning, in the middle and at the end
    for share in (0.1, 0.6, 1.0):
        calls, last = 0, max(1, int(share * total))
        with pytest.raises(KeyboardInterrupt):
            technique(sim, loader(99))
        assert state_of(sim) == before


def test_a_second_pass_that_is_interrupted_is_resumed(tmp_path: Path) -> None:
    options = ReconstructionOptions(folder=tmp_path)
    expected = simulation(4)
    passes: list[int] = []
    reconstruct(expected, list(X.split(4)), options, progress=lambda done, _: passes.append(done))
    assert passes.count(1) == 2  # the second one is without other ranges
    sim = simulation(4)
    before, told = state_of(sim), itertools.count()

    def stop(_: int, total: int) -> None:
        if next(told) == total + 2 * total // 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reconstruct(sim, list(X.split(4)), options, progress=stop)
    assert state_of(sim) == before
    assert len(list(tmp_path.iterdir())) == 2  # layers of both passes
    reconstruct(sim, list(X.split(4)), options)
    assert not list(tmp_path.iterdir())
    same = zip(sim.model.state_dict().items(), expected.model.state_dict().items(), strict=True)
    assert all(a == b and torch.equal(x, y) for (a, x), (b, y) in same)
