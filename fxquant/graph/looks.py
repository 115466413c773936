"""Where Python decided on values or sizes while a model was recorded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fxquant.graph.meta import Source
from fxquant.graph.sizes import Change


@dataclass(frozen=True)
class Specialisation:
    """A place where Python decided on a value or on a dynamic size, so that the graph is narrower
    than the model.

    Attributes:
        source: the user's line.
        module_path: the module whose forward decided.
        kind: ``"value"`` for a tensor's value, ``"size"`` for a size that depends on an input,
            ``"training"`` for what is computed otherwise in training (`prepare_model` looks).
        what: how it was looked at: ``comparison``, ``item()``, ``bool()`` ...
        value: what Python saw; a tuple of all if the line looked several times.
        loop: whether it decides how often a ``while`` loop turns.
    """

    source: Source | None
    module_path: str
    kind: str
    what: str
    value: Any
    loop: bool = False


class Looks:
    """All looks of one recording, gathered by line, kind and way of looking."""

    def __init__(self) -> None:
        self._seen: dict[tuple[Source | None, str, str, bool], tuple[str, list[Any]]] = {}

    def add(
        self,
        source: Source | None,
        path: str,
        change: Change,
        what: str,
        value: object,
        *,
        loop: bool = False,
    ) -> None:
        """Python decided on ``value``, which can change."""
        kind = "value" if change is Change.VALUE else "size"
        self._seen.setdefault((source, kind, what, loop), (path, []))[1].append(value)

    def specialisations(self) -> tuple[Specialisation, ...]:
        """The looks so far, one per line and kind."""
        return tuple(
            Specialisation(
                source, path, kind, what, seen[0] if len(seen) == 1 else tuple(seen), loop
            )
            for (source, kind, what, loop), (path, seen) in self._seen.items()
        )
