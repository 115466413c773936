"""One weight that several layers compute with gets one solution, for all of them together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.ptq import (
    FinetuneParams,
    ReconstructionOptions,
    apply_gptq,
    apply_seq_mse,
    correct_bias,
    fast_finetune,
    reconstruct,
)
from fxquant.ptq.moments import Moments, TiedMoments
from fxquant.ptq.solving.refinement import RefinementOptions
from fxquant.ptq.walking.ahead import Ahead
from fxquant.ptq.walking.originals import float_value
from fxquant.ptq.walking.walk import Environment, FloatEnvironment, Walk
from tests.helpers.techniques import images, on_its_grid, parameters, same, simulation, sqnr

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class Blocks(nn.Module):
    """One block called three times, and convolutions with one weight and a bias or none each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Conv2d(3, 12, 3, padding=1), nn.Conv2d(12, 12, 3, padding=1)
        self.wide, self.plain = nn.Conv2d(12, 16, 3), nn.Conv2d(12, 16, 3, stride=2, bias=False)
        self.plain.weight = self.wide.weight
        self.head = nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(3):
            x = F.relu(x + self.block(x))
        means = [F.relu(layer(x)).mean((2, 3)) for layer in (self.wide, self.plain)]
        return self.head(means[0] - means[1])  # type: ignore[no-any-return]


