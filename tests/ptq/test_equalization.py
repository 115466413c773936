"""Equalization changes ranges of weights and nothing that the model computes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fxquant import QuantizationSimModel, equalize_model, prepare_model
from fxquant.errors import CalibrationError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

X = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))


def unequal(net: nn.Module, seed: int = 0) -> Any:
    """Channels that differ by orders of magnitude."""
    rng = torch.Generator().manual_seed(seed)
    for module in net.modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, nn.Parameter) and weight.dim() > 1:
            rows = 10 ** (torch.rand(weight.shape[0], generator=rng) * 2 - 1)
            weight.data.mul_(rows.reshape(-1, *[1] * (weight.dim() - 1)))
    return net.eval()


def difference(got: Tensor, want: Tensor) -> float:
    peak = want.abs().max().clamp_min(torch.finfo(want.dtype).tiny)  # a dead chain gives zeros
    return float((got - want).abs().max() / peak)


@torch.no_grad()
def equalized(net: nn.Module, x: Tensor = X) -> tuple[Any, Any]:
    gm = prepare_model(net, x)
    want = net(x)
    report = equalize_model(gm, per_channel=False)
    assert difference(gm(x), want) < 1e-5
    return gm, report


def layers(gm: Any) -> list[Any]:
    return [m for m in gm.modules() if getattr(m, "weight", None) is not None]


def test_ranges_of_a_depthwise_triple_are_the_cube_root() -> None:
    net = unequal(
        nn.Sequential(
            nn.Conv2d(4, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU(),
            nn.Conv2d(6, 5, 1),
        )
    )  # fmt: skip
    ranges = [
        net[0].weight.abs().amax((1, 2, 3)),
        net[2].weight.abs().amax((1, 2, 3)),
        net[4].weight.abs().amax((0, 2, 3)),
    ]
    want = (ranges[0] * ranges[1] * ranges[2]) ** (1 / 3)
    gm, report = equalized(net)
    assert [s.scaled for s in report.spaces] == [6, 6, 0]
    first, second, third = layers(gm)
    for found in (
        first.weight.abs().amax((1, 2, 3)),
        second.weight.abs().amax((1, 2, 3)),
        third.weight.abs().amax((0, 2, 3)),
    ):
        torch.testing.assert_close(found, want, rtol=5e-3, atol=0)


ACTIVATIONS: list[Callable[[], nn.Module]] = [
    nn.ReLU, lambda: nn.LeakyReLU(0.2), nn.PReLU, nn.Identity, nn.Dropout, lambda: nn.MaxPool2d(1),
]  # fmt: skip


@settings(max_examples=25, deadline=None)
@given(
    kinds=st.lists(
        st.sampled_from(["conv", "transposed", "grouped", "depthwise"]), min_size=2, max_size=5
    ),
    acts=st.lists(st.integers(0, len(ACTIVATIONS) - 1), min_size=5, max_size=5),
    head=st.booleans(),
    seed=st.integers(0, 100),
)
def test_chains_compute_the_same(kinds: list[str], acts: list[int], head: bool, seed: int) -> None:
    torch.manual_seed(seed)
    make: dict[str, Callable[[], nn.Module]] = {
        "conv": lambda: nn.Conv2d(4, 4, 3, padding=1),
        "transposed": lambda: nn.ConvTranspose2d(4, 4, 3, padding=1, groups=2),
        "grouped": lambda: nn.Conv2d(4, 4, 1, groups=2),
        "depthwise": lambda: nn.Conv2d(4, 4, 3, padding=1, groups=4, bias=False),
    }
    parts = [p for k, a in zip(kinds, acts, strict=False) for p in (make[k](), ACTIVATIONS[a]())]
    if head:
        parts += [nn.AvgPool2d(4), nn.Flatten(), nn.Linear(16, 4), nn.ReLU(), nn.Linear(4, 3)]
    _, report = equalized(unequal(nn.Sequential(*parts), seed))
    inner = report.spaces[:-1]
    assert all(s.scaled == s.channels for s in inner), str(report)


class Branches(nn.Module):
    """Residual sums, a shuffle, a concatenation, attention's values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.q, self.v, self.o = nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = F.relu(x + self.b(x))
        left, right = x.chunk(2, 1)
        x = torch.cat([right, left], 1)
        n, c, h, w = x.shape
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        y = torch.cat([self.c(x), x], 1).flatten(2).transpose(1, 2)

        def heads(t: Tensor) -> Tensor:
            return t.view(n, -1, 4, 4).transpose(1, 2)

        weights = torch.softmax(heads(self.q(y)) @ heads(y).transpose(2, 3), -1)
        z = (weights @ heads(self.v(y))).transpose(1, 2).reshape(n, -1, 16)
        return self.o(z)  # type: ignore[no-any-return]


