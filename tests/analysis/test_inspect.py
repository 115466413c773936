"""`inspect_model` of float models and simulations: rows, formats, the summary of a simulation."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import onnx
import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel, inspect_model
from fxquant.errors import ConfigError, SelectorError, UncalibratedError

if TYPE_CHECKING:
    from pathlib import Path

    from fxquant.inspection.rows import Inspection, InspectionRow

X = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(0))


class Net(nn.Module):
    """A residual block, a float island, a concatenation and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        a = self.stem(x)
        b = self.body(a) + a
        c = torch.cat([nn.functional.gelu(b), b], 1)
        return self.head(c.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def sim() -> QuantizationSimModel:
    torch.manual_seed(0)
    made = QuantizationSimModel(Net().eval(), X, "min_max")
    made.compute_encodings([X])
    return made


def by_module(found: Inspection) -> dict[str, InspectionRow]:
    return {row.module: row for row in found.rows}


def test_a_float_model_and_its_simulation_have_the_same_rows() -> None:
    torch.manual_seed(0)
    net = Net().eval()
    plan = inspect_model(net, X)
    assert inspect_model(QuantizationSimModel(net, X)) == plan
    assert not plan.calibrated
    assert all(r.grid is None or r.grid.scale is None for r in plan.rows)


def test_every_field_says_what_stands_there(sim: QuantizationSimModel) -> None:
    rows = by_module(inspect_model(sim))
    conv, relu, gelu = rows["stem.0"], rows["stem.2"], rows["gelu"]
    assert (conv.kind, conv.kernel, conv.precision) == ("integer", "QLinearConv", "uint8 x int8")
    assert (conv.output, conv.weight, conv.owner) == ("float", "int8 x 8 channels", "")
    assert (relu.kernel, relu.owner, relu.inputs) == ("in stem.0", "stem.2", (conv.node,))
    assert (gelu.kind, gelu.kernel, gelu.precision) == ("float", "Gelu", "float32")
    assert gelu.reason == "gelu is computed in floating point on onnxruntime_x86"
    assert relu.shapes == ((4, 8, 12, 12),)
    assert conv.input_shapes == ((4, 3, 12, 12),)
    assert conv.dtype == "float32"
    assert "test_inspect.py:" in relu.source
    quantizer = dict(sim.named_qmodules())["stem.2"].output_quantizers[0]
    scale, low, high = (float(v) for v in (quantizer.get_scale(), quantizer.min, quantizer.max))
    assert relu.grid is not None
    assert relu.grid.scale == (scale, scale)
    assert relu.grid.range == pytest.approx((low, high), abs=scale / 2)
    assert conv.weight_grid is not None
    assert conv.weight_grid.zero_point == 0


def test_tied_grids_have_one_owner(sim: QuantizationSimModel) -> None:
    rows = inspect_model(sim).rows
    joined = next(r for r in rows if r.operator == "cat")
    parts = [r for r in rows if r.node in joined.inputs]
    assert len(parts) == 2
    assert {r.owner for r in parts} == {joined.owner}


def test_changes_since_the_placement_count() -> None:
    torch.manual_seed(0)
    made = QuantizationSimModel(Net().eval(), X, "min_max")
    made.compute_encodings([X])
    made.set_precision("body", param=16)
    made.exclude_layers_from_quantization("head")
    for runtime in (False, True):
        rows = by_module(inspect_model(made, runtime=runtime))
        assert rows["body"].kind == "float"
        assert "16 bits" in rows["body"].reason
        assert rows["head"].kind == "float"
        assert rows["head"].reason == "it was excluded from quantization"
        assert rows["stem.0"].kind == "integer"


def test_rules_and_runtime_agree_on_what_is_computed_in_integers(sim: QuantizationSimModel) -> None:
    rules, runtime = (inspect_model(sim, runtime=given) for given in (False, True))
    assert [(r.node, r.kind) for r in rules.rows] == [(r.node, r.kind) for r in runtime.rows]
    assert runtime.runtime.startswith("onnxruntime ")


def test_the_text_has_eighty_columns_and_the_reasons(sim: QuantizationSimModel) -> None:
    found = inspect_model(sim)
    lines = str(found).splitlines()
    assert max(map(len, lines)) <= 80
    assert "  1 x gelu is computed in floating point on onnxruntime_x86 (gelu)" in lines
    # words are never broken, and the longest kernel is QLinearGlobalAveragePool
    assert max(map(len, found.text(64).splitlines())) <= 64
    whole = found.text(None)
    assert "4x8x12x12" in whole
    assert "test_inspect.py:" in whole


def test_json_holds_all_rows(sim: QuantizationSimModel) -> None:
    found = inspect_model(sim)
    data = json.loads(found.to_json())
    assert [r["node"] for r in data["rows"]] == [r.node for r in found.rows]
    assert data["rows"][0]["grid"]["type"] == "uint8"


def test_networkx_has_the_edges_of_the_graph(sim: QuantizationSimModel) -> None:
    found = inspect_model(sim)
    graph = found.to_networkx()
    edges = {
        (a.name, n.name)
        for n in sim.model.graph.nodes
        for a in n.all_input_nodes
        if n.name in {r.node for r in found.rows}
    }
    assert set(graph.edges) == edges
    assert graph.nodes[found.rows[1].node]["operator"] == "conv2d"


def test_model_explorer_calls_nodes_as_the_file_does(
    sim: QuantizationSimModel, tmp_path: Path
) -> None:
    found = inspect_model(sim)
    sim.export(tmp_path, "net", prove=False)
    graph = onnx.load(tmp_path / "net.onnx").graph
    results = json.loads(found.to_model_explorer("kernel"))[graph.name]["results"]
    nodes = [n.name for n in graph.node if n.op_type not in ("QuantizeLinear", "DequantizeLinear")]
    # an operator that becomes several names the others after its own: mean, mean.squeeze
    assert nodes[0] == "stem.0"
    assert {name for name in nodes if name.partition(".")[0] != "mean"} <= results.keys()
    assert "mean" in nodes
    assert "mean" in results
    assert results["body"]["value"] == "QLinearConv"
    scales = json.loads(found.to_model_explorer("scale"))[graph.name]
    assert scales["gradient"][0]["stop"] == 0
    assert all(isinstance(v["value"], float) for v in scales["results"].values())


def test_mistakes(sim: QuantizationSimModel) -> None:
    with pytest.raises(ConfigError, match="its own dummy_input"):
        inspect_model(sim, X)
    with pytest.raises(ConfigError, match="its own target"):
        inspect_model(sim, target="amd_aie2")
    with pytest.raises(ConfigError, match="FXQ289"):
        inspect_model(Net())
    with pytest.raises(ConfigError, match="did you mean 'kernel'"):
        inspect_model(sim).to_model_explorer("kernels")
    with pytest.raises(UncalibratedError):
        inspect_model(QuantizationSimModel(Net(), X), runtime=True)


def test_a_simulation_prints_on_one_screen(sim: QuantizationSimModel) -> None:
    before = str(QuantizationSimModel(Net().eval(), X))
    assert "calibrated no: " in before
    assert "next: sim.compute_encodings" in before
    text = str(sim)
    assert 5 < len(text.splitlines()) < 60
    assert "object at 0x" not in text
    assert "calibrated yes" in text
    assert "1 x gelu is computed in floating point" in text
    assert "next: sim.export" in text


def test_the_summary_counts_weights_that_were_changed() -> None:
    made = QuantizationSimModel(Net().eval(), X, "min_max")
    made.compute_encodings([X])
    with torch.no_grad():
        made.model.get_submodule("head").weight.mul_(2.0)  # type: ignore[operator]
    assert "weights changed since: head.weight" in str(made)


def test_a_thousand_nodes_print_on_one_screen() -> None:
    layers = [m for _ in range(330) for m in (nn.Conv2d(2, 2, 1), nn.ReLU(), nn.GELU())]
    made = QuantizationSimModel(nn.Sequential(*layers).eval(), X[:, :2], "min_max")
    assert 5 < len(str(made).splitlines()) < 60


def test_the_table_lists_every_quantizer(sim: QuantizationSimModel) -> None:
    table = sim.table().splitlines()
    assert len(table) - 2 >= len(list(sim.quantizers()))
    assert any(line.startswith("stem.2") and "uint8" in line for line in table)
    assert any(line.startswith("head") and "int32 x 5 channels" in line for line in table)


def test_a_chain_of_reasons_ends_where_it_was_decided(sim: QuantizationSimModel) -> None:
    found = inspect_model(sim)
    lines = found.explain("stem.2").splitlines()
    assert lines[0].startswith("stem.2: relu, uint8, kernel in stem.0, output uint8 ")
    assert "  its kernel is that of stem.0" in lines
    assert any(line.startswith("    stem.0: conv2d, uint8 x int8, kernel ") for line in lines)
    with pytest.raises(SelectorError, match="did you mean 'stem"):
        found.explain("stem.9")
