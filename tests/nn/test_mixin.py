"""A quantized module is the user's module with quantizers around it and nothing else changed."""

from __future__ import annotations

import copy
import pickle
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

import fxquant.nn as qnn
import fxquant.quantization as Q
from fxquant.errors import QuantizationError, UncalibratedError
from fxquant.nn import QuantizationMixin


def activation() -> Q.affine.QuantizeDequantize:
    return Q.affine.QuantizeDequantize((), 8)


def quantized(module: nn.Module, *, weights: bool = True) -> Any:
    """The quantized twin with a quantizer for its first output and its weights."""
    twin = QuantizationMixin.from_module(module)
    for name, value in module.named_parameters(recurse=False):
        if weights and name.startswith("weight"):
            shape = (value.shape[0],) + (1,) * (value.dim() - 1)
            twin.param_quantizers[name] = Q.affine.QuantizeDequantize(shape, 8, True)
    twin.output_quantizers[0] = activation()
    return twin


class Scaled(nn.Module):
    """A module of a user, with a parameter whose name is a method of ModuleDict."""

    def __init__(self, k: float = 3.0) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor([k]))
        self.calls = 0

    def forward(self, x: Tensor, *, shift: float = 0.0) -> Tensor:
        """Scale."""
        self.calls += 1
        return x * self.values + shift


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


class Many(nn.Module):
    """Nested inputs and outputs."""

    def forward(self, x: Tensor, others: list[Tensor], extra: dict[str, Tensor]) -> Any:
        """Everything plus a bit."""
        index = torch.arange(3)
        return Pair(x + 0.1, others[0] + 0.1), {"a": others[1], "i": index}, [extra["e"], 7]


def test_forward_is_quantized_weights_and_output() -> None:
    conv = nn.Conv2d(3, 8, 3)
    q = quantized(conv)
    x = torch.randn(2, 3, 6, 6)
    with q.compute_encodings():
        assert torch.equal(q(x), nn.functional.conv2d(x, weight_of(q), conv.bias))
    y = q(x)
    assert type(y) is Q.DequantizedTensor
    want = q.output_quantizers[0](nn.functional.conv2d(x, weight_of(q), conv.bias))
    assert torch.equal(y, want)
    assert q.weight is conv.weight
    assert "weight" not in q.__dict__


def weight_of(q: Any) -> Tensor:
    found: Tensor = q.param_quantizers["weight"](q.weight)
    return found


def test_twin_shares_everything_but_the_registries() -> None:
    norm = nn.BatchNorm1d(4)
    seen: list[str] = []
    norm.register_forward_hook(lambda *_: seen.append("hook"))
    norm.eval()
    twin = QuantizationMixin.from_module(norm)
    assert isinstance(twin, nn.BatchNorm1d)
    assert type(twin).__name__ == "QuantizedBatchNorm1d"
    assert twin.weight is norm.weight
    assert twin.running_mean is norm.running_mean
    assert not twin.training
    twin(torch.randn(2, 4))
    assert seen == ["hook"]
    assert not norm._modules
    assert QuantizationMixin.from_module(twin) is twin
    back = twin.get_original_module()
    assert type(back) is nn.BatchNorm1d
    assert back.weight is norm.weight
    assert not back._modules
    assert torch.equal(back(torch.ones(2, 4)), norm(torch.ones(2, 4)))


def test_state_dict_keys_are_the_users_plus_the_ranges() -> None:
    q = quantized(nn.Linear(3, 2))
    ranges = [
        f"{place}.{end}"
        for place in ("param_quantizers.weight", "output_quantizers.0")
        for end in ("min", "max")
    ]
    assert list(q.state_dict()) == ["weight", "bias", *ranges]


def test_user_classes() -> None:
    module = Scaled()
    q: Any = QuantizationMixin.from_module(module)
    assert issubclass(type(q), Scaled)
    assert list(q.param_quantizers) == ["values"]
    q.param_quantizers["values"] = Q.affine.QuantizeDequantize((1,), 2, True)
    q.output_quantizers[0] = activation()
    x = torch.linspace(-1, 1, 9)
    with q.compute_encodings():
        q(x, shift=0.5)
    assert torch.equal(q(x), q.output_quantizers[0](x * q.param_quantizers["values"](q.values)))
    assert q.calls == 2
    assert module.calls == 0


