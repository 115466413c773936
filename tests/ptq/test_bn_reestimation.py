"""Running statistics become means over batches, and can be had back."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, prepare_model, reestimate_bn_stats
from fxquant.errors import CalibrationError, ConfigError


def batches(seed: int = 0) -> list[Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return [torch.randn(n, 3, 6, 6, generator=rng) * 2 + n for n in (4, 2, 5)]


def net() -> Any:
    torch.manual_seed(0)
    made = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, momentum=0.3), nn.Dropout(), nn.ReLU(),
        nn.Conv2d(4, 2, 3), nn.BatchNorm2d(2, affine=False),
    )  # fmt: skip
    return made.eval()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in model.state_dict().items()}


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def reference(model: Any, data: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Means over batches of the first batch norm's statistics, in float64."""
    found = [model[0](x).double().movedim(1, 0).flatten(1) for x in data]
    means = torch.stack([x.mean(1) for x in found]).mean(0)
    return means, torch.stack([x.var(1, unbiased=True) for x in found]).mean(0)


def test_statistics_are_the_exact_means_over_batches() -> None:
    model, data = net(), batches()
    with torch.no_grad():
        mean, var = reference(model, data)
    handle = reestimate_bn_stats(model, data)
    torch.testing.assert_close(model[1].running_mean.double(), mean, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), var, rtol=1e-6, atol=1e-6)
    assert handle.batches == 3
    assert list(handle.norms) == ["1", "5"]
    assert "1: means moved by" in str(handle)


def test_nothing_else_changes_and_remove_puts_it_back() -> None:
    model, data = net(), batches()
    model[3].train()
    before = state(model)
    handle = reestimate_bn_stats(model, data, num_batches=2)
    after = state(model)
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"1.running_mean", "1.running_var", "5.running_mean", "5.running_var"}
    assert model[1].momentum == 0.3
    assert [m.training for m in model] == [False, False, False, True, False, False]
    assert handle.batches == 2
    handle.remove()
    assert equal(state(model), before)
    model[1].running_mean.fill_(7.0)
    handle.remove()  # a second time it does nothing
    assert bool((model[1].running_mean == 7.0).all())


def test_a_context_puts_it_back_after_an_error_too() -> None:
    model = net()
    before = state(model)
    with pytest.raises(KeyError), reestimate_bn_stats(model, batches()):  # noqa: PT012
        assert not equal(state(model), before)
        raise KeyError
    assert equal(state(model), before)


def test_a_prepared_model_and_a_simulation_take_it_as_well() -> None:
    model, data = net(), batches()
    prepared = prepare_model(model, data[0])
    sim = QuantizationSimModel(
        model, data[0], "min_max", 16, 16, config={"fold_batch_norms": False}
    )
    sim.compute_encodings(data)
    before = state(sim.model)
    for found in (model, prepared):
        reestimate_bn_stats(found, data)
    handle = reestimate_bn_stats(sim, data)
    ours: Any = sim.model.get_submodule("1")
    theirs: Any = prepared.get_submodule("1")
    assert torch.equal(theirs.running_mean, model[1].running_mean)
    # what the simulation sees is on grids of 16 bits
    torch.testing.assert_close(ours.running_mean, model[1].running_mean, rtol=1e-3, atol=1e-3)
    handle.remove()
    assert equal(state(sim.model), before)


def test_labels_are_left_out_and_a_function_may_run_the_model() -> None:
    model, other, data = net(), net(), batches()
    reestimate_bn_stats(model, [(x, torch.zeros(len(x))) for x in data])
    reestimate_bn_stats(other, [{"x": x} for x in data], 3, lambda m, batch: m(batch["x"]))
    assert equal(state(model), state(other))


def test_a_norm_that_is_called_twice_counts_both_calls() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bn = nn.BatchNorm1d(2, affine=False)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.bn(x), self.bn(x + 4)

    model = Twice().eval()
    reestimate_bn_stats(model, [torch.tensor([[0.0, 1.0], [2.0, 3.0]])])
    assert model.bn.running_mean is not None
    assert model.bn.running_mean.tolist() == [3.0, 4.0]


def test_a_model_without_batch_norms_says_so() -> None:
    handle = reestimate_bn_stats(nn.Linear(3, 2), [torch.randn(4, 3)])
    assert str(handle) == "no batch norm keeps running statistics"


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ([], "FXQ477"),
        (3, "FXQ477"),
        ([torch.randn(2, 5, 6, 6)], "FXQ478"),
        ([torch.randn(1, 3, 5, 5)], "FXQ478"),  # one value per channel in the second norm
        ([torch.full((2, 3, 6, 6), float("nan"))], "FXQ479"),
    ],
)
def test_bad_data_are_refused_and_change_nothing(data: Any, code: str) -> None:
    model = net()
    before = state(model)
    with pytest.raises(CalibrationError, match=code):
        reestimate_bn_stats(model, data)
    assert equal(state(model), before)
    assert model[1].momentum == 0.3
    assert not model[1].training


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_a_wrong_number_of_batches_is_refused(count: Any) -> None:
    with pytest.raises(ConfigError, match="FXQ216"):
        reestimate_bn_stats(net(), batches(), count)
