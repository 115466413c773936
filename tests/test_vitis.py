"""The Vitis-style front door: calibrate, write, read in another process, export."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant.errors import (
    CalibrationError,
    CheckpointError,
    ConfigError,
    ExportError,
    FxQuantError,
    SelectorError,
)
from fxquant.graph.pass_infra import state_of
from fxquant.onnx.session import Level, open_session
from fxquant.quantization.affine.pof2 import PowerOfTwoQuantizeDequantize
from fxquant.quantization.analyzers import MinMax, Percentile
from fxquant.quantization.float import FloatQuantizeDequantize
from fxquant.vitis import Strategy, TorchQuantizer, dump_xmodel, load_strategy, torch_quantizer
from fxquant.vitis.relative_entropy import Entropy
from tests.helpers.grids import output_of, param_of

_X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(1))


class Net(nn.Module):
    """Convolutions with a residual sum, a concatenation and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.body(x)) + x
        z = F.adaptive_avg_pool2d(torch.cat([x, y], 1), 1)
        return self.fc(z.flatten(1))  # type: ignore[no-any-return]


def net() -> nn.Module:
    torch.manual_seed(0)
    return Net().eval()


def calibrated(folder: Path, batches: int = 3, **options: Any) -> TorchQuantizer:
    q = torch_quantizer("calib", net(), (_X,), output_dir=folder, **options)
    for i in range(batches):
        q.quant_model(_X * (1 + i / 4))
    q.export_quant_config()
    return q


def info_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "quant_info.json").read_text())  # type: ignore[no-any-return]


# --- two processes -------------------------------------------------------------------------------

_TARGETS = [None, "onnxruntime_arm", "AMD_AIE2_Nx4_Overlay_cfg0", "generic_pof2", "qualcomm_htp"]


@pytest.mark.parametrize("target", _TARGETS)
def test_test_mode_computes_the_same_bits(tmp_path: Path, target: str | None) -> None:
    q = calibrated(tmp_path, target=target)
    later = torch_quantizer("test", net(), (_X,), output_dir=tmp_path)
    x = torch.randn(3, 3, 12, 12)
    assert torch.equal(later.quant_model(x), q.quant_model(x))
    assert not torch.equal(later.quant_model(x), net()(x)), "it is quantized"


def test_another_process_computes_the_same_bits(tmp_path: Path) -> None:
    q = calibrated(tmp_path, target="amd_aie2")
    np.save(tmp_path / "ours.npy", q.quant_model(_X).detach().numpy())
    np.save(tmp_path / "x.npy", _X.numpy())
    program = (
        "import sys, numpy, torch; sys.path.insert(0, sys.argv[2])\n"
        "from fxquant.vitis import torch_quantizer; from tests.test_vitis import net\n"
        "x = torch.from_numpy(numpy.load(sys.argv[1] + '/x.npy'))\n"
        "q = torch_quantizer('test', net(), (x,), output_dir=sys.argv[1])\n"
        "numpy.save(sys.argv[1] + '/theirs.npy', q.quant_model(x).detach().numpy())\n"
    )
    home = str(Path(__file__).parent.parent)
    subprocess.run([sys.executable, "-c", program, str(tmp_path), home], check=True, cwd=home)
    assert np.array_equal(np.load(tmp_path / "ours.npy"), np.load(tmp_path / "theirs.npy"))


def test_the_file_has_the_documented_fields(tmp_path: Path) -> None:
    calibrated(tmp_path)
    info = info_of(tmp_path)
    assert set(info) == {"param", "output", "input", "fast_finetuned", "bias_corrected", "version",
                         "graph_md5", "fxquant"}  # fmt: skip
    assert set(info["param"]) == {
        f"{m}.{p}" for m in ("stem.0", "body", "fc") for p in ("weight", "bias")
    }
    assert {"stem.2", "add", "cat"} <= set(info["output"])
    bits, scale, zero, largest = info["output"]["stem.2"][0]
    assert (bits, zero) == (8, 0)
    assert largest == pytest.approx(255 * scale)
    bits, scale, zero, largest = info["param"]["stem.0.weight"][0]
    assert bits == 8
    assert len(scale) == len(zero) == len(largest) == 8


