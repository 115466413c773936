"""Which combinations a search tries, and which it takes, on scores that are made up."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from fxquant.auto.journal import Journal
from fxquant.auto.scoring import Score
from fxquant.auto.technique_search import Limits, Search
from fxquant.auto.techniques import BY_NAME, Combination, Inapplicable, chosen, with_technique


class Made:
    """Simulations that are only names."""

    def __init__(self, idle: str = "") -> None:
        self.case: Any = SimpleNamespace(scheme="tf_enhanced", fixed=True, config=_Config())
        self.notes: dict[str, str] = {}
        self.idle = idle

    def of(self, names: Combination) -> Combination:
        """The names themselves."""
        if self.idle in names and len(names) > 1:
            reason = Inapplicable("nothing to do")
            reason.name = self.idle
            raise reason
        return names

    def keep(self, names: Combination) -> None:
        """Nothing to keep."""


class _Config:
    fold_batch_norms = True


class Scored:
    """Scores by combination; decibels as the values."""

    def __init__(self, scores: dict[str, float], noise: dict[str, float] | None = None) -> None:
        self.scores, self.noise = scores, noise or {}

    def of(self, names: Combination, _: str) -> Score:
        """The score of some names, 0 where none is given."""
        key = "+".join(names)
        return Score(self.scores.get(key, 0.0), self.noise.get(key, self.scores.get(key, 0.0)))


def search(
    folder: Path, scored: Scored, made: Made | None = None, **limits: Any
) -> tuple[Combination, list[str]]:
    """The best combination, and those that were tried."""
    rows = chosen(["equalize", "smooth", "reconstruct"])
    journal = Journal(folder, "key")
    simulations: Any = made or Made()
    scorer: Any = scored
    found = Search(rows, simulations, scorer, journal, Limits(**limits)).run()
    return found.names, ["+".join(names) for names in journal.trials]


def test_a_chain_keeps_what_helps(tmp_path: Path) -> None:
    scored = Scored({"": 10, "equalize": 12, "equalize+smooth": 11, "equalize+reconstruct": 20})
    best, tried = search(tmp_path, scored)
    assert best == ("equalize", "reconstruct")
    assert tried == [
        "", "equalize", "equalize+smooth", "equalize+reconstruct", "smooth", "reconstruct",
    ]  # fmt: skip


def test_one_that_is_better_alone_starts_another_chain(tmp_path: Path) -> None:
    scored = Scored({"": 10, "equalize": 12, "equalize+smooth": 11, "equalize+reconstruct": 13,
                     "smooth": 18, "smooth+reconstruct": 25})  # fmt: skip
    best, tried = search(tmp_path, scored)
    assert best == ("smooth", "reconstruct")
    assert tried[-1] == "smooth+reconstruct"


def test_what_is_nearest_to_the_float_model_is_built_on_too(tmp_path: Path) -> None:
    names = ("", "equalize", "reconstruct", "equalize+reconstruct")
    values, noise = ((90, 89, 91, 95), (10, 20, 15, 30))
    scored = Scored(dict(zip(names, values, strict=True)), dict(zip(names, noise, strict=True)))
    assert search(tmp_path, scored)[0] == ("equalize", "reconstruct")


def test_it_stops_at_the_target(tmp_path: Path) -> None:
    scored = Scored({"": 10, "equalize": 12, "equalize+smooth": 15})
    best, tried = search(tmp_path, scored, target=12)
    assert best == ("equalize",)
    assert tried == ["", "equalize"]


def test_a_score_that_ties_changes_nothing(tmp_path: Path) -> None:
    scored = Scored(dict.fromkeys(["", "equalize", "smooth", "reconstruct"], 10))
    assert search(tmp_path, scored)[0] == ()


def test_what_is_idle_on_top_of_others_is_left_out(tmp_path: Path) -> None:
    scored = Scored({"": 10, "smooth": 12, "reconstruct": 15})
    best, tried = search(tmp_path, scored, Made("equalize"))
    assert best == ("reconstruct",)
    assert "equalize" in tried


def test_the_same_search_goes_on_from_its_journal(tmp_path: Path) -> None:
    scored = Scored({"": 10, "equalize": 12, "equalize+reconstruct": 20})
    first = search(tmp_path, scored)
    assert search(tmp_path, Scored({}), seconds=0) == first, "nothing is scored again"


def test_a_group_has_one_technique() -> None:
    assert with_technique(("equalize", "gptq"), "reconstruct") == ("equalize", "reconstruct")
    assert with_technique(("reconstruct",), "equalize") == ("equalize", "reconstruct")
    assert all(row.group for row in BY_NAME.values() if row.alternative and not row.structural)
