"""Simulations of combinations of techniques: made from shorter ones, or read from a file."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from fxquant.auto.techniques import (
    BY_NAME,
    DEFAULT_SCHEME,
    Case,
    Combination,
    Inapplicable,
    Stage,
    Technique,
    of_stage,
)
from fxquant.checkpoint import load_checkpoint, save_checkpoint
from fxquant.errors import CheckpointError
from fxquant.fingerprint import mark_calibrated
from fxquant.io.reading import read_json
from fxquant.io.writing import write_text
from fxquant.ptq.walking.originals import changing
from fxquant.sim import QuantizationSimModel

if TYPE_CHECKING:
    from fxquant.auto.journal import Journal
    from fxquant.targets import Target

_CHECKPOINT, _FROZEN = "checkpoint", "frozen.json"
_KEPT = 3  # simulations in memory: the plain one, the best one and the last one


@dataclass(frozen=True)
class Settings:
    """What simulations are made with.

    Attributes:
        example: positional inputs, or a dict of keyword inputs.
        target: the target.
        scheme: how ranges are found where no technique says otherwise.
        output_bw: bits of activations; None: those of configuration or target.
        param_bw: bits of weights; None: the same.
    """

    example: Any
    target: Target | str
    scheme: str = DEFAULT_SCHEME
    output_bw: int | None = None
    param_bw: int | None = None


class Simulations:
    """Makes simulations.

    Args:
        prepared: the prepared float model; it is left as it is.
        settings: see `Settings`.
        case: what techniques may ask about.
        journal: where simulations are kept.

    Attributes:
        notes: what each technique did when it was applied last.
    """

    def __init__(
        self, prepared: fx.GraphModule, settings: Settings, case: Case, journal: Journal
    ) -> None:
        self.prepared, self.settings, self.case = prepared, settings, case
        self.journal = journal
        self.notes: dict[str, str] = {}
        self._made: OrderedDict[Combination, QuantizationSimModel] = OrderedDict()

    def of(self, names: Combination) -> QuantizationSimModel:
        """The simulation of a combination; others may be made from it, so it must not be changed.

        Raises:
            Inapplicable: a technique of it has nothing to do.
        """
        if names not in self._made:
            self._made[names] = self._read(names) or self._make(names)
        self._made.move_to_end(names)
        while len(self._made) > _KEPT:
            # the plain one is where every technique starts from
            self._made.pop(next(n for n in self._made if n))
        return self._made[names]

    def keep(self, names: Combination) -> None:
        """Write a simulation that took more than calibration to make, and can be read again."""
        if of_stage(names, Stage.SIMULATION) and not BY_NAME[names[-1]].structural:
            sim, path = self.of(names), self.journal.checkpoint(names)
            save_checkpoint(sim, path / _CHECKPOINT)
            frozen = [name for name, q in sim.named_quantizers() if not q.overwritable]
            write_text(path / _FROZEN, json.dumps(frozen))

    def _make(self, names: Combination) -> QuantizationSimModel:
        changes = of_stage(names, Stage.SIMULATION)
        if not changes:
            sim = self._uncalibrated(names)
            sim.compute_encodings(self.case.data)
            return sim
        sim = copy.deepcopy(self.of(tuple(n for n in names if n != changes[-1])))
        self._apply(BY_NAME[changes[-1]], sim)
        mark_calibrated(sim.model)  # its ranges are those of its weights
        return sim

    def _uncalibrated(self, names: Combination) -> QuantizationSimModel:
        given = self.settings
        gm = copy.deepcopy(self.prepared)
        for name in of_stage(names, Stage.FLOAT):
            self._apply(BY_NAME[name], gm)
        scheme = next(iter(of_stage(names, Stage.RANGES)), given.scheme)
        return QuantizationSimModel(
            gm, given.example, scheme, given.output_bw, given.param_bw, config=self.case.config,
            target=given.target, in_place=True,
        )  # fmt: skip

    def _apply(self, row: Technique, model: Any) -> None:
        if row.apply is None:
            return
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.case.seed)
            try:
                self.notes[row.name] = row.apply(model, self.case)
            except Inapplicable as reason:
                reason.name = row.name
                raise

    def _alike(self, names: Combination) -> QuantizationSimModel:
        """A simulation with the quantizers of a combination, whatever their ranges are."""
        changed = [n for n in names if BY_NAME[n].structural]
        if not changed:
            return self._uncalibrated(names)
        return copy.deepcopy(self.of(names[: names.index(changed[-1]) + 1]))

    def _read(self, names: Combination) -> QuantizationSimModel | None:
        """A simulation that was kept; None if there is none, or it is damaged."""
        path = self.journal.checkpoint(names)
        if not names or not path.is_dir():
            return None
        if BY_NAME[names[-1]].structural:
            return None  # there is nothing to read it into but itself
        try:
            sim = self._alike(names)
            with ExitStack() as stack:  # what comes after compares with the float model
                for module in sim.qmodules():
                    stack.enter_context(changing(module, *module._parameters))
                load_checkpoint(sim, path / _CHECKPOINT)
            frozen = read_json(path / _FROZEN)
        except (CheckpointError, Inapplicable, OSError, ValueError):  # then it is made again
            return None
        for name, quantizer in sim.named_quantizers():
            if name in frozen:
                quantizer.allow_overwrite(False)
        mark_calibrated(sim.model)
        return sim