def test_branches_are_scaled_where_every_consumer_takes_part() -> None:
    _, report = equalized(unequal(Branches()))
    found = {s.producers: s for s in report.spaces}
    assert found["v",].scaled == 16
    assert found["q",].scaled == 0
    assert any("matmul" in reason for reason in found["q",].reasons)
    # `y` is an operand of the attention itself
    assert all(s.scaled == 0 for p, s in found.items() if "a" in p)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        return self.c(F.relu(x + self.b(x)))  # type: ignore[no-any-return]


def test_both_sides_of_a_sum_have_the_same_factors() -> None:
    _, report = equalized(unequal(Residual()))
    assert report.spaces[0].producers == ("a", "b")
    assert report.spaces[0].consumers == ("b", "c")
    assert report.spaces[0].scaled == 8


class Views(nn.Module):
    """A view is allowed by the strides that values have in the model, not by those of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 6, 3), nn.Conv2d(6, 8, 3), nn.Linear(128, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x)).view(x.shape[0], -1).view(-1, 6, 6, 6)
        x = F.relu(self.b(x)).permute(0, 3, 2, 1).contiguous()
        return self.c(x.view(x.size(0), -1))  # type: ignore[no-any-return]


def test_channels_are_followed_through_views() -> None:
    _, report = equalized(unequal(Views()))
    assert [s.scaled for s in report.spaces] == [6, 8, 0]


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)
        self.b.weight = self.a.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.b(F.relu(self.a(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("net", "reason"),
    [
        (nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)), "1 reads it"),
        (nn.Sequential(nn.Linear(8, 8), nn.ReLU6(), nn.Linear(8, 8)), "1 reads it"),
        (Tied(), None),
    ],
    ids=["gelu", "relu6", "tied"],
)
def test_what_is_not_scaled_has_a_reason(net: nn.Module, reason: str | None) -> None:
    _, report = equalized(unequal(net), X)
    assert not any(s.scaled for s in report.spaces)
    assert not report.changed
    assert reason is None or reason in report.spaces[0].reasons


def test_relu6_is_replaced_when_asked_for() -> None:
    net = unequal(nn.Sequential(nn.Linear(8, 8), nn.ReLU6(), nn.Linear(8, 8)))
    report = equalize_model(net, (1, 8), replace_relu6=True)
    assert report.replaced == ("1",)
    assert report.spaces[0].scaled == 8
    assert isinstance(net[1], nn.ReLU)


def test_dead_channels_stay() -> None:
    net = unequal(nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)))
    with torch.no_grad():
        net[0].weight[1] = 0
        net[2].weight[:, 2] = 0
    _, report = equalized(net)
    assert report.spaces[0].scaled == 2


def test_the_users_own_model_is_changed_in_place() -> None:
    net = nn.Sequential(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    unequal(net)
    with torch.no_grad():
        want = net(X)
        report = equalize_model(net, dummy_input=X)
        assert difference(net(X), want) < 1e-5
    assert report.changed == ("0", "3")
    assert isinstance(net[1], nn.Identity)


def test_a_simulation_is_refused() -> None:
    sim = QuantizationSimModel(nn.Sequential(nn.Linear(8, 4)), X)
    with pytest.raises(ConfigError, match="FXQ292"):
        equalize_model(sim.model)


def test_weights_per_tensor_are_rescued() -> None:
    torch.manual_seed(0)
    net: Any = nn.Sequential(
        nn.Conv2d(4, 16, 3),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=16),
        nn.ReLU(),
        nn.Conv2d(16, 4, 1),
    ).eval()
    with torch.no_grad():
        k = 10 ** (torch.rand(16) * 3 - 1.5)
        net[0].weight.mul_(k.view(-1, 1, 1, 1)), net[0].bias.mul_(k)
        net[2].weight.div_(k.view(-1, 1, 1, 1))

    @torch.no_grad()
    def decibels(model: nn.Module) -> float:
        sim = QuantizationSimModel(model, X, "min_max", 8, 8, config={"per_channel": False})
        sim.compute_encodings([X])
        want = net(X)
        return float(10 * torch.log10(want.var() / (sim.model(X) - want).square().mean()))

    before = decibels(net)
    gm, _ = equalized(net)
    assert before < 15
    assert decibels(gm) > 30


def biased(*layers: nn.Module) -> Any:
    """A batch norm that lifts every second channel far above zero."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(*layers)
    net.train()
    with torch.no_grad():
        for _ in range(50):
            net(torch.randn(8, 4, 8, 8))
        net[1].bias[::2] = 6.0
    return net.eval()


