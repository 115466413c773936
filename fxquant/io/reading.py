"""Reading files that anybody may have written: budgets of size, depth and time, named in errors.

Every reader asks here before it opens anything: a device never ends, and a small archive may say
that it holds a large one. What is refused raises `Refused`, a ValueError; readers turn it into the
error of their kind.
"""

from __future__ import annotations

import io
import json
import os
import stat
import time
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
PICKLE_BYTES = 32 << 20  # of what a weights' file holds beside its numbers

ONNX_BYTES = 2 << 30  # the largest message of protobuf; weights beside the file do not count
ONNX_NODES = 100_000  # that functions may expand to
ONNX_EXPANDED = 5_000  # or so many times those that are stored
ONNX_RATIO = 16
ONNX_DEPTH = 64  # of functions that call functions; protobuf itself limits graphs in graphs
# what a file computes from constants alone may have so many elements, or so many times those held
CONSTANT_ELEMENTS = 64 << 20
CONSTANT_RATIO = 16

# a reader may compute for so long, and for so long more for each MB that it reads
CPU_SECONDS = 2.0
CPU_SECONDS_PER_MB = 0.1
# a file that is run may need so much memory for its tensors, unless it and its data have a share of
# it, and so much time
RUN_BYTES = 128 << 20
RUN_RATIO = 64
RUN_SECONDS = 0.5
RUN_SECONDS_PER_MB = 20.0

_HEADER_BYTES = 10_000  # of one array, as numpy has it
_ZIP = b"PK\x03\x04"  # how archives begin


class Refused(ValueError):
    """A file that is not read; the text says which limit it breaks."""


class Budget:
    """CPU time that a reader may take.

    Args:
        size: bytes that it reads.
        base: seconds for any file.
        per_mb: seconds more for each MB.
    """

    def __init__(self, size: int, base: float | None = None, per_mb: float | None = None) -> None:
        base = CPU_SECONDS if base is None else base
        per_mb = CPU_SECONDS_PER_MB if per_mb is None else per_mb
        self.seconds = base + per_mb * size / (1 << 20)
        self._start = time.process_time()

    @property
    def text(self) -> str:
        """The limit, as errors name it."""
        return f"it takes more than {self.seconds:.1f} s of CPU time, which {_FOR_SIZE}"

    def is_spent(self) -> bool:
        """Whether more time has passed."""
        return time.process_time() - self._start > self.seconds

    def check(self) -> None:
        """Refuse to go on.

        Raises:
            Refused: the time is spent.
        """
        if self.is_spent():
            raise Refused(self.text)


_FOR_SIZE = "is the most for a file of its size"


class Metered(io.RawIOBase):
    """A file for a parser that takes it in small parts; reading ends when the time is spent.

    Args:
        file: an open file, in binary.
        budget: the time.
    """

    def __init__(self, file: Any, budget: Budget) -> None:
        super().__init__()
        self._file, self._budget = file, budget

    def readable(self) -> bool:
        """It can be read."""
        return True

    def seekable(self) -> bool:
        """It can be read from another place."""
        return True

    def read(self, size: int = -1) -> Any:
        """The next bytes."""
        self._budget.check()
        return self._file.read(size)

    def readline(self, size: int | None = -1) -> Any:
        """The bytes up to the end of the line."""
        self._budget.check()
        return self._file.readline(size)

    def readinto(self, buffer: Any) -> Any:
        """Fill a buffer."""
        self._budget.check()
        return self._file.readinto(buffer)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to another place."""
        return int(self._file.seek(offset, whence))

    def tell(self) -> int:
        """Where the next bytes come from."""
        return int(self._file.tell())

    def fileno(self) -> int:
        """No file descriptor: whoever had one could read past the budget."""
        raise io.UnsupportedOperation("fileno")


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
        # editors of one system put a mark before the first character
        found = json.loads(content.decode("utf-8-sig"), object_pairs_hook=_once)
    except RecursionError as error:
        msg = f"it is nested too deep; {JSON_DEPTH} levels are read"
        raise Refused(msg) from error
    _require_shallow(found)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; Python alone would take the last of equal keys and say nothing."""
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        msg = f"the key {twice[:TEXT_SHOWN]!r} is given twice"
        raise Refused(msg)
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
    pickled = max((m.file_size for m in members if m.filename.endswith(".pkl")), default=0)
    if pickled > PICKLE_BYTES:
        msg = f"its pickle has {pickled} bytes; at most {PICKLE_BYTES} are read"
        raise Refused(msg)
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
        if file.read(len(_ZIP)) == _ZIP:
            msg = "it is an .npz archive without its end: it was cut off"
            raise Refused(msg)
        file.seek(0)
        _require_data(file, size)
        file.seek(0)
        found: NDArray[Any] = np.load(file, allow_pickle=False)
        return found


def _arrays_of_archive(path: Path) -> dict[str, NDArray[Any]]:
    require_archive(path)
    budget, found = Budget(path.stat().st_size), {}
    with zipfile.ZipFile(path) as archive:
        for member in archive.infolist():
            budget.check()
            with archive.open(member) as file:
                _require_data(file, member.file_size)
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            budget.check()
            found[name] = arrays[name]
    return found


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
