"""Smoothing changes ranges of activations and nothing that the model computes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, prepare_model, smooth_model
from fxquant.errors import CalibrationError, ConfigError
from fxquant.ptq.smoothing.strength_search import smoothing_factors
from tests.helpers.golden import assert_dump

SIZE = 16


def rng(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(32, 5, SIZE, generator=rng())


class PreNorm(nn.Module):
    """q, k and v read one norm; the residual sum reads the value before it."""

    def __init__(self, norm: type[nn.Module] = nn.LayerNorm) -> None:
        super().__init__()
        self.norm = norm(SIZE)
        self.q, self.k, self.v = (nn.Linear(SIZE, SIZE) for _ in range(3))
        self.out = nn.Linear(SIZE, SIZE)

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        scores = self.q(y) @ self.k(y).transpose(-1, -2)
        return x + self.out(torch.softmax(scores / 4, -1) @ self.v(y))


class PostNorm(nn.Module):
    """A linear layer and the residual sum read one norm, as in BERT."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.last = nn.LayerNorm(SIZE), nn.LayerNorm(SIZE)
        self.up, self.down = nn.Linear(SIZE, 2 * SIZE), nn.Linear(2 * SIZE, SIZE)

    def forward(self, x: Tensor) -> Any:
        y = self.norm(x)
        return self.last(y + self.down(nn.functional.gelu(self.up(y))))


def outliers(net: Any, *, by: float = 30.0) -> Any:
    """Some channels of the norm are much larger than the others."""
    with torch.no_grad():
        net.norm.weight[3::7] *= by
    return net.eval()


def built(kind: type[nn.Module], *args: Any) -> Any:
    torch.manual_seed(0)
    return outliers(kind(*args))


def difference(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max() / want.abs().max())


def prepared(net: nn.Module, inputs: Any) -> Any:
    return prepare_model(net, inputs)


def decibels(net: Any, gm: Any, x: Tensor, bits: int = 8) -> float:
    sim = QuantizationSimModel(gm, x[:16], "min_max", 8, bits)
    sim.compute_encodings([x[:16]])
    with torch.no_grad():
        want = net(x)
        noise = want - torch.as_tensor(sim.model(x))
    return float(10 * torch.log10(want.square().sum() / noise.square().sum()))


@pytest.mark.parametrize("norm", [nn.LayerNorm, nn.RMSNorm])
def test_a_norm_takes_the_factors_of_all_that_read_it(norm: type[nn.Module]) -> None:
    net = built(PreNorm, norm)
    gm = prepared(net, X)
    before = decibels(net, gm, X)
    report = smooth_model(gm, [X], quant_scheme="min_max")
    first = report.groups[0]
    assert first.layers == ("q", "k", "v")
    assert first.folded_into == ("norm",)
    assert first.changed
    assert report.weighed
    assert report.multiplications == 0
    with torch.no_grad():
        assert difference(gm(X), net(X)) < 1e-5
    factors = net.norm.weight / gm.norm.weight
    for name in ("q", "k"):  # the rows of v have factors of their own
        found = getattr(gm, name).weight / getattr(net, name).weight
        torch.testing.assert_close(found, factors.expand_as(found), rtol=1e-5, atol=0)
    assert decibels(net, gm, X) > before + 2.5


def test_a_multiplication_stands_where_a_sum_reads_the_norm_too() -> None:
    net = built(PostNorm)
    gm = prepared(net, X)
    before = decibels(net, gm, X)
    report = smooth_model(gm, [X], quant_scheme="min_max")
    assert [(g.layers, g.folded_into) for g in report.groups] == [(("up",), ()), (("down",), ())]
    assert report.groups[0].changed
    assert_dump(
        gm,
        """
            %x                 = input
            %norm              = layer_norm[norm](%x)
            %smoothing_value   = attr[smoothing.value]
            %smooth            = mul[smooth](%norm, %smoothing_value)
            %up                = linear[up](%smooth)
            %gelu              = gelu[gelu](%up)
            %smoothing_1_value = attr[smoothing_1.value]
            %smooth_1          = mul[smooth_1](%gelu, %smoothing_1_value)
            %down              = linear[down](%smooth_1)
            %add               = add[add](%norm, %down)
            %last              = layer_norm[last](%add)
            return %last
        """,
    )
    with torch.no_grad():
        assert difference(gm(X), net(X)) < 1e-5
    assert torch.equal(gm.norm.weight, net.norm.weight)
    assert decibels(net, gm, X) > before + 3


