"""`fxquant diff`: what is told of two artifacts, and that the noise it expects is what comes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import fxquant
from fxquant import QuantizationSimModel
from fxquant.cli import main
from fxquant.comparison import ArtifactDiff, TensorChange, diff_artifacts
from fxquant.errors import ConfigError

if TYPE_CHECKING:
    from click.testing import Result


class Net(nn.Module):
    """Two linear layers around what may stay in floating point."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm, self.b = nn.Linear(16, 32), nn.LayerNorm(32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 16] -> [N, 8]."""
        return self.b(torch.relu(self.norm(self.a(x))))  # type: ignore[no-any-return]


def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def data() -> Tensor:
    return torch.randn(64, 16, generator=torch.Generator().manual_seed(1))


def exported(folder: Path, model: nn.Module | None = None, **options: Any) -> Path:
    deploy = options.pop("deploy", None)
    sim = QuantizationSimModel(model or net(), data(), **options)
    sim.compute_encodings([data()])
    sim.export(folder, "net", prove=False, deploy=deploy)
    return folder


def by_name(found: ArtifactDiff) -> dict[str, TensorChange]:
    return {t.name: t for t in found.tensors}


def call(*arguments: Any) -> Result:
    return CliRunner().invoke(main, ["diff", *map(str, arguments)])


# --- equal ---------------------------------------------------------------------------------------


def test_what_is_equal_does_not_differ(tmp_path: Path) -> None:
    a, b = exported(tmp_path / "a"), exported(tmp_path / "b")
    for one, other in ((a, b), (a / "net.onnx", b / "net.onnx"), (a / "net.encodings", b)):
        found = diff_artifacts(one, other)
        assert not found
        assert found.compared >= 6
        assert str(found) == "no difference"
    assert call(a, b).exit_code == 0


def test_the_same_integers_in_another_form_are_the_same(tmp_path: Path) -> None:
    """Weights for CPUs without VNNI are stored unsigned: other bytes, the same values."""
    a, b = exported(tmp_path / "a"), exported(tmp_path / "b", deploy="avx2")
    assert (a / "net.onnx").read_bytes() != (b / "net.onnx").read_bytes()
    found = diff_artifacts(a, b)
    assert not [t for t in found.tensors if t.integers or t.scale != 1.0 or t.zero_points]


# --- what differs --------------------------------------------------------------------------------


def test_fewer_bits_are_told_with_the_noise_of_rounding(tmp_path: Path) -> None:
    a = exported(tmp_path / "a")
    b = exported(tmp_path / "b", config={"layers": {"b": {"weight": {"bitwidth": 4}}}})
    rows = by_name(diff_artifacts(a, b))
    weight = rows["b.weight"]
    assert weight.bits == (8, 4)
    assert weight.kind == "weight"
    assert weight.integers > 200
    assert weight.elements == 256
    assert "a.weight" not in rows
    # 127 steps on a side become 7
    assert weight.noise_db == pytest.approx(20 * math.log10(127 / 7), abs=1.0)
    assert rows["b.bias"].bits == (32, 32)


def test_the_expected_noise_is_that_of_rounding(tmp_path: Path) -> None:
    """Against the mean square error of uniform values on both grids of every activation."""
    a = exported(tmp_path / "a")
    b = exported(tmp_path / "b", default_output_bw=6)
    rows = {n: t for n, t in by_name(diff_artifacts(a, b)).items() if t.kind == "activation"}
    assert rows
    first, second = (fxquant.encodings.read(f / "net.encodings") for f in (a, b))
    scales = [{e.name: float(np.asarray(e.scale)) for e in f.activations} for f in (first, second)]
    values = np.random.default_rng(0).uniform(-100, 100, 200_000)
    for name, row in rows.items():
        noise = [np.square(values - s[name] * np.rint(values / s[name])).mean() for s in scales]
        # 200 000 squares have a standard error of 0.01 dB
        assert row.noise_db == pytest.approx(10 * math.log10(noise[1] / noise[0]), abs=0.05)
    (a / "net.encodings").unlink()
    (b / "net.encodings").unlink()
    found = diff_artifacts(a, b)  # the ONNX file alone says it, too
    assert dict.fromkeys(rows, (8, 6)) == {n: by_name(found)[n].bits for n in rows}
    assert found.estimate_db is not None
    assert 6 < found.estimate_db <= max(r.noise_db or 0 for r in rows.values())
    assert diff_artifacts(b, a).estimate_db == pytest.approx(-found.estimate_db, abs=0.5)


