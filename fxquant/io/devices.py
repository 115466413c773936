"""What a path may name that a file must not take the place of: devices, pipes and links."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path


def is_device(path: Path) -> bool:
    """Whether a path names something that is there and neither a file nor a folder."""
    # these do not raise where a folder cannot be looked into
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


@contextlib.contextmanager
def stream(device: Path) -> Iterator[Path]:
    """A file whose bytes a device or a pipe gets when the block ends without an error."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / device.name
        yield file
        with file.open("rb") as source, device.open("wb") as out:
            shutil.copyfileobj(source, out)
