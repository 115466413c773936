"""Export: all files or none, under whatever goes wrong."""

from __future__ import annotations

import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest
import torch
from torch import Tensor, fx, nn

from fxquant import export
from fxquant import nn as qnn
from fxquant.errors import ExportError, ParityError, UncalibratedError
from fxquant.onnx.parity.report import ParityReport
from fxquant.quantization import affine
from fxquant.sim import QuantizationSimModel

EXAMPLE: Any = ((torch.zeros(1, 2),), {})
FILES = {"net.encodings", "net.onnx", "net.report.json", "net.safetensors"}


def simulated(*, calibrated: bool = True) -> fx.GraphModule:
    """`x → fc`, with an output grid."""
    root, graph = nn.Module(), fx.Graph()
    root.add_module("fc", qnn.QuantizationMixin.from_module(nn.Linear(2, 2)))
    graph.output(graph.call_module("fc", (graph.placeholder("x"),)))
    gm = fx.GraphModule(root, graph)
    fc: Any = gm.get_submodule("fc")
    fc.output_quantizers[0] = affine.QuantizeDequantize((), 8, symmetric=False)
    fc.output_quantizers[0].where = "the output of fc"
    if calibrated:
        with torch.no_grad(), qnn.compute_encodings(gm):
            gm(torch.randn(8, 2))
    return gm


Writer = Callable[..., ParityReport]


def writer(text: str = "new", *, fail: BaseException | None = None) -> Writer:
    """Stands for lowering, writing and proving."""

    def write(_: fx.GraphModule, stage: Path, prefix: str, *__: Any, **___: Any) -> ParityReport:
        for suffix in ("onnx", "encodings", "safetensors", "report.json"):
            (stage / f"{prefix}.{suffix}").write_text(text)
        if fail is not None:
            raise fail
        return ParityReport(proven=True)

    return write


def names(folder: Path) -> set[str]:
    return {p.name for p in folder.iterdir()}


@pytest.fixture
def write(monkeypatch: pytest.MonkeyPatch) -> Callable[[Writer], None]:
    return lambda with_: monkeypatch.setattr(export, "_write_all", with_)


def run(folder: Path, gm: fx.GraphModule | None = None, prefix: str = "net") -> ParityReport:
    return export.export_model(gm or simulated(), folder, prefix, EXAMPLE)


def test_files_appear_together_in_a_folder_that_is_made(
    tmp_path: Path, write: Callable[[Writer], None]
) -> None:
    write(writer())
    assert run(tmp_path / "a" / "b")
    assert names(tmp_path / "a" / "b") == FILES


@pytest.mark.parametrize("error", [ParityError("FXQ560", "x"), KeyboardInterrupt(), ValueError()])
def test_a_failed_export_leaves_no_file_and_no_folder(
    error: BaseException, tmp_path: Path, write: Callable[[Writer], None]
) -> None:
    write(writer(fail=error))
    with pytest.raises(type(error)):
        run(tmp_path / "new")
    assert names(tmp_path) == set()


def test_older_files_survive_a_failed_export(
    tmp_path: Path, write: Callable[[Writer], None]
) -> None:
    write(writer("old"))
    run(tmp_path)
    write(writer("new", fail=ParityError("FXQ560", "x")))
    with pytest.raises(ParityError):
        run(tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(FILES, "old")


def test_older_files_come_back_when_a_rename_fails(
    tmp_path: Path, write: Callable[[Writer], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    write(writer("old"))
    run(tmp_path)
    (tmp_path / "net.report.json").unlink()
    write(writer("new"))
    real = os.replace

    def replace(source: Path, target: Path) -> None:
        if Path(source).name == "net.onnx":
            raise OSError(28, "No space left on device")
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(ExportError, match=r"FXQ544.*No space left"):
        run(tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(
        FILES - {"net.report.json"}, "old"
    )


def test_a_second_export_replaces_the_first(
    tmp_path: Path, write: Callable[[Writer], None]
) -> None:
    for text in ("old", "new"):
        write(writer(text))
        run(tmp_path)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == dict.fromkeys(FILES, "new")


def test_uncalibrated_quantizers_are_listed_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(UncalibratedError, match="compute_encodings") as error:
        run(tmp_path / "new", simulated(calibrated=False))
    assert "the output of fc" in str(error.value)
    assert names(tmp_path) == set()


@pytest.mark.parametrize("prefix", ["", ".", "..", "a/b", "../net", "a\\b", "a\0b"])
def test_a_prefix_is_a_plain_file_name(prefix: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="FXQ541"):
        run(tmp_path, prefix=prefix)


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ExportError, match="FXQ542"):
        run(tmp_path / "file")
    with pytest.raises(ExportError, match="FXQ542"):
        run(tmp_path / "file" / "below")


def test_a_folder_that_cannot_be_written_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "mkdtemp", refuse)
    with pytest.raises(ExportError, match=r"FXQ543.*Permission denied"):
        run(tmp_path)


def test_a_folder_under_a_final_name_is_an_error(
    tmp_path: Path, write: Callable[[Writer], None]
) -> None:
    write(writer())
    (tmp_path / "net.onnx").mkdir()
    with pytest.raises(ExportError, match="FXQ545"):
        run(tmp_path)
    assert names(tmp_path) == {"net.onnx"}


def test_training_flags_are_left_as_they_were(
    tmp_path: Path, write: Callable[[Writer], None]
) -> None:
    gm = simulated()
    gm.train()
    gm.get_submodule("fc").eval()
    seen: list[bool] = []

    def look(model: fx.GraphModule, *_: Any, **__: Any) -> ParityReport:
        seen.append(model.training)
        return ParityReport(proven=True)

    write(look)
    run(tmp_path, gm)
    assert seen == [False]
    assert gm.training
    assert not gm.get_submodule("fc").training


KILLED = """
import os, signal, sys
from tests import test_export
from fxquant import export

def write(model, stage, prefix, *_, **__):
    (stage / f"{prefix}.onnx").write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)

export._write_all = write
test_export.run(test_export.Path(sys.argv[1]))
"""


@pytest.mark.skipif(os.name != "posix", reason="there is no SIGKILL")
def test_a_killed_export_leaves_only_what_the_next_one_removes(
    tmp_path: Path, write: Callable[[Writer], None]
) -> None:
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], check=False, timeout=120, cwd=root
    )
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".fxquant-export-net-")
    write(writer())
    run(tmp_path)
    assert names(tmp_path) == FILES


