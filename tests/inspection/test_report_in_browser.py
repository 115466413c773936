"""The report in a browser: it draws itself, addresses and keys open nodes, names stay texts."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import torch

from fxquant import QuantizationSimModel
from fxquant.models.bert import Bert
from tests.inspection.test_report import HOSTILE, hostile_page

if os.name != "posix":
    pytest.skip("the browser is spoken to over pipes", allow_module_level=True)

from tests.helpers.browser import PROGRAM, browser

if TYPE_CHECKING:
    from tests.helpers.browser import Page

pytestmark = pytest.mark.skipif(PROGRAM is None, reason="no browser is installed")

_FOCUS = "document.activeElement.getAttribute('aria-label')"
_BOXES = "document.querySelectorAll('.box').length"
_PANEL = "!document.getElementById('panel').hidden"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = Bert(vocab=50, hidden=16, layers=12, heads=2, positions=16).eval()
    ids = torch.randint(0, 50, (4, 8))
    sim = QuantizationSimModel(model, (ids, torch.ones_like(ids)), "min_max")
    given = [(ids, torch.ones_like(ids))]
    sim.compute_encodings(given)
    return sim.report(tmp_path_factory.mktemp("report") / "bert.html", given)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


@pytest.fixture
def page(shared: Page) -> Iterator[Page]:
    yield shared
    assert shared.errors == []


def test_the_overview_says_how_good_it_is(page: Page, report: Path) -> None:
    page.open(report, "overview")
    text = page.value("document.getElementById('main').innerText")
    assert "Its outputs keep" in text
    assert "Worst nodes" in text
    # a node each, in the chart of errors
    assert page.value("document.querySelectorAll('.hit').length") > 100


def test_twelve_blocks_are_one_box_and_an_address_opens_one(page: Page, report: Path) -> None:
    page.open(report, "graph")
    folded = page.value(_BOXES)
    assert folded < 20
    assert "12 × " in page.value("document.querySelector('.canvas').textContent")
    page.open(report, "node=encoder_layer_7_output_dense")
    label = page.value("document.querySelector('.box.at').getAttribute('aria-label')")
    assert label.startswith("encoder.layer.7.output.dense, linear")
    cells = "[...document.querySelectorAll('.cell.pick')].map(c => c.classList.contains('now'))"
    assert page.value(cells) == [i == 7 for i in range(12)]
    panel = page.value("document.getElementById('panel').textContent")
    assert "Encoding of weight" in panel
    assert "of the noise" in panel


@pytest.mark.parametrize("tab", ["nodes", "weights", "recipe"])
def test_every_tab_is_drawn(page: Page, report: Path, tab: str) -> None:
    page.open(report, f"{tab}&theme=dark")
    assert page.value("document.querySelector('[aria-selected=true]').dataset.tab") == tab
    assert page.value("document.documentElement.classList.contains('dark')")
    assert page.value("document.querySelectorAll('main tr').length") > 3


def test_keys_are_enough(page: Page, report: Path) -> None:
    page.open(report, "overview")
    page.press("/", *"layer.3 intermediate.dense", "Enter")
    assert page.value("location.hash") == "#graph&node=encoder_layer_3_intermediate_dense"
    assert page.value(_PANEL)
    page.press("Escape")
    assert not page.value(_PANEL)
    page.value("document.querySelector('.box[aria-label^=\"encoder, open\"]').focus()")
    opened = page.value(_BOXES)
    page.press("Enter")
    assert page.value(_BOXES) < opened
    assert "folded" in page.value(_FOCUS)
    page.press("Enter", "ArrowRight")
    assert page.value(_FOCUS).startswith("encoder")
    page.press("ArrowDown", "ArrowDown", "ArrowDown")
    assert "encoder.layer" in page.value(_FOCUS)


def test_hostile_names_stay_texts(page: Page, tmp_path: Path) -> None:
    report = hostile_page(tmp_path)
    for address in ("overview", f"node={quote(HOSTILE)}", "nodes"):
        page.open(report, address)
        assert page.value("document.querySelectorAll('img').length") == 0
        assert page.value("document.getElementById('title').textContent") == HOSTILE
        assert HOSTILE in page.value("document.getElementById('main').textContent")
