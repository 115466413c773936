"""Reconstruction over ranks: layers of all ranks are alike, and as good as those of one process."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from fxquant import QuantizationSimModel, distributed
from fxquant.errors import FxQuantError
from fxquant.ptq import ReconstructionOptions, ReconstructionReport, reconstruct
from tests.helpers.ranks import results_of

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="ranks are forked")

COUNT = 9  # batches: the ranks have five and four
#: few columns, so that it is positions of the ranks that are chosen from
OPTIONS = ReconstructionOptions(samples=COUNT * 8, columns=2048)


class Net(nn.Module):
    """Convolutions with and without a bias, groups, one called twice, and a table."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 12, 3, groups=2, bias=False)
        self.again = nn.Conv2d(8, 8, 3, padding=1)
        self.table, self.last = nn.Embedding(5, 12), nn.Linear(12, 6)

    def forward(self, x: Tensor, kind: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.again(torch.relu(self.again(x))))
        x = torch.relu(self.second(x)).mean((2, 3))
        found: Tensor = self.last(x + self.table(kind))
        return found


def batch(number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(number)
    mixed = torch.randn(8, 3, 10, 10, generator=generator).cumsum(3)
    return mixed, torch.randint(0, 5, (8,), generator=generator)


def simulation(seed: int = 0) -> QuantizationSimModel:
    """Calibrated on the same data everywhere."""
    torch.manual_seed(seed)
    sim = QuantizationSimModel(Net().eval(), batch(0), "min_max", 4, 3)
    sim.compute_encodings([batch(n) for n in range(COUNT)])
    return sim


def share(rank: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Neighbouring batches: with all ranks' in their order they are those of one process."""
    numbers = torch.arange(COUNT).tensor_split(size)[rank]
    return [batch(int(n)) for n in numbers]


def state(sim: QuantizationSimModel) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in sim.model.state_dict().items()}


def facts(report: ReconstructionReport) -> list[list[Any]]:
    return [[r.path, r.changed, r.error_before, r.error_after] for r in report.layers]


def code(call: Any) -> str:
    try:
        call()
    except FxQuantError as error:
        return f"{error.code}: {error.what}"
    except OSError as error:
        return str(error)
    return "no error"


def work(rank: int, size: int, folder: Path) -> dict[str, Any]:
    """All that the ranks do."""
    sim, last = simulation(), rank == size - 1
    report = distributed.reconstruct(sim, share(rank, size), OPTIONS)
    found: dict[str, Any] = {"state": state(sim), "report": facts(report)}

    kept = ReconstructionOptions(samples=COUNT * 8, columns=2048, folder=folder / "kept")
    killed, again = simulation(), simulation()

    def die(done: int, total: int) -> None:
        if done > total * 0.6 and rank == 0:
            raise OSError(5, "killed")

    found["killed"] = code(
        lambda: distributed.reconstruct(killed, share(rank, size), kept, progress=die)
    )
    found["files"] = len(list((folder / "kept").rglob("*.safetensors")))
    report = distributed.reconstruct(again, share(rank, size), kept)
    found["resumed"] = state(again)
    dist.barrier()
    found["left"] = [str(p) for p in (folder / "kept").glob("*")]

    def broken() -> Any:
        yield batch(0)
        if last:
            raise OSError(5, "the disk is gone")

    ended = torch.full_like(batch(0)[0], torch.inf), batch(0)[1]
    attempts: dict[str, Any] = {
        "raises": broken(),
        "empty": [] if last else share(rank, size),
        "infinite": [ended] if last else share(rank, size),
    }
    errors = {
        name: code(lambda data=data: distributed.reconstruct(simulation(), data, OPTIONS))
        for name, data in attempts.items()
    }
    other = simulation(seed=rank)
    errors["model"] = code(lambda: distributed.reconstruct(other, share(rank, size), OPTIONS))
    options = ReconstructionOptions(columns=1000 + rank)
    errors["options"] = code(
        lambda: distributed.reconstruct(simulation(), share(rank, size), options)
    )
    return found | {"errors": errors}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two ranks found."""
    folder = tmp_path_factory.mktemp("two")
    return results_of("tests.distributed.test_reconstruction:work", 2, folder)


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def test_ranks_have_the_same_to_the_last_bit(found: list[dict[str, Any]]) -> None:
    first, second = found
    assert same(first["state"], second["state"])
    assert first["report"] == second["report"]
    assert not same(first["state"], state(simulation()))


def test_layers_are_those_of_one_process(found: list[dict[str, Any]]) -> None:
    """The same rows are looked at; only sums are put together in another order."""
    sim = simulation()
    report = reconstruct(sim, [batch(n) for n in range(COUNT)], OPTIONS)
    assert [row[:2] for row in facts(report)] == [row[:2] for row in found[0]["report"]]
    for one, ranks in zip(facts(report), found[0]["report"], strict=True):
        assert ranks[2:] == pytest.approx(one[2:], rel=1e-2)
    # the first layer's inputs are the data: what is held out of them is the same to the last bit
    assert facts(report)[1][2] == found[0]["report"][1][2]
    # an integer that is as good as its neighbour may be the other one
    pairs = [(found[0]["state"][name], value) for name, value in state(sim).items()]
    close = torch.cat([torch.isclose(a, b, rtol=1e-4, atol=1e-5).flatten() for a, b in pairs])
    assert close.double().mean() > 0.98


def test_killed_ranks_go_on_behind_finished_layers(found: list[dict[str, Any]]) -> None:
    assert "killed" in found[0]["killed"]
    assert found[1]["killed"].startswith("FXQ810: rank 0 failed: OSError")
    assert found[0]["files"] == 4
    for rank in found:
        assert same(rank["resumed"], found[0]["state"])
        assert rank["left"] == []


def test_a_rank_that_fails_tells_the_others(found: list[dict[str, Any]]) -> None:
    first, last = (f["errors"] for f in found)
    assert "the disk is gone" in last["raises"]
    assert first["raises"].startswith("FXQ810: rank 1 failed: OSError: the disk is gone")
    assert last["empty"].startswith("FXQ442")
    assert first["empty"].startswith("FXQ810: rank 1 failed: FXQ442")
    assert first["infinite"].startswith("FXQ446: input or output of first")
    assert last["infinite"] == first["infinite"]


def test_ranks_must_have_the_same_in_hand(found: list[dict[str, Any]]) -> None:
    for errors in (f["errors"] for f in found):
        assert errors["model"] == "FXQ812: rank 1 differs from rank 0 in its weights"
        assert errors["options"] == "FXQ812: rank 1 differs from rank 0 in its options"


@pytest.mark.full
def test_four_ranks_find_the_same(tmp_path: Path) -> None:
    results = results_of("tests.distributed.test_reconstruction:work", 4, tmp_path)
    assert all(same(r["state"], results[0]["state"]) for r in results)
    test_layers_are_those_of_one_process(results)