def test_without_multiplications_the_reason_is_told() -> None:
    gm = prepared(built(PostNorm), X)
    report = smooth_model(gm, [X], multiply=False)
    assert not any(g.changed for g in report.groups)
    assert "up: left as it was, what makes its input is also read by others" in str(report)


def test_a_model_that_is_not_prepared_gets_its_parameters_back() -> None:
    net, same = built(PreNorm), built(PreNorm)
    report = smooth_model(net, [X], dummy_input=X)
    assert report.groups[0].changed
    assert not torch.equal(net.q.weight, same.q.weight)
    with torch.no_grad():
        assert difference(net(X), same(X)) < 1e-5


def test_padding_does_not_count() -> None:
    """Positions that the output does not depend on neither choose factors nor judge them."""

    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up = nn.LayerNorm(SIZE), nn.Linear(SIZE, 4)

        def forward(self, x: Tensor, mask: Tensor) -> Any:
            return (self.up(self.norm(x)) * mask).sum(1)

    net = built(Padded)
    mask = torch.zeros(32, 5, 1)
    mask[:, :2] = 1.0
    found = []
    for padding in (X[:, 2:], X[:, 2:].flip(0) * 3 - 1):
        x = torch.cat([X[:, :2], padding], 1)
        gm = prepared(net, (x, mask))
        found.append(smooth_model(gm, [(x, mask)], alpha=[0.5]).groups[0])
    # the norm's range is over all positions, so the grid may differ a little; the rows are the same
    assert found[0].alpha == found[1].alpha == 0.5
    assert found[0].error_after == pytest.approx(found[1].error_after, rel=0.5)


def test_convolutions_of_one_input_share_factors_behind_a_batch_norm_with_a_relu() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 8, 1)
            self.one = nn.Conv2d(8, 8, 3, padding=1, groups=2)
            self.two = nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            y = torch.relu(self.first(x))
            return self.one(y), self.two(y)

    torch.manual_seed(0)
    net: Any = Two().eval()
    with torch.no_grad():
        net.first.weight[1::3] *= 40
        net.first.bias[1::3] *= 40
    x = torch.randn(16, 3, 7, 7, generator=rng())
    gm = prepared(net, x)
    report = smooth_model(gm, [x])
    group = next(g for g in report.groups if g.layers == ("one", "two"))
    assert group.folded_into == ("first",)
    assert group.changed
    assert group.spread > 2
    with torch.no_grad():
        for got, want in zip(gm(x), net(x), strict=True):
            assert difference(got, want) < 1e-5


def test_a_group_without_gain_is_left_alone() -> None:
    torch.manual_seed(0)
    net: Any = PreNorm().eval()
    with torch.no_grad():
        net.norm.weight.fill_(1.0)
    same = X.sign()  # every channel has the same range, and so have the weights
    for layer in (net.q, net.k, net.v):
        layer.weight.data = layer.weight.sign() / 8
    gm = prepared(net, same)
    before = gm.norm.weight.clone()
    report = smooth_model(gm, [same], alpha=0.0)
    assert not report.groups[0].changed
    assert torch.equal(gm.norm.weight, before)
    assert "no exponent lowers the error" in str(report)


def test_a_model_without_gradients_is_judged_without_them() -> None:
    class Best(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up = nn.LayerNorm(SIZE), nn.Linear(SIZE, 4)

        def forward(self, x: Tensor) -> Any:
            return self.up(self.norm(x)).argmax(-1)

    gm = prepared(built(Best), X)
    report = smooth_model(gm, [X])
    assert not report.weighed
    assert report.groups[0].changed
    assert "not weighed: no gradient" in str(report)


def test_factors_are_equation_4_with_a_mean_of_one() -> None:
    found = smoothing_factors(torch.tensor([8.0, 2.0, 0.0]), torch.tensor([0.5, 2.0, 1.0]), 0.5)
    want = torch.tensor([8.0 / 0.5, 2.0 / 2.0]).sqrt()
    torch.testing.assert_close(found[:2], want / want.log().mean().exp())
    assert found[2] == 1.0


@pytest.mark.parametrize(
    ("options", "code"),
    [
        ({"alpha": 1.5}, "FXQ295"),
        ({"alpha": True}, "FXQ295"),
        ({"alpha": []}, "FXQ295"),
        ({"samples": 0}, "FXQ295"),
        ({"held_out": 1}, "FXQ295"),
        ({"multiply": "no"}, "FXQ236"),
        ({"per_channel": 1}, "FXQ236"),
        ({"param_bw": 4, "like": QuantizationSimModel(built(PreNorm), X)}, "FXQ217"),
        ({"like": QuantizationSimModel(nn.Sequential(nn.Linear(SIZE, 2)), X)}, "FXQ217"),
        ({"param_bw": 4, "config": {"weight_bitwidth": 8}}, "FXQ234"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], code: str) -> None:
    with pytest.raises(ConfigError, match=code):
        smooth_model(prepared(built(PreNorm), X), [X], **options)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        ([], "FXQ442"),
        (3, "FXQ443"),
        ([X * float("nan")], "FXQ445"),
        ([X[..., :3]], "FXQ475"),
        ([X * float("inf")], "FXQ476"),
    ],
)
def test_bad_data_are_refused(data: Any, code: str) -> None:
    gm = prepared(built(PreNorm), X)
    before = {k: v.clone() for k, v in gm.state_dict().items()}
    with pytest.raises(CalibrationError, match=code):
        smooth_model(gm, data)
    assert all(torch.equal(v, before[k]) for k, v in gm.state_dict().items())


