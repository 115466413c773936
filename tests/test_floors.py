"""Imports point down: a file imports only from its own floor or from floors below it."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent

# the longest prefix that matches a module's name decides; what stands on the floor, and why, is
# written down in CONTRIBUTING.md
FLOORS: tuple[tuple[str, ...], ...] = (
    (
        "fxquant.errors",
        "fxquant._version",
        "fxquant.io.text_tables",
        "fxquant.io.writing",
        "fxquant.io.reading",
    ),
    (
        "fxquant.quantization",
        "fxquant.ops",
        "fxquant.config",
        "fxquant.targets",
        "fxquant.aimet_config",
    ),
    ("fxquant.graph",),
    ("fxquant.nn",),
    ("fxquant.passes",),
    (
        "fxquant.prepare",
        "fxquant.validate",
        "fxquant.calibrate",
        "fxquant.regions",
        "fxquant.fingerprint",
    ),
    (
        "fxquant.sim",
        "fxquant.export_methods",
        "fxquant.encodings",
        "fxquant.editing",
        "fxquant.checkpoint",
        "fxquant.io.state_dicts",
    ),
    ("fxquant.ptq", "fxquant.qat", "fxquant.onnx", "fxquant.export"),
    ("fxquant.analysis",),
    (
        "fxquant",
        "fxquant.cli",
        "fxquant.__main__",
        "fxquant.cli.loading",
        "fxquant.cli.batches",
        "fxquant.cli.progress",
    ),
)
# the table's rows name the modules that operators become; graph/ reads the rows
ALLOWED = {
    ("fxquant.ops", "fxquant.nn.functional"),
    ("fxquant.ops", "fxquant.nn.stubs"),
    # imported in `sim.export()`: a simulation needs no ONNX
    ("fxquant.export_methods", "fxquant.export"),
    # imported in `sim.load_encodings()`: the names of ONNX tensors are those of a lowering
    ("fxquant.encodings_methods", "fxquant.onnx.encodings_file"),
    (
        "fxquant.export_methods",
        "fxquant.onnx.integer",
    ),  # imported in `sim.integer_model()`, likewise
}
# networks are data: they stand beside the house and use nothing of it but its errors
MODELS = "fxquant.models"


def _files() -> list[Path]:
    # the links fxquant/passes and fxquant/models are walked under their installed names
    return sorted(p for p in _walk(ROOT / "fxquant") if p.suffix == ".py")


def _walk(folder: Path) -> Iterator[Path]:
    for path in folder.iterdir():
        if path.is_dir():
            yield from _walk(path)
        else:
            yield path


def _name(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _floor(module: str) -> int:
    found = [
        (len(prefix), floor)
        for floor, prefixes in enumerate(FLOORS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    assert found, f"{module} stands on no floor: add it to FLOORS"
    return max(found)[1]


MODULES = {_name(p) for p in _files()}


def imports(path: Path) -> list[tuple[str, int, bool]]:
    """(module, line, whether it only serves type checkers) of every import of ours."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    typing_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in ast.walk(node)
    }
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            full = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES else base for name in full]
        else:
            continue
        found += [(name, node.lineno, id(node) in typing_only) for name in names]
    return found


@pytest.mark.parametrize("path", _files(), ids=_name)
def test_imports_point_down(path: Path) -> None:
    own = _name(path)
    for name, line, typing_only in imports(path):
        place = f"{path.relative_to(ROOT)}:{line}"
        assert not name.startswith("."), f"{place}: relative import"
        top = name.partition(".")[0]
        assert top not in ("passes", "models"), f"{place}: import fxquant.{name} instead"
        if top != "fxquant" or typing_only:
            continue
        if own.startswith(MODELS):
            allowed = name.startswith(MODELS) or name == "fxquant.errors"
            assert allowed, f"{place}: a network imports {name}"
        elif not any(own == a and name.startswith(b) for a, b in ALLOWED):
            assert not name.startswith(MODELS), f"{place}: the library imports a network"
            assert _floor(name) <= _floor(own), f"{place}: {own} imports {name}, a floor above"


@pytest.mark.parametrize("path", sorted((ROOT / "passes").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_a_pass_imports_no_pass(path: Path) -> None:
    for name, line, _ in imports(path):
        assert not name.startswith("fxquant.passes"), f"{path.name}:{line}: imports {name}"


def test_nothing_imports_the_vitis_face() -> None:
    for path in _files():
        users = [name for name, _, _ in imports(path) if name.startswith("fxquant.vitis")]
        inside = _name(path).startswith("fxquant.vitis")
        assert not users or inside or _name(path) in ("fxquant", "fxquant.cli"), path


def test_outside_the_package_passes_and_models_have_their_full_names() -> None:
    for folder in ("tests", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for name, line, _ in imports(path):
                top = name.partition(".")[0]
                assert top not in ("passes", "models"), f"{path}:{line}: import fxquant.{name}"
