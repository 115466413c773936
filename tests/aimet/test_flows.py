"""AIMET's documented examples from end to end, with nothing changed but imports."""

from __future__ import annotations

import copy
import math
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader

import fxquant
import fxquant.aimet.quantization as Q
from fxquant.aimet.adaround.adaround_weight import (  # type: ignore[import-not-found]
    Adaround,
    AdaroundParameters,
)
from fxquant.aimet.auto_quant import AutoQuant
from fxquant.aimet.batch_norm_fold import (
    fold_all_batch_norms,
    fold_all_batch_norms_to_scale,
    fold_given_batch_norms,
)
from fxquant.aimet.bias_correction import correct_bias, find_all_conv_bn_with_activation
from fxquant.aimet.bn_reestimation import reestimate_bn_stats
from fxquant.aimet.cross_layer_equalization import equalize_model
from fxquant.aimet.defs import CallbackFunc, QuantizationDataType, QuantScheme
from fxquant.aimet.mixed_precision import MixedPrecisionConfigurator, choose_mixed_precision
from fxquant.aimet.model_preparer import is_pending, prepare_model
from fxquant.aimet.model_validator import ModelValidator
from fxquant.aimet.quant_analyzer import QuantAnalyzer
from fxquant.aimet.quantsim import (
    QuantizationSimModel,
    QuantParams,
    compute_encodings_for_sims,
    load_checkpoint,
    save_checkpoint,
)
from fxquant.aimet.seq_mse import SeqMseParams, apply_seq_mse
from fxquant.errors import CalibrationError, CheckpointError, ConfigError, FxQuantError

if TYPE_CHECKING:
    from pathlib import Path


