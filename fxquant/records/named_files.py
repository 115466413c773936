"""Files that a recipe names: relative to its own folder, so that a tree can be moved as a whole."""

from __future__ import annotations

import hashlib
import os
import re
import sys
from importlib.machinery import PathFinder
from pathlib import Path

# what does not name a file: names of other packages' networks, and of a preprocessing
_NAMES = re.compile(r"(timm|torchvision):.*|imagenet")
_FUNCTION = re.compile(r"(.+):(\w+)")


def relative(spec: str, folder: Path) -> str:
    """A path, `path.py:function` or `hf:FOLDER`, as it is written in a recipe in a folder.

    Absolute where they have nothing in common but the root of the file system.
    """
    before, path, after = _parted(spec)
    if path is None:
        return spec
    full, home = path.resolve(), folder.resolve()
    try:
        shared = Path(os.path.commonpath([full, home]))
    except ValueError:  # other drives
        shared = Path(full.anchor)
    near = shared != Path(shared.anchor)
    return f"{before}{Path(os.path.relpath(full, home) if near else full).as_posix()}{after}"


def absolute(spec: str, folder: Path) -> str:
    """What `relative` wrote, as it can be used in this process."""
    before, path, after = _parted(spec)
    return spec if path is None else f"{before}{os.path.normpath(folder / path)}{after}"


def file_of(spec: str) -> Path | None:
    """The file that a path, `path.py:function` or `package.module:function` names; None: none."""
    _, path, _ = _parted(spec)
    if path is None and not _NAMES.fullmatch(spec):
        path = _module_file(spec.rpartition(":")[0])
    return path if path is not None and path.is_file() else None


def sha256_of(path: Path) -> str:
    """Digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _module_file(name: str) -> Path | None:
    """The file of a module; nothing is imported, as packages run code."""
    places: list[str] | None = [str(Path.cwd()), *sys.path]
    full, origin = "", None
    for part in name.split("."):
        full = f"{full}.{part}" if full else part
        found = PathFinder.find_spec(full, places)
        if found is None:
            return None
        places, origin = found.submodule_search_locations, found.origin
    return None if origin is None else Path(origin)


def _parted(spec: str) -> tuple[str, Path | None, str]:
    """What stands before a path, the path, and `:function`; no path where none is named."""
    if _NAMES.fullmatch(spec):
        return "", None, ""
    if spec.startswith("hf:"):
        return "hf:", Path(spec.removeprefix("hf:")), ""
    function = _FUNCTION.fullmatch(spec)
    if function is None:
        return "", Path(spec), ""
    where, name = function.groups()
    is_path = where.endswith(".py") or "/" in where or "\\" in where
    return "", Path(where) if is_path else None, f":{name}"
