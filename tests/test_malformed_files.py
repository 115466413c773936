"""Malformed files of every kind: each is read, or refused with a code, in little work and memory.

Valid files are damaged at random, from fixed seeds. A file that can still be read is no fault. Work
is counted in calls of functions, Python's and those in C, which does not depend on the machine;
what one call may take, in a parser or in onnxruntime, is bounded by budgets that are tested below.
"""

from __future__ import annotations

import functools
import io
import itertools
import json
import os
import pickle
import random
import resource
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import save
from torch import nn

from fxquant import QuantizationSimModel, load_checkpoint, quantize, save_checkpoint
from fxquant.cli.batches import load_data
from fxquant.cli.loading import load_weights
from fxquant.config import QuantConfig
from fxquant.encodings import read as read_encodings
from fxquant.errors import FxQuantError
from fxquant.onnx.examine import examine
from fxquant.onnx.io.reader import read_model
from fxquant.onnx.lint.verify import verify_file
from fxquant.onnx.ort.feeds import feeds_of
from fxquant.recipe import Recipe
from fxquant.vitis import load_strategy, torch_quantizer
from tests.helpers.mutations import damaged

CALLS, BYTES = 4_000_000, 1 << 30
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval()


@functools.cache
def simulation() -> QuantizationSimModel:
    sim = QuantizationSimModel(net(), X)
    sim.compute_encodings([X])
    return sim


@dataclass(frozen=True)
class Reader:
    """A reader, the file that it reads, and what else lies beside it."""

    name: str
    read: Callable[[Path], object]
    is_json: bool = False


def load_info(path: Path) -> object:
    return torch_quantizer("test", net(), (X,), output_dir=path.parent)


def load_batches(path: Path) -> object:
    return list(load_data(str(path)))


def load_feeds(path: Path) -> object:
    return feeds_of(read_model(path.parent / "net.onnx").graph, path)


def load_folder(path: Path) -> None:
    load_checkpoint(simulation(), path.parent)


def load_encodings(path: Path) -> object:
    return simulation().load_encodings(path)


