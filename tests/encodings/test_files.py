"""Encodings files of all versions: what is written comes back to the last bit, or is refused."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import fxquant.quantization as Q
from fxquant import QuantizationSimModel
from fxquant.cli import main
from fxquant.encodings import FORMATS, diff, read, write
from fxquant.errors import CheckpointError, FxQuantError
from fxquant.onnx import lower
from fxquant.onnx.encodings_file import encodings_of
from fxquant.quantization.ranges import product_for

X = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(3))
TORCH = "0.6.1 by module"
FLAVOURS = [TORCH, *FORMATS]


class Net(nn.Module):
    """Two convolutions, the second transposed, and square linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 8, 3, padding=1)
        self.up = nn.ConvTranspose2d(8, 8, 2, bias=False)
        self.fc = nn.Linear(8, 8)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        """[N, 4, 8, 8] -> [N, 4]."""
        y = self.up(torch.relu(self.conv(x))).mean((2, 3))
        return self.head(torch.tanh(self.fc(y)))  # type: ignore[no-any-return]


Place = Callable[[QuantizationSimModel], None]


def params(sim: QuantizationSimModel, name: str) -> Any:
    return dict(sim.named_qmodules())[name].param_quantizers


def per_tensor(sim: QuantizationSimModel) -> None:
    params(sim, "fc")["weight"] = Q.affine.QuantizeDequantize((), 8, False)


def narrow(sim: QuantizationSimModel) -> None:
    params(sim, "fc")["weight"] = Q.affine.QuantizeDequantize(
        (8, 1), None, True, qmin=-127, qmax=127
    )
    params(sim, "head")["weight"] = Q.affine.QuantizeDequantize((4, 1), None, qmin=-3, qmax=96)


def blocks(sim: QuantizationSimModel) -> None:
    params(sim, "fc")["weight"] = Q.affine.QuantizeDequantize((8, 2), 4, True, block_size=(1, 4))
    shape, sizes = (8, 2, 1, 1), (-1, 2, -1, -1)
    params(sim, "conv")["weight"] = Q.affine.QuantizeDequantize(shape, 8, block_size=sizes)


def lpbq(sim: QuantizationSimModel) -> None:
    for name, shape, sizes, groups in (
        ("fc", (8, 4), (1, 2), (1, -1)),
        ("head", (4, 4), (-1, 2), (1, 2)),
        ("up", (4, 8, 1, 1), (2, 1, -1, -1), (-1, 1, 1, 1)),
    ):
        params(sim, name)["weight"] = Q.affine.GroupedBlockQuantizeDequantize(
            shape, 4, True, 8, block_size=sizes, block_grouping=groups
        )
        if "bias" in params(sim, name):
            params(sim, name)["bias"] = None


def floats(sim: QuantizationSimModel) -> None:
    kinds = (torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)
    for name, dtype in zip(("conv", "up", "fc", "head"), kinds, strict=True):
        shape = (8, 1) if name == "fc" else ()
        params(sim, name)["weight"] = Q.float.FloatQuantizeDequantize(dtype=dtype, shape=shape)
        if "bias" in params(sim, name):
            params(sim, name)["bias"] = None


def float_activations(sim: QuantizationSimModel) -> None:
    sim.set_activation_quantizers_to_float(["relu"], dtype=torch.bfloat16)
    sim.set_activation_quantizers_to_float(["mean"], dtype=torch.float8_e4m3fn)
    sim.set_activation_quantizers_to_float(["tanh"], dtype=torch.float16)


def widths(sim: QuantizationSimModel) -> None:
    for bits, quantizer in zip((6, 16, 12, 4), sim.quantizers(), strict=False):
        quantizer.bitwidth = bits  # type: ignore[assignment]


def usual(sim: QuantizationSimModel) -> None:
    """As it was placed."""


PLACES = [usual, per_tensor, narrow, blocks, lpbq, floats, float_activations, widths]


