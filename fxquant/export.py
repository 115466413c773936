"""Export: from a calibrated simulation to files that are whole and proven.

Everything is written into a folder beside the final names, compared with onnxruntime there, and
only then renamed. Whatever fails, also a killed process, leaves the final names as they were.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, fx

from fxquant.errors import ExportError, UncalibratedError
from fxquant.nn.modes import evaluating
from fxquant.onnx.randomness import check_modes
from fxquant.onnx.record import bound_example
from fxquant.onnx.report import ParityReport
from fxquant.quantization import QuantizerBase

if TYPE_CHECKING:
    from fxquant.targets import Deploy

Example = tuple[tuple[Any, ...], Mapping[str, Any]]

_STAGE = ".fxquant-export-"
_OWNER = "owner.json"
_STALE_SECONDS = 24 * 3600  # where it cannot be asked whether the process that wrote is alive
_LISTED = 12


def export_model(
    sim_model: fx.GraphModule,
    path: str | Path,
    filename_prefix: str,
    example: Example,
    *,
    opset: int = 21,
    prove: bool = True,
    contrib: bool = False,
    deploy: Deploy = "any",
    scheme: str = "",
    encoding_version: str = "1.0.0",
) -> ParityReport:
    """Write `<prefix>.onnx`, `.encodings`, `.safetensors` (float weights) and `.report.json`.

    Args:
        sim_model: the calibrated model of a simulation; its training flags are left as they are.
        path: folder; it is made when missing.
        filename_prefix: how the files are called; no path separators.
        example: positional and keyword inputs for the proof.
        opset: ONNX opset.
        prove: compare with onnxruntime before the files get their names.
        contrib: write what onnxruntime runs fastest, also in operators of its own.
        deploy: the CPUs that the file is written for, see `fxquant.onnx.deploy`.
        scheme: name of the quantization scheme, for the encodings file.
        encoding_version: version of the encodings file: 0.6.1, 1.0.0, 2.0.0 or 2.1.0.

    Returns:
        The report of the proof.

    Raises:
        UncalibratedError: FXQ540, quantizers have no range; nothing was written.
        ExportError: FXQ541 to FXQ544 a path cannot be used; or lowering or verification failed.
        ParityError: the runtime computes something else than the simulation.
    """
    prefix = _checked_prefix(filename_prefix)
    _check_calibrated(sim_model)
    check_modes(sim_model, bound_example(sim_model, example))
    with _folder(Path(path)) as folder, _stage(folder, prefix) as stage, evaluating(sim_model):
        report = _write_all(
            sim_model, stage, prefix, example, prove=prove,
            lowering={"opset": opset, "contrib": contrib, "deploy": deploy},
            file={"scheme": scheme, "version": encoding_version},
        )  # fmt: skip
        _publish(stage, folder)
    return report


def _write_all(
    sim_model: fx.GraphModule,
    stage: Path,
    prefix: str,
    example: Example,
    *,
    lowering: Mapping[str, Any],
    prove: bool,
    file: Mapping[str, str],
) -> ParityReport:
    from fxquant.onnx.encodings_file import write_encodings
    from fxquant.onnx.fidelity import fidelity
    from fxquant.onnx.lower import lower
    from fxquant.onnx.parity import notes_of
    from fxquant.onnx.parity import prove as compare
    from fxquant.onnx.verify import verify
    from fxquant.onnx.write import write_model

    found = fidelity(sim_model, example)
    lowered = lower(sim_model, example, **lowering)
    verify(lowered.model)
    encodings = write_encodings(sim_model, lowered, stage / f"{prefix}.encodings", **file)
    write_model(lowered, stage / f"{prefix}.onnx", encodings=encodings)
    _write_weights(sim_model, stage / f"{prefix}.safetensors")
    # safetensors lets only the owner read what it writes, whatever the user's umask says
    shutil.copymode(stage / f"{prefix}.encodings", stage / f"{prefix}.safetensors")
    report = ParityReport(proven=False, notes=notes_of(lowered))
    if prove:
        report = compare(sim_model, lowered, example, stage / f"{prefix}.onnx")
        report.raise_unless_proven()
    report = dataclasses.replace(
        report, samples=found.samples, fidelity=found.outputs, warnings=found.warnings
    )
    (stage / f"{prefix}.report.json").write_text(report.to_json(), encoding="utf-8")
    return report


# --- before anything is written ------------------------------------------------------------------


def _checked_prefix(prefix: str) -> str:
    """The prefix, if it is a plain file name.

    Raises:
        ExportError: FXQ541.
    """
    separators = {"/", "\\", os.sep, os.altsep or "/", "\0"}
    if not prefix or prefix in (".", "..") or separators & set(prefix):
        what = f"filename_prefix {prefix!r} is not a plain file name"
        raise ExportError("FXQ541", what, fix="put the folder into `path`")
    return prefix


def _check_calibrated(model: fx.GraphModule) -> None:
    """Every quantizer that the graph uses has a range.

    Raises:
        UncalibratedError: FXQ540, with the list of those that have none.
    """
    called = [n for n in model.graph.nodes if n.op == "call_module"]
    missing: dict[int, str] = {}
    for node in called:
        for name, part in model.get_submodule(str(node.target)).named_modules():
            if isinstance(part, QuantizerBase) and not part.is_initialized():
                source = node.meta.get("source")
                text = part.where or f"{node.target}.{name}"
                missing.setdefault(id(part), f"{text}, {source}" if source else text)
    if not missing:
        return
    names = list(missing.values())
    shown = "\n".join(f"    {name}" for name in names[:_LISTED])
    more = f"\n    ... and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    raise UncalibratedError(
        "FXQ540",
        f"{len(names)} tensor(s) have no range:\n{shown}{more}",
        fix="run sim.compute_encodings(...) with data that reaches them before exporting",
    )


# --- folders -------------------------------------------------------------------------------------


@contextlib.contextmanager
def _folder(path: Path) -> Iterator[Path]:
    """The target folder; one that was made here is removed again when the export fails.

    Raises:
        ExportError: FXQ542, it cannot be made or is no folder.
    """
    made = [p for p in (path, *path.parents) if not p.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        what = f"the folder {str(path)!r} cannot be used: {error.strerror or error}"
        raise ExportError("FXQ542", what, fix="choose a folder that can be written") from error
    try:
        yield path
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: somebody else put something there
                folder.rmdir()
        raise


@contextlib.contextmanager
def _stage(folder: Path, prefix: str) -> Iterator[Path]:
    """A folder on the same file system; it is gone afterwards, those of killed runs too.

    Raises:
        ExportError: FXQ543, the target folder cannot be written.
    """
    _clear_stale(folder)
    try:
        stage = Path(tempfile.mkdtemp(prefix=f"{_STAGE}{prefix}-", dir=folder))
    except OSError as error:
        what = f"the folder {str(folder)!r} cannot be written: {error.strerror or error}"
        raise ExportError("FXQ543", what, fix="choose a folder that can be written") from error
    try:
        owner = {"process": os.getpid(), "host": socket.gethostname()}
        (stage / _OWNER).write_text(json.dumps(owner), encoding="utf-8")
        yield stage
    except OSError as error:
        what = f"writing into {str(folder)!r} failed: {error.strerror or error}"
        raise ExportError(
            "FXQ544", what, fix="look at the free space and the permissions"
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _clear_stale(folder: Path) -> None:
    """Remove what killed exports left behind."""
    for stage in folder.glob(f"{_STAGE}*"):
        if _is_stale(stage):
            shutil.rmtree(stage, ignore_errors=True)


def _is_stale(stage: Path) -> bool:
    try:
        old = time.time() - stage.stat().st_mtime > _STALE_SECONDS
        owner = json.loads((stage / _OWNER).read_text(encoding="utf-8"))
        here = owner["host"] == socket.gethostname()
        return old or (here and not _is_alive(int(owner["process"])))
    except (OSError, ValueError, KeyError, TypeError):
        # just made by another process, or not ours: only age decides
        return _older_than_a_day(stage)


def _older_than_a_day(stage: Path) -> bool:
    try:
        return time.time() - stage.stat().st_mtime > _STALE_SECONDS
    except OSError:
        return False


def _is_alive(process: int) -> bool:
    if os.name != "posix":  # elsewhere signal 0 is not a question but a signal
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


# --- files ---------------------------------------------------------------------------------------


def _write_weights(model: fx.GraphModule, path: Path) -> None:
    """Float parameters and persistent buffers under the user's names, without quantizers."""
    from safetensors.torch import save_file

    inner = {name for name, part in model.named_modules() if isinstance(part, QuantizerBase)}
    weights = {
        name: value for name, value in model.state_dict().items()
        if isinstance(value, Tensor) and not _inside(name, inner)
    }  # fmt: skip
    save_file(_separate(weights), str(path))


