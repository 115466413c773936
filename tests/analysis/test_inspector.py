"""The inspector: which operators a target takes, which not and why, and the picture."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from textwrap import dedent
from typing import Any
from xml.dom import minidom

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxquant import QuantizationSimModel
from fxquant.analysis.inspector import Inspector, InspectorReport
from fxquant.errors import SelectorError
from fxquant.targets import available

_X = torch.zeros(1, 3, 32, 32)


class Mixed(nn.Module):
    """Operators that a small chip takes, and some that it does not."""

    def __init__(self) -> None:
        super().__init__()
        self.c1, self.c2 = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=17, dilation=17),
        )
        self.c3, self.fc = nn.Conv2d(16, 8, 1), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        a = F.relu(self.c1(x))
        b = F.gelu(self.c2(a))
        c = F.max_pool2d(self.c3(torch.cat([a, b], 1)), 2)
        d = F.softmax(c.flatten(2), -1).reshape(c.shape) * c
        return self.fc(d.mean((2, 3)))  # type: ignore[no-any-return]


def inspected(target: str = "amd_aie2", model: nn.Module | None = None) -> InspectorReport:
    return Inspector(target).inspect((model or Mixed()).eval(), _X)


def test_every_operator_has_a_device_and_a_part() -> None:
    rows = [f"{n.module} {n.operator} {n.device} {n.partition}" for n in inspected().nodes]
    assert (
        "\n".join(rows)
        == dedent(
            """
        c1 conv2d target 1
        relu relu target 1
        c2 conv2d float 2
        gelu gelu float 2
        cat cat target 3
        c3 conv2d target 3
        max_pool2d max_pool2d target 3
        flatten flatten target 3
        softmax softmax float 4
        reshape reshape float 4
        mul mul target 5
        mean mean target 5
        fc linear target 5
        """
        ).strip()
    )


def test_a_refusal_names_operator_constraint_value_and_line() -> None:
    refused = {n.module: n for n in inspected().refused}
    c2 = refused["c2"]
    assert (c2.operator, c2.constraint, c2.value) == ("conv2d", "dilation", "(17, 17)")
    assert c2.allowed == "1 to 16"
    assert re.search(r"test_inspector\.py:\d+$", c2.source)
    assert "gelu" in refused["gelu"].reason
    assert refused["gelu"].constraint == ""


def test_an_absorbed_activation_says_by_whom() -> None:
    nodes = {n.module: n for n in inspected().nodes}
    assert "kernel of c1" in nodes["relu"].reason


@pytest.mark.parametrize("target", available())
def test_the_inspector_and_the_placement_agree(target: str) -> None:
    sim = QuantizationSimModel(Mixed().eval(), _X, target=target)
    weighted = {n for n, m in sim.named_qmodules() if list(m.param_quantizers.active())}
    taken = {n.module for n in inspected(target).nodes if n.device == "target"}
    assert weighted == taken & {"c1", "c2", "c3", "fc"}


@pytest.mark.parametrize("target", available())
def test_no_part_needs_itself(target: str) -> None:
    report = inspected(target)
    part = {n.name: n.partition for n in report.nodes}
    for node in report.nodes:
        assert all(part[producer] <= node.partition for producer in node.inputs)
    order = [p.number for p in report.partitions]
    assert order == sorted(order)
    for a, b in itertools.pairwise(report.partitions):
        assert set(a.nodes).isdisjoint(b.nodes)


def test_a_target_that_takes_all_has_one_part() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1))
    report = inspected("generic_pof2", net)
    assert not report.refused
    assert len(report.partitions) == 1
    assert "4 of 4 operators on generic_pof2, in 1 sub-graph(s)" in str(report)


def test_the_report_is_text_json_and_picture(tmp_path: Path) -> None:
    report = Inspector("AMD_AIE2_Nx4_Overlay_cfg0").inspect(Mixed().eval(), _X, output_dir=tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {
        f"inspect_amd_aie2.{k}" for k in ("txt", "json", "svg")
    }
    data = json.loads((tmp_path / "inspect_amd_aie2.json").read_text())
    assert [n["module"] for n in data["nodes"]] == [n.module for n in report.nodes]
    assert data["partitions"][1] == {"number": 2, "device": "float", "nodes": ["c2", "gelu"]}


def boxes_of(document: Any) -> list[tuple[float, ...]]:
    """Places of operators and closed groups."""
    rects = document.getElementsByTagName("rect")
    found = [r for r in rects if r.getAttribute("rx") in ("7", "9")]
    return [tuple(float(b.getAttribute(k)) for k in ("x", "y", "width", "height")) for b in found]


def test_the_picture_is_well_formed_and_boxes_stay_apart() -> None:
    report = inspected()
    document = minidom.parseString(report.to_svg())
    places = boxes_of(document)
    assert len(places) == len(report.nodes)
    for a, b in itertools.combinations(places, 2):
        apart = (
            a[0] + a[2] <= b[0] or b[0] + b[2] <= a[0] or a[1] + a[3] <= b[1] or b[1] + b[3] <= a[1]
        )
        assert apart, (a, b)
    root: Any = document.documentElement
    width, height = (float(root.getAttribute(k)) for k in ("width", "height"))
    assert all(x >= 0 and x + w <= width and y + h <= height for x, y, w, h in places)
    titles = [t.firstChild.data for t in document.getElementsByTagName("title")]  # type: ignore[union-attr]
    assert any("dilation=(17, 17)" in t and "test_inspector.py:" in t for t in titles)


class Tower(nn.Module):
    """Blocks of blocks, of which no two neighbours are alike, and 24 that are."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.Sequential(
            *(nn.Sequential(*(Step(3, 3, k) for _ in range(12))) for k in (1, 3, 5, 7))
        )
        self.tail = nn.Sequential(*(Step(3, 3, 1) for _ in range(24)))

    def forward(self, x: Tensor) -> Tensor:
        return self.tail(self.stages(x))  # type: ignore[no-any-return]


class Step(nn.Sequential):
    """A convolution with its activation, and a residual sum."""

    def __init__(self, a: int, b: int, kernel: int) -> None:
        super().__init__(
            nn.Conv2d(a, b, kernel, padding=kernel // 2), nn.ReLU(), nn.Conv2d(b, b, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + super().forward(x))  # type: ignore[no-untyped-call]


def test_the_picture_of_a_large_network_is_one_page() -> None:
    report = inspected("amd_aie2", Tower())
    document = minidom.parseString(report.to_svg())
    root: Any = document.documentElement
    assert len(report.nodes) > 300
    assert float(root.getAttribute("height")) < 1600
    texts = [t.firstChild.data for t in document.getElementsByTagName("text")]  # type: ignore[union-attr]
    assert "tail × 24" in texts
    assert any(text.endswith(" operators") for text in texts)


def test_names_are_escaped() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.add_module("a<b&c", nn.Conv2d(3, 4, 1))

        def forward(self, x: Tensor) -> Tensor:
            return self.get_submodule("a<b&c")(x)  # type: ignore[no-any-return]

    assert minidom.parseString(inspected(model=Odd()).to_svg())


def test_an_unknown_target_is_an_error() -> None:
    with pytest.raises(SelectorError, match="FXQ260"):
        Inspector("DPU_of_another_house")


def test_the_model_is_not_changed() -> None:
    model = Mixed().eval()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    inspected(model=model)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert type(model.c1) is nn.Conv2d
