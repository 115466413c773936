"""The command line: what it writes, what it prints where, exit codes, every mistake's text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from fxquant.cli import main
from fxquant.cli.progress import Progress

if TYPE_CHECKING:
    from click.testing import Result

NETWORK = """
import torch
from torch import nn
from torch.nn import functional as F


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.fc = nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.conv(x))
        return self.fc(x.mean([2, 3]))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, left, right):
        return self.a(left) + self.b(right)


def net():
    torch.manual_seed(0)
    return Net()


def two():
    return Two()


def number():
    return 3


def broken():
    raise ValueError("no weights today")


def batches():
    for _ in range(2):
        yield torch.randn(4, 3, 8, 8)


def labelled():
    return [[torch.randn(4, 3, 8, 8)]]


def nothing():
    return iter(())


def texts():
    return iter(["text"])


def failing():
    yield torch.randn(4, 3, 8, 8)
    raise OSError("disk gone")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a network, its weights and data; it is the current one."""
    (tmp_path / "net.py").write_text(NETWORK)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((10, 3, 8, 8)).astype(np.float32)
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "images.npz", pictures=images)
    pair = rng.standard_normal((2, 10, 4))
    np.savez(tmp_path / "pair.npz", right=pair[0], left=pair[1])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def quantize(*arguments: str, factory: str = "net.py:net", data: str = "images.npy") -> Result:
    return call("quantize", factory, "--calibration", data, "--out", "out", *arguments)


def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    shapes = {"conv.weight": (8, 3, 3, 3), "conv.bias": (8,), "fc.weight": (4, 8), "fc.bias": (4,)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


# --- what works ----------------------------------------------------------------------------------


def test_quantize_writes_a_proven_model(folder: Path) -> None:
    result = quantize()
    assert result.exit_code == 0, result.output
    assert {"net.onnx", "net.encodings"} <= {p.name for p in (folder / "out").iterdir()}
    assert "out/net.onnx" in result.stdout.replace("\\", "/")
    assert "calibrating" in result.stderr
    assert "calibrating" not in result.stdout


def test_json_is_alone_on_standard_output(folder: Path) -> None:
    result = quantize("--json", "--prefix", "small")
    found = json.loads(result.stdout)
    assert {Path(f).name for f in found["files"]} >= {"small.onnx", "small.encodings"}
    assert found["report"]["max_steps"] <= 1
    assert "proving" in result.stderr


@pytest.mark.parametrize("data", ["images.npz", "net.py:batches", "net.py:labelled"])
def test_quantize_reads_all_kinds_of_data(folder: Path, data: str) -> None:
    result = quantize("--no-proof", "--quiet", "--scheme", "min_max", data=data)
    assert result.exit_code == 0, result.output
    assert result.stderr == ""


_SILU = """
import torch
def smooth():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.SiLU(), torch.nn.Conv2d(8, 4, 3))
"""


@pytest.mark.parametrize(
    ("flags", "domains"), [((), {"", "com.microsoft"}), (("--standard",), {""})]
)
def test_standard_operators_on_request(
    folder: Path, flags: tuple[str, ...], domains: set[str]
) -> None:
    (folder / "smooth.py").write_text(_SILU)
    result = quantize("--no-proof", *flags, factory="smooth.py:smooth")
    assert result.exit_code == 0, result.output
    model = onnx.load(folder / "out" / "smooth.onnx")
    assert {node.domain for node in model.graph.node} == domains


@pytest.mark.parametrize("scheme", ["mse", "entropy", "moving_average"])
def test_schemes(folder: Path, scheme: str) -> None:
    result = quantize("--no-proof", "--scheme", scheme)
    assert result.exit_code == 0, result.output
    encodings = json.loads((folder / "out" / "net.encodings").read_text())
    assert encodings["quantizer_args"]["quant_scheme"] == scheme


AIMET = {
    "defaults": {
        "ops": {"is_output_quantized": "True"},
        "params": {"is_quantized": "True", "is_symmetric": "True"},
        "per_channel_quantization": "False",
    },
    "params": {"bias": {"is_quantized": "False"}},
    "op_type": {},
    "supergroups": [{"op_list": ["Conv", "Relu"]}],
    "model_input": {"is_input_quantized": "True"},
    "model_output": {},
}


@pytest.mark.parametrize("config", [{"per_channel": False, "quantize_bias": False}, AIMET])
def test_config_is_read(folder: Path, config: dict[str, object]) -> None:
    (folder / "own.json").write_text(json.dumps(config))
    result = quantize("--no-proof", "--config", "own.json")
    assert result.exit_code == 0, result.output
    encodings = json.loads((folder / "out" / "net.encodings").read_text())
    weights = {e["name"]: e for e in encodings["param_encodings"]}
    assert weights["conv.weight"]["enc_type"] == "PER_TENSOR"
    assert "conv.bias" not in weights


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        (None, "FXQ220", "own.json"),
        ("{", "FXQ220", "own.json"),
        ('{"per_chanel": false}', "FXQ221", "per_channel"),
        (json.dumps(AIMET | {"op_types": {}}), "FXQ227", "op_type"),
        (json.dumps(AIMET | {"model_input": {"is_input_quantized": True}}), "FXQ228", "True"),
    ],
)
def test_wrong_configs_are_named(folder: Path, text: str | None, code: str, says: str) -> None:
    if text is not None:
        (folder / "own.json").write_text(text)
    result = quantize("--no-proof", "--config", "own.json")
    assert result.exit_code == 2
    assert code in result.stderr
    assert says in result.stderr
    assert not (folder / "out").exists()


def test_arrays_are_inputs_by_name(folder: Path) -> None:
    result = quantize("--batch-size", "4", factory="net.py:two", data="pair.npz")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "wrapped.pth"])
def test_weights_are_loaded(folder: Path, name: str) -> None:
    state = weights()
    save_file(state, folder / "w.safetensors")
    torch.save(state, folder / "w.pt")
    torch.save({"epoch": 3, "state_dict": state}, folder / "wrapped.pth")
    result = quantize("--weights", name, "--no-proof")
    assert result.exit_code == 0, result.output
    from safetensors.torch import load_file

    written = load_file(folder / "out" / "net.safetensors")
    assert torch.equal(written["fc.weight"], state["fc.weight"])


def test_a_module_of_the_current_folder_is_a_factory(folder: Path) -> None:
    (folder / "h5_pkg").mkdir()
    (folder / "h5_pkg" / "zoo.py").write_text(NETWORK)
    result = quantize("--no-proof", factory="h5_pkg.zoo:net")
    assert result.exit_code == 0, result.output


def test_validate_names_what_is_repaired_and_says_where(folder: Path) -> None:
    result = call("validate", "net.py:net", "--data", "images.npy")
    assert result.exit_code == 0, "it can be quantized as it is"
    assert re.search(r"net\.py:1\d", result.stdout)
    found = json.loads(call("validate", "net.py:net", "--data", "images.npy", "--json").stdout)
    assert (found["valid"], found["blocked"]) == (False, False)
    assert {f["effect"] for f in found["findings"]} == {"repaired"}


def test_validate_exits_with_1_where_something_blocks(folder: Path) -> None:
    (folder / "stuck.py").write_text(
        "import torch\nclass Stuck(torch.nn.Module):\n    def forward(self, x):\n"
        "        return x + 1 if x.sum() > 0 else x\n"
        "def net():\n    return Stuck()\ndef wide():\n    return torch.nn.Linear(5, 5)\n"
    )
    decides = call("validate", "stuck.py:net", "--input-shape", "2,4", "-q")
    assert (decides.exit_code, decides.stderr) == (1, "")
    assert re.search("FXQ139 +blocks", decides.stdout)
    assert re.search("FXQ132 +narrows", decides.stdout)
    fails = call("validate", "stuck.py:wide", "--input-shape", "2,4", "--json")
    assert fails.exit_code == 1
    assert json.loads(fails.stdout)["blocked"] is True


def test_validate_is_content_with_a_clean_network(folder: Path) -> None:
    (folder / "clean.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear(4, 4), nn.ReLU())\n"
    )
    result = call("validate", "clean.py:net", "--input-shape", "2,4")
    assert result.exit_code == 0, result.output


def test_inspect_names_every_operator(folder: Path) -> None:
    result = call("inspect", "net.py:net", "--input-shape", "2,3,8,8")
    assert result.exit_code == 0, result.output
    for word in ("conv2d", "linear", "mean", "uint8"):
        assert word in result.stdout
    rows = json.loads(call("inspect", "net.py:net", "--input-shape", "2,3,8,8", "--json").stdout)
    assert {"conv2d", "linear"} <= {row["operator"] for row in rows["rows"]}
    assert any("net.py:" in str(row) for row in rows["rows"]), "lines are in the data"


def test_verify_checks_a_file(folder: Path) -> None:
    assert quantize("--no-proof").exit_code == 0
    result = call("verify", "out/net.onnx")
    assert result.exit_code == 0, result.output
    (folder / "bad.onnx").write_bytes(b"not a model")
    assert call("verify", "bad.onnx").exit_code in (1, 2)
    assert "Traceback" not in call("verify", "bad.onnx").output


def test_python_dash_m_and_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fxquant", "--version"], check=True, capture_output=True, text=True
    )
    assert done.stdout.startswith("fxquant, version 0.")


# --- what does not -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("factory", "code"),
    [
        ("net.py", "FXQ701"),
        ("missing.py:net", "FXQ702"),
        ("no.such.module:net", "FXQ703"),
        ("net.py:nett", "FXQ704"),
        ("net.py:broken", "FXQ705"),
        ("net.py:number", "FXQ706"),
    ],
)
def test_a_wrong_factory_is_a_usage_error(folder: Path, factory: str, code: str) -> None:
    result = quantize(factory=factory)
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-2 if "fix:" in result.stderr else -1].count(code) == 1
    assert "Traceback" not in result.output
    assert not (folder / "out").exists()


def test_a_near_name_is_suggested_and_user_errors_are_quoted(folder: Path) -> None:
    assert "did you mean 'net'" in quantize(factory="net.py:nett").stderr
    assert "ValueError: no weights today" in quantize(factory="net.py:broken").stderr


def test_debug_shows_the_traceback(folder: Path) -> None:
    result = quantize("--debug", factory="net.py:broken")
    assert "Traceback" in result.stderr
    assert 'raise ValueError("no weights today")' in result.stderr


def test_errors_are_json_too(folder: Path) -> None:
    result = quantize("--json", factory="missing.py:net")
    error = json.loads(result.stdout)
    assert error["code"] == "FXQ702"
    assert result.exit_code == 2


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (Path("ran"),)


def _make_weights(folder: Path) -> None:
    state = weights()
    torch.save({**state, "extra": torch.ones(1)}, folder / "extra.pt")
    torch.save({k: v for k, v in state.items() if "fc" not in k}, folder / "missing.pt")
    torch.save({**state, "fc.bias": torch.ones(5)}, folder / "shape.pt")
    torch.save({"evil": Evil()}, folder / "evil.pt")
    torch.save([1, 2], folder / "list.pt")
    (folder / "noise.pt").write_bytes(b"noise")
    (folder / "noise.safetensors").write_bytes(b"noise")
    (folder / "weights.h5").write_bytes(b"noise")


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("absent.pt", "FXQ710", "does not exist"),
        ("weights.h5", "FXQ711", ".h5"),
        ("noise.pt", "FXQ712", "noise.pt"),
        ("noise.safetensors", "FXQ712", "noise.safetensors"),
        ("evil.pt", "FXQ712", "refused"),
        ("list.pt", "FXQ713", "state dict"),
        ("extra.pt", "FXQ714", "unknown extra"),
        ("missing.pt", "FXQ714", "missing fc.bias, fc.weight"),
        ("shape.pt", "FXQ714", "fc.bias is [5] in the file and [4] in the model"),
    ],
)
def test_wrong_weights(folder: Path, name: str, code: str, says: str) -> None:
    _make_weights(folder)
    result = quantize("--weights", name)
    assert result.exit_code == 2
    assert code in result.stderr
    assert says in result.stderr
    assert not (folder / "ran").exists(), "no pickle runs"


def _make_data(folder: Path) -> None:
    images = np.zeros((4, 3, 8, 8), np.float32)
    np.save(folder / "empty.npy", images[:0])
    np.savez(folder / "lengths.npz", left=np.zeros((4, 4)), right=np.zeros((5, 4)))
    np.savez(folder / "names.npz", left=np.zeros((4, 4)), rigth=np.zeros((4, 4)))
    np.save(folder / "objects.npy", np.array([{}, {}], dtype=object), allow_pickle=True)
    np.save(folder / "text.npy", np.array(["a", "b"]))
    (folder / "noise.npz").write_bytes(b"noise")
    (folder / "data.csv").write_text("1,2")
    images[2, 0, 0, 0] = np.nan
    np.save(folder / "nan.npy", images)


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        ("absent.npy", "FXQ720", "does not exist"),
        ("data.csv", "FXQ721", "data.csv"),
        ("objects.npy", "FXQ722", "refused"),
        ("text.npy", "FXQ722", "text.npy"),
        ("noise.npz", "FXQ722", "noise.npz"),
        ("lengths.npz", "FXQ723", "'right': 5"),
        ("nan.npy", "FXQ724", "nan.npy, batch 0"),
        ("empty.npy", "FXQ725", "no data"),
        ("net.py:nothing", "FXQ725", "no data"),
        ("net.py:texts", "FXQ726", "str"),
        ("net.py:number", "FXQ726", "int"),
        ("net.py:failing", "FXQ705", "disk gone"),
        ("names.npz", "FXQ727", "did you mean 'right'"),
    ],
)
def test_wrong_data(folder: Path, data: str, code: str, says: str) -> None:
    _make_data(folder)
    factory = "net.py:two" if data == "names.npz" else "net.py:net"
    result = quantize(factory=factory, data=data)
    assert result.exit_code == 2, result.output
    assert code in result.stderr
    assert says in result.stderr
    assert not (folder / "out").exists()


def test_data_of_the_wrong_shape_is_an_error_without_traceback(folder: Path) -> None:
    np.save(folder / "flat.npy", np.zeros((4, 3), np.float32))
    result = quantize(data="flat.npy")
    assert result.exit_code == 1
    assert "error:" in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--input-shape", "2,x"], "FXQ730"),
        ([], "FXQ731"),
        (["--input-shape", "2,3,8,8", "--data", "images.npy"], "FXQ731"),
    ],
)
def test_example_inputs_are_given_once(folder: Path, arguments: list[str], code: str) -> None:
    result = call("inspect", "net.py:net", *arguments)
    assert result.exit_code == 2
    assert code in result.stderr


def test_a_missing_file_to_verify(folder: Path) -> None:
    result = call("verify", "absent.onnx")
    assert result.exit_code == 2
    assert "FXQ740" in result.stderr


@pytest.mark.parametrize("arguments", [["--opset", "3"], ["--batch-size", "0"], ["--what"]])
def test_click_refuses_what_it_can(folder: Path, arguments: list[str]) -> None:
    assert quantize(*arguments).exit_code == 2


def test_every_command_explains_every_option() -> None:
    for name, command in main.commands.items():
        assert command.help, name
        for option in command.params:
            if isinstance(option, click.Option):
                named = option.help or option.metavar or option.show_default
                assert named, f"{name} {option.name}"


# --- progress ------------------------------------------------------------------------------------


class Terminal:
    """A stream that says it is watched."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> int:
        self.text += text
        return len(text)

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return True