def simulation(place: Place = usual) -> QuantizationSimModel:
    torch.manual_seed(0)
    sim = QuantizationSimModel(Net().eval(), X)
    place(sim)
    return sim


def calibrated(place: Place = usual) -> QuantizationSimModel:
    sim = simulation(place)
    sim.compute_encodings([X])
    return sim


def content(sim: QuantizationSimModel, flavour: str) -> Any:
    """What a file of this flavour holds, through its text."""
    if flavour == TORCH:
        return json.loads(json.dumps(sim.get_encodings()))
    lowered = lower(sim.model, ((X,), {}))
    return json.loads(json.dumps(encodings_of(sim.model, lowered, version=flavour)))


def assert_same(a: QuantizationSimModel, b: QuantizationSimModel) -> None:
    for (name, first), (_, second) in zip(a.named_quantizers(), b.named_quantizers(), strict=True):
        one, two = first.get_encodings(), second.get_encodings()
        if isinstance(one, Q.AffineEncoding):
            assert one.same_grid(two), name
            assert isinstance(two, Q.AffineEncoding)
            assert one.symmetry == two.symmetry, name
        else:
            assert isinstance(one, Q.FloatEncoding)
            assert isinstance(two, Q.FloatEncoding)
            assert one.dtype is two.dtype, name
            if one.scale is not None and two.scale is not None:
                assert torch.equal(one.scale, two.scale), name
    assert torch.equal(a.model(X), b.model(X))


@pytest.mark.parametrize("flavour", FLAVOURS)
@pytest.mark.parametrize("place", PLACES, ids=lambda f: f.__name__)
def test_what_is_written_comes_back_to_the_last_bit(place: Place, flavour: str) -> None:
    sim, other = calibrated(place), simulation(place)
    loaded = other.load_encodings(content(sim, flavour))
    assert not loaded.missing
    assert all(name.endswith(".bias") for name in loaded.ignored)
    assert_same(sim, other)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_reading_and_writing_are_inverse(flavour: str) -> None:
    for place in (usual, blocks, lpbq):
        given = content(calibrated(place), flavour)
        assert json.loads(json.dumps(write(read(given)))) == given


def test_grids_follow_the_file() -> None:
    """Bitwidth and symmetry come with the ranges; a float takes an integer's place."""
    sim = calibrated(widths)
    other = simulation()
    other.load_encodings(content(sim, TORCH))
    assert_same(sim, other)
    floating, plain = calibrated(floats), simulation()
    # a scale a channel needs no other place, one for the whole tensor does
    given = content(floating, TORCH)
    for name in ("conv.weight", "up.weight", "fc.weight"):
        part = {
            **given,
            "activation_encodings": {},
            "param_encodings": {name: given["param_encodings"][name]},
        }
        plain.load_encodings(part)
        module = name.split(".")[0]
        assert isinstance(params(plain, module)["weight"], Q.float.FloatQuantizeDequantize)
        assert params(plain, module)["bias"] is None if module != "up" else True
    plain.load_encodings(content(calibrated(), TORCH))
    assert isinstance(params(plain, "fc")["weight"], Q.affine.QuantizeDequantize)


def test_flags() -> None:
    sim, other = calibrated(), simulation()
    other.load_encodings(content(sim, TORCH), requires_grad=False, allow_overwrite=False)
    assert not any(p.requires_grad for q in other.quantizers() for p in q.parameters())
    other.compute_encodings([3 * X])
    assert_same(sim, other)
    other.load_encodings(content(sim, TORCH), requires_grad=True)
    assert all(p.requires_grad for q in other.quantizers() for p in q.parameters())
    other.compute_encodings([3 * X])
    with pytest.raises(AssertionError):
        assert_same(sim, other)


def test_without_partial_what_has_no_encoding_is_taken_out() -> None:
    given = content(calibrated(), TORCH)
    del given["param_encodings"]["fc.weight"]
    del given["activation_encodings"]["mean"]
    kept, gone = simulation(), simulation()
    assert kept.load_encodings(given).missing == ("fc.weight", "mean.output.0")
    assert params(kept, "fc")["weight"] is not None
    gone.load_encodings(given, partial=False)
    assert params(gone, "fc")["weight"] is None
    assert params(gone, "fc")["bias"] is None
    assert dict(gone.named_qmodules())["mean"].output_quantizers[0] is None
    gone.model(X)