def test_powers_of_two_are_written_as_positions(tmp_path: Path) -> None:
    q = calibrated(tmp_path, target="amd_aie2")
    for section in ("param", "output"):
        for name, entries in info_of(tmp_path)[section].items():
            bits, position = entries[0]
            assert bits == 8, name
            assert isinstance(position, int), name
    body = param_of(q.quant_model, "body", "weight")
    assert float(body.get_scale()) == 2.0 ** -info_of(tmp_path)["param"]["body.weight"][0][1]


def test_an_edited_entry_counts(tmp_path: Path) -> None:
    calibrated(tmp_path)
    info = info_of(tmp_path)
    info["output"]["add"][0][1] *= 2
    (tmp_path / "quant_info.json").write_text(json.dumps(info))
    later = torch_quantizer("test", net(), (_X,), output_dir=tmp_path)
    scale = output_of(later.quant_model, "add").get_scale()
    assert float(scale) == pytest.approx(info["output"]["add"][0][1], rel=1e-6)


def test_arguments_of_the_calibration_are_remembered(tmp_path: Path) -> None:
    strategy = {"target_device": "DPU", "overall_quantize_config": {"method": "maxmin"}}
    q = calibrated(tmp_path, quant_config_file=strategy, target="amd_aie2")
    later = torch_quantizer("test", net(), (_X,), output_dir=tmp_path)
    assert later.target.name == "amd_aie2"
    assert later.strategy == q.strategy
    again = torch_quantizer(
        "test", net(), (_X,), output_dir=tmp_path, target="AMD_AIE2_Nx4_Overlay_cfg0"
    )
    assert again.target.name == "amd_aie2"
    with pytest.raises(ConfigError, match="target is not what"):
        torch_quantizer("test", net(), (_X,), output_dir=tmp_path, target="generic_pof2")


# --- calibration ---------------------------------------------------------------------------------


def test_encodings_follow_the_running_statistics(tmp_path: Path) -> None:
    q = torch_quantizer("calib", net(), (_X,), output_dir=tmp_path)
    q.quant_model(_X)
    stub = output_of(q.quant_model, "x_stub")
    first = float(stub.get_max())
    q.quant_model(_X * 3)
    assert float(stub.get_max()) > 2 * first
    q.export_quant_config()
    frozen = float(stub.get_max())
    q.quant_model(_X * 100)
    assert float(stub.get_max()) == frozen


@pytest.mark.parametrize(("method", "expected"), [("max", 4.0), ("mean", 2.25), ("median", 2.0)])
def test_statistics_over_batches(tmp_path: Path, method: str, expected: float) -> None:
    rule = {"method": "maxmin", "calib_statistic_method": method}
    strategy = {"target_device": "CPU", "tensor_quantize_config": {"input": rule}}
    q = torch_quantizer("calib", net(), (_X,), output_dir=tmp_path, quant_config_file=strategy)
    x = torch.ones(1, 3, 12, 12)
    for largest in (1.0, 2.0, 2.0, 4.0):
        q.quant_model(x * largest)
    stub = output_of(q.quant_model, "x_stub")
    assert float(stub.get_max()) == pytest.approx(expected)


def test_two_quantizers_do_not_meet(tmp_path: Path) -> None:
    model = net()
    a = torch_quantizer("calib", model, (_X,), output_dir=tmp_path / "a")
    b = torch_quantizer(
        "calib", model, (_X,), output_dir=tmp_path / "b", target="amd_aie2", bitwidth=8
    )
    a.quant_model(_X)
    b.quant_model(_X * 5)
    a.export_quant_config()
    alone = torch_quantizer("calib", model, (_X,), output_dir=tmp_path / "c")
    alone.quant_model(_X)
    alone.export_quant_config()
    assert torch.equal(a.quant_model(_X), alone.quant_model(_X))
    assert torch.equal(model(_X), net()(_X)), "the model itself is not touched"
    b.export_quant_config()
    assert info_of(tmp_path / "a")["output"] == info_of(tmp_path / "c")["output"]