def test_high_biases_go_into_the_layer_behind() -> None:
    net = biased(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 4, 3, groups=2))
    x = torch.randn(64, 4, 8, 8)
    gm = prepare_model(net, X)
    report = equalize_model(gm, absorb_high_bias=True)
    (found,) = report.absorbed
    assert (found.consumers, found.channels) == (("3",), 3)
    assert "went into 3" in str(report)
    with torch.no_grad():
        want, got = net(x), gm(x)
        before, after = net[:3](x).amax((0, 2, 3)), gm.get_submodule("0")(x).amax((0, 2, 3))
    # few values of a normal distribution lie more than three deviations below its mean
    changed = ((got - want).abs() > 1e-4 * want.abs().max()).float().mean()
    assert float(changed) < 0.08  # one output reads 27 of them
    assert float((got - want).norm() / want.norm()) < 5e-3
    assert bool((after[::2] / before[::2] < after[1::2].max() / before[1::2].min()).all())


@pytest.mark.parametrize(
    ("layers", "reason"),
    [
        ((nn.ReLU(), nn.Conv2d(6, 4, 3, padding=1)), "pads with zeros"),
        ((nn.GELU(), nn.Conv2d(6, 4, 3)), "not one ReLU alone"),
        ((nn.ReLU(), nn.MaxPool2d(2)), "no layer that could take it in"),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_what_cannot_be_absorbed_is_told(layers: tuple[nn.Module, ...], reason: str) -> None:
    net = biased(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), *layers)
    gm, want = prepare_model(net, X), net(X)
    (found,) = equalize_model(gm, absorb_high_bias=True).absorbed
    assert reason in found.reason
    with torch.no_grad():
        assert difference(gm(X), want) < 1e-5


def test_a_bias_that_absorption_makes_goes_into_the_users_model_too() -> None:
    last = nn.Conv2d(6, 4, 3, bias=False)
    net = biased(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.ReLU(), last)
    want = net(X)
    report = equalize_model(net, dummy_input=X, absorb_high_bias=True)
    assert report.absorbed[0].channels == 3
    assert net[3].bias is not None
    with torch.no_grad():
        assert float((net(X) - want).norm() / want.norm()) < 5e-3


def some_rows_larger(inputs: int) -> Any:
    """A sixteenth of the channels is much larger than the others, and all are read alike."""
    torch.manual_seed(0)
    net: Any = nn.Sequential(nn.Linear(inputs, 64), nn.ReLU(), nn.Linear(64, 16)).eval()
    with torch.no_grad():
        net[0].weight[::16] *= 8
    return net


def decibels(net: nn.Module, gm: Any, bits: int) -> float:
    rng, inputs = torch.Generator().manual_seed(1), next(net.parameters()).shape[1]
    known, unseen = (torch.randn(256, inputs, generator=rng) for _ in range(2))
    sim = QuantizationSimModel(gm, known, default_param_bw=bits)
    sim.compute_encodings([known])
    with torch.no_grad():
        noise = (sim.model(unseen) - net(unseen)).square().sum()
        return float(10 * torch.log10(net(unseen).square().sum() / noise))


def test_channels_stay_where_a_grid_for_every_channel_would_lose() -> None:
    """One grid for a tensor gains by equal ranges; here they cost 1.5 dB with one for each row."""
    net = some_rows_larger(16)
    x = torch.zeros(1, 16)
    graphs = [prepare_model(net, x) for _ in range(4)]
    sim = QuantizationSimModel(net, x, default_param_bw=4)
    told: list[dict[str, Any]] = [{"per_channel": False}, {"param_bw": 4}, {"like": sim}]
    reports = [equalize_model(gm, **given) for gm, given in zip(graphs[1:], told, strict=True)]
    assert [r.spaces[0].scaled for r in reports] == [64, 0, 0]
    assert "with a grid for every channel errors would be" in str(reports[1])
    found = [decibels(net, gm, 4) for gm in graphs]
    assert found[1] < found[0] - 1
    assert found[2] == found[3] == found[0]


def test_channels_stay_by_default_where_errors_would_grow_by_half() -> None:
    net = some_rows_larger(1)  # rows of one weight are exact on any grid
    gm = prepare_model(net, torch.zeros(1, 1))
    report = equalize_model(gm)
    assert report.spaces[0].scaled == 0
    assert torch.equal(gm.get_parameter("2.weight"), net[2].weight)
    with pytest.raises(ConfigError, match="FXQ217"):
        equalize_model(gm, param_bw=4, like=QuantizationSimModel(net, torch.zeros(1, 1)))
    with pytest.raises(ConfigError, match="FXQ236"):
        equalize_model(gm, per_channel=1)  # type: ignore[arg-type]


def rescaled(seed: int) -> tuple[nn.Module, list[Tensor], Tensor]:
    """A depthwise block with channels of uneven weights, and of uneven activations."""
    torch.manual_seed(seed)
    net: Any = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 8, 1), nn.ReLU(), nn.Conv2d(8, 6, 3),
    )  # fmt: skip
    with torch.no_grad():
        for _ in range(20):
            net(torch.randn(16, 3, 8, 8))
        for norm in (net[1], net[4]):
            norm.bias[::4].add_(8)  # large values that the weights do not tell
        factors = 10 ** (torch.rand(16) * 3 - 1.5)
        net[1].weight.mul_(factors), net[1].bias.mul_(factors)
        net[3].weight.div_(factors.reshape(-1, 1, 1, 1))
    return net.eval(), [torch.randn(16, 3, 8, 8) for _ in range(4)], torch.randn(64, 3, 8, 8)


