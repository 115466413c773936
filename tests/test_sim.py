"""QuantizationSimModel: building, calibrating, looking, training."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import fxquant.quantization as Q
from fxquant import QuantizationSimModel, QuantScheme, prepare_model
from fxquant.errors import CalibrationError, ConfigError, FxQuantError, SelectorError
from tests.helpers.modules import quantized


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.conv(x)))
        return self.fc(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 3, 8, 8)


@pytest.fixture
def sim(x: Tensor) -> QuantizationSimModel:
    sim = QuantizationSimModel(Net().eval(), x)
    sim.compute_encodings([x])
    return sim


def test_the_users_model_and_the_prepared_graph_stay_as_they_are(x: Tensor) -> None:
    model = Net().eval()
    prepared = prepare_model(model, x)
    want, before = prepared(x), copy.deepcopy(model.state_dict())
    QuantizationSimModel(prepared, x).compute_encodings([x])
    assert torch.equal(prepared(x), want)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_values_lie_on_the_grid(sim: QuantizationSimModel, x: Tensor) -> None:
    relu = quantized(sim, "relu")
    seen: list[Tensor] = []
    relu.register_forward_hook(lambda _m, _i, y: seen.append(torch.as_tensor(y)))
    sim.model(x)
    scale = relu.output_quantizers[0].get_scale()
    steps = seen[0] / scale
    assert torch.equal(steps.round() * scale, seen[0])


@pytest.mark.parametrize("scheme", ["tf", "sqnr", "kl", *QuantScheme])
def test_schemes(scheme: QuantScheme | str, x: Tensor) -> None:
    model = Net().eval()
    sim = QuantizationSimModel(model, x, quant_scheme=scheme)
    sim.compute_encodings(lambda m, batches: [m(b) for b in batches], [x, x])
    assert all(q.is_initialized() for q in sim.quantizers())
    error = (sim.model(x) - model(x)).norm() / model(x).norm()
    assert error < 0.05  # a few steps of 1/255 through two layers; some schemes clip a little


def test_weights_keep_their_range_where_a_scheme_is_one_of_activations(x: Tensor) -> None:
    sim = QuantizationSimModel(Net().eval(), x, quant_scheme="entropy")
    conv = quantized(sim, "conv")
    assert isinstance(conv.param_quantizers["weight"].encoding_analyzer, Q.analyzers.MinMax)
    relu = quantized(sim, "relu").output_quantizers[0]
    assert isinstance(relu.encoding_analyzer, Q.analyzers.Entropy)


def test_bit_widths_reach_the_quantizers(x: Tensor) -> None:
    sim = QuantizationSimModel(Net().eval(), x, default_output_bw=16, default_param_bw=4)
    conv = quantized(sim, "conv")
    assert conv.param_quantizers["weight"].bitwidth == 4
    assert quantized(sim, "relu").output_quantizers[0].bitwidth == 16


@pytest.mark.parametrize("name", ["default_output_bw", "default_param_bw"])
def test_zero_bits_are_refused(x: Tensor, name: str) -> None:
    with pytest.raises(ConfigError, match="FXQ221"):
        QuantizationSimModel(Net().eval(), x, **{name: 0})  # type: ignore[arg-type]


def test_empty_batches_are_no_data(x: Tensor) -> None:
    with pytest.raises(CalibrationError, match="FXQ430"):
        QuantizationSimModel(Net().eval(), x).compute_encodings([x[:0]])


def test_batches_may_carry_labels(x: Tensor) -> None:
    data = torch.utils.data.TensorDataset(torch.randn(6, 3, 8, 8), torch.arange(6))
    sim = QuantizationSimModel(Net().eval(), x)
    done: list[tuple[int, int | None]] = []
    loader = torch.utils.data.DataLoader(data, batch_size=2)
    sim.compute_encodings(loader, progress=lambda n, of: done.append((n, of)))
    assert done == [(1, 3), (2, 3), (3, 3)]


def test_no_data_is_an_error(x: Tensor) -> None:
    sim = QuantizationSimModel(Net().eval(), x)
    with pytest.raises(CalibrationError, match="FXQ430"):
        sim.compute_encodings([])
    with pytest.raises(CalibrationError, match="FXQ430"):
        sim.compute_encodings(lambda model: None)
    with pytest.raises(CalibrationError, match="FXQ431"):
        sim.compute_encodings(3)  # type: ignore[arg-type]


def test_not_a_number_names_tensor_and_batch(x: Tensor) -> None:
    sim = QuantizationSimModel(Net().eval(), x)
    bad = x.clone()
    bad[0, 0, 0, 0] = float("nan")
    with pytest.raises(CalibrationError, match=r"NaN .* batch 1") as caught:
        sim.compute_encodings([x, bad])
    assert "x" in str(caught.value.at)
    assert not quantized(sim, "x_stub").output_quantizers[0].is_initialized()


def test_training_mode_is_restored(x: Tensor) -> None:
    sim = QuantizationSimModel(Net().eval(), x)
    sim.model.train()
    sim.compute_encodings([x])
    assert all(m.training for m in sim.model.modules())


def test_quantized_models_are_refused(sim: QuantizationSimModel, x: Tensor) -> None:
    with pytest.raises(ConfigError, match="FXQ230"):
        QuantizationSimModel(sim.model, x)


def test_explain(sim: QuantizationSimModel) -> None:
    text = sim.explain("conv")
    assert "batch norm bn was folded" in text
    assert "per channel on axis 0" in text
    assert "test_sim.py:" in text
    with pytest.raises(SelectorError, match="conv") as caught:
        sim.explain("convv")
    assert "'conv'" in str(caught.value)


def test_gradients_reach_weights_and_ranges(sim: QuantizationSimModel, x: Tensor) -> None:
    sim.model.train()
    sim.model(x).pow(2).sum().backward()
    ranges = set(dict(sim.named_quantizer_parameters()))
    have = {n for n, p in sim.model.named_parameters() if p.grad is not None}
    assert ranges
    assert have == set(dict(sim.model.named_parameters())) - ranges


def test_gradients_reach_ranges_that_are_learned(x: Tensor) -> None:
    sim = QuantizationSimModel(Net().eval(), x, "training_range_learning_with_tf_init")
    sim.compute_encodings([x])
    sim.model.train()
    sim.model(x).pow(2).sum().backward()
    assert [n for n, p in sim.model.named_parameters() if p.grad is None] == []


def test_qat_moves_the_integers(sim: QuantizationSimModel, x: Tensor) -> None:
    optimizer = torch.optim.Adam(sim.model.parameters(), 1e-2)
    losses = []
    for _ in range(15):
        loss = F.cross_entropy(sim.model(x), torch.arange(4))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


def test_deepcopy_is_independent(sim: QuantizationSimModel, x: Tensor) -> None:
    twin = copy.deepcopy(sim)
    want = twin.model(x).detach().clone()
    assert torch.equal(want, sim.model(x))
    sim.compute_encodings([x * 3])
    assert torch.equal(twin.model(x), want)
    bias = quantized(twin, "fc").param_quantizers["bias"]
    owner = quantized(twin, "mean").output_quantizers[0]
    assert bias.input_quantizer is owner


def test_two_simulations_do_not_meet(x: Tensor) -> None:
    model = Net().eval()
    first, second = (QuantizationSimModel(model, x) for _ in range(2))
    first.compute_encodings([x])
    assert not any(q.is_initialized() for n, q in second.named_quantizers() if "output" in n)


def test_unknown_targets_and_keys_name_the_nearest(x: Tensor) -> None:
    with pytest.raises(FxQuantError, match="onnxruntime_x86"):
        QuantizationSimModel(Net(), x, target="onnxruntime_x68")
    with pytest.raises(ConfigError, match="weight_bits"):
        QuantizationSimModel(Net(), x, config={"weight_bits": 4})


def test_ranges_alone_are_enough_for_another_simulation_of_the_same_weights(x: Tensor) -> None:
    model = Net().eval()
    sim, other = QuantizationSimModel(model, x), QuantizationSimModel(model, x)
    sim.compute_encodings([x])
    ranges = sim.quantizer_state_dict()
    names = dict(sim.named_quantizer_parameters())
    assert names.keys() == ranges.keys()
    assert [p.data_ptr() for p in sim.quantizer_parameters()] == [
        p.data_ptr() for p in names.values()
    ]
    assert not any(name in dict(model.named_parameters()) for name in names)
    other.model.load_state_dict(ranges, strict=False)
    assert torch.equal(other.model(x), sim.model(x))


@pytest.mark.parametrize(("threads", "expected"), [(1, 1), (None, 2)])
def test_data_run_on_one_thread_unless_asked(threads: int | None, expected: int) -> None:
    sim = QuantizationSimModel(nn.Linear(4, 4), torch.randn(2, 4))
    seen: list[int] = []

    def run(model: nn.Module) -> None:
        seen.append(torch.get_num_threads())
        model(torch.ones(2, 4))

    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        if threads == 1:
            sim.compute_encodings(run)
        else:
            sim.compute_encodings(run, threads=threads)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert seen == [expected]
