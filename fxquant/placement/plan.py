"""What a plan of a placement says: grids of activations and weights, kernels, reasons."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import fx

    from fxquant.placement.dataflow import Slot
    from fxquant.targets import OperatorRule, Violation


@dataclass
class PlannedQuantizer:
    """One grid: the slots that lie on it and its type."""

    slots: list[Slot]
    bitwidth: int
    signed: bool
    symmetric: bool
    fixed: tuple[float | None, float | None] | None = None  # None: an end that is calibrated
    entry: bool = False  # its values enter the quantized part here
    by_token: bool = False  # what an error is of its token counts, see `Sqnr.relative`


@dataclass(frozen=True)
class WeightPlan:
    """The grid of a weight and of the bias beside it."""

    shape: tuple[int, ...]
    bitwidth: int
    signed: bool
    symmetric: bool
    bias_input: Slot | None
    own_bias: bool = False  # the bias has a step of its own instead of the accumulator's
    blocks: tuple[int, ...] | None = None  # elements of one range along every axis


@dataclass
class Plan:
    """Grids of activations and weights, and the reason of every decision by node.

    Attributes:
        inside: nodes that may read integers; None where the whole graph may.
        boundaries: slots outside of the regions whose values get a grid for consumers inside only.
        integer_consumers: slots that only some consumers read in integers -> these consumers.
        kernels: operators that the target computes, with their rules.
        absorbed: operators that are computed inside the kernel of another one.
        violations: constraints of the target that operators do not keep.
    """

    inside: frozenset[fx.Node] | None = None
    boundaries: set[Slot] = field(default_factory=set)
    integer_consumers: dict[Slot, list[fx.Node]] = field(default_factory=dict)
    grids: list[PlannedQuantizer] = field(default_factory=list)
    weights: dict[fx.Node, WeightPlan] = field(default_factory=dict)
    kernels: dict[fx.Node, OperatorRule] = field(default_factory=dict)
    absorbed: dict[fx.Node, fx.Node] = field(default_factory=dict)
    violations: dict[fx.Node, Violation] = field(default_factory=dict)
    why: dict[fx.Node, list[str]] = field(default_factory=dict)