@torch.no_grad()
def simulated(
    net: nn.Module, gm: Any, data: list[Tensor], unseen: Tensor, bits: int, *, per_channel: bool
) -> float:
    config = {"per_channel": per_channel}
    sim = QuantizationSimModel(gm, data[0], default_param_bw=bits, config=config)
    sim.compute_encodings(data)
    want = net(unseen)
    return float(10 * torch.log10(want.square().sum() / (sim.model(unseen) - want).square().sum()))


@torch.no_grad()
def test_data_and_batch_norms_tell_ranges_of_activations() -> None:
    gains: dict[str, list[float]] = {"batch norms": [], "data": []}
    for seed in range(2):
        net, data, unseen = rescaled(seed)

        def result(**told: Any) -> float:
            gm = prepare_model(net, data[0])  # noqa: B023
            equalize_model(gm, **told)
            assert difference(gm(unseen), net(unseen)) < 1e-5  # noqa: B023
            return simulated(net, gm, data, unseen, 8, per_channel=False)  # noqa: B023

        paper = result(activations=False)
        gains["batch norms"].append(result() - paper)
        gains["data"].append(result(data=data, per_channel=False) - paper)
    for found in gains.values():
        assert min(found) > 0.3, gains
        assert sum(found) > 2, gains


@pytest.mark.parametrize("bits", [4, 8])
def test_with_data_nothing_is_lost_on_grids_for_every_channel(bits: int) -> None:
    for seed in range(2):
        net, data, unseen = rescaled(seed)
        for parameter in list(net.parameters())[:1]:  # rows of one weight are outliers
            parameter.data.view(-1)[::97] *= 20
        gm, plain = prepare_model(net, data[0]), prepare_model(net, data[0])
        equalize_model(gm, data=data, param_bw=bits)
        before = simulated(net, plain, data, unseen, bits, per_channel=True)
        assert simulated(net, gm, data, unseen, bits, per_channel=True) > before - 0.3


def test_data_are_judged_on_a_simulation_that_is_given() -> None:
    net, data, _ = rescaled(0)
    config = {"per_channel": False}
    sim = QuantizationSimModel(net, data[0], default_param_bw=8, config=config)
    known, given = prepare_model(net, data[0]), prepare_model(net, data[0])
    weight = sim.model.get_parameter("0.weight").clone()
    equalize_model(given, data=data, like=sim)
    equalize_model(known, data=data, param_bw=8, per_channel=False)
    assert torch.equal(sim.model.get_parameter("0.weight"), weight)
    for (name, one), (_, other) in zip(
        known.named_parameters(), given.named_parameters(), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=0, msg=name)
    with pytest.raises(CalibrationError, match="FXQ442"):
        equalize_model(known, data=[])
    endless = nn.Sequential(nn.Threshold(0.0, float("inf")), nn.Linear(2, 2), nn.Linear(2, 2))
    with pytest.raises(CalibrationError, match="FXQ485"):
        equalize_model(prepare_model(endless.eval(), torch.ones(1, 2)), data=[-torch.ones(4, 2)])