def changed(**changes: Any) -> Callable[[Any], None]:
    def change(given: Any) -> None:
        for ranges in given["param_encodings"]["fc.weight"]:
            ranges.update(changes)

    return change


def only_scale(**changes: Any) -> Callable[[Any], None]:
    def change(given: Any) -> None:
        for ranges in given["param_encodings"]["fc.weight"]:
            del ranges["min"], ranges["max"]
            ranges.update(changes)

    return change


def only_ends(**changes: Any) -> Callable[[Any], None]:
    def change(given: Any) -> None:
        for ranges in given["param_encodings"]["fc.weight"]:
            del ranges["scale"], ranges["offset"]
            ranges.update(changes)

    return change


def renamed(given: Any) -> None:
    given["param_encodings"]["fc.weigth"] = given["param_encodings"].pop("fc.weight")


def cut(given: Any) -> None:
    del given["param_encodings"]["fc.weight"][3:]


def conflicting(given: Any) -> None:
    sides = given["activation_encodings"]["relu"]
    given["activation_encodings"]["nowhere"] = copy.deepcopy(sides)


BROKEN: list[tuple[str, Callable[[Any], Any]]] = [
    ("FXQ631", lambda g: g.update(version="0.5.0")),
    ("FXQ631", lambda g: (g.pop("version"), g.update(param_encodings=[]))),
    ("FXQ632", changed(bitwidth=1)),
    ("FXQ632", changed(bitwidth="8")),
    ("FXQ632", changed(scale=0.0)),
    ("FXQ632", changed(scale=float("nan"))),
    ("FXQ632", changed(scale=[1.0])),
    ("FXQ632", changed(offset=0.5)),
    ("FXQ632", changed(is_symmetric="yes")),
    ("FXQ632", changed(zero_point_shift=0.5)),
    ("FXQ632", changed(dtype="float", bitwidth=9)),
    ("FXQ632", lambda g: g.update(param_encodings=[])),
    ("FXQ632", lambda g: g["param_encodings"].update({"fc.weight": []})),
    ("FXQ632", lambda g: g["activation_encodings"].update({"relu": {"output": [1]}})),
    ("FXQ633", renamed),
    ("FXQ633", conflicting),
    (
        "FXQ633",
        lambda g: g["param_encodings"].update({"up.bias": g["param_encodings"]["fc.weight"]}),
    ),
    ("FXQ634", cut),
    ("FXQ632", changed(offset=-300)),
    ("FXQ635", only_scale(offset=-300)),
    ("FXQ632", changed(min=-9.0)),
    ("FXQ632", changed(max=9.0)),
    ("FXQ632", changed(min=float("nan"))),
    ("FXQ632", changed(max=True)),
    ("FXQ632", changed(scale=True)),
    ("FXQ632", changed(scale="0.1")),
    ("FXQ632", changed(scale=1e39)),
    ("FXQ632", changed(offset=False)),
    ("FXQ632", changed(offset=1e30)),
    ("FXQ632", changed(bitwidth=True)),
    ("FXQ632", changed(bitwidth=float("inf"))),
    ("FXQ632", changed(qmin=7, qmax=-7)),
    ("FXQ632", only_ends(min=1.0, max=-1.0)),
    ("FXQ632", only_ends(min=0.0, max=0.0)),
    ("FXQ632", only_ends(min=-1.0, max=True)),
    ("FXQ632", only_ends(min=-1.0, max=float("inf"))),
]


