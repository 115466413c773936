"""What a search has found so far, in a folder: whoever is killed goes on from there.

`journal.json` holds the scores, one entry a combination; it is replaced as a whole after every
entry. Simulations that cost something to make lie beside it as checkpoints. A journal of other
data, another model or other options is not read on but begun anew.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fxquant.auto.scoring import Score
from fxquant.auto.techniques import Combination
from fxquant.io.reading import read_json
from fxquant.io.writing import write_text

if TYPE_CHECKING:
    from pathlib import Path

FORMAT = 1
_FILE, _KEPT = "journal.json", "simulations"


@dataclass(frozen=True)
class Trial:
    """What became of one combination of techniques.

    Attributes:
        names: the combination.
        added: the technique that was tried; an empty text for the simulation alone.
        score: how good it is; None if it was not tried.
        note: what the technique did, or why there is no score.
        idle: another technique of the combination that had nothing to do on top of this one.
        cpu_seconds: what building and scoring it took.
        seconds: the same on the clock.
    """

    names: Combination
    added: str
    score: Score | None
    note: str
    idle: str
    cpu_seconds: float
    seconds: float


class Journal:
    """The journal of one search.

    Args:
        folder: where it lies; it is made with the first entry.
        key: digest of all that the search depends on.
    """

    def __init__(self, folder: Path, key: str) -> None:
        self.folder, self.key = folder, key
        self.trials: dict[Combination, Trial] = {}
        self.float_score: float | None = None
        found = self._read()
        if found is None:
            shutil.rmtree(folder, ignore_errors=True)
            return
        self.float_score = found["float_score"]
        for plain in found["trials"]:
            score = None if plain["score"] is None else Score(*plain.pop("score"))
            names = tuple(plain.pop("names"))
            self.trials[names] = Trial(**{**plain, "names": names, "score": score})

    def put(self, trial: Trial | None = None) -> None:
        """Add an entry, and write the journal."""
        if trial is not None:
            self.trials[trial.names] = trial
        trials = [
            asdict(t) | {"score": None if t.score is None else [t.score.value, t.score.decibels]}
            for t in self.trials.values()
        ]
        plain = {
            "format": FORMAT, "key": self.key, "float_score": self.float_score, "trials": trials,
        }  # fmt: skip
        write_text(self.folder / _FILE, json.dumps(plain, indent=1))

    def checkpoint(self, names: Combination) -> Path:
        """Where the simulation of a combination lies."""
        return self.folder / _KEPT / "+".join(names)

    def forget(self, *kept: Combination) -> None:
        """Remove simulations but those of some combinations."""
        for folder in (self.folder / _KEPT).glob("*/"):
            if folder not in map(self.checkpoint, kept):
                shutil.rmtree(folder, ignore_errors=True)

    def remove(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _read(self) -> dict[str, Any] | None:
        try:
            found = read_json(self.folder / _FILE)
        except (OSError, ValueError):  # there is none, or it is not ours
            return None
        mine = isinstance(found, dict) and (found.get("format"), found.get("key")) == (
            FORMAT,
            self.key,
        )
        return found if mine else None