def test_the_stage_of_a_living_process_is_left_alone(
    tmp_path: Path, write: Callable[[Writer], None]
) -> None:
    other = tmp_path / ".fxquant-export-other-abc"
    other.mkdir()
    owner = {"process": os.getppid(), "host": socket.gethostname()}
    (other / "owner.json").write_text(json.dumps(owner))
    write(writer())
    run(tmp_path)
    assert other.exists()


def test_float_weights_keep_the_users_names_and_leave_the_quantizers_out(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    gm = simulated()
    gm.register_parameter("tied", gm.get_parameter("fc.weight"))
    export._write_weights(gm, tmp_path / "net.safetensors")
    found = load_file(tmp_path / "net.safetensors")
    assert found.keys() == {"fc.weight", "fc.bias", "tied"}
    assert torch.equal(found["fc.weight"], gm.get_parameter("fc.weight"))
    assert torch.equal(found["tied"], found["fc.weight"])


# --- the whole way, with nothing replaced --------------------------------------------------------


class Net(nn.Module):
    """A residual network with a pool and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.fc = nn.ReLU(), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.first(x))
        return self.fc((self.second(x) + x).mean((2, 3)))  # type: ignore[no-any-return]


IMAGES = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def simulation(change: Callable[[Any], None] | None = None, **options: Any) -> QuantizationSimModel:
    sim = QuantizationSimModel(Net(), IMAGES, **options)
    if change is not None:
        change(sim.model)
    sim.compute_encodings([IMAGES])
    return sim


def test_a_network_is_exported_and_proven(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    sim = simulation()
    report = sim.export(tmp_path, "net")
    assert report.proven
    assert report.max_steps <= 1
    assert report.integer_macs_share == 1.0
    assert names(tmp_path) == FILES
    plain = json.loads((tmp_path / "net.report.json").read_text())
    assert plain["exact_share"] == report.exact_share
    assert plain["runtime"].startswith("onnxruntime")
    Net().load_state_dict(load_file(tmp_path / "net.safetensors"))


def test_without_a_proof_the_report_is_false_and_onnxruntime_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    report = simulation().export(tmp_path, "net", prove=False)
    assert not report
    assert names(tmp_path) == FILES


def test_without_onnxruntime_the_error_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ExportError, match=r"FXQ550[\s\S]*pip install onnxruntime"):
        simulation().export(tmp_path, "net")
    assert names(tmp_path) == set()


def test_a_wrong_lowering_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lowering = importlib.import_module("fxquant.onnx.lowering.lower")
    right = lowering.lower

    def wrong(*args: Any, **kwargs: Any) -> Any:
        found = right(*args, **kwargs)
        value = found.model.graph.initializers["second.weight"]
        assert value.const_value is not None
        value.const_value = ir.Tensor(-value.const_value.numpy(), name="second.weight")
        return found

    monkeypatch.setattr(lowering, "lower", wrong)
    with pytest.raises(ParityError, match="FXQ560") as error:
        simulation().export(tmp_path, "net")
    assert "second" in str(error.value)
    assert "test_export.py:" in str(error.value), "the user's line"
    assert names(tmp_path) == set()


def other_input_grid(bits: int) -> Callable[[Any], None]:
    """The second convolution reads its input on a grid of its own."""

    def change(model: Any) -> None:
        grid = affine.QuantizeDequantize((), bits, symmetric=False)
        model.second.input_quantizers[0] = grid
        weight = model.second.param_quantizers["weight"]
        model.second.param_quantizers["bias"] = affine.BiasQuantizeDequantize(grid, weight)

    return change


@pytest.mark.parametrize(
    ("change", "options"),
    [
        (None, {"default_output_bw": 4}),
        (None, {"default_output_bw": 7}),
        (None, {"default_output_bw": 16}),
        (None, {"default_param_bw": 4}),
        (other_input_grid(4), {}),
        (other_input_grid(16), {}),
    ],
)
def test_other_widths_are_proven_too(
    change: Callable[[Any], None] | None, options: dict[str, int], tmp_path: Path
) -> None:
    report = simulation(change, **options).export(tmp_path, "net")
    assert report.proven
    assert not report.skipped
    if change is not None:
        assert "second.input_0" in {row.module for row in report.tensors}


@pytest.mark.parametrize("opset", [13, 17, 23])
def test_other_opsets_are_proven_too(opset: int, tmp_path: Path) -> None:
    assert simulation().export(tmp_path, "net", opset=opset).proven