@pytest.mark.parametrize(("code", "breaks"), BROKEN, ids=lambda v: v if isinstance(v, str) else "")
def test_what_is_wrong_is_refused_and_nothing_is_loaded(
    code: str, breaks: Callable[[Any], Any]
) -> None:
    given, sim = content(calibrated(), TORCH), simulation()
    # the last entry is the wrong one: all others could have been loaded before
    given["param_encodings"]["fc.weight"] = given["param_encodings"].pop("fc.weight")
    breaks(given)
    before = {name: (str(q), q.is_initialized()) for name, q in sim.named_quantizers()}
    with pytest.raises(FxQuantError, match=code):
        sim.load_encodings(given)
    after = {name: (str(q), q.is_initialized()) for name, q in sim.named_quantizers()}
    assert after == before


def test_files_that_are_none(tmp_path: Path) -> None:
    sim = simulation()
    with pytest.raises(CheckpointError, match="FXQ630"):
        sim.load_encodings(tmp_path / "missing.json")
    for text in ("", "{", "[]", "\x00"):
        (tmp_path / "bad.json").write_text(text)
        with pytest.raises(CheckpointError, match="FXQ630"):
            sim.load_encodings(tmp_path / "bad.json")


def test_unknown_names_are_ignored_unless_strict() -> None:
    given, sim = content(calibrated(), TORCH), simulation()
    renamed(given)
    loaded = sim.load_encodings(given, strict=False)
    assert loaded.ignored == ("fc.weigth",)
    assert loaded.missing == ("fc.weight",)
    with pytest.raises(FxQuantError, match=r"did you mean 'fc\.weight'"):
        sim.load_encodings(given)


def test_the_axis_of_a_square_weight_is_checked() -> None:
    given, sim = content(calibrated(), "2.0.0"), simulation()
    entry = next(e for e in given["encodings"] if e["name"] == "fc.weight")
    entry["axis"] = 1
    with pytest.raises(FxQuantError, match="FXQ634"):
        sim.load_encodings(given)


def test_shared_quantizers_need_one_encoding() -> None:
    sim = simulation()
    modules = dict(sim.named_qmodules())
    modules["tanh"].output_quantizers[0] = modules["mean"].output_quantizers[0]
    sim.compute_encodings([X])
    given = content(sim, TORCH)
    sim.load_encodings(given)
    for key in ("scale", "min", "max"):
        given["activation_encodings"]["tanh"]["output"]["0"][key] *= 2
    with pytest.raises(FxQuantError, match="FXQ636"):
        sim.load_encodings(given)


def test_ranges_without_a_scale_are_understood() -> None:
    given, sim = content(calibrated(), TORCH), simulation()
    for module in given["activation_encodings"].values():
        for entry in (e for side in module.values() for e in side.values()):
            del entry["scale"], entry["offset"]
    sim.load_encodings(given)
    want = dict(calibrated().named_quantizers())
    for name, quantizer in sim.named_quantizers():
        scale, other = quantizer.get_scale(), want[name].get_scale()
        assert scale is not None
        assert other is not None
        torch.testing.assert_close(scale, other)


def test_saved_as_json(tmp_path: Path) -> None:
    sim, other = calibrated(), simulation()
    file = sim.save_encodings_to_json(tmp_path / "new", "net")
    assert file == tmp_path / "new" / "net.json"
    other.load_encodings(file)
    assert_same(sim, other)


def test_the_exported_file_is_loaded(tmp_path: Path) -> None:
    sim, other = calibrated(), simulation()
    sim.export(tmp_path, "net", prove=False, encoding_version="2.1.0")
    assert read(tmp_path / "net.encodings").version == "2.1.0"
    other.load_encodings(str(tmp_path / "net.encodings"))
    assert_same(sim, other)