def test_a_bar_on_a_terminal_and_lines_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    terminal = Terminal()
    with Progress(stream=terminal).bar("calibrating", 2) as advance:  # type: ignore[arg-type]
        advance(1)
        advance(2)
    assert "calibrating" in terminal.text
    with Progress().bar("calibrating", 2) as advance:
        advance(1)
        advance(2)
    assert capsys.readouterr().err == "calibrating: batch 2/2\n"


def test_quiet_keeps_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress(quiet=True)
    progress.step("building")
    progress.warn("the graph is specialised", UserWarning)
    assert capsys.readouterr().err == "warning: the graph is specialised\n"


# --- settings that are given twice, or to what cannot use them -----------------------------------


def weight_types(folder: Path) -> set[int]:
    graph = onnx.load(folder / "out" / "net.onnx").graph
    return {i.data_type for i in graph.initializer if len(i.dims) > 1}


def test_bits_of_the_command_line_and_of_the_file(folder: Path) -> None:
    (folder / "c.json").write_text(json.dumps({"weight_bitwidth": 4}))
    result = quantize("--param-bw", "8", "--config", "c.json")
    assert result.exit_code == 2
    assert "FXQ234: default_param_bw=8, but weight_bitwidth of the configuration is 4" in (
        result.stderr
    )
    assert quantize("--config", "c.json", "--no-proof").exit_code == 0
    assert weight_types(folder) == {onnx.TensorProto.INT4}
    assert quantize("--param-bw", "4", "--config", "c.json", "--no-proof").exit_code == 0
    assert quantize("--no-proof").exit_code == 0
    assert weight_types(folder) == {onnx.TensorProto.INT8}
    (folder / "c.json").write_text(json.dumps({"activation_bitwidth": 8}))
    assert quantize("--activation-bw", "16", "--config", "c.json").exit_code == 2


@pytest.mark.parametrize("source", [["--input-shape", "1,3,8,8"], ["--data", "net.py:batches"]])
def test_batches_are_cut_from_arrays_only(source: list[str], folder: Path) -> None:
    result = call("validate", "net.py:net", *source, "--batch-size", "4")
    assert result.exit_code == 2
    assert "FXQ732" in result.stderr


def test_labels_beside_inputs_are_passed_over(folder: Path) -> None:
    images = np.load(folder / "images.npy")
    np.savez(folder / "set.npz", x=images, label=np.arange(len(images)))
    assert quantize("--no-proof", data="set.npz").exit_code == 0
    np.savez(folder / "set.npz", x=images, size=np.arange(len(images)))
    assert "FXQ727" in quantize("--no-proof", data="set.npz").stderr