def test_bits_that_have_no_type_in_onnx(tmp_path: Path) -> None:
    """Seven bits are stored in eight."""
    a, b = exported(tmp_path / "a"), exported(tmp_path / "b", default_param_bw=7)
    assert by_name(diff_artifacts(a, b))["a.weight"].bits == (8, 7)
    assert not diff_artifacts(b / "net.onnx", b / "net.encodings")


def test_positions_that_are_added_or_removed(tmp_path: Path) -> None:
    a = exported(tmp_path / "a")
    b = exported(tmp_path / "b", config={"keep_float": ["b"]})
    found = diff_artifacts(a, b)
    assert {"b.weight", "b.bias"} <= set(found.removed)
    assert not found.added
    assert by_name(found)["b.weight"].where in ("first", "second")
    assert "Q/DQ removed (" in str(found)
    assert set(diff_artifacts(b, a).added) == set(found.removed)


def test_weights_are_compared_value_by_value(tmp_path: Path) -> None:
    other = net()
    with torch.no_grad():
        other.a.weight[3, 5] = 0.0
        other.norm.weight[2] += 0.5
    a, b = exported(tmp_path / "a"), exported(tmp_path / "b", other)
    rows = by_name(diff_artifacts(a, b))
    assert rows["a.weight"].integers == 1
    assert rows["a.weight"].elements == 512
    assert (rows["norm.weight"].kind, rows["norm.weight"].integers) == ("float", 1)
    assert "1/512" in str(diff_artifacts(a, b))


def test_recipes_tell_what_was_asked_for(tmp_path: Path) -> None:
    for name, bits in (("a", 8), ("b", 4)):
        fxquant.quantize(
            net(), data(), out=tmp_path / name, techniques="none", param_bw=bits, prove=False
        )
    a, b = (tmp_path / n / "model.recipe.yaml" for n in "ab")
    found = diff_artifacts(a, b)
    assert found.recipe["settings.param_bw"] == (8, 4)
    assert not [k for k in found.recipe if k.startswith(("inputs", "environment"))]
    assert by_name(found)["a.weight"].bits == (8, 4)
    assert diff_artifacts(tmp_path / "a", tmp_path / "b").recipe == found.recipe
    (tmp_path / "b" / "model.onnx").unlink()
    alone = diff_artifacts(a, b)
    assert alone.recipe == found.recipe
    assert "the recipes alone are compared" in str(alone)


# --- the command ---------------------------------------------------------------------------------


def test_the_table_fits_a_terminal(tmp_path: Path) -> None:
    deep = nn.Sequential()
    deep.add_module("a_name_that_is_longer_than_any_column_of_it", net())
    a = exported(tmp_path / "a", deep)
    b = exported(tmp_path / "b", deep, default_output_bw=4, default_param_bw=4)
    done = call(a, b)
    assert done.exit_code == 1
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert any("…" in line and "8→4" in line for line in lines)
    assert "estimate for the whole model: +" in done.stdout
    assert len(call(a, b, "--top", 1).stdout.splitlines()) < len(lines)
    found = json.loads(call(a, b, "--json").stdout)
    assert found["differs"]
    assert {t["where"] for t in found["tensors"]} == {"both"}


@pytest.mark.parametrize("wrong", ["text", "empty", "folder", "absent.onnx", "two", "broken.onnx"])
def test_what_cannot_be_read_has_exit_code_2(tmp_path: Path, wrong: str) -> None:
    good = exported(tmp_path / "good")
    (tmp_path / "text").write_text("no JSON")
    (tmp_path / "empty").write_bytes(b"")
    (tmp_path / "broken.onnx").write_bytes((good / "net.onnx").read_bytes()[:500])
    (tmp_path / "folder").mkdir()
    (tmp_path / "two").mkdir()
    for name in ("a.onnx", "b.onnx"):
        (tmp_path / "two" / name).write_bytes((good / "net.onnx").read_bytes())
    with pytest.raises(ConfigError, match="FXQ773"):
        diff_artifacts(good, tmp_path / wrong)
    assert call(tmp_path / wrong, good).exit_code == 2


def test_names_of_modules_and_of_values_are_told_apart(tmp_path: Path) -> None:
    x = torch.randn(4, 16)
    sim = QuantizationSimModel(net(), x)
    sim.compute_encodings([x])
    modules = sim.save_encodings_to_json(tmp_path, "modules")
    sim.export(tmp_path, "net", x, prove=False)
    found = diff_artifacts(modules, tmp_path / "net.encodings")
    assert "the names of modules" in str(found)
    assert not diff_artifacts(tmp_path / "net.onnx", tmp_path / "net.encodings").notes
