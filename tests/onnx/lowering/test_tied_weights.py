"""A table that is the weight of a head, too: one grid, and stored once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from fxquant.onnx.lowering.lower import lower
from fxquant.prepare import prepare_model
from fxquant.sim import QuantizationSimModel
from tests.helpers.lowering import run
from tests.helpers.modules import quantized

ROWS, WIDTH = 30, 16


class Tied(nn.Module):
    """A small language model whose rows have very different sizes."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(ROWS, WIDTH), nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, ROWS, bias=False)
        with torch.no_grad():
            self.table.weight.mul_(torch.logspace(-3, 1, ROWS)[:, None])
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """[N, L] -> the embedding [N, L, 16] and the logits [N, L, 30]."""
        x = self.table(tokens)
        return x, self.head(self.norm(x))


TOKENS = torch.arange(2 * ROWS).remainder(ROWS).reshape(4, -1)


def simulation(**options: Any) -> QuantizationSimModel:
    """A calibrated simulation."""
    torch.manual_seed(0)
    sim = QuantizationSimModel(Tied().eval(), TOKENS, "min_max", **options)
    sim.compute_encodings([TOKENS])
    return sim


def weight_shapes(sim: QuantizationSimModel) -> dict[str, tuple[int, ...]]:
    """Shape of the grid of table and head."""
    return {
        name: tuple(quantized(sim, name).param_quantizers["weight"].shape)
        for name in ("table", "head")
    }


def tables(path: Path) -> dict[str, Any]:
    """Initializers with as many elements as the table."""
    found = {i.name: numpy_helper.to_array(i) for i in onnx.load(path).graph.initializer}
    return {k: v for k, v in found.items() if v.size == ROWS * WIDTH}


@pytest.mark.parametrize("config", [{}, {"weight_symmetric": False}, {"weight_bitwidth": 4}])
def test_one_grid_per_row_serves_both(config: dict[str, Any], tmp_path: Path) -> None:
    sim = simulation(config=config)
    assert weight_shapes(sim) == {"table": (ROWS, 1), "head": (ROWS, 1)}
    for deploy in ("any", "avx2"):
        assert sim.export(tmp_path, "net", TOKENS, deploy=deploy)
        (table,) = tables(tmp_path / "net.onnx").items()
        assert table[0] == "table.weight"
        if config.get("weight_bitwidth") != 4:
            assert table[1].dtype == (np.uint8 if deploy == "avx2" else np.int8)
    # every row is exact to half a step of its own
    weight = sim.model.get_parameter("table.weight").detach()
    got = run(lower(sim.model, ((TOKENS,), {}), contrib=True), [TOKENS])[0]
    error = np.abs(got - weight[TOKENS].numpy())
    half = (
        quantized(sim, "table")
        .param_quantizers["weight"]
        .get_scale()
        .detach()[TOKENS][..., 0, None]
        .numpy()
        / 2
    )
    assert (error <= half * 1.001).all()


def test_a_float_model_stores_its_table_once() -> None:
    net = Tied().eval()
    lowered = lower(prepare_model(net, TOKENS), ((TOKENS,), {}))
    sizes = [v.const_value.size for v in lowered.model.graph.initializers.values() if v.const_value]
    assert sizes.count(ROWS * WIDTH) == 1
    for got, real in zip(run(lowered, [TOKENS]), net(TOKENS), strict=True):
        np.testing.assert_allclose(got, real.detach().numpy(), rtol=1e-5, atol=1e-5)


def test_a_head_alone_is_stored_transposed() -> None:
    """A product with a Transpose in front is slow where nobody folds it."""
    net = Tied().eval()
    net.head.weight = nn.Parameter(net.head.weight.detach().clone())
    lowered = lower(prepare_model(net, TOKENS), ((TOKENS,), {}))
    assert lowered.model.graph.initializers["head.weight"].shape == [WIDTH, ROWS]
    assert not [n for n in lowered.model.graph if n.op_type == "Transpose"]


@pytest.mark.parametrize(
    ("layers", "shape"),
    [
        ({"table": {"weight": {"per_channel": False}}}, ()),
        ({"head": {"weight": {"bitwidth": 4}}}, (ROWS, 1)),
    ],
)
def test_grids_that_cannot_be_one_stay_two(
    layers: dict[str, Any], shape: tuple[int, ...], tmp_path: Path
) -> None:
    sim = simulation(config={"layers": layers})
    assert weight_shapes(sim) == {"table": shape, "head": (ROWS, 1)}
    assert sim.export(tmp_path, "net", TOKENS)
    assert len(tables(tmp_path / "net.onnx")) == 2


def test_the_reason_is_explained() -> None:
    config = {"per_channel": False, "layers": {"head": {"weight": {"per_channel": True}}}}
    sim = simulation(config=config)
    assert weight_shapes(sim) == {"table": (ROWS, 1), "head": (ROWS, 1)}
    assert "grid per channel of head, to be stored once" in str(sim.explain("table"))


def test_where_both_have_one_grid_for_the_tensor_they_share_it(tmp_path: Path) -> None:
    sim = simulation(config={"per_channel": False})
    assert weight_shapes(sim) == {"table": (), "head": ()}
    assert sim.export(tmp_path, "net", TOKENS)
    assert list(tables(tmp_path / "net.onnx")) == ["table.weight"]
