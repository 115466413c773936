"""Writers that are killed at each of their file events: old or new, never half, mixed or lost."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from torch import nn

from fxquant import QuantizationSimModel, export, load_checkpoint, save_checkpoint
from fxquant.encodings import read as read_encodings
from fxquant.errors import CheckpointError, ConfigError, ExportError
from fxquant.io.writing import require_whole, write_text
from fxquant.onnx.io.reader import read_model
from fxquant.onnx.io.writer import write_model
from fxquant.onnx.parity.report import ParityReport
from fxquant.recipe import Recipe
from fxquant.vitis import torch_quantizer

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked and killed")

_EVENTS = frozenset(
    ("open", "os.rename", "os.link", "os.mkdir", "os.remove", "os.rmdir", "os.chmod", "fsync")
)
_MOST = 400


def killed_at(event: int, write: Callable[[], object], folder: Path) -> bool:
    """Run a writer in a copy of this process, which dies at its n-th file event below `folder`.

    Returns:
        Whether it died; else it has finished before.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            _die_at(event, folder)
            write()
        except BaseException:
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0, "the writer failed"
    return False


def _die_at(last: int, folder: Path) -> None:
    seen = 0
    real = os.fsync

    def hook(event: str, args: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in _EVENTS and (event == "fsync" or str(folder) in str(args[0])):
            seen += 1
            if seen == last:
                os.kill(os.getpid(), signal.SIGKILL)

    def fsync(handle: Any) -> None:
        hook("fsync", ())
        real(handle)

    os.fsync = fsync  # type: ignore[assignment]
    sys.addaudithook(hook)


def sweep(
    write: Callable[[], object],
    check: Callable[[], object],
    folder: Path,
    reset: Callable[[], object],
) -> int:
    """Kill a writer at each event in turn; afterwards it runs to its end and leaves nothing else.

    Returns:
        The number of events.
    """
    for event in range(1, _MOST):
        reset()
        if not killed_at(event, write, folder):
            assert check() == "new"
            return event - 1
        check()
        assert not killed_at(_MOST, write, folder)
        assert check() == "new"
        assert not [p.name for p in folder.rglob(".*")], "leftovers"
    pytest.fail("there is no end of events")


# --- sets of files ---------------------------------------------------------------------------


NAMES = ("net.encodings", "net.onnx", "net.recipe.yaml", "net.report.json", "net.safetensors")


def writer(text: str) -> Callable[..., ParityReport]:
    def write(_: Any, work: Path, prefix: str, *__: Any, **___: Any) -> ParityReport:
        for name in NAMES:  # with the recipe, which is written before any gets its name
            (work / name.replace("net", prefix, 1)).write_text(text)
        return ParityReport(proven=True)

    return write


def simulation(seed: int = 0) -> QuantizationSimModel:
    torch.manual_seed(seed)
    x = torch.randn(4, 3)
    sim = QuantizationSimModel(nn.Sequential(nn.Linear(3, 2), nn.ReLU()).eval(), x)
    sim.compute_encodings([x])
    return sim


def state_of_set(folder: Path) -> str:
    found = {(folder / n).read_text() if (folder / n).exists() else None for n in NAMES}
    if len(found) == 1:
        require_whole(folder / "net.onnx")  # a whole set is not refused
        return found.pop() or "none"
    for name in NAMES:
        with pytest.raises(ExportError, match="FXQ751"):
            require_whole(folder / name)
    return "refused"


@pytest.mark.parametrize("old", [True, pytest.param(False, marks=pytest.mark.full)])
def test_exports_are_old_or_new_or_refused(
    old: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim, folder = simulation(), tmp_path / "out"

    def put(text: str) -> None:
        monkeypatch.setattr(export, "_write_all", writer(text))
        sim.export(folder, "net")

    def reset() -> None:
        for path in folder.glob("*"):
            path.unlink()
        if old:
            put("old")
        monkeypatch.setattr(export, "_write_all", writer("new"))

    seen: set[str] = set()

    def check() -> str:
        found = state_of_set(folder)
        seen.add(found)
        return found

    events = sweep(lambda: sim.export(folder, "net"), check, tmp_path, reset)
    assert events > 20
    assert seen == {"old" if old else "none", "new", "refused"}


def test_an_export_of_another_model_finishes_what_was_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = simulation()
    for event in range(1, _MOST):
        for path in tmp_path.glob("net.*"):
            path.unlink()
        monkeypatch.setattr(export, "_write_all", writer("old"))
        sim.export(tmp_path, "net")
        monkeypatch.setattr(export, "_write_all", writer("new"))
        if not killed_at(event, lambda: sim.export(tmp_path, "net"), tmp_path):
            return
        before = state_of_set(tmp_path)
        sim.export(tmp_path, "other")
        assert state_of_set(tmp_path) in (("new",) if before == "refused" else (before, "new"))
    pytest.fail("there is no end of events")


def cut_short(write: Callable[[], object], folder: Path, reset: Callable[[], object]) -> None:
    """Kill a writer where the first of its files is new and the last is not."""
    for event in range(1, _MOST):
        reset()
        assert killed_at(event, write, folder)
        if (folder / NAMES[0]).read_text() == "new":
            return


def put_back(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.is_dir():
            shutil.rmtree(path)
    for name in NAMES:
        (folder / name).write_text("old")


def test_what_somebody_has_changed_since_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = simulation()
    monkeypatch.setattr(export, "_write_all", writer("new"))
    cut_short(lambda: sim.export(tmp_path, "net"), tmp_path, lambda: put_back(tmp_path))
    assert state_of_set(tmp_path) == "refused"
    for name in NAMES:
        (tmp_path / name).write_text("mine")
    require_whole(tmp_path / "net.onnx")
    sim.export(tmp_path, "other")
    assert state_of_set(tmp_path) == "mine"


def test_readers_refuse_a_mixed_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sim = simulation()
    monkeypatch.setattr(export, "_write_all", writer("new"))
    cut_short(lambda: sim.export(tmp_path, "net"), tmp_path, lambda: put_back(tmp_path))
    with pytest.raises(ExportError, match="FXQ751"):
        read_model(tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match="FXQ751"):
        read_encodings(tmp_path / "net.encodings")
    with pytest.raises(ConfigError, match="FXQ751"):
        Recipe.load(tmp_path / "net.recipe.yaml")


def constant(value: float) -> ir.Model:
    """A model that adds a large constant."""
    x, y = (ir.Value(name=n, shape=ir.Shape([512]), type=ir.TensorType(ir.DataType.FLOAT))
            for n in "xy")  # fmt: skip
    weight = ir.Value(name="w", const_value=ir.tensor(np.full(512, value, np.float32), name="w"))
    node = ir.Node("", "Add", [x, weight], outputs=[y])
    graph = ir.Graph([x], [y], nodes=[node], initializers=[weight], opset_imports={"": 21})
    return ir.Model(graph, ir_version=10)


def test_a_model_never_reads_the_weights_of_another(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"

    def reset() -> None:
        for file in tmp_path.glob("*"):
            file.unlink()
        write_model(constant(1.0), path, external_from=0)

    def check() -> str:
        weight = ir.load(path).graph.initializers["w"].const_value
        assert isinstance(weight, ir.ExternalTensor)
        (value,) = set(weight.numpy().tolist())
        return {1.0: "old", 2.0: "new"}[value]

    sweep(lambda: write_model(constant(2.0), path, external_from=0), check, tmp_path, reset)
    assert len(list(tmp_path.iterdir())) == 2, "the weights of the older model are gone"


# --- checkpoints -----------------------------------------------------------------------------


def first_weight(sim: QuantizationSimModel) -> float:
    return sim.model.get_parameter("0.weight").detach()[0, 0].item()


@pytest.mark.parametrize("old", [True, False])
def test_checkpoints_are_old_or_new(old: bool, tmp_path: Path) -> None:
    first, second = simulation(), simulation()
    with torch.no_grad():
        second.model.get_parameter("0.weight").mul_(2)
    texts = {first_weight(first): "old", first_weight(second): "new"}
    folder = tmp_path / "c"

    def reset() -> None:
        for file in folder.glob("*"):
            file.unlink()
        if folder.exists():
            folder.rmdir()
        if old:
            save_checkpoint(first, folder)

    def check() -> str:
        fresh = simulation()
        if not folder.exists():
            assert not old
            with pytest.raises(CheckpointError, match="FXQ602"):
                load_checkpoint(fresh, folder)
            return "none"
        load_checkpoint(fresh, folder)
        return texts[first_weight(fresh)]

    assert sweep(lambda: save_checkpoint(second, folder), check, tmp_path, reset) > 10


# --- single files ----------------------------------------------------------------------------


def one_file(tmp_path: Path, name: str, write: Callable[[], object], old: bytes) -> None:
    file = tmp_path / name
    write()
    new = file.read_bytes()

    def check() -> str:
        return {old: "old", new: "new"}[file.read_bytes()]

    assert sweep(write, check, tmp_path, lambda: file.write_bytes(old)) > 5


def test_encodings_files_are_old_or_new(tmp_path: Path) -> None:
    sim = simulation()
    one_file(tmp_path, "e.json", lambda: sim.save_encodings_to_json(tmp_path, "e"), b"{}")


def test_texts_are_old_or_new(tmp_path: Path) -> None:
    one_file(tmp_path, "x.svg", lambda: write_text(tmp_path / "x.svg", "new"), b"old")


def test_what_the_other_front_door_writes_is_old_or_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = torch.randn(4, 3)
    q = torch_quantizer("calib", nn.Sequential(nn.Linear(3, 2)).eval(), (x,), output_dir=tmp_path)
    q.quant_model(x)
    one_file(tmp_path, "quant_info.json", q.export_quant_config, b"{}")
    monkeypatch.setattr(torch.export, "export", lambda *_: None)
    monkeypatch.setattr(torch.export, "save", lambda _, file: file.write(b"program"))
    one_file(tmp_path, "Sequential_int.pt2", q.export_torch_script, b"older")


@pytest.mark.full
def test_a_whole_export_is_old_or_new_or_refused(tmp_path: Path) -> None:
    """As above, with lowering and without a proof, at every event of all that is written."""
    old, new, folder = simulation(0), simulation(0), tmp_path / "out"
    with torch.no_grad():
        new.model.get_parameter("0.weight").mul_(2)
    content: dict[tuple[str, bytes], str] = {}
    for sim, text in ((new, "new"), (old, "old")):
        sim.export(folder, "net", prove=False)
        content |= {(p.name, p.read_bytes()): text for p in folder.iterdir()}
    changed = {n for n, _ in content if sum(n == m for m, _ in content) == 2}
    assert {"net.onnx", "net.safetensors"} <= changed

    def check() -> str:
        found = {content[n, (folder / n).read_bytes()] for n in sorted(changed)}
        if len(found) == 1:
            return found.pop()
        with pytest.raises(ExportError, match="FXQ751"):
            require_whole(folder / "net.onnx")
        return "refused"

    def reset() -> None:
        old.export(folder, "net", prove=False)

    assert sweep(lambda: new.export(folder, "net", prove=False), check, tmp_path, reset) > 40


# --- several processes -----------------------------------------------------------------------


def forked(work: Callable[[], object]) -> int:
    """Start work in a copy of this process; returns its number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of forks beside threads
        child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return child


def test_two_writers_of_one_name_leave_the_files_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sim = simulation()

    def often(text: str) -> None:
        monkeypatch.setattr(export, "_write_all", writer(text))
        for _ in range(10):
            sim.export(tmp_path, "net")

    children = [forked(functools.partial(often, text)) for text in ("one", "two")]
    assert [os.waitstatus_to_exitcode(os.waitpid(c, 0)[1]) for c in children] == [0, 0]
    assert state_of_set(tmp_path) in ("one", "two")
    assert not list(tmp_path.glob(".*"))


def test_readers_beside_a_writer_see_whole_checkpoints(tmp_path: Path) -> None:
    first, second = simulation(), simulation()
    with torch.no_grad():
        second.model.get_parameter("0.weight").mul_(2)
    known = {first_weight(first), first_weight(second)}
    folder = tmp_path / "c"
    save_checkpoint(first, folder)

    def write() -> None:
        for _ in range(8):
            save_checkpoint(second, folder)
            save_checkpoint(first, folder)

    child, fresh = forked(write), simulation()
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        load_checkpoint(fresh, folder)
        assert first_weight(fresh) in known
    load_checkpoint(fresh, folder)
    assert first_weight(fresh) == first_weight(first)


def test_a_device_gets_the_bytes_and_a_link_stays(tmp_path: Path) -> None:
    """They are not replaced, which who may write anywhere would do to `/dev/null`."""
    pipe, target, link = tmp_path / "pipe", tmp_path / "target", tmp_path / "link"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "whole")
        assert os.read(reader, 100) == b"whole"
    finally:
        os.close(reader)
    assert pipe.is_fifo()
    write_text(os.devnull, "gone")
    assert Path(os.devnull).is_char_device()
    link.symlink_to(target)
    for text in ("new", "newer"):
        write_text(link, text)
        assert link.is_symlink()
        assert target.read_text("utf-8") == text
    with pytest.raises(ConfigError, match=r"FXQ544.*No space"):
        write_text("/dev/full", "text", error=ConfigError)
    (tmp_path / "several").mkdir()
    os.mkfifo(tmp_path / "several" / "net.onnx")
    net, x = nn.Linear(2, 2), torch.ones(1, 2)
    sim = QuantizationSimModel(net, x)
    sim.compute_encodings([x])
    with pytest.raises(ExportError, match=r"FXQ545.*device or a pipe"):
        sim.export(tmp_path / "several", "net")