def test_a_simulation_is_refused() -> None:
    sim = QuantizationSimModel(built(PreNorm), X)
    with pytest.raises(ConfigError, match="FXQ292"):
        smooth_model(sim.model, [X])


def test_one_sample_and_other_batch_sizes_do() -> None:
    net = built(PreNorm)
    gm = prepared(net, X)
    smooth_model(gm, [X[:1]])
    smooth_model(gm, [X[:3], X[3:4], X[4:]])
    with torch.no_grad():
        assert difference(gm(X[:2]), net(X[:2])) < 1e-5


def test_channels_whose_ranges_few_samples_tell_are_not_scaled_to_the_ends() -> None:
    """Where all channels touch the ends of the grid, other data are clipped in many of them."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)
    )
    x, other = torch.randn(8, 16), torch.randn(256, 16)
    gm = prepared(net.eval(), x)
    smooth_model(gm, [x])
    sims = [QuantizationSimModel(g, x) for g in (prepared(net, x), gm)]
    for sim in sims:
        sim.compute_encodings([x])
    with torch.no_grad():
        before, after = (float((s.model(other) - net(other)).square().mean()) for s in sims)
    assert after < 1.5 * before  # 4.9 times, if nothing tells what is clipped


def test_batches_of_one_image_do() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)).eval()
    images = [torch.randn(1, 3, 8, 8) for _ in range(4)]
    reports = [
        smooth_model(prepared(net, images[0]), data) for data in (images, [torch.cat(images)])
    ]
    assert [g.layers for g in reports[0].groups] == [g.layers for g in reports[1].groups]
    assert reports[0].samples == 4
    assert smooth_model(prepared(net, images[0]), images[:1]).samples == 1


def weights_with_outliers() -> nn.Module:
    """Single weights are far larger than the others: a search for ranges clips them."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.Conv2d(16, 16, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10),
    )  # fmt: skip
    with torch.no_grad():
        for layer in net:
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                layer.weight.view(-1)[::97] *= 100
    return net.eval()


@pytest.mark.parametrize(("blocks", "gain"), [(False, 5.0), (True, 0.0)])
def test_weights_are_judged_on_the_grids_that_the_simulation_will_have(
    blocks: bool, gain: float
) -> None:
    """On ranges that clip nothing other exponents look best; here they cost 8 dB at 4 bits."""
    net = weights_with_outliers()
    images = [torch.randn(16, 3, 12, 12, generator=rng(20 + i)) for i in range(5)]
    known, unseen = images[:3], torch.cat(images[3:])
    gm = prepared(net, known[0])

    def simulated() -> Any:
        sim = QuantizationSimModel(gm, known[0], default_param_bw=4)
        if blocks:
            sim.set_blockwise_quantization_for_weights(["2", "4"], 4, True, 8)
        sim.compute_encodings(known)
        return sim

    before = simulated()
    smooth_model(gm, known, **({"like": before} if blocks else {"param_bw": 4}))
    with torch.no_grad():
        noise = [(s.model(unseen) - net(unseen)).square().sum() for s in (before, simulated())]
    assert 10 * torch.log10(noise[0] / noise[1]) > gain


def test_few_samples_change_nothing_by_chance() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)
    ).eval()
    gm = prepared(net, X[:2, 0])
    report = smooth_model(gm, [X[:2, 0]])
    assert not any(g.changed for g in report.groups)
    x = torch.randn(64, 16, generator=rng(1))
    with torch.no_grad():
        assert torch.equal(gm(x), net(x))