def test_nothing_reads_the_command_line_or_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["program", "--nndct_calib_mode", "--help"])
    monkeypatch.setenv("NNDCT_DIFFS_MODE", "maxmin")
    calibrated(tmp_path)
    assert sys.argv == ["program", "--nndct_calib_mode", "--help"]


@pytest.mark.parametrize("bits", [4, 6, 8, 16])
def test_one_bitwidth_for_all(tmp_path: Path, bits: int) -> None:
    q = calibrated(tmp_path, bitwidth=bits)
    assert info_of(tmp_path)["output"]["add"][0][0] == bits
    assert info_of(tmp_path)["param"]["fc.weight"][0][0] == bits
    assert q.export_onnx_model().max_steps <= 1


# --- errors --------------------------------------------------------------------------------------


def test_there_must_be_a_calibration(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="calib"):
        torch_quantizer("test", net(), (_X,), output_dir=tmp_path)
    q = torch_quantizer("calib", net(), (_X,), output_dir=tmp_path)
    with pytest.raises(CalibrationError, match="calib"):
        q.export_quant_config()
    with pytest.raises(CalibrationError, match="never called"):
        q.export_onnx_model()


def test_another_network_is_refused(tmp_path: Path) -> None:
    calibrated(tmp_path)
    with pytest.raises(CheckpointError, match="another network"):
        torch_quantizer("test", nn.Conv2d(3, 4, 1), (_X,), output_dir=tmp_path)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", '{"param": {}}', '{"param": 1, "output": {}, "input": {}}']
)
def test_a_damaged_file_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "quant_info.json").write_text(content)
    with pytest.raises(CheckpointError, match="calib"):
        torch_quantizer("test", net(), (_X,), output_dir=tmp_path)


def _damage(info: dict[str, Any], how: str) -> None:
    if how == "missing":
        del info["output"]["add"]
    elif how == "bits":
        info["output"]["add"][0][0] = 4
    elif how == "never calibrated":
        info["output"]["add"] = [[8, None]]
    elif how == "shape":
        info["param"]["fc.weight"][0][1] = [0.1, 0.2]
    else:
        info["output"]["adds"] = info["output"].pop("add")


@pytest.mark.parametrize(
    ("how", "says"),
    [("missing", "add"), ("bits", "bits"), ("never calibrated", "never calibrated"),
     ("shape", "fc.weight"), ("name", "'add'")],
)  # fmt: skip
def test_an_entry_that_does_not_fit_is_refused(tmp_path: Path, how: str, says: str) -> None:
    calibrated(tmp_path)
    info = info_of(tmp_path)
    _damage(info, how)
    (tmp_path / "quant_info.json").write_text(json.dumps(info))
    with pytest.raises(CheckpointError, match=says):
        torch_quantizer("test", net(), (_X,), output_dir=tmp_path)


def _old_name(section: str, name: str, number: int, *, counted: bool) -> str:
    if section == "param":
        return f"Net::{name}"
    if counted:
        return f"Net::nndct_conv2d_{number}"
    kinds = "/".join(f"Conv2d[{part}]" for part in name.split("."))
    return f"Net::Net/{kinds}/input.{number}"


