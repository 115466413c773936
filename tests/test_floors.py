"""Imports point down: a file imports only from its own floor or from floors below it."""

from __future__ import annotations

import ast
import functools
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import networkx as nx
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

ROOT = Path(__file__).parent.parent


def _floors() -> tuple[tuple[str, ...], ...]:
    """The table of CONTRIBUTING.md: the longest prefix that matches a module's name decides."""
    rows = re.findall(r"^\| \d+ \| ([^|]*) \|", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), re.M)
    names = [re.findall(r"`([\w./]+?)/?`", row) for row in rows]
    return tuple(tuple(f"fxquant.{n.replace('/', '.')}" for n in row) for row in names)


FLOORS = _floors()
# networks are data: they stand beside the house and use nothing of it but its errors
MODELS = "fxquant.models"
# the front doors of other tools
FACES = ("fxquant.vitis", "fxquant.aimet")


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
    module = "fxquant.__init__" if module == "fxquant" else module
    found = [
        (len(prefix), floor)
        for floor, prefixes in enumerate(FLOORS)
        for prefix in prefixes
        if module == prefix or module.startswith(prefix + ".")
    ]
    assert found, f"{module} stands on no floor: add it to the table in CONTRIBUTING.md"
    return max(found)[1]


MODULES = {_name(p) for p in _files()}
PACKAGES = {_name(p) for p in _files() if p.name == "__init__.py"}


@functools.cache
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
        else:
            assert not name.startswith(MODELS), f"{place}: the library imports a network"
            assert _floor(name) <= _floor(own), f"{place}: {own} imports {name}, a floor above"


def _cycles(edges: dict[str, set[str]]) -> list[set[str]]:
    """Groups of nodes that reach each other."""
    graph = nx.DiGraph([(a, b) for a, found in edges.items() for b in found if a != b])
    return [group for group in nx.strongly_connected_components(graph) if len(group) > 1]


def _edges(name_of: Callable[[str], str]) -> dict[str, set[str]]:
    """Imports when the program runs, at the top of a file or inside of a function."""
    return _merged(
        (name_of(_name(path)), name_of(name))
        for path in _files()
        for name, _, typing_only in imports(path)
        if not typing_only and name in MODULES
    )


def _merged(pairs: Iterable[tuple[str, str]]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for one, other in pairs:
        found.setdefault(one, set()).add(other)
    return found


def _folder(module: str) -> str:
    """The folder of a module; the face of a package (its `__init__`) is a node of its own, and so
    is a module of `fxquant/` or `fxquant/onnx/`, which hold what is one file."""
    folder = module.rpartition(".")[0]
    if module in PACKAGES:
        return f"{module}.__init__"
    return module if folder in ("fxquant", "fxquant.onnx") else folder


def test_no_files_import_each_other() -> None:
    assert _cycles(_edges(str)) == []


def test_no_folders_import_each_other() -> None:
    assert _cycles(_edges(_folder)) == []


def test_every_name_of_the_table_exists() -> None:
    for row in FLOORS:
        for name in row:
            assert any(f"{m}.".startswith(f"{name}.") for m in (*MODULES, "fxquant.__init__")), name


def test_a_folder_holds_one_trade() -> None:
    """About 15 files; what has more is a list of one kind: passes, emitters, documented modules."""
    held = Counter(_name(p).rpartition(".")[0] for p in _files() if p.name != "__init__.py")
    lists = ("fxquant.passes", "fxquant.onnx.lowering.emit", "fxquant.aimet")
    crowded = {folder: n for folder, n in held.items() if n > 18 and folder not in lists}
    assert not crowded


SAME_THING_TWICE = {
    "functional": "functional forms: of modules, of quantizers",
    "recurrent": "recurrent layers: over padded sequences, in ONNX",
    "regions": "regions: found in a graph, asked for by the user",
    "__init__": "",
    "__main__": "",
}


def test_a_file_name_says_which_file() -> None:
    # a face has the file names of the other tool
    apart = tuple(f"{folder}." for folder in (MODELS, *FACES))
    names = Counter(p.stem for p in _files() if not f"{_name(p)}.".startswith(apart))
    twice = {name for name, n in names.items() if n > 1}
    assert twice == {name for name in SAME_THING_TWICE if names[name] > 1}


@pytest.mark.parametrize("path", sorted((ROOT / "passes").glob("[!_]*.py")), ids=lambda p: p.stem)
def test_a_pass_imports_no_pass(path: Path) -> None:
    for name, line, _ in imports(path):
        assert not name.startswith("fxquant.passes"), f"{path.name}:{line}: imports {name}"


@pytest.mark.parametrize("face", FACES)
def test_nothing_imports_the_face_of_another_tool(face: str) -> None:
    for path in _files():
        users = [name for name, _, _ in imports(path) if f"{name}.".startswith(f"{face}.")]
        inside = f"{_name(path)}.".startswith(f"{face}.")
        assert not users or inside or _name(path) in ("fxquant", "fxquant.cli"), path


def test_outside_the_package_passes_and_models_have_their_full_names() -> None:
    for folder in ("tests", "benchmarks", "examples"):
        for path in (ROOT / folder).rglob("*.py"):
            for name, line, _ in imports(path):
                top = name.partition(".")[0]
                assert top not in ("passes", "models"), f"{path}:{line}: import fxquant.{name}"
