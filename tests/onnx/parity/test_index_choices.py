"""Choices by floats: what depends on them is proven from the simulation's, ties are told apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.errors import ParityError
from fxquant.onnx.io.writer import write_model
from fxquant.onnx.lowering.lower import lower
from fxquant.onnx.parity.error_bounds import Bound
from fxquant.onnx.parity.error_rules import Valued
from fxquant.onnx.parity.index_choices import Choice, Chooser
from fxquant.onnx.parity.prove import prove


class Best(nn.Module):
    """DataDependentReads up the rows with the highest scores, as detectors do."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.score, self.row = nn.Linear(8, 1), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        scores = self.score(x).squeeze(-1)
        if self.kind == "topk":
            places = scores.topk(3)[1]
        elif self.kind == "sort":
            places = scores.sort(dim=1, descending=True)[1][:, :3]
        else:
            places = scores.argmax(dim=1, keepdim=True)
        rows = self.row(x).gather(1, places[..., None].expand(-1, -1, 8))
        return torch.relu(rows), places


def simulated(kind: str) -> tuple[QuantizationSimModel, Tensor]:
    torch.manual_seed(0)
    x = torch.randn(2, 40, 8)
    sim = QuantizationSimModel(Best(kind), x)
    sim.compute_encodings([x])
    return sim, x


@pytest.mark.parametrize("kind", ["topk", "sort", "argmax"])
def test_choices_are_compared_and_what_they_choose_is_exact(kind: str, tmp_path: Path) -> None:
    sim, x = simulated(kind)
    report = sim.export(tmp_path, "best", x)
    assert [(c.level, c.other, c.proven) for c in report.choices] == [
        ("off", 0, True),
        ("all", 0, True),
    ]
    assert "choices by argmax, topk and sort: 0 of" in str(report)
    assert report.to_dict()["choices"][0]["elements"] == report.choices[0].elements > 0


def test_another_choice_is_found_where_it_is_made(tmp_path: Path) -> None:
    sim, x = simulated("topk")
    lowered = lower(sim.model, ((x,), {}))
    path = tmp_path / "best.onnx"
    write_model(lowered, path)
    model = onnx.load(path)
    (topk,) = (n for n in model.graph.node if n.op_type == "TopK")
    next(a for a in topk.attribute if a.name == "largest").i = 0
    onnx.save(model, path)
    report = prove(sim.model, lowered, ((x,), {}), path)
    assert not report
    assert not any(r.unexplained for r in report.tensors), "only the choice itself is wrong"
    with pytest.raises(ParityError, match="FXQ569: topk chooses 6 of 6 otherwise"):
        report.raise_unless_proven()


def test_another_choice_among_equals_is_a_tie() -> None:
    scores = np.array([[1.0, 3.0, 3.0, 2.0]], np.float32)
    chooser = Chooser("topk", "scores", "places", -1)
    choice = Choice(chooser, scores, np.array([[1, 2]]))
    same = choice.row(np.array([[1, 2]]), "off", None)
    assert (same.other, same.lost, same.proven) == (0, 0.0, True)
    turned = choice.row(np.array([[2, 1]]), "off", None)
    assert (turned.other, turned.lost, turned.proven) == (2, 0.0, True)
    wrong = choice.row(np.array([[1, 3]]), "off", Bound(3.0, 0.1))
    assert (wrong.other, wrong.lost, wrong.proven) == (1, 1.0, False)
    assert choice.row(np.array([[1, 3]]), "off", Bound(3.0, 0.5)).proven


@pytest.mark.parametrize(("error", "proven"), [(0.6, True), (0.4, False), (np.inf, False)])
def test_float64_scores_decide_beyond_the_bound_of_the_tensor(error: float, proven: bool) -> None:
    scores = np.array([[1.0, 3.0, 2.0]], np.float32)
    choice = Choice(Chooser("argmax", "scores", "places", -1), scores, np.array([1]))
    exact = Valued(scores.astype(np.float64), np.full(scores.shape, error))
    row = choice.row(np.array([2]), "off", Bound(3.0, 1e-7), exact)
    assert (row.other, row.lost, row.proven) == (1, 1.0, proven)
