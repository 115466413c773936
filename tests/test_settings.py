"""Every setting acts as told, on every kind of layer, or says why it cannot."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, fx, nn

from fxquant import QuantizationSimModel, insert_stubs, prepare_model
from fxquant.config import QuantConfig
from fxquant.errors import CalibrationError, ConfigError, QuantizationError
from fxquant.nn import QuantizationMixin, QuantizedLinear
from fxquant.quantization import affine
from tests.helpers.modules import quantized


class Kinds(nn.Module):
    """One layer of every kind: fused, plain, float, moving values, recurrent, shared, the last."""

    def __init__(self) -> None:
        super().__init__()
        self.fused, self.relu, self.plain = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)
        self.six, self.act6 = nn.Conv2d(4, 4, 1), nn.ReLU6()
        self.left, self.right = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.prelu, self.pool, self.flatten = nn.PReLU(4), nn.MaxPool2d(2), nn.Flatten(2)
        self.norm, self.sigmoid = nn.LayerNorm(9), nn.Sigmoid()
        self.lstm, self.softmax = nn.LSTM(9, 6, batch_first=True), nn.Softmax(-1)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.plain(self.relu(self.fused(x)))
        y = self.act6(self.six(y)) + y
        y = torch.cat([self.left(y), self.right(y)], 2)[:, :, :6]
        y = self.flatten(self.pool(self.prelu(y)))[..., :9]
        y = self.lstm(self.norm(self.sigmoid(y) * y))[0]
        return self.head(self.softmax(y))  # type: ignore[no-any-return]


X = torch.randn(2, 3, 12, 12)
PREPARED = prepare_model(Kinds().eval(), X)
LAYERS = [str(n.target) for n in PREPARED.graph.nodes if n.op == "call_module"]
# a kernel writes one grid, that of its last operator
WRITES = {"fused": "relu", "six": "act6"}
SETTINGS: list[tuple[str, Any]] = [
    ("keep_float", True), ("output.quantized", True), ("output.quantized", False),
    ("output.bitwidth", 16), ("output.symmetric", True), ("output.min", -1.5),
    ("output.max", 1.25), ("weight.quantized", False), ("weight.bitwidth", 4),
    ("weight.per_channel", False), ("bias.quantized", False),
]  # fmt: skip


def rule(key: str, value: Any) -> dict[str, Any]:
    part, _, name = key.partition(".")
    return {part: {name: value}} if name else {part: value}


def owner(sim: QuantizationSimModel, layer: str) -> Any:
    return quantized(sim, layer).output_quantizers[0]


def as_told(sim: QuantizationSimModel, layer: str, key: str, value: Any) -> bool:
    """Read from the quantizers of the simulation, not from the plan."""
    module: Any = sim.model.get_submodule(layer)
    assert isinstance(module, QuantizationMixin)
    part, _, name = key.partition(".")
    if part == "keep_float":
        return all(q is None for q in module.param_quantizers.values())
    if part != "output":
        q: Any = dict(module.param_quantizers.active()).get(part)
        if name == "quantized":
            return (q is not None) is value
        return (q.shape == ()) if name == "per_channel" else bool(q.bitwidth == value)
    if name == "quantized":
        place = layer if value else WRITES.get(layer, layer)
        return (owner(sim, place) is not None) is value
    q = owner(sim, WRITES.get(layer, layer))
    if name in ("min", "max"):
        limit = max(value, 0.0) if layer in WRITES or layer in WRITES.values() else value
        limit = value if layer in WRITES.values() else limit
        return bool(getattr(q, name).item() == limit) and not getattr(q, name).requires_grad
    return bool(getattr(q, name) == value)


@pytest.mark.parametrize("target", ["onnxruntime_x86", "qualcomm_htp"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_rule_for_a_layer_acts_or_says_why(layer: str, target: str) -> None:
    acted = []
    for key, value in SETTINGS:
        config = {"layers": {layer: rule(key, value)}}
        told: ConfigError | None = None
        try:
            sim = QuantizationSimModel(PREPARED, X, config=config, target=target)
        except ConfigError as error:
            told = error
        if told is None:
            assert as_told(sim, layer, key, value), (layer, key, sim.explain(layer))
            acted.append(key)
            continue
        assert f"layers.{layer}.{key}" in str(told), (key, told)
        assert told.code in ("FXQ224", "FXQ226", "FXQ232", "FXQ262"), told
        assert told.fix, told
    moves = {"pool", "flatten"}
    assert ("output.bitwidth" in acted) or layer in {*moves, "head", *FLOAT.get(target, ()), *GLUE}
    assert ("keep_float" in acted) is (layer not in {*moves, *GLUE})


# made by slicing; the float operators of a target whose outputs nothing reads in integers
GLUE = {name for name in LAYERS if "getitem" in name}
FLOAT = {
    "onnxruntime_x86": {"norm", "lstm", "mul", "prelu", "sigmoid", "softmax"},
    "qualcomm_htp": {"lstm", "softmax"},
}


@pytest.mark.parametrize(("key", "value"), SETTINGS)
def test_a_rule_for_an_operator_acts_on_fused_layers_too(key: str, value: Any) -> None:
    config = {"operators": {"conv2d": rule(key, value)}}
    sim = QuantizationSimModel(PREPARED, X, config=config)
    if key == "output.quantized":
        assert (owner(sim, "relu") is not None) is value
        return
    names = ("fused", "six") if key != "keep_float" else ("fused", "plain", "six", "left")
    for layer in names:
        assert as_told(sim, layer, key, value), (layer, key)


def test_rules_for_what_one_kernel_computes() -> None:
    both = {"fused": {"output": {"bitwidth": 16}}, "relu": {"output": {"bitwidth": 8}}}
    with pytest.raises(ConfigError, match=r"FXQ223: (?s:.*)one kernel computes both"):
        QuantizationSimModel(PREPARED, X, config={"layers": both})
    stronger = {"operators": {"conv2d": both["fused"]}, "layers": {"relu": both["relu"]}}
    sim = QuantizationSimModel(PREPARED, X, config=stronger)
    assert (owner(sim, "relu").bitwidth, owner(sim, "act6").bitwidth) == (8, 16)
    # with a grid of its own in between each keeps its rule
    both["fused"]["output"]["quantized"] = True
    sim = QuantizationSimModel(PREPARED, X, config={"layers": both})
    assert (owner(sim, "fused").bitwidth, owner(sim, "relu").bitwidth) == (16, 8)
    ends = {"fused": {"output": {"min": -3.0, "max": 9.0}}, "six": {"output": {"max": 9.0}}}
    sim = QuantizationSimModel(PREPARED, X, config={"layers": ends})
    assert [owner(sim, "relu").min.item(), owner(sim, "relu").max.item()] == [0.0, 9.0]
    assert owner(sim, "act6").max.item() == 6.0
    assert "layers.fused.output.max counts for relu" in sim.explain("fused")
    net = nn.Sequential(OrderedDict(fused=nn.Conv2d(3, 3, 1), act=nn.GELU())).eval()
    chain = {"layers": {"fused": rule("output.max", 1.0)}, "supergroups": [["conv2d", "gelu"]]}
    with pytest.raises(ConfigError, match=r"FXQ224: layers.fused.output.max.*act"):
        QuantizationSimModel(net, X, config=chain)


def test_what_is_kept_in_float_is_not_computed_in_a_kernel_before_it() -> None:
    kept: Any
    for kept in ({"layers": {"relu": {"keep_float": True}}}, {"keep_float": ["relu"]}):
        sim = QuantizationSimModel(PREPARED, X, config=kept)
        assert owner(sim, "fused") is not None  # the kernel ends before the activation
    # a rule decides before the list
    config: dict[str, Any] = {"keep_float": ["*"], "layers": {"plain": {"keep_float": False}}}
    sim = QuantizationSimModel(PREPARED, X, config=config)
    active = {n for n, m in sim.named_qmodules() if dict(m.param_quantizers.active())}
    assert active == {"plain"}
    with pytest.raises(ConfigError, match=r"FXQ232: keep_float: flatten changes nothing"):
        QuantizationSimModel(PREPARED, X, config={"keep_float": ["flatten"]})


def test_what_matches_nothing_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    config = {"operators": {"conv3d": rule("weight.bitwidth", 4)}, "supergroups": [["add", "relu"]]}
    QuantizationSimModel(PREPARED, X, config=config)
    assert "operators.conv3d: the network has no such operator" in caplog.text
    assert "supergroups.0: no kernel computes add -> relu here" in caplog.text


def stubbed() -> fx.GraphModule:
    return insert_stubs(PREPARED, ["fused", "relu"])


@pytest.mark.parametrize(
    "config",
    [
        {"quantize_outputs": True},
        {"quantize_inputs": False},
        {"layers": {"plain": {"output": {"quantized": True}}}},
        {"layers": {"plain": {"weight": {"bitwidth": 4}}}},
    ],
    ids=str,
)
def test_settings_that_regions_overrule(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="FXQ232"):
        QuantizationSimModel(stubbed(), X, config=config)


@pytest.mark.parametrize(
    ("layer", "model", "reason"),
    [
        ("plain", stubbed, "it lies outside of the quantized regions"),
        ("norm", stubbed, "it lies outside of the quantized regions"),
        ("head", lambda: PREPARED, "nothing reads its output in integers"),
        ("norm", lambda: PREPARED, "nothing reads its output in integers"),
    ],
)
def test_the_reason_tells_regions_from_consumers(
    layer: str, model: Callable[[], fx.GraphModule], reason: str
) -> None:
    """An output without a grid: what is in the way is the region, or nothing that reads it."""
    config = {"layers": {layer: {"output": {"bitwidth": 4}}}}
    with pytest.raises(ConfigError, match=f"FXQ232.*changes nothing: {reason}"):
        QuantizationSimModel(model(), X, config=config)


@pytest.mark.parametrize("value", [True, "0.5", float("nan"), float("-inf")])
@pytest.mark.parametrize("key", ["output.min", "output.max"])
def test_ends_of_ranges_are_finite_numbers(key: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=f"FXQ221: layers.plain.{key}"):
        QuantConfig.load({"layers": {"plain": rule(key, value)}})


@pytest.mark.parametrize(
    ("given", "code"),
    [
        (({"weight_bitwidth": 8}, None, 4), "FXQ234: default_param_bw=4, but weight_bitwidth"),
        (({"activation_bitwidth": 8}, 16, None), "FXQ234: default_output_bw=16"),
        (({"quantize_weights": False}, None, 4), "FXQ234: default_param_bw=4, but with"),
        (({"quantize_weights": False, "weight_bitwidth": 4}, None, None), "weight_bitwidth=4"),
        (({"quantize_activations": False, "quantize_inputs": False}, 16, None), "FXQ234"),
        (({}, "nearest", None), "FXQ233"),
        (({"activation_bitwidth": 8}, "nearest", 8), "FXQ233"),
    ],
)
def test_bitwidths_that_disagree(given: tuple[Any, Any, Any], code: str) -> None:
    config, output, param = given
    with pytest.raises(ConfigError, match=re.escape(code)):
        QuantizationSimModel(PREPARED, X, "tf_enhanced", output, param, config=config)


def test_bitwidths_that_agree() -> None:
    sim = QuantizationSimModel(PREPARED, X, "min_max", 16, 4, config={"weight_bitwidth": 4})
    assert (sim.config.activation_bitwidth, sim.config.weight_bitwidth) == (16, 4)
    some = {"quantize_weights": False, "operators": {"linear": {"weight": {"quantized": True}}}}
    sim = QuantizationSimModel(PREPARED, X, default_param_bw=4, config=some)
    assert quantized(sim, "head").param_quantizers["weight"].bitwidth == 4


def test_the_older_order_of_arguments_is_named() -> None:
    with pytest.raises(ConfigError, match=r"(?s)FXQ233.*rounding mode"):
        QuantizationSimModel(PREPARED, X, "tf_enhanced", "nearest", 8, 8)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"FXQ233.*too many positional"):
        QuantizationSimModel(PREPARED, X, "tf_enhanced", 8, 8, False, "config.json")


def test_regions_of_nothing() -> None:
    given: Any
    for given in ({"regions": []}, {"keep_float": ["*"]}):
        with pytest.raises(ConfigError, match="FXQ254"):
            insert_stubs(PREPARED, **given)
    one, several = (insert_stubs(PREPARED, given) for given in ("plain", ["plain"]))
    assert str(one.graph) == str(several.graph)


def test_arguments_of_no_callback() -> None:
    sim = QuantizationSimModel(PREPARED, X)
    with pytest.raises(CalibrationError, match="FXQ431"):
        sim.compute_encodings([X], 5)


@pytest.mark.parametrize("key", ["wieght", 0, "Weight", "bias"])
def test_quantizers_of_parameters_that_do_not_exist(key: Any) -> None:
    layer = QuantizedLinear(4, 2, bias=False)
    with pytest.raises(QuantizationError, match=r"FXQ427.*weight"):
        layer.param_quantizers[key] = affine.QuantizeDequantize(shape=(), bitwidth=8)
    assert list(layer.param_quantizers) == ["weight"]


@pytest.mark.parametrize("key", ["weight", True, 1.0, -2])
def test_quantizers_at_no_position(key: Any) -> None:
    layer = QuantizedLinear(4, 2)
    with pytest.raises(QuantizationError, match="FXQ427"):
        layer.output_quantizers[key] = affine.QuantizeDequantize(shape=(), bitwidth=8)


def of_norms(is_quantized: str, **rules: Any) -> QuantConfig:
    sections: dict[str, Any] = {
        "defaults": {
            "ops": {"is_output_quantized": "True"},
            "params": {"is_quantized": is_quantized, "is_symmetric": "True"},
        },
        "params": {}, "op_type": rules, "supergroups": [], "model_output": {},
        "model_input": {"is_input_quantized": "True"},
    }  # fmt: skip
    return QuantConfig.load(sections)


@pytest.mark.parametrize(("kind", "name"), [("norm", "LayerNormalization"), ("prelu", "PRelu")])
def test_slopes_and_weights_of_norms_on_a_target_with_every_tensor_on_a_grid(
    kind: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    for flag, other in (("True", "False"), ("False", "True")):
        rules = {name: {"params": {"weight": {"is_quantized": other}}}}
        for given, wanted in ((of_norms(flag), flag), (of_norms(flag, **rules), other)):
            sim = QuantizationSimModel(PREPARED, X, config=given, target="qualcomm_htp")
            quantizers = dict(quantized(sim, kind).param_quantizers.active())
            assert ("weight" in quantizers) is (wanted == "True")
    QuantizationSimModel(PREPARED, X, config=of_norms("False", **rules))
    assert f"{kind} has no quantized weight on onnxruntime_x86" in caplog.text
    with pytest.raises(ConfigError, match=rf"FXQ224: layers.{kind}.weight.bitwidth.*x86"):
        QuantizationSimModel(PREPARED, X, config={"layers": {kind: rule("weight.bitwidth", 8)}})


@pytest.mark.parametrize(
    "layer",
    [nn.LayerNorm(8), nn.PReLU(6), nn.GroupNorm(2, 6), nn.InstanceNorm1d(6, affine=True)],
    ids=lambda m: type(m).__name__,
)
def test_files_with_slopes_and_norms_on_grids_are_proven(layer: nn.Module, tmp_path: Path) -> None:
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)
    x = torch.randn(4, 6, 8)
    net = nn.Sequential(nn.Conv1d(6, 6, 1), layer, nn.Linear(8, 4)).eval()
    sim = QuantizationSimModel(net, x, target="qualcomm_htp")
    sim.compute_encodings([x])
    assert quantized(sim, "1").param_quantizers["weight"].is_initialized()
    assert sim.export(tmp_path, "net")
    stored = {i.name: i.data_type for i in onnx.load(tmp_path / "net.onnx").graph.initializer}
    assert onnx.TensorProto.INT8 in {t for n, t in stored.items() if n.startswith("1.weight")}


@pytest.mark.parametrize("path_first", [True, False])
def test_a_path_decides_before_a_glob_in_whatever_order(path_first: bool) -> None:
    """And a glob before an operator's rule: another layer of the kind keeps the glob's."""
    rules = [("left", rule("weight.bitwidth", 5)), ("l*t", rule("weight.bitwidth", 6))]
    config: dict[str, Any] = {
        "layers": dict(rules if path_first else rules[::-1]),
        "operators": {"conv2d": rule("weight.bitwidth", 7)},
    }
    sim = QuantizationSimModel(PREPARED, X, config=config)
    config["layers"]["r*t"] = config["layers"].pop("l*t")
    other = QuantizationSimModel(PREPARED, X, config=config)

    def bits(sim: QuantizationSimModel, path: str) -> int:
        return int(quantized(sim, path).param_quantizers["weight"].bitwidth)

    assert (bits(sim, "left"), bits(sim, "right")) == (5, 7)
    assert (bits(other, "left"), bits(other, "right")) == (5, 6)
