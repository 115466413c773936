"""Files that a recipe names: relative to its own folder, so that a tree can be moved as a whole."""

from __future__ import annotations

import hashlib
import os
import sys
from importlib.machinery import PathFinder
from pathlib import Path


def is_file_name(where: str) -> bool:
    """Whether the part before the colon of `where:function` is a path; else it is a module."""
    return where.endswith(".py") or "/" in where or "\\" in where


def relative(spec: str, folder: Path) -> str:
    """A path, or `path.py:function`, as it is written in a recipe in a folder.

    Absolute where they have nothing in common but the root of the file system.
    """
    path, function = _parted(spec)
    if path is None:
        return spec
    full, home = path.resolve(), folder.resolve()
    try:
        shared = Path(os.path.commonpath([full, home]))
    except ValueError:  # other drives
        shared = Path(full.anchor)
    near = shared != Path(shared.anchor)
    return Path(os.path.relpath(full, home) if near else full).as_posix() + function


def absolute(spec: str, folder: Path) -> str:
    """What `relative` wrote, as it can be used in this process."""
    path, function = _parted(spec)
    return spec if path is None else f"{os.path.normpath(folder / path)}{function}"


def file_of(spec: str) -> Path | None:
    """The file that a path, `path.py:function` or `package.module:function` names; None: none."""
    path, _ = _parted(spec)
    found = _module_file(spec.rpartition(":")[0]) if path is None else path
    return found if found is not None and found.is_file() else None


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


def _parted(spec: str) -> tuple[Path | None, str]:
    """The path and `:function`; no path for a module's."""
    where, colon, name = spec.rpartition(":")
    if not colon or not name.isidentifier() or not where:
        return Path(spec), ""
    return (Path(where), f":{name}") if is_file_name(where) else (None, f":{name}")
