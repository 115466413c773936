"""Reading files that anybody may have written: budgets of size and depth, which errors name.

Every reader asks here before it opens anything: a device never ends, and a small archive may say
that it holds a large one. What is refused raises `Refused`, a ValueError; readers turn it into the
error of their kind.
"""

from __future__ import annotations

import json
import os
import stat
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

# generous for what quantization tools write; a program that must read more sets others here
JSON_BYTES = 64 << 20  # encodings of a network with two million channels
JSON_DEPTH = 64
JSON_CONTAINERS = 2_000_000  # lists and objects, each of which takes a hundred bytes of memory
TEXT_SHOWN = 200  # of a parser's message

# an archive may unpack to so much, or to so many times its size: beyond it is a bomb
ARCHIVE_BYTES = 256 << 20
ARCHIVE_RATIO = 20
ARCHIVE_MEMBERS = 100_000

ONNX_BYTES = 2 << 30  # the largest message of protobuf; weights beside the file do not count
ONNX_NODES = 100_000  # that functions may expand to
ONNX_DEPTH = 64  # of functions that call functions; protobuf itself limits graphs in graphs
# what a file computes from constants alone may have so many elements, or so many times those held
CONSTANT_ELEMENTS = 64 << 20
CONSTANT_RATIO = 16

_HEADER_BYTES = 10_000  # of one array, as numpy has it


class Refused(ValueError):
    """A file that is not read; the text says which limit it breaks."""


def reason(error: BaseException) -> str:
    """The first line of an error's text, cut; its type where it has none or says little."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, RecursionError):
        return f"it is nested too deep; {JSON_DEPTH} levels are read"
    lines = str(error).strip().splitlines()
    text = lines[0] if lines else ""
    name = type(error).__name__
    told = isinstance(error, ValueError) and len(text) > len(name)
    return text[:TEXT_SHOWN] if told else f"{name}: {text[:TEXT_SHOWN]}".removesuffix(": ")


def require_file(path: Path, most: int | None = None) -> int:
    """Bytes of a regular file; devices, pipes and folders are no files.

    Raises:
        OSError: there is none.
        Refused: it is something else, or larger than `most`.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        kind = "a folder" if stat.S_ISDIR(found.st_mode) else "no regular file"
        msg = f"it is {kind}"
        raise Refused(msg)
    if most is not None and found.st_size > most:
        msg = f"it has {found.st_size} bytes; at most {most} are read"
        raise Refused(msg)
    return found.st_size


# --- JSON ----------------------------------------------------------------------------------------


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a JSON file holds.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no JSON, or breaks one of the limits.
    """
    file = Path(path)
    require_file(file, JSON_BYTES)
    content = file.read_bytes()
    containers = content.count(b"[") + content.count(b"{")
    if containers > JSON_CONTAINERS:
        msg = f"it holds {containers} lists and objects; at most {JSON_CONTAINERS} are read"
        raise Refused(msg)
    try:
        found = json.loads(content.decode("utf-8"))
    except RecursionError as error:
        msg = f"it is nested too deep; {JSON_DEPTH} levels are read"
        raise Refused(msg) from error
    _require_shallow(found)
    return found


def _require_shallow(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(JSON_DEPTH):
        inner = (v for v in level for v in (v.values() if isinstance(v, dict) else v))
        level = [v for v in inner if isinstance(v, dict | list)]
        if not level:
            return
    msg = f"it is nested too deep; {JSON_DEPTH} levels are read"
    raise Refused(msg)


# --- archives and arrays -------------------------------------------------------------------------


def require_archive(path: Path) -> None:
    """Refuse a zip file that unpacks to far more than it is.

    Raises:
        Refused: it breaks a limit.
        zipfile.BadZipFile, OSError, ValueError, NotImplementedError: it is no archive.
    """
    size = require_file(path)
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    if len(members) > ARCHIVE_MEMBERS:
        msg = f"it holds {len(members)} files; at most {ARCHIVE_MEMBERS} are read"
        raise Refused(msg)
    unpacked = sum(member.file_size for member in members)
    most = max(ARCHIVE_BYTES, ARCHIVE_RATIO * size)
    if unpacked > most:
        msg = (
            f"{size} bytes unpack to {unpacked}; at most {most} are read: "
            "store it without compression"
        )
        raise Refused(msg)


def read_arrays(path: Path) -> NDArray[Any] | dict[str, NDArray[Any]]:
    """The array of an `.npy` file, or those of an `.npz` file by name; never Python objects.

    Raises:
        Exception: whatever numpy and zipfile raise on damaged files, and `Refused`.
    """
    size = require_file(path)
    with path.open("rb") as file:
        if zipfile.is_zipfile(file):
            return _arrays_of_archive(path)
        file.seek(0)
        _require_data(file, size)
        file.seek(0)
        found: NDArray[Any] = np.load(file, allow_pickle=False)
        return found


def _arrays_of_archive(path: Path) -> dict[str, NDArray[Any]]:
    require_archive(path)
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            with archive.open(member) as file:
                _require_data(file, member.file_size)
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def _require_data(file: Any, size: int) -> None:
    """The header of an array asks for no more bytes than follow it."""
    version = np.lib.format.read_magic(file)
    headers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in headers:
        msg = f"an array in version {version} of numpy's format is not read"
        raise Refused(msg)
    shape, _, dtype = headers[version](file, max_header_size=_HEADER_BYTES)
    wanted = dtype.itemsize
    for length in shape:
        wanted *= int(length)
    if dtype.hasobject:
        msg = "it holds Python objects"
        raise Refused(msg)
    if wanted > size or min(shape, default=0) < 0:
        msg = f"an array of shape {list(shape)} does not fit into {size} bytes"
        raise Refused(msg)