def test_differences(tmp_path: Path) -> None:
    a = content(calibrated(), TORCH)
    b = copy.deepcopy(a)
    assert diff(read(a), read(b)) == ()
    for entry in (
        *b["param_encodings"]["fc.weight"],
        b["activation_encodings"]["relu"]["output"]["0"],
    ):
        del entry["min"], entry["max"]
    b["param_encodings"]["fc.weight"][2]["scale"] *= 1.5
    b["param_encodings"]["new"] = b["param_encodings"]["fc.weight"]
    b["activation_encodings"]["relu"]["output"]["0"]["bitwidth"] = 4
    del b["param_encodings"]["up.weight"]
    for name, value in (("a", a), ("b", b)):
        (tmp_path / name).write_text(json.dumps(value))
    run = CliRunner().invoke(main, ["encodings", "diff", str(tmp_path / "a"), str(tmp_path / "b")])
    assert run.exit_code == 1
    lines = run.stdout.splitlines()
    assert "relu.output.0: 8 bits, then 4 bits" in lines
    assert "fc.weight: 1 of 8 scales, up to +50 %" in lines
    assert "up.weight: only in the first" in lines
    assert "new: only in the second" in lines
    assert lines[-1].endswith("tensors differ")
    same = [str(tmp_path / "a")] * 2
    run = CliRunner().invoke(main, ["encodings", "diff", *same, "--json"])
    assert (run.exit_code, json.loads(run.stdout)) == (0, {"differences": []})
    run = CliRunner().invoke(main, ["encodings", "diff", "a", str(tmp_path / "none"), "--json"])
    assert run.exit_code == 2, "a file that cannot be read"
    assert json.loads(run.stdout)["code"] == "FXQ630"


def test_versions_are_compared_with_each_other() -> None:
    sim = calibrated()
    files = [read(content(sim, version)) for version in FORMATS]
    for other in files[1:]:
        assert diff(files[0], other) == ()


# versions 2 leave 16-bit floats out
@pytest.mark.parametrize("flavour", [f for f in FLAVOURS if not f.startswith("2")])
def test_float_activations_are_in_files_and_loaded_where_integers_were(flavour: str) -> None:
    sim, other = calibrated(float_activations), simulation()
    other.load_encodings(content(sim, flavour))
    assert_same(sim, other)


@pytest.mark.parametrize("offset", [0, -1, -127, -255])
def test_scales_that_no_quotient_of_floats_has_are_loaded_to_the_last_bit(offset: int) -> None:
    steps = 1.99 + torch.arange(1024) * 2.0**-23
    missed = steps[product_for(steps, 255) / 255 != steps]
    assert len(missed) > 0  # one float in 256
    scale = missed[0].item()
    sim = calibrated()
    file = content(sim, "1.0.0")
    for entry in file["activation_encodings"]:
        entry["scale"], entry["offset"] = [scale], [offset]
    sim.load_encodings(file)
    written = content(sim, "1.0.0")["activation_encodings"]
    assert {e["scale"][0] for e in written} == {scale}
    assert {e["offset"][0] for e in written} == {offset}


class Foreign(nn.Module):
    """As an AIMET user writes it: every operation is a module with a name of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.relu1 = nn.Conv2d(3, 4, 3), nn.ReLU()
        self.side, self.flatten, self.fc = nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu1(self.conv1(x)) + self.side(x)
        return self.fc(self.flatten(y))  # type: ignore[no-any-return]


def of_aimet() -> dict[str, Any]:
    """0.6.1 by module, without a version: the input's encoding stands at its first consumer."""

    def entry(low: float, high: float) -> dict[str, Any]:
        scale = (high - low) / 255
        ends = {"min": round(low / scale) * scale, "max": high, "scale": scale}
        kind = {"bitwidth": 8, "dtype": "int", "is_symmetric": "False"}
        return {**ends, "offset": round(low / scale), **kind}

    return {
        "activation_encodings": {
            "conv1": {"input": {"0": entry(-2.0, 3.1)}},
            "relu1": {"output": {"0": entry(0.0, 2.55)}},
            "flatten": {"output": {"0": entry(-1.0, 4.1)}},
        },
        "param_encodings": {"fc.weight": [entry(-0.5, 0.5)]},
    }


