"""prepare_model: the same bits, the same names, every tensor operation a module called once."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxquant import prepare_model
from fxquant.errors import ConfigError, SelectorError, TraceError
from fxquant.graph.pass_infra import Fact, state_of
from fxquant.graph.printer import dump
from fxquant.models import digits, training
from fxquant.models.gpt2 import Gpt2
from fxquant.passes import DecomposeAttention
from fxquant.prepare import SpecialisationWarning, call_arguments, is_prepared
from tests.helpers.golden import assert_dump

X = torch.randn(3, 4, 8, 8)


class Net(nn.Module):
    """Functions, an in-place operator, a reused activation, an item assignment, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.conv(x))
        y += x
        y = self.relu(self.relu(y) * 2) - 1
        y[:, 0] = y[:, 1].sigmoid()
        y = F.adaptive_avg_pool2d(y, 1).flatten(1)
        return self.fc(F.dropout(y, 0.5, self.training))  # type: ignore[no-any-return]


class Inputs(nn.Module):
    """Optional and keyword inputs, containers in and out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 3)

    def forward(
        self,
        x: Tensor,
        *more: Tensor,
        mask: Tensor | None = None,
        extra: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        y = self.fc(x)
        for other in more:
            y = y + other
        if mask is not None:
            y = y.masked_fill(mask, 0)
        if extra is not None:
            y = y * extra["scale"][0]
        return {"y": y, "parts": (y.sum(-1), None)}


class Decides(nn.Module):
    """A submodule that branches on a value."""

    class Gate(nn.Module):
        """Doubles what is positive on the whole."""

        def forward(self, x: Tensor) -> Tensor:
            if x.sum() > 0:
                return x * 2
            return x - 1

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.gate = nn.Linear(3, 3), self.Gate()

    def forward(self, x: Tensor) -> Tensor:
        return self.gate(self.fc(x))  # type: ignore[no-any-return]


def settled() -> Any:
    """A network whose batch norm has seen data."""
    net = Net().train()
    net(torch.randn(8, 4, 8, 8))
    return net.eval()


def prepare(net: nn.Module, inputs: Any) -> Any:
    """`prepare_model`, for reading attributes of the result."""
    return prepare_model(net, inputs)


def test_the_whole_graph() -> None:
    assert_dump(
        prepare_model(Net().eval(), X),
        """
        %x                   = input
        %conv                = conv2d[conv](%x)
        %bn                  = batch_norm[bn](%conv)
        %add_                = add[add](%bn, %x)
        %relu                = relu[relu](%add_)
        %mul                 = mul[mul](%relu, 2)
        %relu_1              = relu[relu_1](%mul)
        %sub                 = sub[sub](%relu_1, 1)
        %getitem             = getitem[getitem](%sub, (:, 1))
        %sigmoid             = sigmoid[sigmoid](%getitem)
        %setitem             = setitem[setitem](%sub, (:, 0), %sigmoid)
        %adaptive_avg_pool2d = adaptive_avg_pool2d[adaptive_avg_pool2d](%setitem)
        %flatten             = flatten[flatten](%adaptive_avg_pool2d)
        %dropout             = dropout[dropout](%flatten)
        %fc                  = linear[fc](%dropout)
        return %fc
    """,
    )


def test_bits_names_and_the_users_model() -> None:
    net = settled()
    before, keys = copy.deepcopy(net.state_dict()), list(net.state_dict())
    gm = prepare(net, X)
    other = torch.randn(5, 4, 8, 8)
    assert torch.equal(gm(other), net(other))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert net.relu.inplace is True
    assert [k for k in gm.state_dict() if k in keys] == keys
    called = [n.target for n in gm.graph.nodes if n.op == "call_module"]
    assert len(called) == len(set(called))
    assert is_prepared(gm)
    assert not is_prepared(net)


def test_training_is_the_same_too() -> None:
    net = settled()
    gm = prepare(net, X)
    for module in (net, gm):
        module.train()
        module.zero_grad()
        torch.manual_seed(1)
        module(X.clone()).square().sum().backward()
    assert torch.equal(net.bn.running_mean, gm.bn.running_mean)
    for name, parameter in net.named_parameters():
        assert parameter.grad is not None
        assert torch.equal(parameter.grad, gm.get_parameter(name).grad), name


class Attends(nn.Module):
    """Attention that drops in training only, as Hugging Face writes it."""

    def forward(self, x: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(x, x, x, dropout_p=0.4 if self.training else 0.0)


@pytest.mark.parametrize("decompose", [False, True])
def test_dropout_inside_attention_acts_in_training_only(decompose: bool) -> None:
    net: Any = nn.Sequential(Attends(), nn.Linear(4, 4)).eval()
    x = torch.randn(2, 6, 4)
    gm: Any = prepare(net, x)
    attention = "0.scaled_dot_product_attention"
    assert gm.get_submodule(attention).dropout == 0.4
    if decompose:
        DecomposeAttention()(gm)
        assert gm.get_submodule("0.attention_dropout").p == 0.4
    assert torch.equal(gm(x), gm(x))
    gm.train()
    assert not torch.equal(gm(x), gm(x))
    if not decompose:
        for module in (net, gm):
            torch.manual_seed(0)
            module.result = module.train()(x)
        assert torch.equal(net.result, gm.result)


class Dropped(nn.Module):
    """Reads a tensor again after it was dropped; in evaluation both are one object."""

    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.drop(x) * F.dropout(x, 0.3, self.training)  # type: ignore[no-any-return]


def test_what_was_dropped_is_not_what_it_was_made_of() -> None:
    net: Any = Dropped().eval()
    gm, x = prepare(net, torch.randn(4, 3)), torch.randn(4, 3)
    for module in (net, gm):
        torch.manual_seed(0)
        module.result = module.train()(x)
    assert torch.equal(net.result, gm.result)


def test_a_training_model_stays_training_and_is_prepared_as_if_it_evaluated() -> None:
    net: Any = Net().train()
    net.bn.eval()
    gm = prepare(net, X)
    assert gm.training
    assert not gm.bn.training
    assert gm.dropout.training
    assert (net.training, net.bn.training, net.conv.training) == (True, False, True)
    assert int(net.bn.num_batches_tracked) == 0


def test_preparing_twice_changes_nothing() -> None:
    gm = prepare_model(settled(), X)
    again = prepare_model(gm, X)
    assert again is not gm
    assert dump(again) == dump(gm)
    assert torch.equal(again(X), gm(X))


def test_a_prepared_part_of_a_model_is_prepared_with_it() -> None:
    gm = prepare_model(nn.Sequential(prepare_model(settled(), X), nn.Softmax(1)), X)
    assert not [n for n in gm.graph.nodes if n.op in ("call_function", "call_method")]


def test_copies_and_conversions() -> None:
    net = settled()
    gm = copy.deepcopy(prepare_model(net, X))
    assert is_prepared(gm)
    assert torch.equal(gm(X), net(X))
    net.to(torch.float64)
    gm.to(torch.float64)
    assert torch.equal(gm(X.double()), net(X.double()))
    fresh = prepare_model(Net().eval(), X)
    fresh.load_state_dict(prepare_model(settled(), X).state_dict())


@pytest.mark.parametrize(
    "inputs",
    [
        torch.randn(4, 3),
        (torch.randn(4, 3), torch.randn(4, 3), torch.randn(3)),
        {"x": torch.randn(4, 3), "mask": torch.rand(4, 3) > 0.5},
        {"x": torch.randn(4, 3), "extra": {"scale": [torch.randn(4, 1)]}},
    ],
    ids=["tensor", "positional", "keyword", "containers"],
)
def test_inputs_of_every_form(inputs: Any) -> None:
    net = Inputs().eval()
    args, kwargs = call_arguments(inputs)
    got, want = prepare_model(net, inputs)(*args, **kwargs), net(*args, **kwargs)
    assert torch.equal(got["y"], want["y"])
    assert torch.equal(got["parts"][0], want["parts"][0])
    assert got["parts"][1] is None


def test_a_wrong_input_or_option() -> None:
    with pytest.raises(ConfigError, match=r"FXQ210.*type int"):
        prepare_model(Net(), 3)
    with pytest.raises(ConfigError, match=r"FXQ211.*'ignore'"):
        prepare_model(Net(), X, on_specialisation="ignore")  # type: ignore[arg-type]
    with pytest.raises(TraceError, match="FXQ107"):
        prepare_model(Net(), torch.randn(2, 3))


@pytest.mark.parametrize("selector", ["0", nn.Sequential, "instance"])
def test_excluded_modules_stay_whole(selector: Any) -> None:
    net = nn.Sequential(nn.Sequential(nn.ReLU(), nn.Linear(3, 3)), nn.ReLU())
    chosen = net[0] if selector == "instance" else selector
    chosen = "0" if chosen is nn.Sequential else chosen
    gm = prepare_model(net, torch.randn(2, 3), modules_to_exclude=chosen)
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == ["0", "1"]
    assert state_of(gm).excluded == ("0",)


def test_an_excluded_module_that_does_not_exist() -> None:
    with pytest.raises(SelectorError, match=r"(?s)FXQ213.*'conv'"):
        prepare_model(Net(), X, modules_to_exclude=["cnv"])


def test_a_decision_on_a_value_is_told_once() -> None:
    with pytest.warns(SpecialisationWarning) as told:
        gm = prepare_model(Decides(), torch.randn(4, 3))
    assert len(told) == 1
    text = str(told[0].message)
    assert "tests/test_prepare.py:" in text
    assert "in gate" in text
    assert [s.kind for s in state_of(gm).specialisations] == ["value"]


def test_a_decision_on_a_value_is_refused_or_kept_whole() -> None:
    with pytest.raises(TraceError, match=r"(?s)FXQ120.*tests/test_prepare.py:\d+ in gate"):
        prepare_model(Decides(), torch.randn(4, 3), on_specialisation="error")
    net = Decides()
    gm = prepare_model(net, torch.randn(4, 3), on_specialisation="leaf")
    assert [n.target for n in gm.graph.nodes if n.op == "call_module"] == ["fc", "gate"]
    for shift in (-5, 5):
        x = torch.randn(4, 3) + shift
        assert torch.equal(gm(x), net(x))


def test_a_harmless_decision_on_a_size_is_not_told() -> None:
    class Checks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[-1] != 3:
                msg = "three columns"
                raise ValueError(msg)
            return x * 2

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert state_of(prepare_model(Checks(), torch.randn(4, 3))).any_batch


def test_a_loop_over_the_batch_is_told() -> None:
    class Loop(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([row * (i + 1) for i, row in enumerate(x)])

    with pytest.warns(SpecialisationWarning, match="size"):
        gm = prepare_model(Loop(), torch.randn(4, 3))
    assert not state_of(gm).any_batch


def test_what_torch_does_not_show_is_refused() -> None:
    class Hidden(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.from_numpy(x.detach().numpy() * 2)

    with pytest.raises(TraceError, match="FXQ1"):
        prepare_model(Hidden(), torch.randn(4, 3))


def test_facts_and_skips_are_kept() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        count: Tensor

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x * self.count

    state = state_of(prepare_model(Written(), X))
    assert state.facts >= {Fact.MODULES_ONLY, Fact.UNIQUE_MODULES}
    assert ["outlives" in s.reason for s in state.skips] == [True]


@pytest.mark.parametrize("name", sorted(digits.RECIPES))
def test_the_networks_of_the_demo(name: str) -> None:
    recipe = digits.RECIPES[name]
    net = recipe.factory().eval()
    _, images = training.digits()
    x = recipe.encode(images.images[:2])
    _is_clean(net, x, prepare_model(net, x))


def test_a_language_model_with_tied_weights() -> None:
    net = Gpt2(vocab=20, width=16, layers=2, heads=2, positions=12).eval()
    x = torch.randint(0, 20, (2, 9))
    gm = prepare(net, x)
    assert gm.lm_head.weight is gm.wte.weight
    _is_clean(net, (x,), gm)


def _is_clean(net: nn.Module, x: tuple[Tensor, ...], gm: fx.GraphModule) -> None:
    assert torch.equal(gm(*x), net(*x))
    assert set(net.state_dict()) <= set(gm.state_dict())
    assert not state_of(gm).skips
    assert state_of(gm).any_batch


class Halves(nn.Module):
    """Divides until it is small."""

    def forward(self, x: Tensor) -> Tensor:
        while x.abs().max() > 1:
            x = x / 2
        return x


class Cuts(nn.Module):
    """As many columns as the first row has positive numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : 1 + int((x[0] > 0).sum())]