@pytest.mark.parametrize("kind", ["copy", "pickle"])
@pytest.mark.parametrize(
    ("module", "x"),
    [(nn.Conv2d(3, 4, 3), (2, 3, 5, 5)), (Scaled(), (3,)), (nn.LSTM(4, 3), (5, 2, 4))],
    ids=["Conv2d", "user", "LSTM"],
)
def test_copies(kind: str, module: nn.Module, x: tuple[int, ...]) -> None:
    q = quantized(module)
    data = torch.randn(x)
    with q.compute_encodings():
        q(data)
    with torch.no_grad():
        want = q(data)
        twin = copy.deepcopy(q) if kind == "copy" else pickle.loads(pickle.dumps(q))
        assert type(twin) is type(q)
        assert not twin._quantized
        got = twin(data)
    first, second = (y if isinstance(y, Tensor) else y[0] for y in (want, got))
    assert torch.equal(first, second)
    names = [n for n, _ in q.named_parameters()]
    assert names == [n for n, _ in twin.named_parameters()]
    assert all(a is not b for a, b in zip(q.parameters(), twin.parameters(), strict=True))


@pytest.mark.parametrize("module", [nn.LSTM(4, 3, 2, bidirectional=True), nn.GRU(4, 3)])
def test_recurrent_modules_see_their_quantized_weights(module: nn.Module) -> None:
    q = quantized(module)
    x = torch.randn(5, 2, 4)
    with q.compute_encodings(), torch.no_grad():
        q(x)
    with torch.no_grad():
        y, hidden = q(x)
        assert not torch.equal(y, module(x)[0])
        reference: Any = copy.deepcopy(module)
        for name, quantizer in q.param_quantizers.active():
            getattr(reference, name).copy_(quantizer(getattr(module, name)))
        assert torch.equal(y, q.output_quantizers[0](reference(x)[0]))
    assert type(y) is Q.DequantizedTensor
    assert type(hidden if isinstance(hidden, Tensor) else hidden[0]) is Tensor
    q(x)[0].sum().backward()
    assert all(p.grad is not None for p in module.parameters())
    with q._remove_all_quantizers():
        assert torch.equal(q(x)[0], module(x)[0])


def test_nested_inputs_and_outputs_are_numbered_in_order() -> None:
    q: Any = QuantizationMixin.from_module(Many())
    x, a, b, e = (torch.full((3,), v) for v in (1.0, 2.0, 3.0, 4.0))
    for index in (0, 2, 3):
        q.input_quantizers[index] = activation()
    for index in (1, 2, 4):
        q.output_quantizers[index] = activation()
    assert len(q.input_quantizers) == 4
    assert len(q.output_quantizers) == 5
    with q.compute_encodings():
        q(x, [a, b], {"e": e})
    pair, named, items = q(x, [a, b], {"e": e})
    assert [q.input_quantizers[i].max.item() for i in (0, 2, 3)] == [1.0, 3.0, 4.0]
    assert [q.output_quantizers[i].max.item() for i in (1, 2, 4)] == pytest.approx([2.1, 3.0, 4.0])
    assert isinstance(pair, Pair)
    assert type(pair.first) is Tensor
    assert type(pair.second) is Q.DequantizedTensor
    assert type(named["a"]) is Q.DequantizedTensor
    assert torch.equal(named["i"], torch.arange(3))
    assert items[1] == 7


def test_structseq_results_and_index_outputs() -> None:
    class Largest(nn.Module):
        def forward(self, x: Tensor) -> Any:
            return torch.max(x, 1)

    q: Any = QuantizationMixin.from_module(Largest())
    q.output_quantizers[0] = q.output_quantizers[1] = activation()
    x = torch.randn(3, 4)
    with q.compute_encodings():
        q(x)
    values, indices = q(x)
    assert type(values) is Q.DequantizedTensor
    assert torch.equal(indices, x.argmax(1))


def test_uncalibrated_quantizers_are_refused() -> None:
    with pytest.raises(UncalibratedError):
        quantized(nn.Linear(2, 2))(torch.zeros(1, 2))


def test_an_error_in_forward_restores_the_parameters() -> None:
    q = quantized(nn.Linear(3, 2))
    with q.compute_encodings():
        q(torch.randn(1, 3))
    with pytest.raises(RuntimeError):
        q(torch.randn(1, 5))
    assert "weight" not in q.__dict__
    assert isinstance(q.weight, nn.Parameter)


# kept parameters -------------------------------------------------------------------------------


def test_quantized_parameters_are_kept_while_nothing_changes() -> None:
    q = quantized(nn.Linear(3, 2))
    x = torch.randn(1, 3)
    with torch.no_grad():
        with q.compute_encodings():
            q(x)
        q(x)
        kept = q._quantized["weight"][2]
        q(x)
        assert q._quantized["weight"][2] is kept
        before = q(x)
        q.weight.mul_(0.5)
        assert not torch.equal(q(x), before)
        before = q(x)
        q.param_quantizers["weight"].bitwidth = 3
        assert not torch.equal(q(x), before)
        before = q(x)
        q.param_quantizers["weight"].set_range(max=100.0)
        assert not torch.equal(q(x), before)
        q.train()
        assert not q._quantized


