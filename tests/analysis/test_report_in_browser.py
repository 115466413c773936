"""The report in a browser: it draws itself, addresses open nodes, and names stay texts."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest
import torch

from fxquant import QuantizationSimModel
from fxquant.models.bert import Bert
from tests.analysis.test_report import HOSTILE, hostile_page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER = next((found for name in _NAMES if (found := shutil.which(name))), None)

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no browser is installed")


def document(page: Path, address: str, folder: Path) -> str:
    """The document after its script has run."""
    done = subprocess.run(
        [
            str(BROWSER), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={folder / 'profile'}", "--window-size=1200,800",
            "--virtual-time-budget=3000", "--dump-dom", f"{page.as_uri()}#{address}",
        ],
        check=True, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    head = done.stdout.split("<body", 1)[0]
    # set by the script's last line: an error anywhere before would have left it out
    assert "data-ready=" in head
    return done.stdout


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = Bert(vocab=50, hidden=16, layers=12, heads=2, positions=16).eval()
    ids = torch.randint(0, 50, (4, 8))
    sim = QuantizationSimModel(model, (ids, torch.ones_like(ids)), "min_max")
    given = [(ids, torch.ones_like(ids))]
    sim.compute_encodings(given)
    return sim.report(tmp_path_factory.mktemp("report") / "bert.html", given)


def test_the_overview_says_how_good_it_is(page: Path, tmp_path: Path) -> None:
    text = document(page, "overview", tmp_path)
    assert re.search(r"Its outputs keep .{0,60}\d dB", text)
    assert text.count('class="hit"') > 100  # a node each, in the chart of errors
    assert "Worst nodes" in text


def test_twelve_blocks_are_one_box_and_an_address_opens_one(page: Path, tmp_path: Path) -> None:
    folded = document(page, "graph", tmp_path)
    assert re.search(r"12 × \d+ nodes", folded)
    assert "encoder.layer.7.output.dense" not in folded.split('id="data"')[0]
    node = "encoder_layer_7_output_dense"
    opened = document(page, f"node={node}", tmp_path).split('id="data"')[0]
    assert re.search(r'class="box at"[^>]*aria-label="encoder\.layer\.7\.output\.dense,', opened)
    assert opened.count('class="cell pick') == 12
    assert opened.count("cell pick now") == 1
    assert "Encoding of weight" in opened
    assert "Histogram of the float values" in opened


@pytest.mark.parametrize("tab", ["nodes", "weights", "recipe"])
def test_every_tab_is_drawn(page: Path, tmp_path: Path, tab: str) -> None:
    assert f'data-tab="{tab}"' in document(page, f"{tab}&theme=dark", tmp_path)


def test_hostile_names_stay_texts(tmp_path: Path) -> None:
    page = hostile_page(tmp_path)
    for address in ("overview", f"node={quote(HOSTILE)}"):
        shown = document(page, address, tmp_path)
        assert "<img" not in shown
        assert "&lt;/script&gt;&lt;img" in shown
