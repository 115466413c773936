"""Checkpoints: bit for bit or not at all."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

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
