"""What a search has found so far, in one file that is whole at any time.

A search that is interrupted, even by a kill, goes on where it was: each result is written before
the next one is looked for, and a result depends on nothing but its key.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxquant.errors import ConfigError
from fxquant.io.reading import read_json, reason
from fxquant.io.writing import as_path, write_text

if TYPE_CHECKING:
    from collections.abc import Callable

FILE = "mixed_precision.progress.json"
_FORMAT = 1


class ProgressFile:
    """Results by stage and key.

    Args:
        folder: where the file is; None: results are held in memory only.
        identity: what the results belong to: of the model, the candidates and the data.
        clean_start: forget what an earlier search found.
        name: of the file.

    Raises:
        ConfigError: FXQ268, the file belongs to another search or cannot be read.
    """

    def __init__(
        self, folder: str | Path | None, identity: dict[str, Any], *, clean_start: bool = False,
        name: str = FILE,
    ) -> None:  # fmt: skip
        self.path = None if folder is None else as_path(folder, "results_dir") / name
        self.identity = identity
        self.stages: dict[str, dict[str, Any]] = {}
        if self.path is not None and self.path.exists() and not clean_start:
            self.stages = self._read(self.path)

    def _read(self, path: Path) -> dict[str, dict[str, Any]]:
        fix = "pass clean_start=True, or another results_dir"
        try:
            found = read_json(path)
        except (OSError, ValueError) as error:
            what = f"{path} cannot be read: {reason(error)}"
            raise ConfigError("FXQ268", what, fix=fix) from error
        whole = isinstance(found, dict) and isinstance(found.get("stages"), dict)
        if not whole or found.get("format") != _FORMAT:
            raise ConfigError("FXQ268", f"{path} holds no progress of a search", fix=fix)
        mine = json.loads(json.dumps(self.identity))
        if found.get("identity") != mine:
            theirs = found.get("identity")
            keys = [k for k in mine if not isinstance(theirs, dict) or theirs.get(k) != mine[k]]
            what = f"{path} belongs to another search: {', '.join(keys)} differ"
            raise ConfigError("FXQ268", what, fix=fix)
        return {str(k): dict(v) for k, v in found["stages"].items() if isinstance(v, dict)}

    def get(self, stage: str, key: str) -> Any:
        """A result, or None."""
        return self.stages.get(stage, {}).get(key)

    def once(self, stage: str, key: str, find: Callable[[], Any]) -> Any:
        """A result; it is looked for only if it is not known yet."""
        known = self.get(stage, key)
        if known is None:
            known = find()
            self.put(stage, key, known)
        return known

    def remove(self) -> None:
        """Forget all of it, on the disk too."""
        self.stages.clear()
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def put(self, stage: str, key: str, value: Any) -> None:
        """Keep a result; it is on the disk when this returns."""
        self.stages.setdefault(stage, {})[key] = value
        if self.path is not None:
            content = {"format": _FORMAT, "identity": self.identity, "stages": self.stages}
            write_text(self.path, json.dumps(content, indent=1, sort_keys=True), error=ConfigError)
