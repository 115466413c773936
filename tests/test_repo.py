"""House rules no linter knows: sizes, no prints, no paths of machines, links, versions."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import fxquant
from fxquant._version import __version__

ROOT = Path(__file__).parent.parent
FOLDERS = ("fxquant", "passes", "models", "tests", "benchmarks", "examples")
TABLES = (
    "fxquant/ops.py",
    "fxquant/tracing/shape_rules.py",
    "tests/",
)  # tables of rows and of cases may be long
MOST_LINES, MOST_FUNCTION_LINES = 400, 50

SOURCES = sorted(
    p
    for folder in FOLDERS
    for p in (ROOT / folder).rglob("*.py")
    if not p.relative_to(ROOT).as_posix().startswith(("fxquant/passes/", "fxquant/models/"))
)
# models/difficult/ has what users write, asserts and all
LIBRARY = [
    p
    for p in SOURCES
    if p.relative_to(ROOT).parts[0] in ("fxquant", "passes", "models")
    and "difficult" not in p.parts
]


def _rel(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", [p for p in SOURCES if not _rel(p).startswith(TABLES)], ids=_rel)
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.count("\n")
    assert lines <= MOST_LINES
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            assert _lines(node) <= MOST_FUNCTION_LINES, f"{node.name} has {_lines(node)} lines"


def _lines(node: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    total = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    if ast.get_docstring(node) is not None:
        total -= (first.end_lineno or first.lineno) - first.lineno + 1
    return total


@pytest.mark.parametrize("path", SOURCES, ids=_rel)
def test_every_file_says_what_it_is_for(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("path", LIBRARY, ids=_rel)
def test_the_library_neither_prints_nor_exits_nor_asserts(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        place = f"{_rel(path)}:{getattr(node, 'lineno', 0)}"
        assert not isinstance(node, ast.Assert), f"{place}: assert"
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("print", "exit", "quit", "sys.exit", "os._exit"), f"{place}: {name}"
        if isinstance(node, ast.ExceptHandler):
            assert node.type is not None, f"{place}: bare except"


def test_an_error_code_means_one_thing() -> None:
    raised: dict[str, set[str]] = {}
    for path in LIBRARY:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
                code = node.args[0].value
                if isinstance(code, str) and re.fullmatch(r"FXQ\d{3}", code):
                    raised.setdefault(code, set()).add(_rel(path))
    scattered = {code: files for code, files in raised.items() if len(files) > 1}
    assert not scattered, "one code, one meaning, one file"


def test_no_text_names_a_machine() -> None:
    own_folders = re.compile(r"/(?:home|root|Users|work|tmp)/[\w.]+")
    for path in _tracked():
        if path == Path(__file__) or path.suffix in (".png", ".safetensors", ".onnx"):
            continue
        for i, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            assert not own_folders.search(line), f"{_rel(path)}:{i}: {line.strip()}"


def _tracked() -> list[Path]:
    try:
        found = subprocess.run(
            ["git", "ls-files", "-z"], cwd=ROOT, check=True, capture_output=True, text=True
        ).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a git checkout")
    files = (ROOT / name for name in found if name)
    return [p for p in files if p.is_file() and not p.is_symlink()]


@pytest.mark.parametrize("name", ["passes", "models"])
def test_the_links_lead_to_the_folders_at_the_top(name: str) -> None:
    assert (ROOT / "fxquant" / name).resolve() == ROOT / name


def test_the_version_is_stated_once() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dynamic"] == ["version"]
    assert fxquant.__version__ == __version__
    assert f"## [{__version__}]" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")


def test_requirements_are_lower_bounds_and_constraints_are_exact() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    for line in [*project["dependencies"], *(x for extra in extras for x in extra)]:
        assert re.fullmatch(r"[\w-]+>=[\d.]+", line), line
    pins = (ROOT / "requirements" / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert "torch==2.13.0" in pins
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", pin) for pin in pins if not pin.startswith("#"))


def test_importing_fxquant_does_not_load_the_runtime() -> None:
    code = "import sys, fxquant; print([m for m in sys.modules if m == 'onnxruntime'])"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "[]"