def test_encodings_at_consumers_are_those_of_producers() -> None:
    x = torch.randn(2, 3, 8, 8)
    sim = QuantizationSimModel(Foreign().eval(), x, config={"per_channel": False})
    given = of_aimet()
    given["param_encodings"] = {}
    loaded = sim.load_encodings(given)
    assert loaded.loaded == ("conv1.input.0", "relu1.output.0", "flatten.output.0")
    modules = dict(sim.named_qmodules())
    stub = modules["x_stub"].output_quantizers[0]
    assert (stub.get_scale().item(), stub.get_offset().item()) == (pytest.approx(0.02), -100)
    added = modules["add"].output_quantizers[0]  # flatten moves its values
    assert added.get_scale().item() == pytest.approx(0.02)
    # the same network without that place: nothing is loaded in part
    given["activation_encodings"]["side"] = {
        "input": {"0": dict(of_aimet()["activation_encodings"]["relu1"]["output"]["0"])}
    }
    with pytest.raises(FxQuantError, match="FXQ636"):  # one input, two encodings
        sim.load_encodings(given)


def test_encodings_of_inputs_are_written_where_other_tools_look() -> None:
    x = torch.randn(2, 3, 8, 8)
    sim, other = (QuantizationSimModel(Foreign().eval(), x) for _ in range(2))
    sim.compute_encodings([x])
    other.compute_encodings([2 * x])
    written = sim.get_encodings()["activation_encodings"]
    assert written["conv1"]["input"] == written["side"]["input"]
    assert "x_stub" not in written
    assert not other.load_encodings(sim.get_encodings(), partial=False).missing
    assert torch.equal(
        *(dict(s.named_qmodules())["x_stub"].output_quantizers[0].get_scale() for s in (sim, other))
    )
    # files that name the stub are taken as well
    old = sim.get_encodings()
    entries = old["activation_encodings"]
    entries["x_stub"] = {"output": {"0": entries["conv1"].pop("input")["0"]}}
    del entries["side"]["input"], entries["conv1"]
    assert not other.load_encodings(old, partial=False).missing


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_files_without_a_version_are_told_by_their_form(flavour: str) -> None:
    given = content(calibrated(), flavour)
    version = given.pop("version")
    found = read(given)
    assert found.version == (version if version != "2.0.0" else "2.1.0")
    assert not simulation().load_encodings(given).missing


# --- what the graph returns ----------------------------------------------------------------------


def with_results(**config: Any) -> QuantizationSimModel:
    torch.manual_seed(0)
    return QuantizationSimModel(Net().eval(), X, config=config or None)


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_grid_for_what_the_graph_returns_is_taken(flavour: str) -> None:
    """Other tools quantize the last layer's output, which placement leaves in floating point."""
    wide = with_results(quantize_outputs=True)
    wide.compute_encodings([X])
    given, sim = content(wide, flavour), with_results()
    head = dict(sim.named_qmodules())["head"]
    assert head.output_quantizers[0] is None
    loaded = sim.load_encodings(given)
    assert any(name.startswith("head.output") for name in loaded.loaded)
    assert loaded.missing == ()
    assert torch.equal(sim.model(X), wide.model(X))
    assert content(sim, flavour) == given


def test_what_is_kept_in_floating_point_on_purpose_takes_no_grid() -> None:
    wide = with_results(quantize_outputs=True)
    wide.compute_encodings([X])
    given = content(wide, TORCH)
    rules = ({"layers": {"head": {"output": {"quantized": False}}}}, {"keep_float": ["head"]})
    for rule in rules:
        sim = with_results(**rule)
        with pytest.raises(FxQuantError, match="FXQ633"):
            sim.load_encodings(given)
        assert dict(sim.named_qmodules())["head"].output_quantizers[0] is None


def test_a_file_without_a_grid_for_the_result_goes_with_one_that_has() -> None:
    narrow_ = calibrated()
    wide = with_results(quantize_outputs=True)
    assert wide.load_encodings(content(narrow_, TORCH)).missing == ("head.output.0",)
    wide.load_encodings(content(narrow_, TORCH), partial=False)
    assert dict(wide.named_qmodules())["head"].output_quantizers[0] is None
