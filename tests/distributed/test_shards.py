"""Shards: statistics written by parts are merged to the encodings of one process, or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor

import fxquant.quantization as Q
from fxquant import QuantizationSimModel
from fxquant.distributed import merge_statistics, save_statistics
from fxquant.distributed.statistics_of import Merging, collected
from fxquant.errors import CalibrationError, CheckpointError, TrainingError
from fxquant.nn.calibration import compute_encodings
from fxquant.quantization.analyzers import EncodingAnalyzer
from tests.distributed.test_over_ranks import batches, ranges, simulation

CASES = [
    *((scheme, "onnxruntime_x86") for scheme in ("min_max", "tf_enhanced", "percentile")),
    ("min_max", "generic_pof2"),
]


def written(folder: Path, count: int, scheme: str = "min_max", target: str = "") -> list[Path]:
    return [
        save_statistics(
            simulation(scheme, target or "onnxruntime_x86"), batches(number - 1, 7, count),
            folder / f"{number}.safetensors", shard=(number, count),
        )
        for number in range(1, count + 1)
    ]  # fmt: skip


@pytest.mark.parametrize(("scheme", "target"), CASES)
def test_merged_shards_are_one_process(scheme: str, target: str, tmp_path: Path) -> None:
    files = written(tmp_path, 3, scheme, target)
    whole = simulation(scheme, target)
    whole.compute_encodings(batches(0, 7, 1))
    sim = simulation(scheme, target)
    merged = merge_statistics(sim, files[::-1])
    assert merged.files == tuple(files)
    assert str(merged) == "3 shard(s) with 7 batches"
    got, want = ranges(sim), ranges(whole)
    assert got.keys() == want.keys()
    assert all(torch.equal(got[k], want[k]) for k in want)
    assert torch.equal(sim.model(batches(0, 1, 1)[0]), whole.model(batches(0, 1, 1)[0]))
    # the statistics are kept as after calibration: other bits are searched in all of them
    assert str(sim.set_precision("1", output=4)) == str(whole.set_precision("1", output=4))
    got, want = ranges(sim), ranges(whole)
    assert all(torch.equal(got[k], want[k]) for k in want)


def test_a_folder_names_its_shards(tmp_path: Path) -> None:
    written(tmp_path, 2)
    assert len(merge_statistics(simulation("min_max"), tmp_path).files) == 2


def test_writing_a_shard_leaves_activations_uncalibrated(tmp_path: Path) -> None:
    sim = simulation("min_max")
    save_statistics(sim, batches(0, 2, 1), tmp_path / "s.safetensors")
    activations = [q for n, q in sim.named_quantizers() if "param_quantizers" not in n]
    assert activations
    assert not any(q.is_initialized() for q in activations)
    assert [p.name for p in tmp_path.iterdir()] == ["s.safetensors"]


# --- any cut of the data -------------------------------------------------------------------------


ANALYZERS: list[EncodingAnalyzer] = [
    Q.analyzers.MinMax(), Q.analyzers.Percentile(99.0), Q.analyzers.Sqnr(), Q.analyzers.Mse(),
    Q.analyzers.Entropy(),
]  # fmt: skip


def quantizers(kind: str) -> list[Any]:
    if kind == "pof2":
        return [Q.affine.pof2.PowerOfTwoQuantizeDequantize((), 8) for _ in range(2)]
    if kind == "float8":
        return [Q.float.FloatQuantizeDequantize(dtype=torch.float8_e4m3fn) for _ in range(2)]
    analyzer = ANALYZERS[int(kind)]
    shape = (3, 1) if int(kind) % 2 else ()
    return [Q.affine.QuantizeDequantize(shape, 4, encoding_analyzer=analyzer) for _ in range(2)]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**31), st.lists(st.integers(0, 3), min_size=1, max_size=8), st.data())
@pytest.mark.parametrize("kind", [*(str(i) for i in range(len(ANALYZERS))), "pof2", "float8"])
def test_any_cut_and_order_gives_the_range_of_one_pass(
    kind: str, seed: int, shards: list[int], data: st.DataObject
) -> None:
    g = torch.Generator().manual_seed(seed)
    found = [torch.randn(3, 16, generator=g) * 10.0 ** (i % 4 - 2) for i in range(len(shards))]
    whole, merged = quantizers(kind)
    with compute_encodings(whole):
        for x in found:
            whole(x)
    parts: dict[int, dict[str, Tensor]] = {}
    for shard in set(shards):
        one = quantizers(kind)[0]
        with compute_encodings(one):
            for x, number in zip(found, shards, strict=True):
                if number == shard:
                    one(x)
            parts[shard] = collected(one)
    merging = Merging(merged)
    for shard in data.draw(st.permutations(sorted(parts))):
        merging.take({name: tensor.clone() for name, tensor in parts[shard].items()})
    with compute_encodings(merged):
        merging.give()
    assert torch.equal(merged.min, whole.min)
    assert torch.equal(merged.max, whole.max)
    assert whole.is_initialized()


# --- mistakes ------------------------------------------------------------------------------------


def refused(code: str, paths: object, sim: QuantizationSimModel | None = None) -> None:
    sim = sim or simulation("min_max")
    before = sim.model.state_dict()
    before = {k: v.clone() for k, v in before.items()}
    with pytest.raises(CheckpointError, match=code):
        merge_statistics(sim, paths)  # type: ignore[arg-type]
    after = sim.model.state_dict()
    assert all(torch.equal(v, after[k]) or bool(v.isnan().all()) for k, v in before.items())


def test_shards_that_are_not_all_of_one_calibration(tmp_path: Path) -> None:
    files = written(tmp_path, 3)
    refused("FXQ611.*none of number 2, 3", files[:1])
    refused("FXQ614.*both shard 1 of 3", [*files, files[0]])
    (tmp_path / "two").mkdir()
    others = written(tmp_path / "two", 2)
    refused("FXQ614.*one of 2 shards", [files[0], others[1]])
    refused("FXQ611.*cannot read", [*files[:2], tmp_path / "nothing"])
    refused("FXQ611.*no shard", [])
    refused("FXQ613.*scheme: min_max, not", files, simulation("percentile"))
    refused("FXQ613.*weights", files, simulation("min_max", seed=1))
    refused("FXQ613.*configuration|FXQ613.*model", files, simulation("min_max", "generic_pof2"))
    with pytest.raises(CheckpointError, match="FXQ610"):
        save_statistics(simulation("min_max"), [], tmp_path / "x", shard=(3, 2))
    with pytest.raises(CalibrationError, match="FXQ430"):
        save_statistics(simulation("min_max"), [], tmp_path / "x", shard=(1, 2))
    assert not (tmp_path / "x").exists()
    with pytest.raises(TrainingError, match="FXQ813"):
        save_statistics(simulation("moving_average"), batches(0, 1, 1), tmp_path / "x")


def test_damaged_shards_are_refused(tmp_path: Path) -> None:
    (file,) = written(tmp_path, 1, "tf_enhanced")
    sim, whole = simulation("tf_enhanced"), file.read_bytes()
    file.write_bytes(whole[:-7])
    refused("FXQ612", file, sim)
    flipped = bytearray(whole)
    flipped[-3] ^= 1
    file.write_bytes(bytes(flipped))
    refused("FXQ612.*checksum", file, sim)
    tensors = load_file_of(whole, tmp_path)
    save_file(tensors, file)
    refused("FXQ612.*no statistics", file, sim)


def load_file_of(content: bytes, folder: Path) -> dict[str, Tensor]:
    (folder / "copy").write_bytes(content)
    return load_file(folder / "copy")


def negative(tensors: dict[str, Tensor]) -> None:
    next(t for n, t in tensors.items() if n.endswith("counts"))[0, 0] -= 1000


def short(tensors: dict[str, Tensor]) -> None:
    name = next(n for n in tensors if n.endswith("counts"))
    tensors[name] = tensors[name][:, :-1].contiguous()


def swapped(tensors: dict[str, Tensor]) -> None:
    name = next(n for n in tensors if n.endswith("extremes"))
    tensors[name] = tensors[name].flip(0).contiguous()


def alone(tensors: dict[str, Tensor]) -> None:
    del tensors[next(n for n in tensors if n.endswith("extremes"))]


def unknown(tensors: dict[str, Tensor]) -> None:
    tensors["nobody:counts"] = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize("change", [negative, short, swapped, alone, unknown])
def test_statistics_that_cannot_be_are_refused(change: Callable[[dict[str, Tensor]], None]) -> None:
    sim = simulation("tf_enhanced")
    with compute_encodings(sim.model), torch.no_grad():
        sim.model(batches(0, 1, 1)[0])
        tensors = {k: v.clone() for k, v in collected(sim.model).items()}
    change(tensors)
    with pytest.raises(ValueError, match=r"."):
        Merging(sim.model).take(tensors)


def test_the_metadata_say_what_a_shard_is(tmp_path: Path) -> None:
    from safetensors import safe_open

    (file,) = written(tmp_path, 1)
    with safe_open(file, "pt") as opened:
        index = json.loads(opened.metadata()["fxquant.statistics"])
    assert (index["shard"], index["count"], index["batches"]) == (1, 1, 7)
    assert set(index["identity"]) == {"model", "configuration", "scheme", "quantizers", "weights"}