def _inside(name: str, modules: set[str]) -> bool:
    parts = name.split(".")
    return any(".".join(parts[:i]) in modules for i in range(1, len(parts)))


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous copies where tensors share memory: safetensors stores each name on its own."""
    seen: set[int] = set()
    result = {}
    for name, value in tensors.items():
        plain = value.detach().as_subclass(Tensor).cpu()
        storage = plain.untyped_storage().data_ptr()
        whole = plain.untyped_storage().nbytes() == plain.numel() * plain.element_size()
        result[name] = plain.contiguous() if whole and storage not in seen else plain.clone()
        seen.add(storage)
    return result


def _publish(stage: Path, folder: Path) -> None:
    """Give the staged files their final names: all of them, or none when one cannot be renamed.

    The model comes last, so that a process killed in between leaves no model without its files.
    """
    files = sorted(p for p in stage.iterdir() if p.name != _OWNER)
    files.sort(key=lambda p: p.suffix == ".onnx")
    for file in files:
        _flush(file)
        if (folder / file.name).is_dir():
            what = f"{file.name!r} is a folder in {str(folder)!r}"
            raise ExportError("FXQ545", what, fix="choose another prefix")
    backups = {file.name: _backup(folder / file.name, stage / f"{file.name}.old") for file in files}
    done: list[Path] = []
    try:
        for file in files:
            done.append(folder / file.name)
            os.replace(file, folder / file.name)
    except BaseException:
        _restore(done, backups)
        raise


def _flush(file: Path) -> None:
    """Put a file's content on the disk before its name: no power cut leaves an empty model."""
    with file.open("rb+") as handle:
        os.fsync(handle.fileno())


def _backup(final: Path, to: Path) -> Path | None:
    """A second name for an older file, which takes no space."""
    if not final.exists():
        return None
    try:
        os.link(final, to)
    except OSError:  # a file system without links
        shutil.copy2(final, to)
    return to


def _restore(done: list[Path], backups: Mapping[str, Path | None]) -> None:
    for final in done:
        backup = backups[final.name]
        with contextlib.suppress(OSError):
            if backup is not None:
                os.replace(backup, final)
            elif final.exists():
                final.unlink()
