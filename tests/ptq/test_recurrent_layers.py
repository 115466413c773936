"""Weights of recurrent modules: what they read is what PyTorch reads; they are reconstructed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, quantize_recurrent_weights
from fxquant.nn import QuantizationMixin
from fxquant.nn.recurrent import padded
from fxquant.ptq import (
    FinetuneParams,
    apply_gptq,
    apply_seq_mse,
    correct_bias,
    fast_finetune,
    reconstruct,
)
from fxquant.ptq.layers.layer_search import layers_of
from fxquant.ptq.solving.refinement import RefinementOptions
from fxquant.ptq.walking.originals import float_module
from fxquant.ptq.walking.recurrent_steps import directions_of, reads_of, sums, unprojected
from tests.helpers.techniques import sqnr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

MODULES: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True),
    "steps first": lambda: nn.LSTM(5, 6, 2),
    "gru": lambda: nn.GRU(5, 6, 2, batch_first=True, bidirectional=True),
    "relu": lambda: nn.RNN(5, 6, nonlinearity="relu", bias=False),
    "projected": lambda: nn.LSTM(5, 6, 2, batch_first=True, bidirectional=True, proj_size=3),
    "lengths": lambda: padded(nn.GRU(5, 6, 2, batch_first=True, bidirectional=True)) or nn.ReLU(),
}


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize("given", [False, True], ids=["zeros", "states"])
@pytest.mark.parametrize("name", MODULES)
@torch.no_grad()
def test_what_a_direction_is_given_is_what_the_module_computes(name: str, given: bool) -> None:
    """The state after a step is what the next one reads; gates and projection follow from sums."""
    torch.manual_seed(0)
    module: Any = MODULES[name]()
    x, ways = torch.randn(4, 7, 5), 1 + module.bidirectional
    size = module.proj_size or module.hidden_size
    first = torch.randn(2 * ways if module.num_layers == 2 else ways, 4, size)
    cell = torch.randn(len(first), 4, module.hidden_size)
    states: Any = (first, cell) if isinstance(module, nn.LSTM) else first
    args: Any = (x if module.batch_first else x.transpose(0, 1), states if given else None)
    lengths = torch.tensor([7, 3, 5, 1]) if name == "lengths" else None
    args = args if lengths is None else (*args, lengths)
    steps = module(*args)[0]
    steps = steps if module.batch_first else steps.transpose(0, 1)
    values = dict(module.named_parameters())
    for number, way in enumerate(directions_of(module)):
        if way.layer != module.num_layers - 1:
            continue
        reads = reads_of(module, (args, {}), values, way, quantized=False)
        y = steps.chunk(ways, -1)[int(way.reverse)]
        for sample in range(4):
            count = 7 if lengths is None else int(lengths[sample])
            own = y[sample, :count].flip(0) if way.reverse else y[sample, :count]
            begin = first[number, sample] if given else torch.zeros(size)
            assert torch.allclose(reads.h[sample, :count], torch.stack([begin, *own[:-1]]))
            assert reads.inside is None or int(reads.inside[sample].sum()) == count
        found = sums("ih", reads.x, values, way) + sums("hh", reads.h, values, way)
        if name == "relu":
            assert torch.allclose(found.relu(), y, atol=1e-6)
        if name == "projected":
            made = unprojected(reads, values, way) @ values[way.name("weight_hr")].mT
            assert torch.allclose(made, y.flip(1) if way.reverse else y, atol=1e-6)


class Sequences(nn.Module):
    """A recurrent module with a head, or a cell that is called at every step."""

    def __init__(self, kind: Any, **options: Any) -> None:
        super().__init__()
        self.rnn = kind(8, 16, **options)
        width = 2 if options.get("bidirectional") else 1
        self.head = nn.Linear(options.get("proj_size", 16) * width, 6)

    def forward(self, x: Tensor) -> Tensor:
        if isinstance(self.rnn, nn.RNNCellBase):
            state: Any = None
            for step in range(x.shape[1]):
                state = self.rnn(x[:, step], state)
            return self.head(state[0] if isinstance(state, tuple) else state)  # type: ignore[no-any-return]
        return self.head(self.rnn(x)[0])  # type: ignore[no-any-return]


def sequences(count: int = 64, seed: int = 1) -> list[Tensor]:
    """Inputs that are correlated over features and time."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 6, 8, generator=rng)
    x = x + 0.8 * x.flip(2) + x.mean(2, keepdim=True)
    return list((x + 0.5 * x.roll(1, 1)).split(16))


def simulated(
    kind: Any, bits: int = 4, **options: Any
) -> tuple[nn.Module, QuantizationSimModel, list[Tensor]]:
    torch.manual_seed(0)
    net, data = Sequences(kind, **options).eval(), sequences()
    sim = QuantizationSimModel(net, data[0], "min_max", 8, bits)
    assert quantize_recurrent_weights(sim)
    sim.compute_encodings(data)
    return net, sim, data