READERS = (
    Reader("net.onnx", verify_file),
    Reader("net.encodings", load_encodings, True),
    Reader("module.json", load_encodings, True),
    Reader("second.encodings", read_encodings, True),
    Reader("model.safetensors", load_folder),
    Reader("checkpoint.json", load_folder, True),
    Reader("net.safetensors", load_weights),
    Reader("net.pt", load_weights),
    Reader("old.pt", load_weights),
    Reader("data.npy", load_batches),
    Reader("data.npz", load_batches),
    Reader("packed.npz", load_batches),
    Reader("input.npz", load_feeds),
    Reader("config.json", QuantConfig.load, True),
    Reader("strategy.json", load_strategy, True),
    Reader("quant_info.json", load_info, True),
    Reader("run.recipe.yaml", Recipe.load),
)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a valid file of every kind."""
    folder, sim, array = tmp_path_factory.mktemp("valid"), simulation(), X.numpy()
    sim.export(folder, "net", prove=False)
    sim.save_encodings_to_json(folder, "module")
    quantize(net(), X, out=folder, name="run", techniques="none", prove=False)
    sim.export(folder, "second", prove=False, encoding_version="2.0.0")
    save_checkpoint(sim, folder / "c")
    for path in (folder / "c").iterdir():
        path.rename(folder / path.name)
    (folder / "c").rmdir()
    torch.save(net().state_dict(), folder / "net.pt")
    torch.save(net().state_dict(), folder / "old.pt", _use_new_zipfile_serialization=False)
    np.save(folder / "data.npy", array)
    np.savez(folder / "data.npz", array, array)
    np.savez_compressed(folder / "packed.npz", array)
    feed = {str(v.name): array for v in read_model(folder / "net.onnx").graph.inputs}
    np.savez(folder / "input.npz", **feed)  # type: ignore[arg-type]
    settings = {"activation_bitwidth": 8, "layers": {"0": {"output": {"bitwidth": 16}}}}
    (folder / "config.json").write_text(json.dumps(settings))
    rule = {"layer_type": "conv2d", "tensor_quantize_config": {"weights": {"bit_width": 4}}}
    strategy = {"target_device": "CPU", "layer_quantize_config": [rule]}
    (folder / "strategy.json").write_text(json.dumps(strategy))
    q = torch_quantizer("calib", net(), (X,), output_dir=folder)
    q.quant_model(X)
    q.export_quant_config()
    for reader in READERS:
        reader.read(folder / reader.name)
    return folder


def judged(read: Callable[[], object]) -> str | None:
    """What is wrong with how a reader takes a file; None if nothing is."""
    before, work = _peak(), Work()
    found = None
    try:
        with warnings.catch_warnings(), work:
            warnings.simplefilter("ignore")  # of parsers, about what they find odd
            read()
    except FxQuantError as error:
        if not error.code.startswith("FXQ") or not error.what:
            found = f"no code: {error!r}"
    except BaseException as error:
        found = f"{type(error).__name__}: {str(error)[:200]}"
    grown = _peak() - before
    if work.calls > CALLS or grown > BYTES:
        found = f"{work.calls} calls, {grown} bytes; {found}"
    return found


class TooMuchError(BaseException):
    """So much work that it is not waited for."""


class Work:
    """Counts the calls of the functions that run within it, and ends what makes too many."""

    def __init__(self) -> None:
        self.calls = 0

    def __enter__(self) -> None:
        sys.setprofile(self._count)

    def __exit__(self, *_: object) -> None:
        sys.setprofile(None)

    def _count(self, _frame: object, event: str, _function: object) -> None:
        self.calls += event in ("call", "c_call")
        if self.calls > CALLS:
            raise TooMuchError


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB


def faults(reader: Reader, folder: Path, seeds: range) -> list[str]:
    path = folder / reader.name
    content, found = path.read_bytes(), []
    try:
        for seed in seeds:
            path.write_bytes(damaged(content, random.Random(seed), is_json=reader.is_json))
            wrong = judged(lambda: reader.read(path))
            if wrong:
                found.append(f"seed {seed}: {wrong}")
    finally:
        path.write_bytes(content)
    return found


@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.name)
def test_damage_is_refused_with_a_code(reader: Reader, valid: Path) -> None:
    assert faults(reader, valid, range(12)) == []


@pytest.mark.full
@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.name)
def test_much_damage_is_refused_with_a_code(reader: Reader, valid: Path) -> None:
    assert faults(reader, valid, range(100, 500)) == []


# --- few bytes that stand for many ---------------------------------------------------------------


def model(nodes: list[Any], constants: dict[str, Any], **more: Any) -> bytes:
    """An ONNX file with an input x of one number, whose last node makes y."""
    x, y = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s)
        for n, s in (("x", [1]), ("y", ["n"]))
    )
    stored = [onnx.numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()]
    graph = helper.make_graph(nodes, "g", [x], [y], stored)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    made = helper.make_model(graph, ir_version=10, opset_imports=opsets, **more)
    return made.SerializeToString()  # type: ignore[no-any-return]


def node(kind: str, *inputs: str, output: str = "c", **attributes: Any) -> Any:
    return helper.make_node(kind, list(inputs), [output], **attributes)


MANY, ONE = np.array([1 << 29]), np.ones(1, np.float32)
USE = helper.make_node("Mul", ["x", "c"], ["y"])


def functions(depth: int, *, circle: bool = False) -> bytes:
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("f", 1)]
    first = "f0" if circle else "Neg"
    made = [helper.make_function("f", "f0", ["a"], ["b"], [
        helper.make_node(first, ["a"], ["b"], domain="f" if circle else "")], opsets)]  # fmt: skip
    for i in range(1, depth):
        calls = [helper.make_node(f"f{i - 1}", [a], [b], domain="f") for a, b in ("at", "tb")]
        made.append(helper.make_function("f", f"f{i}", ["a"], ["b"], calls, opsets))
    call = helper.make_node(f"f{depth - 1}", ["x"], ["y"], domain="f")
    return model([call], {}, functions=made)


def wrong_content(dims: list[int], raw: bytes) -> bytes:
    proto = onnx.ModelProto.FromString(model([USE], {"c": np.zeros(1, np.float32)}))
    del proto.graph.initializer[0].dims[:]
    proto.graph.initializer[0].dims.extend(dims)
    proto.graph.initializer[0].raw_data = raw
    return proto.SerializeToString()  # type: ignore[no-any-return]


def doubled() -> bytes:
    names = ["v", *(f"c{i}" for i in range(28)), "c"]
    nodes = [node("Concat", a, a, output=b, axis=0) for a, b in itertools.pairwise(names)]
    return model([*nodes, USE], {"v": np.ones(1, np.float32)})


BOMBS: dict[str, Callable[[], bytes]] = {
    "functions": lambda: functions(40),
    "deep functions": lambda: functions(500),
    "functions in a circle": lambda: functions(1, circle=True),
    "constant of shape": lambda: model([node("ConstantOfShape", "n"), USE], {"n": MANY}),
    "expand": lambda: model([node("Expand", "v", "n"), USE], {"n": MANY, "v": ONE}),
    "tile": lambda: model([node("Tile", "v", "n"), USE], {"n": MANY, "v": ONE}),
    "range": lambda: model([node("Range", "a", "b", "s"), USE], {
        "a": np.float32(0), "b": np.float32(1 << 29), "s": np.float32(1)}),
    "doubled": doubled,
    "huge tensor": lambda: wrong_content([1 << 40], b"1234"),
    "overflowing tensor": lambda: wrong_content([1 << 40, 1 << 40], b"1234"),
    "negative tensor": lambda: wrong_content([-1], b"1234"),
    "zeros": lambda: bytes(1 << 20),
}  # fmt: skip


def grown(kind: str, *inputs: str, **attributes: Any) -> list[Any]:
    return [node(kind, *inputs, output="y", **attributes)]


def looped(kind: str, *inputs: str) -> list[Any]:
    """As many rounds as `n` says, each of which computes `v` anew."""
    kinds: list[tuple[str, int, Any]] = [
        ("i", TensorProto.INT64, []), ("go", TensorProto.BOOL, []), ("v", TensorProto.FLOAT, None),
        ("on", TensorProto.BOOL, []), ("w", TensorProto.FLOAT, None)]  # fmt: skip
    values = [helper.make_tensor_value_info(*kind) for kind in kinds]
    more: dict[str, Any] = {"axis": 0} if kind == "Concat" else {}
    inner = [node("Identity", "go", output="on"), node(kind, "v", "v", output="w", **more)]
    body = helper.make_graph(inner, "body", values[:3], values[3:])
    return [node("Loop", *inputs, output="y", body=body)]


SHAPE, YES = np.array([1 << 31]), np.bool_(True)
SQUARE = node("Mul", "side", "side", output="n")
# sizes that only a run tells, or that only the data's come to
RUNS: dict[str, Callable[[], bytes]] = {
    "expand": lambda: model(grown("Expand", "x", "n"), {"n": SHAPE}),
    "half of that": lambda: model(grown("Expand", "x", "n"), {"n": SHAPE // 4}),
    "tile": lambda: model(grown("Tile", "x", "n"), {"n": SHAPE}),
    "pad": lambda: model(grown("Pad", "x", "n"), {"n": np.array([0, 1 << 31])}),
    "random": lambda: model(
        [node("Expand", "x", "n"), *grown("RandomNormalLike", "c")], {"n": SHAPE}),
    "doubled": lambda: model([
        node("Concat", a, a, output=b, axis=0)
        for a, b in itertools.pairwise(["x", *(f"c{i}" for i in range(30)), "y"])], {}),
    "sorted": lambda: model([
        node("Expand", "x", "n"), helper.make_node("TopK", ["c", "n"], ["y", "i"])],
        {"n": SHAPE}),
    "asked for": lambda: model([
        node("Cast", "x", output="i", to=TensorProto.INT64), node("Mul", "i", "n", output="m"),
        node("ConstantOfShape", "m"), *grown("Neg", "c")], {"n": SHAPE}),
    "rounds": lambda: model(
        looped("Add", "n", "yes", "x"), {"n": np.int64(1 << 60), "yes": YES}),
    "doubling rounds": lambda: model(
        looped("Concat", "n", "yes", "x"), {"n": np.int64(33), "yes": YES}),
}  # fmt: skip
COMPUTED: dict[str, Callable[[], bytes]] = {
    "a size that is computed": lambda: model(
        [SQUARE, node("ConstantOfShape", "n"), USE], {"side": np.array([1 << 15])}),
    "a range that is computed": lambda: model([
        node("Cast", "stop", output="end", to=TensorProto.FLOAT),
        node("Range", "a", "end", "s"), USE],
        {"a": np.float32(0), "stop": np.float64(1e9), "s": np.float32(1)}),
    "functions that expand": lambda: functions(16),
}  # fmt: skip


@pytest.mark.parametrize("name", RUNS)
def test_runs_that_take_too_much_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(RUNS[name]())
    verify_file(path)  # which runs nothing

    def read() -> None:
        with pytest.raises(FxQuantError, match=r"FXQ511: .*(bytes|CPU time)"):
            examine(path, {"x": np.ones(1, np.float32)})

    assert judged(read) is None


@pytest.mark.parametrize("name", COMPUTED)
def test_constants_whose_size_only_a_run_tells(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(COMPUTED[name]())

    def read() -> None:
        with pytest.raises(FxQuantError, match="FXQ511"):
            verify_file(path)

    assert judged(read) is None


def test_what_is_computed_from_constants_is_read_while_it_is_small(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(model(
        [SQUARE, node("ConstantOfShape", "n"), USE], {"side": np.array([3])}))  # fmt: skip
    assert examine(path, {"x": np.ones(1, np.float32)})


@pytest.mark.parametrize("name", BOMBS)
def test_onnx_files_that_describe_too_much_are_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(BOMBS[name]())

    def read() -> None:
        with pytest.raises(FxQuantError, match="FXQ511"):
            verify_file(path)

    assert judged(read) is None


def npy(shape: tuple[int, ...], data: bytes = b"") -> bytes:
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue() + data


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


@functools.cache
def zeros() -> bytes:
    return npy((80 << 20,), bytes(320 << 20))


DATA: dict[str, tuple[str, Callable[[], bytes]]] = {
    "huge array": ("d.npy", lambda: npy((1 << 40,))),
    "negative array": ("d.npy", lambda: npy((-1,), bytes(4))),
    "objects": ("d.npy", lambda: b"\x93NUMPY\x01\0\x76\0" + pickle.dumps([1])),
    "deep header": ("d.npy", lambda: b"\x93NUMPY\x01\0\x10\x27" + b"(" * 10_000),
    "huge member": ("d.npz", lambda: zipped({"a.npy": npy((1 << 40,))})),
    "bomb": ("d.npz", lambda: zipped({"a.npy": zeros()})),
    "cut off": ("d.npz", lambda: zipped({"a.npy": npy((8,), bytes(32))})[:-30]),
    "no arrays": ("d.npz", lambda: zipped({"a.txt": b"text"})),
    "weights that are a bomb": ("w.pt", lambda: zipped({"w/data.pkl": zeros()})),
    "no weights": ("w.pt", lambda: zipped({"w/data.pkl": b"text"})),
    "code": ("w.pt", lambda: pickle.dumps(print)),
    "a wrong header": ("w.safetensors", lambda: b"\xff" * 8 + b"{}"),
    "deep header of weights": ("w.safetensors", lambda: b"\x10\x27" + bytes(6) + b"[" * 10_000),
}  # fmt: skip


@pytest.mark.parametrize("name", DATA)
def test_data_that_describe_too_much_are_refused(name: str, tmp_path: Path) -> None:
    suffix, make = DATA[name]
    path = tmp_path / suffix
    path.write_bytes(make())

    def read() -> None:
        with pytest.raises(FxQuantError, match=r"FXQ7[12]2"):
            load_batches(path) if suffix.startswith("d") else load_weights(path)

    assert judged(read) is None


def test_arrays_that_were_cut_off_are_called_so(tmp_path: Path) -> None:
    path = tmp_path / "d.npz"
    path.write_bytes(DATA["cut off"][1]())
    with pytest.raises(FxQuantError, match="without its end: it was cut off"):
        load_batches(path)


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="there are no devices")
@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.name)
def test_devices_are_no_files(reader: Reader, valid: Path) -> None:
    path = valid / reader.name
    content = path.read_bytes()
    path.unlink()
    path.symlink_to("/dev/zero")

    def read() -> None:
        with pytest.raises(FxQuantError, match="no regular file"):
            reader.read(path)

    try:
        assert judged(read) is None
    finally:
        path.unlink()
        path.write_bytes(content)


def nested(levels: int) -> dict[str, Any]:
    """One mapping in two places of another, and so on: two to the power of `levels` paths."""
    found: dict[str, Any] = {}
    for _ in range(levels):
        found = {"a": found, "b": found}
    return found


def test_mappings_in_many_places_are_looked_at_once(tmp_path: Path) -> None:
    torch.save(nested(60), tmp_path / "w.pt")

    def read() -> None:
        with pytest.raises(FxQuantError, match="FXQ713"):
            load_weights(tmp_path / "w.pt")

    assert judged(read) is None


def long_pickle() -> bytes:
    """What `torch.save` wrote before zip files, with a pickle that does little for long."""
    parts = io.BytesIO()
    torch.save({}, parts, _use_new_zipfile_serialization=False)
    start = parts.getvalue().rindex(b"}")  # the state dict itself
    return parts.getvalue()[:start] + b"N" * (8 << 20) + parts.getvalue()[start:]


class Clock:
    """CPU time that passes whenever it is asked for, by a millisecond."""

    def __init__(self) -> None:
        self.now = 0.0

    def process_time(self) -> float:
        self.now += 1e-3
        return self.now


def test_work_without_end_is_found() -> None:
    def read() -> None:
        while True:
            len("")

    found = judged(read)
    assert found is not None
    assert f"{CALLS + 1} calls" in found


def test_pickles_end_after_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fxquant.io.reading.time", Clock())
    monkeypatch.setattr("fxquant.io.reading.CPU_SECONDS", 0.2)
    monkeypatch.setattr("fxquant.io.reading.CPU_SECONDS_PER_MB", 0.0)
    (tmp_path / "w.pt").write_bytes(long_pickle())
    with pytest.raises(FxQuantError, match=r"FXQ712.*more than 0.2 s of CPU time"):
        load_weights(tmp_path / "w.pt")


def test_archives_of_many_arrays_end_after_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxquant.io.reading.time", Clock())
    monkeypatch.setattr("fxquant.io.reading.CPU_SECONDS", 0.05)
    monkeypatch.setattr("fxquant.io.reading.CPU_SECONDS_PER_MB", 0.0)
    one = npy((1, 1), bytes(4))
    (tmp_path / "d.npz").write_bytes(zipped({f"a{i}.npy": one for i in range(3000)}))
    with pytest.raises(FxQuantError, match=r"FXQ722.*more than 0.1 s of CPU time"):
        load_batches(tmp_path / "d.npz")


TEXTS = {
    "a key twice": (b'{"keep_float": [], "keep_float": ["a"]}', "the key 'keep_float' is given tw"),
    "a long number": (b'{"activation_bitwidth": ' + b"9" * 10_000 + b"}", "Exceeds the limit"),
    "no number": (b'{"layers": {"a": {"output": {"max": NaN}}}}', "finite"),
    "infinity": (b'{"activation_bitwidth": 1e999}', "integer"),
    "two bytes a character": ('{"layers": {}}'.encode("utf-16"), "codec can't decode"),
}


@pytest.mark.parametrize("name", TEXTS)
def test_what_is_odd_in_json(name: str, tmp_path: Path) -> None:
    content, what = TEXTS[name]
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(FxQuantError, match=r"FXQ22[01]") as error:
        QuantConfig.load(tmp_path / "c.json")
    assert what in error.value.what


def test_a_mark_before_json_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "c.json").write_bytes(b'\xef\xbb\xbf{"activation_bitwidth": 4}')
    assert QuantConfig.load(tmp_path / "c.json").activation_bitwidth == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes")
@pytest.mark.parametrize("kind", ["pipe", "circle of links", "folder"])
@pytest.mark.parametrize("reader", READERS, ids=lambda r: r.name)
def test_what_is_no_file_is_not_opened(reader: Reader, kind: str, valid: Path) -> None:
    path = valid / reader.name
    content = path.read_bytes()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to(path.name)

    def read() -> None:
        with pytest.raises(FxQuantError):
            reader.read(path)

    try:
        assert judged(read) is None
    finally:
        path.rmdir() if kind == "folder" else path.unlink()
        path.write_bytes(content)


def test_limits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "c.json"
    path.write_text(json.dumps({"layers": {}}))
    monkeypatch.setattr("fxquant.io.reading.JSON_BYTES", 8)
    with pytest.raises(FxQuantError, match=r"FXQ220.*14 bytes; at most 8 are read"):
        QuantConfig.load(path)
    monkeypatch.undo()
    path.write_text("[" * 65 + "]" * 65)
    with pytest.raises(FxQuantError, match=r"FXQ220.*too deep; 64 levels are read"):
        QuantConfig.load(path)
    path.write_text("[" + "[]," * 2_000_000 + "[]]")
    with pytest.raises(FxQuantError, match=r"FXQ220.*2000002 lists and objects; at most 2000000"):
        QuantConfig.load(path)


def test_what_is_stored_without_compression_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fxquant.io.reading.ARCHIVE_BYTES", 1000)
    np.savez(tmp_path / "d.npz", np.zeros((1000, 4), np.float32))
    assert len(load_batches(tmp_path / "d.npz")) > 1  # type: ignore[arg-type]
    np.savez_compressed(tmp_path / "p.npz", np.zeros((1000, 4), np.float32))
    with pytest.raises(FxQuantError, match=r"FXQ722.*store it without compression"):
        load_batches(tmp_path / "p.npz")


def test_views_of_few_bytes_are_no_weights(tmp_path: Path) -> None:
    torch.save({"w": torch.zeros(1).expand(1 << 40)}, tmp_path / "w.pt")
    with pytest.raises(FxQuantError, match="FXQ712"):
        load_weights(tmp_path / "w.pt")
    (tmp_path / "w.safetensors").write_bytes(save({"w": torch.zeros(1)}))
    assert load_weights(tmp_path / "w.safetensors").keys() == {"w"}