class Words(nn.Module):
    """A table that is the head, too."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(40, 16), nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 40, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.table(ids)
        return self.head(self.norm(x + self.down(F.gelu(self.up(x)))))  # type: ignore[no-any-return]


def made(kind: type[nn.Module]) -> tuple[nn.Module, list[Tensor], list[Tensor]]:
    """A network, calibration data and other data."""
    torch.manual_seed(0)
    net = kind().eval()
    if kind is Blocks:
        return net, images(count=64), images(count=64, seed=2)
    rng = torch.Generator().manual_seed(3)
    ids = torch.randint(40, (64, 10), generator=rng)
    return net, list(ids[:48].split(16)), [ids[48:]]


GROUPS = {
    Blocks: {"block": ["block", "block_1", "block_2"], "wide": ["wide", "plain"]},
    Words: {"head": ["table", "head"]},
}


@pytest.mark.parametrize(("kind", "gain"), [(Blocks, 8.0), (Words, 2.5)])
def test_one_solution_for_all_layers_and_one_tensor_in_the_file(
    kind: type[nn.Module], gain: float, tmp_path: Path
) -> None:
    net, data, unseen = made(kind)
    exact = {name: value.clone() for name, value in net.state_dict().items()}
    sim = simulation(net, data, 3)
    before = sqnr(net, sim, unseen)
    report = reconstruct(sim, data)
    assert sqnr(net, sim, unseen) > before + gain
    assert on_its_grid(sim)
    solved = {r.path: r.changed for r in report.layers}
    for first, paths in GROUPS[kind].items():
        assert solved[first].startswith("weight")
        modules: list[Any] = [sim.model.get_submodule(path) for path in paths]
        assert len({id(m.weight) for m in modules}) == 1
        assert len({id(m.param_quantizers["weight"]) for m in modules}) == 1
        for path, module in zip(paths, modules, strict=True):
            assert torch.equal(float_value(module, "weight"), exact[f"{paths[0]}.weight"])
            if path != first:
                assert report.skipped[path].startswith(f"its weight is that of {first}")
    assert solved.keys() | report.skipped.keys() == {
        path for path, m in sim.named_qmodules() if "weight" in dict(m.param_quantizers.active())
    }
    assert sim.export(tmp_path, "net", dummy_input=data[0])
    weights = [i for i in onnx.load(tmp_path / "net.onnx").graph.initializer if len(i.dims) > 1]
    assert len(weights) == len({id(p) for p in net.parameters() if p.dim() > 1})


def test_moments_of_layers_with_one_weight_are_those_of_their_rows_together() -> None:
    """Each part with a bias may add a constant of its own; the others may not."""
    rng = torch.Generator().manual_seed(0)
    rows = [torch.randn(1, n, 5, generator=rng) + n / 30 for n in (40, 30, 60)]
    wanted = [torch.randn(1, x.shape[1], 3, generator=rng) + 2 for x in rows]
    biased = (True, False, True)
    parts = [Moments.of(x, y) for x, y in zip(rows, wanted, strict=True)]
    tied = TiedMoments(tuple(p for p in parts if p), biased)
    assert tied.count == 130
    inverse = torch.linalg.inv(tied.second(centred=True))
    found = tied.target(torch.zeros(1, 3, 5).double(), inverse, centred=True)
    # least squares over all rows, with a column of ones for each bias
    ones = torch.block_diag(*[torch.ones(x.shape[1], 1) for x in rows])[:, [0, 2]]
    columns = torch.cat([torch.cat(rows, 1)[0], ones], 1).double()
    exact = torch.linalg.lstsq(columns, torch.cat(wanted, 1)[0].double()).solution
    assert torch.allclose(found[0], exact[:5].T, atol=1e-5)
    biases = tied.bias(found)
    assert torch.allclose(biases[[0, 2], 0], exact[5:], atol=1e-5)
    assert not biases[1].any()


def test_running_ahead_leaves_the_walk_and_the_simulation_as_they_are() -> None:
    net, data, _ = made(Blocks)
    sim = simulation(net, data, 3)
    gm = sim.model
    exact, simulated = FloatEnvironment(gm, "float"), Environment(gm, "simulation")
    walk = Walk(gm, data, (exact, simulated))
    calls = {str(n.target): n for n in gm.graph.nodes if n.op == "call_module"}
    ends = [calls[path] for path in ("block", "block_1", "block_2")]
    seen: list[Any] = []
    later: dict[Any, Any] = {}
    with torch.no_grad():
        for node in walk.nodes():
            walk.compute(node, exact)
            if node is ends[0]:
                keys = list(walk.store._values)
                seen += Ahead(walk, ends, exact, exact).visits(1)
                assert list(walk.store._values) == keys
            if node in ends:
                later[node] = walk.operands(node, exact, 1)[0][0], walk.value(node, exact, 1)
    assert [given.node for given in seen] == ends
    for given in seen:
        assert torch.equal(given.operands[0][0], later[given.node][0])
        assert torch.equal(given.value, later[given.node][1])
    assert all(q.enabled for m in sim.qmodules() for _, q in m.param_quantizers.active())


def test_limited_memory_gives_the_same_result(tmp_path: Path) -> None:
    results = []
    for memory in (None, 200_000):
        net, data, _ = made(Blocks)
        sim = simulation(net, data, 3)
        options = ReconstructionOptions(max_memory=memory, folder=tmp_path)
        report = reconstruct(sim, data, options)
        results.append(parameters(sim))
    assert report.written_bytes
    assert same(*results)


def test_a_weight_whose_tensor_or_bias_is_also_used_elsewhere_is_left_alone() -> None:
    class Elsewhere(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.b.weight, self.c.bias = self.a.weight, self.a.bias

        def forward(self, x: Tensor) -> Tensor:
            return self.c(self.b(F.relu(self.a(x)))) * self.b.weight.sum()  # type: ignore[no-any-return]

    data = images(8)
    sim = simulation(Elsewhere().eval(), data)
    before = parameters(sim)
    report = reconstruct(sim, data)
    uses, biases = "its weight is used in several places", "its bias is used in several places"
    assert report.skipped == {"a": uses, "b": uses, "c": biases}
    assert same(before, parameters(sim))


QUICK = FinetuneParams(refinement=RefinementOptions(iterations=20, batch=256))
TECHNIQUES: dict[str, Callable[..., Any]] = {
    "seq_mse": apply_seq_mse,
    "gptq": apply_gptq,
    "bias": correct_bias,
    "finetune": lambda sim, data: fast_finetune(sim, data, QUICK),
}


@pytest.mark.parametrize("name", TECHNIQUES)
def test_the_techniques_take_layers_with_one_weight(name: str) -> None:
    net, data, unseen = made(Blocks)
    sim: QuantizationSimModel = simulation(net, data, 3)
    before = sqnr(net, sim, unseen)
    report: Any = TECHNIQUES[name](sim, data)
    done = {r.path for r in report.layers}
    if name == "bias":
        # a bias that three calls have cannot be right for each of them
        assert report.skipped == dict.fromkeys(
            ("block", "block_1", "block_2"), "its bias is used in several places"
        )
        assert done == {"stem", "wide", "plain", "head"}
    else:
        assert done == {"stem", "block", "wide", "head"}
    assert sqnr(net, sim, unseen) > before
