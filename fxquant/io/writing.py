"""Writing files: a name always stands for a whole file, and the files of an export belong together.

What is unfinished lies in a hidden folder beside the final names, is put on the disk there, and is
renamed. A single file changes by one rename. Several files change by several renames, so a journal
is written first: whoever is killed in between leaves a journal that the next writer in the folder
carries out to its end, and that readers of these files refuse until then (`require_whole`).

Codes are the same for all writers; each says which class of error it raises.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import socket
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fxquant.errors import ConfigError, ExportError, FxQuantError
from fxquant.io.devices import is_device, stream

Kind = type[FxQuantError]

_STAGE = ".fxquant-export-"
_OWNER = re.compile(r"-(\d+)\.([0-9a-f]{8})-[^-]*$")  # process and host, from the first moment on
_JOURNAL, _OLD = "journal.json", ".old"
_STALE_SECONDS = 24 * 3600  # where it cannot be asked whether the process that wrote is alive


# --- names ---------------------------------------------------------------------------------------


_LONGEST = 255  # bytes of a name, on all usual file systems


def as_path(path: Any, what: str = "path") -> Path:
    """The path that an argument names.

    Raises:
        ConfigError: FXQ750, it is no path.
    """
    if not isinstance(path, str | os.PathLike) or "\0" in str(path) or not str(path):
        kind = repr(path) if isinstance(path, str) else f"a {type(path).__name__}"
        raise ConfigError("FXQ750", f"{what} is {kind}, not a path", fix="pass a str or a Path")
    longest = max((len(os.fsencode(part)) for part in Path(path).parts), default=0)
    if longest > _LONGEST:  # whoever asks whether it exists gets an OSError
        text = f"{what} holds a name of {longest} bytes"
        raise ConfigError("FXQ750", text, fix=f"use names of at most {_LONGEST} bytes")
    return Path(path)


def checked_prefix(prefix: Any, *, error: Kind = ExportError) -> str:
    """The prefix of files, if it is a plain file name.

    Raises:
        FxQuantError: FXQ541.
    """
    if not isinstance(prefix, str):
        what = f"filename_prefix is a {type(prefix).__name__}, not a text"
        raise error("FXQ541", what, fix="pass a str, and put the folder into `path`")
    separators = {"/", "\\", os.sep, os.altsep or "/", "\0"}
    if not prefix or prefix in (".", "..") or separators & set(prefix):
        what = f"filename_prefix {prefix!r} is not a plain file name"
        raise error("FXQ541", what, fix="put the folder into `path`")
    return prefix


# --- one file ------------------------------------------------------------------------------------


def write_text(path: str | Path, text: str, *, error: Kind = ExportError) -> Path:
    """Write a text file; its folder is made when missing.

    Raises:
        FxQuantError: see `new_file`.
    """
    with new_file(path, error=error) as file:
        file.write_text(text, encoding="utf-8")
    return Path(path)


@contextlib.contextmanager
def new_file(path: str | Path, *, error: Kind = ExportError) -> Iterator[Path]:
    """A place to write a file, which gets its name when the block ends without an error.

    A link stays a link to what it names, and a device or a pipe gets the bytes.

    Args:
        path: the file; its folder is made when missing.
        error: class of the errors.

    Raises:
        FxQuantError: FXQ542 to FXQ545, and FXQ750 for what is no path.
    """
    path = as_path(path)
    if is_device(path):
        with _told(path, error), stream(path) as file:
            yield file
        return
    path = Path(os.path.realpath(path)) if os.path.islink(path) else path
    with (
        made_folder(path.parent, error=error) as folder,
        stage(folder, path.name, error=error) as work,
    ):
        yield work / path.name
        publish(work, folder, error=error)


# --- folders -------------------------------------------------------------------------------------


@contextlib.contextmanager
def made_folder(path: Path, *, error: Kind = ExportError) -> Iterator[Path]:
    """A folder that exists; one that was made here is removed again when the block fails.

    Raises:
        FxQuantError: FXQ542, it cannot be made or is no folder.
    """
    try:
        made = [p for p in (path, *path.parents) if not p.exists()]
        path.mkdir(parents=True, exist_ok=True)
    except OSError as failure:
        what = f"the folder {str(path)!r} cannot be used: {failure.strerror or failure}"
        raise error("FXQ542", what, fix="choose a folder that can be written") from failure
    try:
        yield path
    except BaseException:
        for folder in made:
            with contextlib.suppress(OSError):  # not empty: somebody else put something there
                folder.rmdir()
        raise


@contextlib.contextmanager
def stage(folder: Path, name: str, *, error: Kind = ExportError) -> Iterator[Path]:
    """A hidden folder on the same file system; it is gone afterwards, those of killed runs too.

    Args:
        folder: where the files are to lie.
        name: becomes a part of the hidden folder's name.
        error: class of the errors.

    Raises:
        FxQuantError: FXQ543 the folder cannot be written, FXQ544 writing failed.
    """
    recover(folder)
    try:
        owner = f"{os.getpid()}.{_host()}"
        work = Path(tempfile.mkdtemp(prefix=f"{_STAGE}{name}-{owner}-", dir=folder))
    except OSError as failure:
        what = f"the folder {str(folder)!r} cannot be written: {failure.strerror or failure}"
        raise error("FXQ543", what, fix="choose a folder that can be written") from failure
    try:
        with _told(folder, error):
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextlib.contextmanager
def _told(where: Path, error: Kind) -> Iterator[None]:
    try:
        yield
    except OSError as failure:
        what = f"writing into {str(where)!r} failed: {failure.strerror or failure}"
        fix = "look at the free space and the permissions"
        raise error("FXQ544", what, fix=fix) from failure


@contextlib.contextmanager
def reserved(path: str | Path, name: str, *, error: Kind = ExportError) -> Iterator[Path]:
    """A folder in which files of a name can be written: that is known before they are computed.

    Args:
        path: the folder; one that was made here is removed again when the block fails.
        name: of a file that will be written there.
        error: class of the errors.

    Raises:
        FxQuantError: FXQ542 to FXQ545, and FXQ750 for what is no path.
    """
    with made_folder(as_path(path), error=error) as folder:
        with stage(folder, name, error=error):
            _refuse_folder(folder, name, error)
        yield folder


# --- several files at once -----------------------------------------------------------------------


def publish(work: Path, folder: Path, *, error: Kind = ExportError) -> None:
    """Give the files of a stage their final names: all of them, or none when one fails.

    The ONNX model comes last: until then runtimes find the old one.

    Raises:
        FxQuantError: FXQ545, a folder or a device has one of the names.
    """
    files = sorted(work.iterdir())
    files.sort(key=lambda p: p.suffix == ".onnx")
    for file in files:
        _refuse_folder(folder, file.name, error)
        flush(file)
    names = [file.name for file in files]
    if len(names) == 1:
        os.replace(work / names[0], folder / names[0])
        flush(folder)
        return
    for name in names:
        _keep(folder / name, work / f"{name}{_OLD}")
    journal = {name: {"new": _sha256(work / name), "old": _sha256(folder / name)} for name in names}
    _note(work, {"forward": True, "files": journal})
    try:
        for name in names:
            os.replace(work / name, folder / name)
        flush(folder)
    except BaseException:
        _note(work, {"forward": False, "files": journal})
        _restore(work, folder, names)
        raise
    # before the stage is taken apart: a part of it must not look like an interrupted change
    (work / _JOURNAL).unlink()


def _refuse_folder(folder: Path, name: str, error: Kind) -> None:
    if (folder / name).is_dir() or is_device(folder / name):
        kind = "a folder" if (folder / name).is_dir() else "a device or a pipe"
        what = f"{name!r} is {kind} in {str(folder)!r}"
        raise error("FXQ545", what, fix="choose another name")


def remove_unused(model: Path, weights: str | None) -> None:
    """Remove weights that lie beside an ONNX model and that only an older one has read.

    Args:
        model: the ONNX file.
        weights: name of the file with its weights, if there is one.
    """
    named = re.compile(re.escape(model.name) + r"(\.[0-9a-f]{8})?\.data")
    for file in model.parent.iterdir():
        if named.fullmatch(file.name) and file.name != weights:
            with contextlib.suppress(OSError):  # it is in use: the next export removes it
                file.unlink()


def flush(path: Path) -> None:
    """Put a file's content, or a folder's names, on the disk: a power cut loses nothing after."""
    if path.is_dir():
        if os.name != "posix":  # elsewhere folders cannot be opened
            return
        handle = os.open(path, os.O_RDONLY)
    else:
        handle = os.open(path, os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _keep(final: Path, to: Path) -> None:
    """A second name for an older file, which takes no space."""
    if not final.exists():
        return
    try:
        os.link(final, to)
    except OSError:  # a file system without links
        shutil.copy2(final, to)


def _note(work: Path, journal: dict[str, Any]) -> None:
    part = work / f"{_JOURNAL}.part"
    part.write_text(json.dumps(journal), encoding="utf-8")
    flush(part)
    os.replace(part, work / _JOURNAL)
    flush(work)


def _restore(work: Path, folder: Path, names: list[str]) -> None:
    for name in names:
        old = work / f"{name}{_OLD}"
        with contextlib.suppress(OSError):
            if old.exists():
                os.replace(old, folder / name)
            elif not (work / name).exists():  # it has been renamed, and there was none before
                (folder / name).unlink(missing_ok=True)


# --- after a kill --------------------------------------------------------------------------------


def recover(folder: Path) -> None:
    """Carry out what killed runs had begun to rename, and remove what else they left."""
    for work in folder.glob(f"{_STAGE}*"):
        if not _is_stale(work):
            continue
        journal = _interrupted(work, folder)
        if journal is not None:
            names = list(journal["files"])
            if journal["forward"]:
                for name in names:
                    with contextlib.suppress(FileNotFoundError):  # it has been renamed
                        os.replace(work / name, folder / name)
            else:
                _restore(work, folder, names)
            flush(folder)
        shutil.rmtree(work, ignore_errors=True)


def require_whole(path: Path, error: Kind = ExportError) -> None:
    """Refuse a file whose companions a killed run has replaced in part.

    Raises:
        FxQuantError: FXQ751.
    """
    for work in path.parent.glob(f"{_STAGE}*"):
        if not (work / _JOURNAL).exists() or not _is_stale(work):
            continue
        journal = _interrupted(work, path.parent)
        if journal is None or path.name not in journal["files"]:
            continue
        there = {name: _sha256(path.parent / name) for name in journal["files"]}
        if not any(_is(there, journal, which) for which in ("old", "new")):
            what = f"an export of {path.name!r} was cut short: its files are of two exports"
            fix = "export again into this folder; any export into it finishes the one cut short"
            raise error("FXQ751", what, at=str(path), fix=fix)


def _interrupted(work: Path, folder: Path) -> dict[str, Any] | None:
    """The journal of a change that was begun, unless somebody has changed the files since."""
    try:
        journal = json.loads((work / _JOURNAL).read_text(encoding="utf-8"))
        files: dict[str, dict[str, str | None]] = journal["files"]
        known = all(_sha256(folder / n) in (f["new"], f["old"]) for n, f in files.items())
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return journal if known else None


def _is(there: dict[str, str | None], journal: dict[str, Any], which: str) -> bool:
    """Whether all files are those before ("old") or after ("new") the change."""
    return all(there[name] == digests[which] for name, digests in journal["files"].items())


def _sha256(path: Path) -> str | None:
    """Digest of a file; None where there is none."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None


def _is_stale(work: Path) -> bool:
    if _is_of_the_dead(work):
        return True
    try:
        return time.time() - work.stat().st_mtime > _STALE_SECONDS
    except OSError:
        return False


def _is_of_the_dead(work: Path) -> bool:
    """Whether the process that wrote here is known to be gone; others are told by their age."""
    owner = _OWNER.search(work.name)
    return owner is not None and owner[2] == _host() and not _is_alive(int(owner[1]))


def _host() -> str:
    return hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


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