@pytest.mark.parametrize("counted", [False, True])
def test_files_of_the_old_tool(tmp_path: Path, counted: bool) -> None:
    q = calibrated(tmp_path, target="generic_pof2")
    info = info_of(tmp_path)
    del info["fxquant"], info["graph_md5"]
    for section in ("param", "output"):
        info[section] = {
            _old_name(section, name, i, counted=counted): entry
            for i, (name, entry) in enumerate(info[section].items())
        }
    (tmp_path / "quant_info.json").write_text(json.dumps(info))
    if counted:
        with pytest.raises(CheckpointError, match="nndct_conv2d"):
            torch_quantizer("test", net(), (_X,), output_dir=tmp_path, target="generic_pof2")
        return
    later = torch_quantizer("test", net(), (_X,), output_dir=tmp_path, target="generic_pof2")
    assert torch.equal(later.quant_model(_X), q.quant_model(_X))


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"quant_mode": "calibrate"}, ConfigError),
        ({"quant_mode": 1}, ConfigError),
        ({"module": lambda x: x}, ConfigError),
        ({"input_args": None}, ConfigError),
        ({"input_kwargs": {"x": _X}}, ConfigError),
        ({"target": "nope"}, SelectorError),
        ({"bitwidth": 4, "target": "amd_aie2"}, ConfigError),
        ({"quant_config_file": "absent.json"}, ConfigError),
    ],
)
def test_wrong_arguments_are_typed_errors(
    tmp_path: Path, change: dict[str, Any], error: type[FxQuantError]
) -> None:
    given: dict[str, Any] = {"quant_mode": "calib", "module": net(), "input_args": (_X,)}
    with pytest.raises(error):
        torch_quantizer(**{**given, "output_dir": tmp_path, **change})


