"""Checkpoints: bit for bit or not at all."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fxquant.quantization as Q
from fxquant import QuantizationSimModel, load_checkpoint, save_checkpoint
from fxquant.errors import CheckpointError


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def sim() -> QuantizationSimModel:
    sim = QuantizationSimModel(net(), X)
    sim.compute_encodings([X])
    return sim


@pytest.fixture
def folder(sim: QuantizationSimModel, tmp_path: Path) -> Path:
    save_checkpoint(sim, tmp_path / "c")
    return tmp_path / "c"


def state(sim: QuantizationSimModel) -> dict[str, Tensor]:
    return {k: v.clone() for k, v in sim.model.state_dict().items()}


def refused(folder: Path, code: str, fresh: QuantizationSimModel | None = None) -> None:
    fresh = fresh or QuantizationSimModel(net(), X)
    before = state(fresh)
    with pytest.raises(CheckpointError, match=code):
        load_checkpoint(fresh, folder)
    after = state(fresh)
    assert all(torch.equal(v, after[k]) or v.isnan().any() for k, v in before.items())


def test_a_fresh_simulation_computes_the_same(sim: QuantizationSimModel, folder: Path) -> None:
    with torch.no_grad():
        sim.model.get_parameter("3.weight").mul_(1.5)
    save_checkpoint(sim, folder)
    fresh = QuantizationSimModel(net(), X)
    load_checkpoint(fresh, folder)
    assert torch.equal(fresh.model(X), sim.model(X))
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint.json", "model.safetensors"]
    assert [p.name for p in folder.parent.iterdir()] == ["c"], "no temporary folder is left"


def test_uncalibrated_stays_uncalibrated(tmp_path: Path) -> None:
    save_checkpoint(QuantizationSimModel(net(), X), tmp_path / "c")
    fresh = QuantizationSimModel(net(), X)
    load_checkpoint(fresh, tmp_path / "c")
    assert not any(q.is_initialized() for q in fresh.quantizers())


def test_damage_is_refused(folder: Path) -> None:
    tensors = folder / "model.safetensors"
    whole = tensors.read_bytes()
    tensors.write_bytes(whole[:-10])
    refused(folder, "FXQ603")
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    tensors.write_bytes(bytes(flipped))
    refused(folder, "FXQ603")
    tensors.unlink()
    refused(folder, "FXQ602")


def test_a_damaged_index_is_refused(folder: Path) -> None:
    index = folder / "checkpoint.json"
    text = index.read_text()
    index.write_text(text[:-20])
    refused(folder, "FXQ603")
    index.write_text("[]")
    refused(folder, "FXQ603")
    for key, wrong in (("aliases", []), ("quantizers", None), ("quantizers", {"fc": 1})):
        index.write_text(json.dumps(json.loads(text) | {key: wrong}))
        refused(folder, "FXQ603")
    index.write_text(json.dumps({**json.loads(text), "format": 99}))
    refused(folder, "FXQ604")
    index.unlink()
    refused(folder, "FXQ602")


def test_another_model_or_configuration_is_refused(folder: Path) -> None:
    other = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 3)).eval()
    refused(folder, "FXQ605", QuantizationSimModel(other, X))
    refused(folder, "FXQ605", QuantizationSimModel(net(), X, default_param_bw=4))
    wider = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5)).eval()
    refused(folder, "FXQ606", QuantizationSimModel(wider, X))


def test_nothing_else_is_overwritten(sim: QuantizationSimModel, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="FXQ601"):
        save_checkpoint(sim, tmp_path)
    with pytest.raises(CheckpointError, match="FXQ601"):
        save_checkpoint(sim, tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


EDITS: dict[str, Callable[[QuantizationSimModel], object]] = {
    "layers left out": lambda sim: sim.exclude_layers_from_quantization(["0"]),
    "biases left out": lambda sim: sim.exclude_param_from_quantization("bias"),
    "blocks": lambda sim: sim.set_blockwise_quantization_for_weights(["3"], 4, True, 12),
    "larger blocks": lambda sim: sim.set_blockwise_quantization_for_weights(["3"], 4, True, 24),
    "grouped blocks": lambda sim: sim.set_grouped_blockwise_quantization_for_weights(
        ["3"], 4, True, 8, 12, -1
    ),
    "floats": lambda sim: sim.set_activation_quantizers_to_float(["1"], dtype=torch.bfloat16),
    "other floats": lambda sim: sim.set_activation_quantizers_to_float(["1"], dtype=torch.float16),
    "another grid": lambda sim: replace(sim, Q.affine.QuantizeDequantize((4, 1, 1, 1), 8, True)),
    "a narrow grid": lambda sim: replace(
        sim, Q.affine.QuantizeDequantize((4, 1, 1, 1), None, True, qmin=-127, qmax=127)
    ),
    "per tensor": lambda sim: replace(sim, Q.affine.QuantizeDequantize((), 8, True)),
}


def replace(sim: QuantizationSimModel, quantizer: Q.QuantizerBase) -> None:
    dict(sim.named_qmodules())["0"].param_quantizers["weight"] = quantizer


def edited(edit: str, *, before: bool = False) -> QuantizationSimModel:
    sim = QuantizationSimModel(net(), X)
    if before:
        EDITS[edit](sim)
    sim.compute_encodings([X])
    if not before:
        EDITS[edit](sim)
        sim.compute_encodings([X])  # new quantizers have no range yet
    return sim


@pytest.mark.parametrize("edit", EDITS)
def test_edits_are_part_of_a_checkpoint(edit: str, tmp_path: Path) -> None:
    sim = edited(edit)
    save_checkpoint(sim, tmp_path / "c")
    fresh = QuantizationSimModel(net(), X)
    EDITS[edit](fresh)
    load_checkpoint(fresh, tmp_path / "c")
    assert torch.equal(fresh.model(X), sim.model(X))
    for other in EDITS.keys() - {edit, "another grid"}:
        fresh = QuantizationSimModel(net(), X)
        EDITS[other](fresh)
        refused(tmp_path / "c", "FXQ60[56]", fresh)


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        ("layers left out", "the simulation has a quantizer 0"),
        ("biases left out", "the simulation has a quantizer 0.param_quantizers.bias"),
        ("blocks", "the simulation has a quantizer 3.param_quantizers.bias"),
        ("floats", "class of quantizer .* is FloatQuantizeDequantize"),
        ("a narrow grid", "qmin of quantizer 0.param_quantizers.weight is -127, here -128"),
    ],
)
def test_a_simulation_without_the_edits_is_told_what_is_missing(
    edit: str, says: str, tmp_path: Path
) -> None:
    save_checkpoint(edited(edit), tmp_path / "c")
    with pytest.raises(CheckpointError, match=rf"(?s)FXQ605.*{says}.*edit it in the same way"):
        load_checkpoint(QuantizationSimModel(net(), X), tmp_path / "c")


PROCESS = """
import sys
import torch
from tests.test_checkpoint import EDITS, X, net
from fxquant import QuantizationSimModel, load_checkpoint

for edit in EDITS:
    sim = QuantizationSimModel(net(), X)
    EDITS[edit](sim)
    load_checkpoint(sim, f"{sys.argv[1]}/{edit}")
    y = torch.as_tensor(sim.model(X)).detach()
    print(edit, torch.equal(y, torch.load(f"{sys.argv[1]}/{edit}.pt")), sep=": ")
"""


def test_a_new_process_computes_the_same_after_edits(tmp_path: Path) -> None:
    for edit in EDITS:
        sim = edited(edit, before=True)
        save_checkpoint(sim, tmp_path / edit)
        torch.save(torch.as_tensor(sim.model(X)).detach(), tmp_path / f"{edit}.pt")
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", PROCESS, str(tmp_path)],
        capture_output=True, text=True, cwd=root, check=False,
    )  # fmt: skip
    assert done.stdout.splitlines() == [f"{edit}: True" for edit in EDITS], done.stderr