KINDS: list[tuple[Any, dict[str, Any], list[str]]] = [
    (nn.LSTM, {"batch_first": True, "bidirectional": True}, [
        "rnn.weight_ih_l0+weight_hh_l0", "rnn.weight_ih_l0_reverse+weight_hh_l0_reverse",
    ]),
    (nn.LSTM, {"batch_first": True, "proj_size": 4, "num_layers": 2}, [
        "rnn.weight_ih_l0+weight_hh_l0", "rnn.weight_hr_l0",
        "rnn.weight_ih_l1+weight_hh_l1", "rnn.weight_hr_l1",
    ]),
    (nn.GRU, {"batch_first": True}, ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]),
    (nn.RNN, {"batch_first": True, "bias": False}, ["rnn.weight_ih_l0+weight_hh_l0"]),
    (nn.GRUCell, {}, ["rnn.weight_ih", "rnn.weight_hh"]),
    (nn.LSTMCell, {}, ["rnn.weight_ih+weight_hh"]),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:LSTM with projections")
@pytest.mark.parametrize(("kind", "options", "paths"), KINDS)
def test_recurrent_weights_are_reconstructed(
    kind: Any, options: dict[str, Any], paths: list[str]
) -> None:
    net, sim, data = simulated(kind, **options)
    unseen = sequences(seed=2)
    before = sqnr(net, sim, unseen)
    report = reconstruct(sim, data)
    assert sqnr(net, sim, unseen) > before + 5
    assert [r.path for r in report.layers] == [*paths, "head"]
    exact = dict(net.named_parameters())
    for node in sim.model.graph.nodes:
        module = sim.model.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(module, QuantizationMixin) or "head" in str(node.target):
            continue
        plain = float_module(module)
        for name, q in module.param_quantizers.active():
            weight = module.get_parameter(name)
            assert torch.equal(q.transform(weight.detach()).as_subclass(Tensor), weight)
            assert torch.equal(plain.get_parameter(name), exact[f"rnn.{name}"])
        if isinstance(module, nn.RNNBase):
            with torch.no_grad():
                assert torch.equal(plain(data[0])[0], net.get_submodule("rnn")(data[0])[0])
        # every call of a cell is in the report
        reported = {r.path for r in report.layers} | report.skipped.keys()
        tail = {p.removeprefix("rnn.") for p in paths}
        assert (
            not list(module.param_quantizers.active())
            or {f"{node.target}.{t}" for t in tail} <= reported
        )


def test_a_file_with_reconstructed_recurrent_weights_is_proven(tmp_path: Path) -> None:
    _, sim, data = simulated(nn.LSTM, batch_first=True, num_layers=2)
    reconstruct(sim, data)
    assert sim.export(tmp_path, "net", dummy_input=data[0])
    stored = {
        i.name: i.data_type
        for i in onnx.load(tmp_path / "net.onnx").graph.initializer
        if len(i.dims) > 1
    }
    names = {f"rnn.weight_{part}_l{layer}" for part in ("ih", "hh") for layer in (0, 1)}
    assert names <= stored.keys()
    assert {stored[name] for name in names} == {onnx.TensorProto.INT4}


def test_a_frozen_weight_is_solved_by_itself() -> None:
    """One grid cannot keep the ranges of some of its columns and choose the others."""
    _, sim, data = simulated(nn.LSTM, batch_first=True)
    module: Any = sim.model.get_submodule("rnn")
    frozen = module.param_quantizers["weight_hh_l0"]
    frozen.allow_overwrite(False)
    scale = frozen.get_scale().clone()
    assert [y.path for y in layers_of(sim.model)[0]][:2] == ["rnn.weight_ih_l0", "rnn.weight_hh_l0"]
    report = reconstruct(sim, data)
    assert all(r.error_after < r.error_before for r in report.layers)
    assert torch.equal(frozen.get_scale(), scale)


QUICK = FinetuneParams(refinement=RefinementOptions(iterations=20, batch=256))
TECHNIQUES: dict[str, Callable[..., Any]] = {
    "seq_mse": apply_seq_mse,
    "gptq": apply_gptq,
    "bias": correct_bias,
    "finetune": lambda sim, data: fast_finetune(sim, data, QUICK),
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_the_techniques_take_recurrent_weights_or_say_why_not(name: str) -> None:
    net, sim, data = simulated(nn.GRU, batch_first=True)
    before = sqnr(net, sim, data)
    report: Any = TECHNIQUES[name](sim, data)
    weights = {"rnn.weight_ih_l0", "rnn.weight_hh_l0"}
    if name == "bias":
        assert report.skipped == dict.fromkeys(
            weights, "what it puts out is no sum that a bias could correct"
        )
    else:
        assert {r.path for r in report.layers} == weights | {"head"}
    assert sqnr(net, sim, data) > before


def test_layers_of_one_module_with_one_weight_are_left_with_the_reason() -> None:
    module = nn.LSTM(8, 8, num_layers=2, batch_first=True)
    module.weight_ih_l1, module.weight_hh_l1 = module.weight_ih_l0, module.weight_hh_l0

    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn = module

        def forward(self, x: Tensor) -> Tensor:
            return self.rnn(x)[0]  # type: ignore[no-any-return]

    batches = [torch.randn(8, 5, 8) for _ in range(2)]
    sim = QuantizationSimModel(Tied().eval(), batches[0], default_param_bw=4)
    quantize_recurrent_weights(sim)
    sim.compute_encodings(batches)
    report = reconstruct(sim, batches)
    reason = "its module multiplies with its weight more than once"
    assert list(report.skipped.values()) == [reason, reason]