# --- the strategy --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("strategy", "says"),
    [
        ({"bit_width": 8}, "bit_width"),
        ({"overall_quantize_config": {"bits": 8}}, "overall_quantize_config.bits"),
        ({"overall_quantize_config": {"bit_width": 64}}, "overall_quantize_config.bit_width"),
        ({"overall_quantize_config": {"method": "minmax"}}, "overall_quantize_config.method"),
        ({"overall_quantize_config": {"percentage": 120}}, "percentage"),
        ({"tensor_quantize_config": {"weight": {}}}, "tensor_quantize_config.weight"),
        ({"tensor_quantize_config": {"activation": {"per_channel": True}}}, "activation.per_chan"),
        ({"layer_quantize_config": [{}]}, "layer_quantize_config.0"),
        ({"layer_quantize_config": [{"layer_name": "a", "layer_type": "b"}]}, "config.0"),
        ({"overall_quantize_config": {"symmetry": False}}, "symmetry=False"),
        ({"tensor_quantize_config": {"weights": {"per_channel": True}}}, "weights.per_channel"),
        ({"overall_quantize_config": {"scale_type": "float"}}, "scale_type=float"),
        ({"overall_quantize_config": {"method": "mse"}}, "method=mse"),
        ({"tensor_quantize_config": {"input": {"calib_statistic_method": "max"}}}, "input.calib"),
        ({"target_device": "CPU",
          "overall_quantize_config": {"scale_type": "float", "method": "diffs"}}, "diffs"),
        ({"target_device": "CPU",
          "overall_quantize_config": {"scale_type": "poweroftwo", "method": "mse"}}, "method=mse"),
        ({"target_device": "CPU",
          "overall_quantize_config": {"scale_type": "float", "calib_statistic_method": "modal"}},
         "modal"),
        ({"target_device": "TPU"}, "target_device"),
        ({"include_cle": True}, "include_cle"),
        ({"include_bias_corr": True}, "include_bias_corr"),
        ({"quantizable_data_type": ["weight"]}, "quantizable_data_type"),
    ],
)  # fmt: skip
def test_a_wrong_key_or_value_is_named(strategy: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_strategy(strategy)
    assert caught.value.code == "FXQ271"
    assert says in str(caught.value)


def test_a_strategy_is_read_from_a_file(tmp_path: Path) -> None:
    path = tmp_path / "strategy.json"
    path.write_text(json.dumps({"target_device": "CPU", "onnx_opset_version": 17}))
    q = calibrated(tmp_path, quant_config_file=path)
    q.export_onnx_model()
    model = onnx.load(str(tmp_path / "Net_int.onnx"))
    assert {o.version for o in model.opset_import if o.domain == ""} == {17}
    path.write_text("{")
    with pytest.raises(ConfigError, match=r"strategy\.json"):
        load_strategy(path)


def quantizers(folder: Path, **strategy: Any) -> dict[str, Any]:
    q = torch_quantizer("calib", net(), (_X,), output_dir=folder, quant_config_file=strategy)
    found: dict[str, Any] = {}
    for name, module in q.quant_model.named_modules():
        if hasattr(module, "param_quantizers"):
            found |= {f"{name}.{k}": v for k, v in module.param_quantizers.items()}
            found[name] = module.output_quantizers[0]
    return found


def test_precedence_of_rules(tmp_path: Path) -> None:
    found = quantizers(
        tmp_path, target_device="CPU",
        overall_quantize_config={"bit_width": 7, "round_mode": "half_up"},
        tensor_quantize_config={"weights": {"bit_width": 6}},
        layer_quantize_config=[
            {"layer_name": "body", "tensor_quantize_config": {"weights": {"bit_width": 3}}},
            {"layer_type": "conv2d", "tensor_quantize_config": {"weights": {"bit_width": 4}}},
            {"layer_type": "Linear", "overall_quantize_config": {"bit_width": 5}},
        ],
    )  # fmt: skip
    assert found["stem.0.weight"].bitwidth == 4
    assert found["body.weight"].bitwidth == 3, "a rule for a name counts more than one for a type"
    assert found["fc.weight"].bitwidth == 5
    assert found["add"].bitwidth == 7
    assert found["add"].rounding == "half_up"


def test_every_property_of_a_rule(tmp_path: Path) -> None:
    found = quantizers(
        tmp_path, target_device="CPU",
        tensor_quantize_config={
            "weights": {"per_channel": False, "narrow_range": True, "method": "maxmin"},
            "activation": {"symmetry": True, "method": "percentile", "percentage": 99.0},
            "input": {"signed": True, "symmetry": False, "method": "entropy"},
            "bias": {"bit_width": 16, "scale_type": "poweroftwo", "round_mode": "std_round"},
        },
    )  # fmt: skip
    weight, add, stub, bias = (found[n] for n in ("body.weight", "add", "x_stub", "body.bias"))
    assert (weight.shape, weight.qmin, weight.qmax) == ((), -127, 127)
    assert isinstance(weight.encoding_analyzer, MinMax)
    assert (add.qmin, add.symmetric) == (-128, True)
    assert add.encoding_analyzer == Percentile(99.0)
    assert (stub.qmin, stub.symmetric) == (-128, False)
    assert isinstance(stub.encoding_analyzer, Entropy)
    assert isinstance(bias, PowerOfTwoQuantizeDequantize)
    assert (bias.bitwidth, bias.rounding) == (16, "std_round")


def test_powers_of_two_on_a_float_target(tmp_path: Path) -> None:
    found = quantizers(
        tmp_path, target_device="CPU", overall_quantize_config={"scale_type": "poweroftwo"}
    )
    assert isinstance(found["add"], PowerOfTwoQuantizeDequantize)
    assert found["add"].qmin == -128


def test_floating_point_types_and_kinds_that_are_left_out(tmp_path: Path) -> None:
    found = quantizers(
        tmp_path, target_device="CPU", quantizable_data_type=["input", "weights", "activation"],
        layer_quantize_config=[
            {"layer_name": "fc", "overall_quantize_config": {"datatype": "float32"}},
            {"layer_name": "body", "tensor_quantize_config": {"weights": {"datatype": "bfloat16"}}},
        ],
    )  # fmt: skip
    assert found["stem.0.bias"] is None
    assert found["fc.weight"] is None
    assert isinstance(found["body.weight"], FloatQuantizeDequantize)


def test_globs_and_names_that_match_nothing(tmp_path: Path) -> None:
    rule = {"tensor_quantize_config": {"weights": {"bit_width": 4}}}
    found = quantizers(
        tmp_path, target_device="CPU", layer_quantize_config=[{"layer_name": "stem*", **rule}]
    )
    assert found["stem.0.weight"].bitwidth == 4
    assert found["body.weight"].bitwidth == 8
    with pytest.raises(
        ConfigError, match=r"layer_quantize_config.0.layer_name: 'bodi'.*\n.*'body'"
    ):
        quantizers(
            tmp_path, target_device="CPU", layer_quantize_config=[{"layer_name": "bodi", **rule}]
        )


def test_rules_that_contradict_each_other_in_one_kernel(tmp_path: Path) -> None:
    def rule(name: str, bits: int) -> dict[str, Any]:
        return {"layer_name": name, "tensor_quantize_config": {"activation": {"bit_width": bits}}}

    one = quantizers(tmp_path, target_device="CPU", layer_quantize_config=[rule("stem.0", 6)])
    assert one["stem.2"].bitwidth == 6, "the grid of a kernel is that of its end"
    with pytest.raises(ConfigError, match=r"stem.0, stem.2 are computed as one"):
        quantizers(
            tmp_path,
            target_device="CPU",
            layer_quantize_config=[rule("stem.0", 6), rule("stem.2", 5)],
        )


def test_the_first_and_the_last_layer_keep_their_accuracy(tmp_path: Path) -> None:
    found = quantizers(tmp_path, target_device="CPU", keep_first_last_layer_accuracy=True)
    assert {n for n in ("stem.0.weight", "body.weight", "fc.weight") if found[n]} == {"body.weight"}
    keep = {"target_device": "CPU", "keep_add_layer_accuracy": True}
    q = torch_quantizer("calib", net(), (_X,), output_dir=tmp_path, quant_config_file=keep)
    assert "kept in floating point" in state_of(q.quant_model).why["add"][0]
    q = calibrated(
        tmp_path, quant_config_file={"target_device": "CPU", "keep_first_last_layer_accuracy": True}
    )
    q.export_onnx_model()
    stored = {
        i.name: i.data_type for i in onnx.load(str(tmp_path / "Net_int.onnx")).graph.initializer
    }
    assert stored["fc.weight"] == onnx.TensorProto.FLOAT
    assert stored["body.weight"] == onnx.TensorProto.INT8


def test_alignment_on_request(tmp_path: Path) -> None:
    strategy = {
        "target_device": "DPU",
        "change_add_input_fix": True,
        "change_concat_input_fix": True,
    }
    q = calibrated(tmp_path, quant_config_file=strategy)
    places = {n: v[0][1] for n, v in info_of(tmp_path)["output"].items()}
    assert places["stem.2"] == places["add"]
    assert q.export_onnx_model().max_steps <= 1


def test_a_device_and_a_target_that_contradict_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="target_device=DPU"):
        calibrated(tmp_path, quant_config_file={"target_device": "DPU"}, target="onnxruntime_x86")
    rule = {"overall_quantize_config": {"bit_width": 4}, "target_device": "DPU"}
    with pytest.raises(ConfigError, match="activation_bitwidth=4"):
        calibrated(tmp_path, quant_config_file=rule, target="amd_aie2")
    with pytest.raises(ConfigError, match="bitwidth=6"):
        calibrated(tmp_path, quant_config_file={**rule, "target_device": "CPU"}, bitwidth=6)


