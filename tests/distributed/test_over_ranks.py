"""Calibration over ranks: encodings of all ranks are those of one process; failures are told."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fxquant import QuantizationSimModel, distributed
from fxquant.errors import FxQuantError
from tests.helpers.ranks import results_of

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked")

SCHEMES = ("min_max", "tf_enhanced", "mse", "percentile", "entropy")


def batches(first: int, count: int, step: int) -> list[Tensor]:
    """Every so-many-th of the batches; no two have the same extremes."""
    return [
        (1 + i % 5) * torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(i))
        for i in range(first, count, step)
    ]


def simulation(scheme: str, target: str = "onnxruntime_x86", seed: int = 0) -> QuantizationSimModel:
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(216, 4)).eval()
    return QuantizationSimModel(net, batches(0, 1, 1)[0], scheme, target=target)


def ranges(sim: QuantizationSimModel) -> dict[str, Tensor]:
    state = sim.model.state_dict()
    return {k: v.clone() for k, v in state.items() if k.rpartition(".")[2] in ("min", "max")}


def _code(call: Any) -> str:
    try:
        call()
    except FxQuantError as error:
        return f"{error.code}: {error.what}"
    return "no error"


def _silent(sim: QuantizationSimModel, rank: int, group: Any) -> str:
    """The last rank never comes; the others wait for a second."""
    if rank == dist.get_world_size() - 1:
        time.sleep(2)
        return ""
    return _code(
        lambda: distributed.compute_encodings(
            sim, batches(rank, 8, 2), group=group, timeout=1.0
        )
    )  # fmt: skip


def work(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """All that the ranks do; the tests look at what came of it."""
    found: dict[str, Any] = {"ranges": {}, "errors": {}}
    for scheme in SCHEMES:
        sim = simulation(scheme)
        distributed.compute_encodings(sim, batches(rank, 8, size))
        found["ranges"][scheme] = ranges(sim)
    sim = simulation("min_max", "generic_pof2")
    distributed.compute_encodings(sim, batches(rank, 8, size))
    found["ranges"]["pof2"] = ranges(sim)

    errors, last = found["errors"], rank == size - 1
    sim = simulation("min_max")
    before = ranges(sim)

    def broken() -> Any:
        yield batches(0, 1, 1)[0]
        if last:
            raise OSError(5, "the disk is gone")

    try:
        errors["raises"] = _code(lambda: distributed.compute_encodings(sim, broken()))
    except OSError as error:
        errors["raises"] = str(error)
    errors["unchanged"] = str(
        all(
            torch.equal(v, before[k]) or "param_quantizers" in k or bool(v.isnan().all())
            for k, v in ranges(sim).items()
        )
    )
    nothing = [] if last else batches(0, 2, 1)
    errors["empty"] = _code(lambda: distributed.compute_encodings(sim, nothing))
    other = simulation("min_max", seed=rank)
    errors["weights"] = _code(lambda: distributed.compute_encodings(other, batches(0, 1, 1)))
    kind = simulation(SCHEMES[rank % 2])
    errors["scheme"] = _code(lambda: distributed.compute_encodings(kind, batches(0, 1, 1)))
    order = simulation("moving_average")
    errors["order"] = _code(lambda: distributed.compute_encodings(order, batches(0, 1, 1)))
    errors["again"] = _code(lambda: distributed.compute_encodings(sim, batches(rank, 8, size)))
    errors["silent"] = _silent(sim, rank, dist.new_group(list(range(size)), backend="gloo"))
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks found."""
    return results_of("tests.distributed.test_over_ranks:work", 2, tmp_path_factory.mktemp("two"))


def _is_one_process(results: list[dict[str, Any]], name: str) -> None:
    scheme, target = ("min_max", "generic_pof2") if name == "pof2" else (name, "onnxruntime_x86")
    sim = simulation(scheme, target)
    sim.compute_encodings(batches(0, 8, 1))
    want = ranges(sim)
    assert len(want) >= 8
    assert not any(v.isnan().any() for v in want.values())
    for result in results:
        got = result["ranges"][name]
        assert got.keys() == want.keys()
        assert all(torch.equal(got[k], want[k]) for k in want)


@pytest.mark.parametrize("name", [*SCHEMES, "pof2"])
def test_encodings_are_those_of_one_process(found: list[dict[str, Any]], name: str) -> None:
    _is_one_process(found, name)


def test_a_rank_that_fails_tells_the_others(found: list[dict[str, Any]]) -> None:
    first, last = (f["errors"] for f in found)
    assert "the disk is gone" in last["raises"]
    assert first["raises"].startswith("FXQ810: rank 1 failed: OSError")
    assert first["unchanged"] == last["unchanged"] == "True"
    assert last["empty"].startswith("FXQ430")
    assert first["empty"].startswith("FXQ810: rank 1 failed: FXQ430")


def test_ranks_must_have_the_same_in_hand(found: list[dict[str, Any]]) -> None:
    for errors in (f["errors"] for f in found):
        assert errors["weights"] == "FXQ812: rank 1 differs from rank 0 in its weights"
        assert errors["scheme"].startswith("FXQ812: rank 1 differs from rank 0 in its scheme")
        assert errors["order"].startswith("FXQ813")


def test_after_an_error_the_group_still_works(found: list[dict[str, Any]]) -> None:
    assert [f["errors"]["again"] for f in found] == ["no error"] * 2


def test_a_rank_that_never_comes_is_no_deadlock(found: list[dict[str, Any]]) -> None:
    assert found[0]["errors"]["silent"].startswith("FXQ811: rank 0 got no answer")


def test_without_a_group_there_is_an_error() -> None:
    sim = simulation("min_max")
    assert _code(lambda: distributed.compute_encodings(sim, batches(0, 1, 1))).startswith("FXQ814")


@pytest.mark.full
def test_four_ranks_find_the_same(tmp_path: Path) -> None:
    results = results_of("tests.distributed.test_over_ranks:work", 4, tmp_path)
    for name in (*SCHEMES, "pof2"):
        _is_one_process(results, name)
    assert [r["errors"]["raises"][:23] for r in results[:3]] == ["FXQ810: rank 3 failed: "] * 3
    assert all(r["errors"]["silent"].startswith("FXQ811") for r in results[:3])