class Net(nn.Module):
    """Functions, a batch norm and a module that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
        self.conv2, self.relu = nn.Conv2d(8, 8, 3), nn.ReLU()
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.conv2(x))
        y: Tensor = self.fc(torch.flatten(nn.functional.adaptive_avg_pool2d(x, 1), 1))
        return y


def net() -> Net:
    torch.manual_seed(0)
    made = Net()
    for _ in range(3):
        made(data(16))
    return made.eval()


def data(n: int = 8) -> Tensor:
    return torch.randn(n, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def calibrate(model: nn.Module, forward_pass_args: Any = None) -> None:
    model.eval()
    with torch.no_grad():
        model(data())


def part(sim: Any, path: str) -> Any:
    return sim.model.get_submodule(path)


def noise(sim: QuantizationSimModel, model: nn.Module) -> float:
    with torch.no_grad():
        want, got = model(data()), torch.as_tensor(sim.model(data()))
    return 10 * math.log10(float(want.square().mean() / (want - got).square().mean()))


def test_simulation_and_training(tmp_path: Path) -> None:
    model = net()
    prepared = prepare_model(model)
    assert ModelValidator.validate_model(prepared, model_input=data())
    assert not ModelValidator.validate_model(model, model_input=data())  # a module is called twice
    sim = QuantizationSimModel(
        prepared, dummy_input=data(), quant_scheme=QuantScheme.post_training_tf_enhanced,
        default_param_bw=8, default_output_bw=8,
    )  # fmt: skip
    sim.compute_encodings(calibrate, forward_pass_callback_args=None)
    assert noise(sim, model) > 25
    before = {n: p.detach().clone() for n, p in sim.model.named_parameters()}
    optimizer = torch.optim.SGD(sim.model.parameters(), lr=1e-2)
    sim.model(data()).square().sum().backward()
    optimizer.step()
    moved = {n for n, p in sim.model.named_parameters() if not torch.equal(p, before[n])}
    assert "conv1.weight" in moved
    assert any(n.endswith("output_quantizers.0.max") for n in moved)
    report = sim.export(str(tmp_path), "net", dummy_input=data().cpu())
    assert report.proven
    assert {"net.onnx", "net.encodings", "net_torch.encodings"} <= {
        p.name for p in tmp_path.iterdir()
    }


def test_ptq_with_equalization_and_adaround(tmp_path: Path) -> None:
    model = net()
    prepared = prepare_model(model)
    equalize_model(prepared, input_shapes=(1, 3, 12, 12))
    torch.testing.assert_close(prepared(data()), model(data()), rtol=1e-3, atol=1e-3)
    loader: Any = DataLoader([(x, 0) for x in data(16)], batch_size=4)  # type: ignore[arg-type]
    params = AdaroundParameters(data_loader=loader, num_batches=4, default_num_iterations=32)
    rounded = Adaround.apply_adaround(
        prepared, data(), params, path=str(tmp_path), filename_prefix="net", default_param_bw=4,
        default_quant_scheme=QuantScheme.post_training_tf_enhanced, default_config_file=None,
    )  # fmt: skip
    sim = QuantizationSimModel(rounded, data(), default_param_bw=4, default_output_bw=8)
    sim.set_and_freeze_param_encodings(encoding_path=f"{tmp_path}/net.encodings")
    sim.compute_encodings(calibrate, forward_pass_callback_args=None)
    assert noise(sim, model) > 25
    weight = part(sim, "conv1").param_quantizers["weight"]
    assert (weight.bitwidth, weight.overwritable, weight.min.requires_grad) == (4, False, False)


def test_auto_quant(tmp_path: Path) -> None:
    model = net()
    labels = model(data(64)).argmax(1)

    def eval_callback(candidate: nn.Module, num_samples: int | None = None) -> float:
        with torch.no_grad():
            return float((candidate(data(64)).argmax(1) == labels).float().mean())

    auto_quant = AutoQuant(
        model, data(), DataLoader(list(data(16)), batch_size=8), eval_callback,  # type: ignore[arg-type]
        results_dir=str(tmp_path),
    )  # fmt: skip
    auto_quant.set_adaround_params(AdaroundParameters([data()], num_batches=1))
    _, initial = auto_quant.run_inference()
    _, optimized, encoding_path = auto_quant.optimize(allowed_accuracy_drop=0.1)
    assert optimized >= max(initial, 0.9) or optimized == initial
    assert str(encoding_path).endswith(".encodings")


def test_quant_analyzer(tmp_path: Path) -> None:
    prepared = prepare_model(net())

    def forward_pass_callback(model: nn.Module, _: Any = None) -> None:
        with torch.no_grad():
            model(data())

    def eval_callback(model: nn.Module, _: Any = None) -> float:
        with torch.no_grad():
            return -float(model(data()).square().mean())

    quant_analyzer = QuantAnalyzer(
        model=prepared, dummy_input=data(),
        forward_pass_callback=CallbackFunc(forward_pass_callback, func_callback_args=None),
        eval_callback=CallbackFunc(eval_callback, func_callback_args=None),
    )  # fmt: skip
    quant_analyzer.enable_per_layer_mse_loss(unlabeled_dataset_iterable=[data()], num_batches=1)
    quant_analyzer.analyze(
        quant_scheme=QuantScheme.post_training_tf_enhanced, default_param_bw=8,
        default_output_bw=8, config_file=None, results_dir=str(tmp_path),
    )  # fmt: skip
    assert list(tmp_path.rglob("*.json"))


def test_the_migration_guide() -> None:
    sim = QuantizationSimModel(net(), data())
    sim.compute_encodings(calibrate, None)
    model: Any = sim.model
    conv = model.conv1
    weight: Any = conv.param_quantizers["weight"]
    entry: Any = conv.input_quantizers[0]
    assert weight
    weight.bitwidth = 4
    assert entry
    entry.bitwidth = 4
    entry.symmetric, entry.signed = True, True
    assert len(model.x_stub(data()).unique()) <= 16  # the input lies on four bits
    with torch.no_grad():
        weight.min.copy_(-1.0)
        weight.max.copy_(1.0)
    scale, offset = entry.get_scale(), entry.get_offset()
    assert scale.requires_grad
    assert torch.equal(scale, entry.get_encodings().scale)
    assert torch.equal(offset, entry.get_encodings().offset)
    scale.backward()
    assert entry.max.grad is not None
    with conv._remove_param_quantizers("weight"):
        assert conv.param_quantizers["weight"] is None
    assert conv.param_quantizers["weight"] is weight
    with conv._remove_activation_quantizers():
        assert conv.input_quantizers[0] is None
        assert model.x_stub.output_quantizers[0] is None
    assert conv.input_quantizers[0] is entry
    conv.input_quantizers[0] = None
    assert len(model.x_stub(data()).unique()) > 256
    fresh = Q.affine.QuantizeDequantize(shape=(), bitwidth=8, symmetric=False)
    conv.input_quantizers[0] = fresh
    assert list(conv.input_quantizers) == [fresh]
    sim.compute_encodings(calibrate, None)
    assert fresh.is_initialized()
    kept: Any = conv.param_quantizers["weight"]
    kept.allow_overwrite(False)
    kept.requires_grad_(False)
    assert model.conv2.input_quantizers[0] is None  # what other modules produce has one owner


class TwoReaders(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        y: Tensor = torch.relu(self.left(x)) * scale + self.right(x)
        return y


def test_a_model_that_waits_for_its_inputs() -> None:
    prepared: Any = prepare_model(TwoReaders().eval())
    weight, layer = prepared.left.weight, prepared.left
    assert is_pending(copy.deepcopy(prepared))
    fxquant.QuantizationSimModel(prepared, data())  # records a copy
    assert is_pending(prepared)
    want = prepared(data(), scale=torch.tensor(2.0))
    assert isinstance(prepared, fx.GraphModule)
    assert prepared.left is layer
    assert prepared.left.weight is weight
    assert [n.name for n in prepared.graph.find_nodes(op="placeholder")] == ["x", "scale"]
    assert torch.equal(prepared(data(), torch.tensor(2.0)), want)
    broken: Any = prepare_model(TwoReaders())
    with pytest.raises(FxQuantError):
        broken(torch.ones(2))
    assert is_pending(broken)


def test_readers_of_one_input_show_its_one_grid() -> None:
    sim = QuantizationSimModel(TwoReaders().eval(), data())
    sim.compute_encodings(calibrate)
    entry = part(sim, "left").input_quantizers[0]
    assert entry is part(sim, "right").input_quantizers[0]
    names = [name for name, q in sim.named_quantizers() if q is entry]
    assert names == ["x_stub.output_quantizers.0"]
    plain = fxquant.QuantizationSimModel(TwoReaders().eval(), data())
    plain.model.load_state_dict(sim.model.state_dict())
    assert torch.equal(plain.model(data()), sim.model(data()))


class Product(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x @ y


def test_every_input_of_a_reader_shows_its_grid() -> None:
    given = torch.randn(4, 3), torch.randn(3, 2)
    model: Any = QuantizationSimModel(Product().eval(), given).model
    grids = [stub.output_quantizers[0] for stub in (model.x_stub, model.y_stub)]
    assert None not in grids
    assert list(model.matmul.input_quantizers) == grids


def test_linked_inputs_are_copied_with_the_model(tmp_path: Path) -> None:
    sim = QuantizationSimModel(net(), data())
    copied: Any = copy.deepcopy(sim.model)
    assert copied.conv1.input_quantizers[0] is copied.x_stub.output_quantizers[0]
    assert copied.conv1.input_quantizers[0] is not part(sim, "conv1").input_quantizers[0]
    sim.compute_encodings(calibrate)
    text = sim.get_encodings()["activation_encodings"]["conv1"]
    assert set(text) == {"input"}
    other = QuantizationSimModel(net(), data())
    other.load_and_freeze_encodings(sim.get_encodings())
    assert torch.equal(other.model(data()), sim.model(data()))


def test_positions_of_both_signatures() -> None:
    def bits(*args: Any, **kwargs: Any) -> tuple[int, int]:
        model: Any = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2)), x, *args, **kwargs).model
        inner = model.get_submodule("0")
        return inner.input_quantizers[0].bitwidth, inner.param_quantizers["weight"].bitwidth

    x, tf = torch.randn(4, 3), QuantScheme.post_training_tf
    int_type = QuantizationDataType.int
    assert bits(tf, "nearest", 8, 4) == (8, 4)
    assert bits(tf, "nearest", 16, 4, False, None, int_type) == (16, 4)
    assert bits(tf, 16, 4) == (16, 4)  # the newer signature has no rounding mode
    assert bits(tf, 16, 4, False, None, int_type) == (16, 4)
    assert bits(tf, 16, default_param_bw=4) == (16, 4)
    assert bits("tf_enhanced", default_output_bw=16) == (16, 8)
    with pytest.raises(ConfigError, match="FXQ906"):
        bits(tf, "stochastic", 8, 4)


def test_checkpoints(tmp_path: Path) -> None:
    sim = QuantizationSimModel(net(), data())
    part(sim, "fc").param_quantizers["weight"] = None
    sim.compute_encodings(calibrate)
    part(sim, "conv2").param_quantizers["weight"].bitwidth = 4
    want = sim.model(data())
    save_checkpoint(sim, tmp_path / "one")
    part(sim, "conv1").param_quantizers["weight"].bitwidth = 2
    with torch.no_grad():
        sim.model.get_parameter("conv1.weight").zero_()
    again = load_checkpoint(tmp_path / "one")
    assert torch.equal(again.model(data()), want)
    assert again.model is not sim.model
    (tmp_path / "one").rename(tmp_path / "other")  # as in another process
    with pytest.raises(CheckpointError, match="FXQ608"):
        load_checkpoint(tmp_path / "other")
    other = load_checkpoint(tmp_path / "other", model=net(), dummy_input=data())
    assert part(other, "conv2").param_quantizers["weight"].bitwidth == 4
    assert torch.equal(other.model(data()), want)


def test_batch_norms_after_training() -> None:
    model = net()
    sim = QuantizationSimModel(
        model, data(), QuantScheme.training_range_learning_with_tf_init,
        config={"fold_batch_norms": False},
    )  # fmt: skip
    sim.compute_encodings(forward_pass_callback=calibrate, forward_pass_callback_args=True)
    loader = [(data(16), torch.zeros(16))]

    def forward_fn(run: nn.Module, inputs: Any) -> None:
        run(inputs[0])

    reestimate_bn_stats(sim.model, loader, forward_fn=forward_fn)
    fold_all_batch_norms_to_scale(sim, input_shapes=(1, 3, 12, 12))
    assert noise(sim, model) > 15


def test_given_batch_norms() -> None:
    model = net()
    want = model(data())
    fold_given_batch_norms(model, [(model.conv1, model.bn1)])
    assert isinstance(model.bn1, nn.Identity)
    torch.testing.assert_close(model(data()), want, rtol=1e-4, atol=1e-4)
    front = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 2, 3))
    front(data())
    front.eval()
    want = front(data())
    fold_given_batch_norms(front, [(front[0], front[1])])
    torch.testing.assert_close(front(data()), want, rtol=1e-4, atol=1e-4)
    assert fold_all_batch_norms(net(), input_shapes=(1, 3, 12, 12))


def test_sequential_mse_in_both_forms() -> None:
    loader = [data()]
    first, second = (QuantizationSimModel(net(), data(), default_param_bw=3) for _ in range(2))
    model = net()
    report = apply_seq_mse(model, first, loader, SeqMseParams(num_batches=1))
    apply_seq_mse(second, loader, num_candidates=20)
    assert report.layers
    first.compute_encodings(calibrate)
    second.compute_encodings(calibrate)
    assert torch.equal(first.model(data()), second.model(data()))


def test_mixed_precision(tmp_path: Path) -> None:
    integer = QuantizationDataType.int
    sim = QuantizationSimModel(net(), data(), default_param_bw=8, default_output_bw=8)
    sim.compute_encodings(calibrate)
    float_model = net()

    def score(model: nn.Module, args: Any) -> float:
        with torch.no_grad():
            return -float((model(data()) - float_model(data())).abs().max())

    result = choose_mixed_precision(
        sim, data(), [((8, integer), (8, integer)), ((8, integer), (4, integer))],
        CallbackFunc(score, None), CallbackFunc(score, None), 0.2, str(tmp_path), True,
        CallbackFunc(calibrate, None),
    )  # fmt: skip
    assert result.pareto
    by_hand = MixedPrecisionConfigurator(sim)
    by_hand.set_precision(
        sim.model.get_submodule("fc"), activation="int8", param={"weight": "int8"}
    )
    by_hand.set_model_input_precision("int8")
    by_hand.apply(str(tmp_path / "log.txt"))
    assert (tmp_path / "log.txt").read_text(encoding="utf-8").strip()


def test_bias_correction() -> None:
    model, before = net(), net()
    loader = [(x, 0) for x in data(16).split(4)]
    params = QuantParams(weight_bw=4, act_bw=8, round_mode="nearest", quant_scheme="tf_enhanced")
    found = find_all_conv_bn_with_activation(model, input_shape=(1, 3, 12, 12))
    assert found == {model.conv1: model.bn1}
    report = correct_bias(
        model, params, num_quant_samples=16, data_loader=loader, num_bias_correct_samples=16,
        layers_to_ignore=[model.fc],
    )  # fmt: skip
    assert report.layers
    changed = {
        n for n, p in model.named_parameters() if not torch.equal(p, before.get_parameter(n))
    }
    assert changed
    assert changed <= {"conv1.bias", "conv2.bias"}
    with pytest.raises(CalibrationError, match="FXQ913"):
        correct_bias(model, params, 16, ["text"], 16)


def test_primitives_and_phases_that_are_not_here_say_why() -> None:
    with pytest.raises(ImportError, match="FXQ914"):
        from fxquant.aimet.cross_layer_equalization import HighBiasFold  # noqa: F401
    with pytest.raises(ImportError, match="FXQ902"):
        from fxquant.aimet.nn.custom import QuantizedGatherNd  # noqa: F401
    with pytest.raises(ImportError, match="FXQ915"):
        from fxquant.aimet.quantization import set_backend  # noqa: F401
    with pytest.raises(ConfigError, match="FXQ903"):
        prepare_model(net(), concrete_args={"mask": None})
    with pytest.raises(ConfigError, match="FXQ904"):
        Adaround.apply_adaround_with_cache(
            net(), data(), None, ".", "net", checkpoints_config="blocks.json"
        )
    with pytest.raises(ConfigError, match="FXQ907"):
        fold_given_batch_norms(net(), [(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))])


def test_several_simulations_in_one_go() -> None:
    sims = [QuantizationSimModel(nn.Sequential(nn.Linear(3, 3)), torch.ones(1, 3)) for _ in "ab"]
    x = torch.randn(8, 3)

    def run(models: list[nn.Module], args: Any) -> None:
        models[1](models[0](args))

    compute_encodings_for_sims(sims, run, x)
    assert all(q.is_initialized() for sim in sims for q in sim.quantizers())


def test_float16(tmp_path: Path) -> None:
    model = net()
    sim = QuantizationSimModel(
        model, data(), default_output_bw=16, default_param_bw=16,
        default_data_type=QuantizationDataType.float,
    )  # fmt: skip
    assert noise(sim, model) > 55
    assert not torch.equal(sim.model(data()), model(data()))
    with pytest.raises(ConfigError, match="FXQ906"):
        QuantizationSimModel(model, data(), default_data_type=QuantizationDataType.float)


@pytest.mark.parametrize(
    "asked",
    [
        {"propagate_encodings": True},
        {"export_to_torchscript": True},
        {"onnx_export_args": {"input_names": ["image"]}},
        {"onnx_export_args": {"custom_opsets": {}}},
        {"verison": 1},
    ],
)
def test_what_an_export_cannot_do_is_told(asked: dict[str, Any], tmp_path: Path) -> None:
    x = torch.randn(4, 3)
    sim = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2)), x)
    sim.compute_encodings(lambda model: model(x))
    with pytest.raises(ConfigError, match="FXQ905"):
        sim.export(tmp_path, "net", x, **asked)
    assert not list(tmp_path.iterdir())


def test_files_of_an_export(tmp_path: Path) -> None:
    x = torch.randn(4, 3)
    sim = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2)), x)
    sim.compute_encodings(lambda model: model(x))
    sim.export(
        tmp_path / "a", "net", x, export_model=False, filename_prefix_encodings="grids",
        onnx_export_args={"opset_version": 17, "input_names": ["input"], "dynamo": False},
    )  # fmt: skip
    assert {p.name for p in (tmp_path / "a").iterdir()} == {
        "grids.encodings", "grids_torch.encodings",
    }  # fmt: skip
    sim.onnx.export(x, tmp_path / "b" / "net.onnx", opset_version=21)
    assert {p.name for p in (tmp_path / "b").iterdir()} == {"net.onnx", "net.encodings"}
    other = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2)), x)
    other.load_encodings(tmp_path / "a" / "grids_torch.encodings")
    assert all(q.is_initialized() for q in other.quantizers())
