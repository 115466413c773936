"""Choices among floats: argmax, topk, sort.

Two programs may choose differently where two scores nearly tie, and all that is looked up by the
choice differs then. So the proof starts afresh from the simulation's choices too, and judges the
runtime's by what they cost: the difference of the simulation's scores at both places. Where that is
more than the bound of the whole tensor, the float64 scores decide: both choices are right if they
differ by no more than the rounding errors at both places.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from fxquant.onnx.lowering.result import Lowered
from fxquant.onnx.parity.error_analysis import Rounding
from fxquant.onnx.parity.error_bounds import FLOAT_ISLAND_SLACK, FLOAT_SLACK, Bound
from fxquant.onnx.parity.error_rules import Valued
from fxquant.onnx.parity.report import ChoiceRow

# operator -> which output holds places, and its axis where none is given
_CHOOSERS = {"TopK": (1, -1), "ArgMax": (0, 0), "ArgMin": (0, 0)}


@dataclass(frozen=True)
class Chooser:
    """A node of the file that chooses places by scores.

    Attributes:
        node: name of the fx node.
        scores: the floats it chooses by.
        places: the integers it gives.
        axis: along which it chooses.
    """

    node: str
    scores: str
    places: str
    axis: int


@dataclass(frozen=True)
class Choice:
    """What the simulation chose.

    Attributes:
        chooser: where.
        scores: what it chose by.
        places: its choice.
    """

    chooser: Chooser
    scores: NDArray[Any]
    places: NDArray[np.int64]

    def row(
        self, runtime: NDArray[np.int64], level: str, bound: Bound | None,
        exact: Valued | None = None,
    ) -> ChoiceRow:  # fmt: skip
        """Compare with what the runtime chose from the same integers.

        Args:
            runtime: its places.
            level: at which it ran.
            bound: of the scores as a tensor.
            exact: the float64 scores with their errors; None where no rule gives them.
        """
        axis = self.chooser.axis
        lost = np.abs(
            np.take_along_axis(self.scores, self._spread(self.places), axis)
            - np.take_along_axis(self.scores, self._spread(runtime), axis)
        )
        apart = self._spread(runtime) != self._spread(self.places)
        finite = np.abs(self.scores[np.isfinite(self.scores)])
        slack = FLOAT_ISLAND_SLACK if bound is None or bound.island else FLOAT_SLACK
        error = bound.error if bound is not None else 0.0
        allowed = max(float(finite.max(initial=0.0)) * slack, 2 * error)
        most = float(lost[apart].max(initial=0.0))
        if most > allowed and exact is not None and self._tied(runtime, exact)[apart].all():
            allowed = most
        return ChoiceRow(
            self.chooser.node,
            level,
            self.places.size,
            int(apart.sum()),
            most,
            allowed,
        )

    def _tied(self, runtime: NDArray[np.int64], exact: Valued) -> NDArray[np.bool_]:
        """Where the float64 scores of both choices are within their rounding errors."""
        if exact.value.shape != self.scores.shape:
            return np.zeros(self._spread(runtime).shape, np.bool_)
        a, b = (
            [
                np.take_along_axis(x, self._spread(p), self.chooser.axis)
                for p in (self.places, runtime)
            ]
            for x in (exact.value, exact.error)
        )
        room = b[0] + b[1]
        return np.asarray((np.abs(a[0] - a[1]) <= room) & np.isfinite(room))

    def _spread(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        if places.ndim == self.scores.ndim:
            return places
        return np.expand_dims(places, self.chooser.axis)


def choosers(model: ir.Model, lowered: Lowered) -> list[Chooser]:
    """Every node of a lowered model that chooses by floats, in graph order."""
    found = []
    for node in model.graph:
        owner, scores = lowered.owners.get(node.name or ""), node.inputs[0] if node.inputs else None
        if node.op_type not in _CHOOSERS or owner is None or scores is None or not scores.name:
            continue
        output, axis = _CHOOSERS[node.op_type]
        axis = node.attributes.get_int("axis", axis)
        found.append(Chooser(owner, scores.name, node.outputs[output].name or "", axis))
    return found


def choice_of(chooser: Chooser, scores: Any, results: list[Any]) -> Choice | None:
    """What an fx node chose, or None where its numbers are not those of the file's node.

    Args:
        chooser: the node of the file.
        scores: the tensor that the fx node was given.
        results: the tensors that it gave.
    """
    places = [r for r in results if not r.is_floating_point()]
    if len(places) != 1 or not scores.is_floating_point():
        return None
    chosen, by = places[0].cpu().numpy(), scores.detach().cpu().float().numpy()
    if by.ndim == 0 or chosen.dtype != np.int64:
        return None
    axis = chooser.axis % by.ndim
    others = np.delete(chosen.shape, axis) if chosen.ndim == by.ndim else np.array(chosen.shape)
    return Choice(chooser, by, chosen) if [*others] == [*np.delete(by.shape, axis)] else None


def rows(
    choices: list[Choice], found: Mapping[str, NDArray[Any]], level: str,
    bounds: Mapping[str, Bound], rounding: Rounding,
) -> list[ChoiceRow]:  # fmt: skip
    """One row a choice."""
    return [
        _row(c, found[c.chooser.places].reshape(c.places.shape), level, bounds, rounding)
        for c in choices
    ]


def _row(
    choice: Choice, runtime: NDArray[np.int64], level: str, bounds: Mapping[str, Bound],
    rounding: Rounding,
) -> ChoiceRow:  # fmt: skip
    scores = choice.chooser.scores
    row = choice.row(runtime, level, bounds.get(scores))
    if row.proven:
        return row
    return choice.row(runtime, level, bounds.get(scores), rounding.at(scores))
