"""What starting costs: which modules an import loads; `benchmarks/import_speed.py` has seconds."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import fxquant
from fxquant.auto.scoring import ON
from fxquant.cli import command
from fxquant.quantization import QuantScheme
from fxquant.targets import DEPLOYMENTS

ROOT = Path(__file__).parent.parent
# slow to import, and needed by single calls only
LATER = {"networkx", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "rich", "click"}


def _loaded(code: str) -> set[str]:
    """Modules that a new process has loaded after some code."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}\nprint(*sys.modules)"],
        cwd=ROOT, check=True, capture_output=True, text=True,
    )  # fmt: skip
    return set(done.stdout.split("\n")[-2].split())


def test_the_package_alone_loads_no_torch() -> None:
    loaded = _loaded("import fxquant, fxquant.errors")
    assert "torch" not in loaded
    assert {m for m in loaded if m.startswith("fxquant.")} <= {"fxquant._version", "fxquant.errors"}


def test_the_public_names_load_what_they_need_and_no_more() -> None:
    before = _loaded("import torch")
    added = _loaded("import torch\nfrom fxquant import *") - before
    assert not {m.partition(".")[0] for m in added} & LATER
    others = {m for m in added if not m.startswith("fxquant")}
    assert len(others) < 100, "pydantic and safetensors have 50 modules; each more is time"


@pytest.mark.parametrize("words", [["--help"], ["quantize", "--help"], ["verify", "--nothing"]])
def test_help_and_mistakes_in_a_command_line_need_no_torch(words: list[str]) -> None:
    call = f"from fxquant.cli import main\ntry: main({words})\nexcept SystemExit: pass"
    assert not {"torch", "numpy", "onnx"} & _loaded(call)


def test_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse((ROOT / "fxquant" / "__init__.py").read_text(encoding="utf-8"))
    block = next(n for n in tree.body if isinstance(n, ast.If))
    homes = {
        alias.name: node.module
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for name in fxquant.__all__:
        if name not in ("__version__", "quantization"):
            home = fxquant._HOMES[name]  # type: ignore[attr-defined]
            assert homes[name] == f"fxquant.{home}", name
        assert getattr(fxquant, name) is not None
    assert {*fxquant.__all__, "nn"} == {*homes, "__version__"}
    assert {*fxquant.__all__, "nn"} <= set(dir(fxquant))


def test_parts_are_there_without_an_import_of_their_own() -> None:
    code = "import fxquant; fxquant.nn.QuantStub, fxquant.errors.FxQuantError, fxquant.vitis"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
    with pytest.raises(AttributeError, match="no attribute 'quantise'"):
        fxquant.quantise  # type: ignore[attr-defined]  # noqa: B018


def test_what_the_command_line_writes_out_is_what_the_parts_know() -> None:
    assert (*(scheme.value for scheme in QuantScheme), "tf") == command.SCHEMES
    assert command.DEPLOYMENTS == DEPLOYMENTS
    assert command.FORMS == ON