def test_mathematics_changes_on_request_only(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.SiLU(), nn.Conv2d(4, 4, 1), nn.LeakyReLU(0.2)
    ).eval()
    plain = torch_quantizer("calib", model, (_X,), output_dir=tmp_path, target="amd_aie2")
    assert plain.changes == ()
    assert isinstance(plain.quant_model.get_submodule("1"), nn.SiLU)
    near = torch_quantizer(
        "calib", model, (_X,), output_dir=tmp_path, target="amd_aie2", approximate=True
    )
    assert len(near.changes) == 2
    assert isinstance(near.quant_model.get_submodule("1"), nn.Hardswish)
    assert isinstance(model[1], nn.SiLU)
    asked = {"target_device": "CPU", "convert_silu_to_hswish": True}
    with pytest.raises(ConfigError, match="approximate=True"):
        torch_quantizer("calib", model, (_X,), output_dir=tmp_path, quant_config_file=asked)


# --- export --------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", _TARGETS)
def test_the_exported_file_computes_what_the_model_computes(
    tmp_path: Path, target: str | None
) -> None:
    calibrated(tmp_path, target=target)
    q = torch_quantizer("test", net(), (_X,), output_dir=tmp_path)
    report = q.export_onnx_model()
    assert max(level.max_steps for level in report.levels) <= 1
    ours = q.quant_model(_X).detach().numpy()
    for level in (Level.OFF, Level.ALL):
        theirs = open_session(tmp_path / "Net_int.onnx", level).handle.run(None, {"x": _X.numpy()})[
            0
        ]
        assert np.allclose(ours, theirs, atol=2 * np.abs(ours).max() / 127)


