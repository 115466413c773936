"""The examples of CONTRIBUTING.md are applied to a copy of the tree, which must pass the tests."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fxquant import errors
from fxquant.targets import schema
from tests.helpers import error_index

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```diff\n(.*?)^```", TEXT, re.DOTALL | re.MULTILINE)


def _apply(block: str, tree: Path) -> str:
    """Apply one diff: added lines go behind its one line of context, or are a new file."""
    old, new, *lines = block.splitlines()
    path = new.removeprefix("+++ b/")
    added = [line[1:] for line in lines if line.startswith("+")]
    if old == "--- /dev/null":
        (tree / path).write_text("\n".join(added) + "\n", encoding="utf-8")
        return path
    assert old == f"--- a/{path}"
    (context,) = [line[1:] for line in lines if line.startswith(" ")]
    have = (tree / path).read_text(encoding="utf-8").splitlines()
    at = have.index(context) + 1
    changed = "\n".join([*have[:at], *added, *have[at:]]) + "\n"
    (tree / path).write_text(changed, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tree with every example of CONTRIBUTING.md in it."""
    copied = tmp_path_factory.mktemp("tree")
    for name in ("fxquant", "passes", "models", "tests"):
        ignored = shutil.ignore_patterns("__pycache__", "*.onnx")
        shutil.copytree(ROOT / name, copied / name, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copied)
    assert [_apply(block, copied) for block in BLOCKS] == [
        "fxquant/ops.py",
        "fxquant/nn/functional.py",
        "fxquant/onnx/lowering/emit/activation.py",
        "passes/drop_second_relus.py",
        "fxquant/targets/my_chip.json",
    ]
    return copied


def _run(tree: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=tree, capture_output=True, text=True, check=False,
        env={"PYTHONPATH": str(tree), "PATH": "", "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
    return done.stdout


def test_the_operator_the_pass_and_the_target_pass_the_tests_that_walk_them(tree: Path) -> None:
    told = _run(
        tree, "-m", "pytest", "-q", "-rN", "-p", "no:cacheprovider", "-m", "not full",
        "-k", "entr or emitter or my_chip", "tests/test_ops.py",
        "tests/onnx/lowering/test_rows.py", "tests/test_targets.py",
    )  # fmt: skip
    assert int(re.findall(r"(\d+) passed", told)[0]) >= 6


def test_the_operator_is_pytorchs_at_its_ends_too(tree: Path) -> None:
    code = """
import torch, fxquant
from torch import nn

class Net(nn.Module):
    def forward(self, x):
        return torch.special.entr(x)

import onnxruntime
import onnx_ir as ir
from fxquant.onnx import lower
x = torch.tensor([[-1.0, 0.0, 0.5, 1.0, float("nan")]])
gm = fxquant.prepare_model(Net(), torch.rand(1, 5))
assert type(gm.get_submodule("entr")).__name__ == "Entr", gm
lowered = lower(gm, ((torch.rand(1, 5),), {}))
assert not lowered.fallbacks
session = onnxruntime.InferenceSession(ir.to_proto(lowered.model).SerializeToString())
found = torch.tensor(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])
torch.testing.assert_close(found, torch.special.entr(x), equal_nan=True)
"""
    _run(tree, "-c", code)


def test_the_pass_does_what_it_says(tree: Path) -> None:
    code = """
import torch, fxquant
from torch import nn
from fxquant.passes.drop_second_relus import DropSecondReLUs
gm = fxquant.prepare_model(nn.Sequential(nn.ReLU(), nn.ReLU(), nn.Linear(4, 4)), torch.rand(2, 4))
outcome = DropSecondReLUs()(gm)
names = [str(n.target) for n in gm.graph.nodes if n.op == "call_module"]
assert (outcome.changes, names) == (1, ["0", "2"]), (outcome.changes, names)
"""
    _run(tree, "-c", code)


def test_the_target_is_found_by_its_name(tree: Path) -> None:
    code = "from fxquant.targets import load_target; print(load_target('my_chip').description)"
    assert _run(tree, "-c", code).startswith("One sentence")
    (block,) = [b for b in BLOCKS if "my_chip" in b]
    written = "\n".join(line[1:] for line in block.splitlines()[2:])
    schema.Target.model_validate(json.loads(written))


def test_the_error_is_one_that_is_raised() -> None:
    (kind, code, what, fix) = re.search(
        r'raise (\w+)\(\s*"(FXQ\d{3})",\s*f?"(.*?)",\s*fix="(.*?)"', TEXT, re.DOTALL
    ).groups()  # type: ignore[union-attr]
    assert issubclass(getattr(errors, kind), errors.FxQuantError)
    found = [e for e in error_index.entries() if e.code == code and e.kind == kind]
    assert found
    assert re.sub(r"\{.*?\}", "…", what) in found[0].what
    assert fix in found[0].fix