@pytest.mark.parametrize("fused", [False, True])
def test_kept_parameters_follow_training(fused: bool) -> None:
    q = quantized(nn.Linear(3, 2))
    x = torch.randn(4, 3)
    with q.compute_encodings():
        q(x)
    optimizer = torch.optim.SGD([q.weight], lr=0.5, fused=fused)
    for _ in range(3):
        with torch.no_grad():
            before = q(x)
        optimizer.zero_grad()
        q(x).sum().backward()
        with torch.no_grad():
            q(x)
        optimizer.step()
        with torch.no_grad():
            assert not torch.equal(q(x), before)
            assert torch.equal(weight_of(q), q._quantized_parameters()["weight"])


def test_frozen_parameters_are_kept_in_training_too() -> None:
    q = quantized(nn.Linear(3, 2)).requires_grad_(False)
    x = torch.randn(4, 3, requires_grad=True)
    with torch.inference_mode():
        with q.compute_encodings():
            q(torch.randn(4, 3))
        q(torch.randn(4, 3))
    assert q._quantized
    q(x).sum().backward()
    assert x.grad is not None


def test_gradients_reach_weights_and_ranges() -> None:
    q = quantized(nn.Linear(3, 2))
    x = torch.randn(4, 3)
    with q.compute_encodings():
        q(x)
    q.output_quantizers[0].set_range(-0.1, 0.1)
    q(x).square().sum().backward()
    assert all(p.grad is not None for p in q.parameters())


# inputs, containers, removal -------------------------------------------------------------------


def test_input_quantizers_serve_arguments_by_position_and_name() -> None:
    add: Any = qnn.QuantizedAdd()
    assert len(add.input_quantizers) == 2
    add.input_quantizers[1] = activation()
    x, y = torch.tensor([1.0]), torch.tensor([0.3333])
    with add.compute_encodings():
        add(x, y)
    add.input_quantizers[1].set_range(0.0, 255.0)
    assert add(x, y).item() == 1.0
    assert add(x, other=y).item() == 1.0
    assert add(x, 2.0).item() == 3.0


def test_assigning_grows_and_refuses_what_is_no_quantizer() -> None:
    q: Any = qnn.QuantizedConcat()
    q.input_quantizers[3] = activation()
    assert [i for i, _ in q.input_quantizers.active()] == [3]
    q.input_quantizers[-1] = None
    assert not list(q.input_quantizers.active())
    for home, key in ((q.input_quantizers, 0), (q.output_quantizers, 0), (q.param_quantizers, "w")):
        for wrong in (8, nn.ReLU()):
            with pytest.raises(QuantizationError, match="FXQ421"):
                home[key] = wrong


def test_removal_as_a_call_and_as_a_context() -> None:
    q = quantized(nn.Linear(3, 2))
    q.input_quantizers[0] = activation()
    for remove, kinds in (
        (q._remove_input_quantizers, "i"),
        (q._remove_output_quantizers, "o"),
        (q._remove_param_quantizers, "p"),
        (q._remove_activation_quantizers, "io"),
        (q._remove_all_quantizers, "iop"),
    ):
        with remove():
            assert present(q) == "".join(c for c in "iop" if c not in kinds)
        assert present(q) == "iop"
    with q._remove_param_quantizers("weight"), q._remove_output_quantizers([0]):
        assert present(q) == "i"
    with pytest.raises(ZeroDivisionError), q._remove_all_quantizers():
        _ = 1 / 0
    assert present(q) == "iop"
    q._remove_all_quantizers()
    assert present(q) == ""
    x = torch.randn(1, 3)
    assert torch.equal(q(x), nn.functional.linear(x, q.weight, q.bias))


def present(q: Any) -> str:
    homes = {"i": q.input_quantizers, "o": q.output_quantizers, "p": q.param_quantizers}
    return "".join(name for name, home in homes.items() if list(home.active()))


def test_repr_shows_the_quantizers() -> None:
    q = quantized(nn.Linear(3, 2))
    assert (
        repr(q)
        == """\
QuantizedLinear(
  in_features=3, out_features=2, bias=True
  (param_quantizers): QuantizerDict(
    (weight): QuantizeDequantize(shape=(2, 1), qmin=-128, qmax=127, symmetric=True)
    (bias): None
  )
  (input_quantizers): QuantizerList(
    (0): None
  )
  (output_quantizers): QuantizerList(
    (0): QuantizeDequantize(shape=(), qmin=0, qmax=255, symmetric=False)
  )
)"""
    )
