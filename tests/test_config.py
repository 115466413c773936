"""QuantConfig: rules by operator and layer, what they place, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.aimet_config import from_aimet, operator_types
from fxquant.analysis.inspect import inspect_model
from fxquant.config import QuantConfig
from fxquant.errors import ConfigError
from tests.helpers.modules import quantized

SCHEMA = Path(__file__).parent.parent / "docs" / "quant_config.schema.json"


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.relu(self.conv2(x) + x).mean((2, 3)))  # type: ignore[no-any-return]


def placed(config: dict[str, Any]) -> dict[str, str]:
    rows = inspect_model(Net().eval(), torch.randn(2, 3, 8, 8), config=config).rows
    return {r.module: " ".join(f"{r.output} {r.weight}".split()) for r in rows}


def test_the_published_schema_is_current() -> None:
    # rewritten by: json.dumps(QuantConfig.json_schema(), indent=2)
    assert json.loads(SCHEMA.read_text(encoding="utf-8")) == QuantConfig.json_schema()


def test_layers_come_before_operators_and_operators_before_defaults() -> None:
    found = placed(
        {
            "weight_bitwidth": 8,
            "operators": {"conv2d": {"weight": {"bitwidth": 4, "per_channel": False}}},
            "layers": {"conv*": {"weight": {"bitwidth": 6}}, "conv2": {"weight": {"bitwidth": 3}}},
        }
    )
    assert found["conv1"] == "float int6"
    assert found["conv2"].endswith("int3")
    assert found["fc"] == "float int8 x 2 channels"


def test_outputs_by_rule() -> None:
    found = placed(
        {
            "operators": {"linear": {"output": {"quantized": True}}},
            "layers": {
                "relu": {"output": {"bitwidth": 16, "symmetric": True}},
                "mean": {"output": {"quantized": False}},
            },
        }
    )
    assert found["fc"] == "uint8 int8 x 2 channels"
    assert found["relu"] == "int16"
    assert found["mean"] == "float"
    assert found["relu_1"] == "uint8"


def test_defaults_by_kind() -> None:
    assert placed({"quantize_inputs": False}).get("x_stub") is None
    assert placed({"quantize_weights": False})["conv1"] == "float"
    found = placed({"quantize_activations": False, "quantize_inputs": False})
    assert {v.split()[0] for v in found.values()} == {"float"}
    kept = placed({"layers": {"conv1": {"keep_float": True}}})
    assert (kept["conv1"], kept["relu"]) == ("float", "uint8")
    joined = placed({"supergroups": [["add", "relu"]]})
    assert joined["add"] == "float"


def test_explain_says_which_rule_decided() -> None:
    config = {
        "operators": {"conv2d": {"weight": {"bitwidth": 4}}},
        "layers": {"relu": {"output": {"bitwidth": 16}}, "fc": {"bias": {"quantized": False}}},
    }
    sim = QuantizationSimModel(Net().eval(), torch.randn(1, 3, 8, 8), config=config)
    assert "operators.conv2d.weight.bitwidth" in sim.explain("conv1")
    assert "layers.relu.output.bitwidth" in sim.explain("relu")
    assert "its bias is float: layers.fc.bias.quantized" in sim.explain("fc")
    assert quantized(sim, "fc").param_quantizers["bias"] is None


def test_a_range_by_rule_is_not_calibrated() -> None:
    x = torch.randn(2, 3, 8, 8)
    config = {"layers": {"relu": {"output": {"min": 0, "max": 6.375}}}}
    sim = QuantizationSimModel(Net().eval(), x, config=config)
    sim.compute_encodings([x])
    assert quantized(sim, "relu").output_quantizers[0].get_scale().item() == pytest.approx(0.025)


def test_one_end_of_a_range_by_rule_and_the_other_by_calibration() -> None:
    x = torch.randn(2, 3, 8, 8)
    config = {"layers": {"relu": {"output": {"max": 0.5}}}}
    scheme = "training_range_learning_with_tf_init"
    sim = QuantizationSimModel(Net().eval(), x, scheme, config=config)
    q = quantized(sim, "relu").output_quantizers[0]
    assert not q.is_initialized()
    sim.compute_encodings([x])
    assert (q.min.item(), q.max.item()) == (0.0, 0.5)
    assert (q.min.requires_grad, q.max.requires_grad) == (True, False)
    stub = quantized(sim, "x_stub").output_quantizers[0]
    free = stub.min.item()
    config = {"layers": {"x": {"output": {"min": -9.0}}}}
    sim = QuantizationSimModel(Net().eval(), x, "min_max", config=config)
    sim.compute_encodings([x])
    stub = quantized(sim, "x_stub").output_quantizers[0]
    assert (stub.min.item(), stub.max.item()) == (-9.0, pytest.approx(x.max().item()))
    assert free > -9.0


def test_a_rule_for_an_operator_does_not_clip_what_shares_its_grid() -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            joined: torch.Tensor = self.conv(torch.cat([x.relu(), x * 4], 1))
            return joined

    rules = {"operators": {"relu": {"output": {"quantized": True, "max": 1.0}}}}
    x = torch.randn(2, 3, 8, 8)
    with pytest.raises(ConfigError, match=r"FXQ232: operators.relu.output.max changes nothing"):
        QuantizationSimModel(Joined(), x, "min_max", config=rules)
    # a file of another tool is meant for many networks
    limited = {"is_output_quantized": "True", "encoding_constraints": {"max": 1.0}}
    config = QuantConfig.load(aimet(op_type={"Relu": limited}))
    sim = QuantizationSimModel(Joined(), x, "min_max", config=config)
    sim.compute_encodings([x])
    assert quantized(sim, "cat").output_quantizers[0].max.item() > 1.0


def test_supergroups_instead_of_those_of_the_target() -> None:
    apart = placed({"supergroups_only": True})
    assert apart["conv1"].startswith("uint8")
    joined = placed({"supergroups_only": True, "supergroups": [["conv2d", "relu"]]})
    assert joined["conv1"].startswith("float")


BAD: list[tuple[dict[str, Any], str]] = [
    ({"wieght_bitwidth": 4}, "(?s)FXQ221.*wieght_bitwidth.*'weight_bitwidth'"),
    ({"operators": {"conv2d": {"wieght": {}}}}, "(?s)operators.conv2d.wieght.*'weight'"),
    ({"layers": {"fc": {"weight": {"bits": 4}}}}, "(?s)layers.fc.weight.bits.*'bitwidth'"),
    ({"weight_bitwidth": 64}, "FXQ221: weight_bitwidth"),
    ({"quantize_bias": "True"}, "FXQ221: quantize_bias"),
    ({"weight_bitwidth": True}, "FXQ221: weight_bitwidth"),
    ({"operators": {"conv2": {}}}, "(?s)FXQ222.*'conv2d'"),
    ({"supergroups": [["conv2d", "rleu"]]}, "(?s)FXQ222: supergroups.0.*'relu'"),
    ({"supergroups": [["conv2d"]]}, "FXQ224: supergroups.0"),
    ({"layers": {"convv1": {"keep_float": True}}}, "(?s)FXQ213: layers.convv1.*'conv1'"),
    (
        {"layers": {"c*1": {"weight": {"bitwidth": 4}}, "co*": {"weight": {"bitwidth": 6}}}},
        r"FXQ223: layers.c\*1.weight.bitwidth asks for 4, layers.co\*.weight.bitwidth for 6",
    ),
    ({"operators": {"max_pool2d": {"output": {"bitwidth": 16}}}}, "FXQ224: operators.max_pool2d"),
    ({"layers": {"relu": {"weight": {"bitwidth": 4}}}}, "FXQ224: layers.relu.weight.bitwidth"),
    ({"layers": {"relu": {"output": {"min": 1}}}}, "FXQ224: layers.relu.output.min"),
    ({"layers": {"relu": {"output": {"max": -1}}}}, "FXQ224: layers.relu.output.max"),
    ({"layers": {"relu": {"output": {"min": 0, "max": 0}}}}, "FXQ224: layers.relu.output.min"),
]


@pytest.mark.parametrize(("config", "message"), BAD)
def test_what_is_wrong_is_named(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        placed(config)


def test_targets_and_shared_grids_limit_rules() -> None:
    x = torch.randn(1, 3, 8, 8)
    config = {"operators": {"conv2d": {"weight": {"per_channel": True}}}}
    with pytest.raises(ConfigError, match=r"FXQ262: operators.conv2d.weight.per_channel"):
        QuantizationSimModel(Net().eval(), x, config=config, target="amd_aie2")

    class Cat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = (nn.Conv2d(3, 3, 1) for _ in range(3))
            self.last = nn.Conv2d(9, 3, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat((self.a(x), self.b(x), self.c(x)), 1))  # type: ignore[no-any-return]

    settings = {"layers": {n: {"output": {"bitwidth": b}} for n, b in (("a", 16), ("b", 8))}}
    with pytest.raises(ConfigError, match=r"FXQ225: layers.a.output.bitwidth asks for 16"):
        QuantizationSimModel(Cat().eval(), x, config=settings)


def test_rules_are_what_the_runtime_computes(tmp_path: Path) -> None:
    x = torch.randn(4, 3, 8, 8)
    config = {
        "operators": {"conv2d": {"weight": {"bitwidth": 4}}},
        "layers": {
            "mean": {"output": {"quantized": False}},
            "conv1": {"weight": {"quantized": False}},
        },
    }
    sim = QuantizationSimModel(Net().eval(), x, config=config)
    sim.compute_encodings([x])
    assert sim.export(tmp_path, "rules")


# --- AIMET's files -------------------------------------------------------------------------------


def aimet(**sections: Any) -> dict[str, Any]:
    return {
        "defaults": {
            "ops": {"is_output_quantized": "True"},
            "params": {"is_quantized": "True", "is_symmetric": "True"},
            "per_channel_quantization": "True",
        },
        "params": {"bias": {"is_quantized": "False"}},
        "op_type": {},
        "supergroups": [{"op_list": ["Conv", "Relu"]}],
        "model_input": {"is_input_quantized": "True"},
        "model_output": {},
    } | sections


def test_names_of_operators_are_those_of_the_table() -> None:
    types = operator_types()
    assert types["Conv"] == ("conv1d", "conv2d", "conv3d")
    assert types["Resize"] == types["Upsample"] == ("interpolate",)
    assert types["DepthwiseConv"] == ()


def test_an_aimet_file_simulates_and_exports(tmp_path: Path) -> None:
    file = tmp_path / "aimet.json"
    kernels = [
        {"activation": {"bitwidth": 8, "dtype": "int"}, "param": {"bitwidth": 8, "dtype": "int"}}
    ]
    rules = {
        "Conv": {
            "params": {"weight": {"is_symmetric": "True"}}, "per_channel_quantization": "False",
        },
        "Gemm": {"is_output_quantized": "True", "supported_kernels": kernels},
        "Relu": {"encoding_constraints": {"min": 0.0}},
        "MaxPool": {"is_output_quantized": "True"},
        "Nonsense": {},
    }  # fmt: skip
    file.write_text(json.dumps(aimet(op_type=rules)), encoding="utf-8")
    x = torch.randn(4, 3, 8, 8)
    sim = QuantizationSimModel(Net().eval(), x, config_file=file)
    assert quantized(sim, "conv1").param_quantizers["weight"].shape == ()
    assert quantized(sim, "fc").param_quantizers["weight"].shape == (2, 1)
    assert quantized(sim, "fc").param_quantizers["bias"] is None
    assert quantized(sim, "fc").output_quantizers[0] is not None
    sim.compute_encodings([x])
    assert sim.export(tmp_path, "aimet")
    found = from_aimet(aimet(op_type=rules))
    assert found.supported_kernels == {"op_type.Gemm": kernels}
    assert any("op_type.Nonsense" in note for note in found.notes)
    with pytest.raises(ConfigError, match="FXQ231"):
        QuantizationSimModel(Net(), x, config_file=file, config={})


def test_aimet_starts_with_everything_off() -> None:
    bare = aimet(defaults={}, params={}, model_input={}, supergroups=[])
    config = QuantConfig.load(bare)
    found = (config.quantize_activations, config.quantize_weights, config.quantize_inputs)
    assert found == (False, False, False)
    config = QuantConfig.load(aimet(params={"weight": {"is_quantized": "False"}}))
    assert (config.quantize_weights, config.quantize_bias) == (False, False)


def test_aimet_unsigned_symmetric_is_refused_only_where_an_activation_is_symmetric() -> None:
    flag = {"unsigned_symmetric": "True"}
    weights = {"params": {"is_quantized": "True", "is_symmetric": "True"}}
    read = from_aimet(aimet(defaults=flag | weights))
    assert any("unsigned_symmetric" in note for note in read.notes)
    assert QuantConfig.load(read.settings).weight_symmetric
    for asked in (
        {"defaults": flag | {"ops": {"is_symmetric": "True"}}},
        {"defaults": flag, "op_type": {"Conv": {"is_symmetric": "True"}}},
    ):
        with pytest.raises(ConfigError, match="unsigned_symmetric"):
            from_aimet(aimet(**asked))


SHIPPED_DEFAULT = aimet(
    defaults={
        "ops": {"is_output_quantized": "True"},
        "params": {"is_quantized": "True", "is_symmetric": "True"},
        "strict_symmetric": "False", "unsigned_symmetric": "False",
        "per_channel_quantization": "False",
    },
    op_type={
        name: {"per_channel_quantization": "True"}
        for name in ("Conv", "ConvTranspose", "Gemm", "MatMul", "PRelu")
    } | {"Squeeze": {"is_output_quantized": "False"}, "Pad": {"is_output_quantized": "False"}},
    supergroups=[
        {"op_list": ops} for ops in (
            ["Conv", "Relu"], ["Conv", "Clip"], ["ConvTranspose", "Relu"], ["Add", "Relu"],
            ["Gemm", "Relu"],
        )
    ],
)  # fmt: skip
SHIPPED_HTP = aimet(
    defaults=SHIPPED_DEFAULT["defaults"] | {
        "hw_version": "V73", "per_channel_quantization": "True",
        "supported_kernels": [
            {
                "activation": {"bitwidth": 16, "dtype": "int"},
                "param": {"bitwidth": 8, "dtype": "int"},
            }
        ],
    },
    op_type={
        "Softmax": {"encoding_constraints": {"min": 0.0, "max": 1.0}},
        "Sigmoid": {"encoding_constraints": {"min": 0.0, "max": 1.0}},
        "Tanh": {"encoding_constraints": {"min": -1.0, "max": 1.0}},
        "Relu": {"encoding_constraints": {"min": 0.0}},
        "Cast": {"is_output_quantized": "False"},
        "GroupNormalization": {"per_channel_quantization": "False"},
    },
    supergroups=[
        {"op_list": ops} for ops in (
            ["Conv", "Relu"], ["Conv", "Clip"], ["Conv", "BatchNormalization", "Relu"],
            ["Conv", "PRelu"], ["Conv", "HardSwish"], ["Gemm", "Relu"], ["Add", "Relu"],
            ["BatchNormalization", "Relu"], ["Sub", "Abs"],
        )
    ],
    supergroup_pass_list=["MatmulAdd"],
)  # fmt: skip


@pytest.mark.parametrize("content", [SHIPPED_DEFAULT, SHIPPED_HTP])
def test_files_like_the_shipped_ones(content: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "aimet.json"
    file.write_text(json.dumps(content), encoding="utf-8")
    x = torch.randn(4, 3, 8, 8)
    sim = QuantizationSimModel(Net().eval(), x, "min_max", config_file=file)
    conv = quantized(sim, "conv1")
    assert conv.output_quantizers[0] is None  # inside the chain with the ReLU
    assert conv.param_quantizers["weight"].shape == (4, 1, 1, 1)
    assert conv.param_quantizers["bias"] is None
    assert quantized(sim, "x_stub").output_quantizers[0] is not None
    sim.compute_encodings([x])
    assert sim.export(tmp_path, "like_shipped")


def test_supergroups_of_a_file_take_the_place_of_the_targets() -> None:
    x = torch.randn(4, 3, 8, 8)
    sim = QuantizationSimModel(Net().eval(), x, config=aimet(supergroups=[]))
    assert quantized(sim, "conv1").output_quantizers[0] is not None
    assert quantized(sim, "relu").output_quantizers[0] is not None


def test_sections_decide_one_after_the_other() -> None:
    rules = {
        "Conv": {"params": {"weight": {"is_quantized": "False"}}, "is_output_quantized": "True"}
    }
    sections = aimet(params={"weight": {"is_symmetric": "False"}}, op_type=rules)
    config = QuantConfig.load(sections)
    assert config.weight_symmetric is False  # params over defaults
    assert config.operators["conv2d"].weight.quantized is False  # op_type over params
    sim = QuantizationSimModel(Net().eval(), torch.randn(4, 3, 8, 8), config=sections)
    assert quantized(sim, "conv1").output_quantizers[0] is None  # supergroups over op_type


def test_constraints_fix_a_range() -> None:
    rule = {"Softmax": {"encoding_constraints": {"min": 0.0, "max": 1.0}}}
    output = QuantConfig.load(aimet(op_type=rule)).operators["softmax"].output
    assert (output.min, output.max) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"defaults": {"ops": {"is_output_quantized": True}}}, "FXQ228.*is_output_quantized"),
        ({"defaults": {"opps": {}}}, "(?s)FXQ227.*'opps'.*'ops'"),
        ({"defaults": {"strict_symmetric": "True"}}, "FXQ229.*strict_symmetric"),
        ({"extra": {}}, "FXQ227.*'extra'"),
        ({"params": {"gamma": {}}}, "FXQ227.*params: unknown key 'gamma'"),
        ({"supergroups": [{"op_list": ["Conv", "Rellu"]}]}, "(?s)FXQ228: supergroups.0.*'Relu'"),
        ({"model_input": {"is_input_quantized": "False"}}, "FXQ228: model_input"),
        (
            {"op_type": {"Tanh": {"encoding_constraints": {"max": "1"}}}},
            "FXQ228: op_type.Tanh.encoding_constraints.max",
        ),
        (
            {"op_type": {"Resize": {}, "Conv": {"is_output_quantized": "False"},
                         "Conv1d": {"is_output_quantized": "True"}}},
            "FXQ229: op_type.Conv and op_type.Conv1d",
        ),
    ],
)  # fmt: skip
def test_what_aimet_files_may_not_say(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_aimet(aimet(**change))


def test_a_missing_section_is_named() -> None:
    data = aimet()
    del data["model_output"]
    with pytest.raises(ConfigError, match=r"FXQ227.*'model_output'"):
        QuantConfig.load(data)


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("default", "per_channel", None),
        ("per_channel", "per_channel", True),
        ("per_tensor", "per_channel", False),
        ("integer_outputs", "quantize_outputs", True),
        ("reduce_range", "weight_bitwidth", 7),
    ],
)
def test_presets_are_known_by_name(name: str, field: str, value: object) -> None:
    assert getattr(QuantConfig.load(name), field) is value