class Settles(nn.Module):
    """Leaves its loop by a break."""

    def forward(self, x: Tensor) -> Tensor:
        while True:
            x = x / 2
            if x.abs().max() < 1:
                break
        return x


class Counts(nn.Module):
    """Its loop tests a number that was read from a tensor before."""

    def forward(self, x: Tensor) -> Tensor:
        turns = int(x.abs().max())
        while turns > 1:
            x, turns = x / 2, turns // 2
        return x


class Steps(nn.Module):
    """Its loop turns three times whatever the values are, which decide something else."""

    def forward(self, x: Tensor) -> Tensor:
        turn = 0
        while turn < 3:
            if x.sum() > -1e9:
                x = x / 2
            turn += 1
        return x


def test_a_while_loop_that_counts_is_no_loop_on_values() -> None:
    with pytest.warns(SpecialisationWarning, match="value looked at by bool"):
        prepare_model(Steps(), torch.randn(4, 8))


@pytest.mark.parametrize(
    ("kind", "code"),
    [(Halves, "FXQ122"), (Settles, "FXQ122"), (Counts, "FXQ122"), (Cuts, "FXQ123")],
)
def test_what_no_graph_can_hold_is_refused_with_its_line(kind: type[nn.Module], code: str) -> None:
    x = torch.randn(4, 8, generator=torch.Generator().manual_seed(0)) * 9
    with pytest.raises(TraceError, match=rf"(?s){code}.*test_prepare.py:\d+.*of its own"):
        prepare_model(kind(), x)
    net = nn.Sequential(nn.ReLU(), kind())
    with pytest.raises(TraceError, match=rf'(?s){code}.*test_prepare.py:\d+ in 1.*"leaf" keeps 1'):
        prepare_model(net, x)
    gm = prepare_model(net, x, on_specialisation="leaf")
    for y in (x, x * 3, torch.randn(5, 8)):
        assert torch.equal(gm(y), net(y))


class Skipping(nn.Module):
    """Stochastic depth: in evaluation it returns its very input."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.bernoulli(torch.full((len(x), 1, 1, 1), 0.5)) if self.training else x


class ScaledBlock(nn.Module):
    """A block of ConvNeXt: its result lies in memory with the channels last."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.rand(48, 1, 1))
        self.mix, self.skip = nn.Linear(48, 48), Skipping()

    def forward(self, x: Tensor) -> Tensor:
        result = self.skip(self.scale * self.mix(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))
        result += x
        return nn.functional.adaptive_avg_pool2d(result, 1)


def test_gradients_of_a_write_onto_what_may_be_skipped_are_equal() -> None:
    torch.manual_seed(0)
    model, x = ScaledBlock(), torch.randn(4, 48, 9, 7)
    prepared = prepare_model(model, x)
    found = []
    for network in (model, prepared):
        network.train()
        torch.manual_seed(1)
        network(x).square().sum().backward()
        found.append({name: p.grad for name, p in network.named_parameters()})
    for name, expected in found[0].items():
        assert torch.equal(found[1][name], expected), name  # type: ignore[arg-type]