@pytest.mark.parametrize("target", [None, "amd_aie2"])
def test_torch_program(tmp_path: Path, target: str | None) -> None:
    q = calibrated(tmp_path, target=target)
    path = q.export_torch_script()
    assert path.name == "Net_int.pt2"
    loaded = torch.export.load(path).module()
    assert torch.allclose(loaded(_X), torch.as_tensor(q.quant_model(_X)), atol=1e-5)


def test_shifts_of_a_calibrated_model(tmp_path: Path) -> None:
    q = calibrated(tmp_path, target="amd_aie2")
    assert q.check_shifts(), str(q.check_shifts())


def test_keyword_inputs(tmp_path: Path) -> None:
    q = torch_quantizer("calib", net(), input_kwargs={"x": _X}, output_dir=tmp_path)
    q.quant_model(x=_X)
    assert q.export_quant_config() == tmp_path / "quant_info.json"


def test_the_schema_is_published() -> None:
    schema = Strategy.model_json_schema()
    assert "layer_quantize_config" in schema["properties"]


_STRATEGIES: dict[str, dict[str, Any]] = {
    "powers of two": {"overall_quantize_config": {"scale_type": "poweroftwo"}},
    "narrow weights": {
        "tensor_quantize_config": {"weights": {"narrow_range": True, "per_channel": False}}
    },
    "4-bit weights": {"tensor_quantize_config": {"weights": {"bit_width": 4, "symmetry": False}}},
    "signed activations": {
        "tensor_quantize_config": {"activation": {"signed": True, "symmetry": False}}
    },
    "5-bit activations": {"tensor_quantize_config": {"activation": {"bit_width": 5}}},
    "16-bit activations": {"tensor_quantize_config": {"activation": {"bit_width": 16}}},
    "8-bit biases": {"tensor_quantize_config": {"bias": {"bit_width": 8}}},
    "float biases": {"quantizable_data_type": ["input", "weights", "activation"]},
    "float weights": {"quantizable_data_type": ["input", "activation"]},
    "bfloat16 activations": {"tensor_quantize_config": {"activation": {"datatype": "bfloat16"}}},
    "bfloat16 throughout": {"overall_quantize_config": {"datatype": "bfloat16"}},
    "half_up": {"overall_quantize_config": {"round_mode": "half_up"}},
    "entropy": {"overall_quantize_config": {"method": "entropy"}},
    "one float layer": {
        "layer_quantize_config": [
            {"layer_name": "body", "overall_quantize_config": {"datatype": "float32"}}
        ]
    },
}


@pytest.mark.parametrize("name", _STRATEGIES)
def test_every_strategy_is_remembered_and_agrees_with_onnxruntime(
    tmp_path: Path, name: str
) -> None:
    strategy = {"target_device": "CPU", **_STRATEGIES[name]}
    q = calibrated(tmp_path, batches=2, quant_config_file=strategy)
    later = torch_quantizer("test", net(), (_X,), output_dir=tmp_path)
    assert torch.equal(later.quant_model(_X), q.quant_model(_X))
    assert later.export_onnx_model().max_steps <= 1


# --- what would change nothing -------------------------------------------------------------------

CPU = {"target_device": "CPU"}


@pytest.mark.parametrize(
    "strategy",
    [
        {"overall_quantize_config": {"percentage": 99.0}},
        {"overall_quantize_config": {"percentage": 99.0, "method": "mse"}},
        {"tensor_quantize_config": {"weights": {"datatype": "bfloat16", "bit_width": 8}}},
        {"tensor_quantize_config": {"bias": {"per_channel": True}}},
        {"overall_quantize_config": {"method": "percentile", "percentage": True}},
        {"overall_quantize_config": {"bit_width": "8"}},
        {"overall_quantize_config": {"symmetry": 1}},
        {"include_cle": "no"},
        {"onnx_opset_version": 17.0},
    ],
    ids=str,
)
def test_properties_that_do_not_go_together(strategy: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="FXQ271"):
        load_strategy(CPU | strategy)


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        (
            {"layer_type": "relu", "tensor_quantize_config": {"weights": {"bit_width": 4}}},
            "weights",
        ),
        ({"layer_name": "body", "tensor_quantize_config": {"input": {"bit_width": 4}}}, "input"),
        ({"layer_name": "fc", "tensor_quantize_config": {"activation": {"bit_width": 4}}}, "activ"),
        ({"layer_name": "flatten", "overall_quantize_config": {"bit_width": 4}}, "overall"),
    ],
    ids=str,
)
def test_rules_of_layers_for_tensors_without_a_grid(
    rule: dict[str, Any], says: str, tmp_path: Path
) -> None:
    strategy = CPU | {"layer_quantize_config": [rule]}
    with pytest.raises(ConfigError, match=rf"FXQ285: layer_quantize_config.0.*{says}"):
        torch_quantizer("calib", net(), (_X,), output_dir=tmp_path, quant_config_file=strategy)


def test_a_device_with_any_step_is_no_target_of_powers_of_two(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="FXQ275"):
        torch_quantizer(
            "calib", net(), (_X,), output_dir=tmp_path, quant_config_file=CPU, target="generic_pof2"
        )


@pytest.mark.parametrize(
    "change",
    [
        lambda e: [e[0], float("nan"), *e[2:]],
        lambda e: [e[0], float("inf"), *e[2:]],
        lambda e: [e[0], -e[1], *e[2:]],
        lambda e: [e[0], True, *e[2:]],
        lambda e: [e[0], e[1], 0.5, e[3]],
        lambda e: [e[0], e[1], float("nan"), e[3]],
        lambda e: [e[0], "0.1", *e[2:]],
        lambda e: [e[0], 6.5],
        lambda e: [e[0], 2000],
    ],
)
def test_entries_that_mean_nothing(change: Any, tmp_path: Path) -> None:
    calibrated(tmp_path)
    info = info_of(tmp_path)
    info["output"]["add"][0] = change(info["output"]["add"][0])
    (tmp_path / "quant_info.json").write_text(json.dumps(info))
    with pytest.raises(CheckpointError, match="FXQ624: add"):
        torch_quantizer("test", net(), (_X,), output_dir=tmp_path)


@pytest.mark.parametrize("ends", [[1.0, -1.0], [float("nan"), 1.0], [False, True], [0.0]])
def test_ranges_that_are_none(ends: list[float], tmp_path: Path) -> None:
    calibrated(tmp_path)
    info = info_of(tmp_path)
    info["fxquant"]["ranges"]["output:add:0"] = ends
    (tmp_path / "quant_info.json").write_text(json.dumps(info))
    with pytest.raises(CheckpointError, match="FXQ624: add"):
        torch_quantizer("test", net(), (_X,), output_dir=tmp_path)


def test_xmodel_files_are_refused_with_the_reason(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(1, 2, 3)).eval()
    q = torch_quantizer("calib", net, torch.ones(1, 1, 4, 4), output_dir=str(tmp_path))
    for call in (q.export_xmodel, dump_xmodel):
        with pytest.raises(ExportError, match="FXQ912") as caught:
            call(str(tmp_path), deploy_check=False)
        assert "export_onnx_model" in str(caught.value.fix)
