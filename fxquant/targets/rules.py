"""Rules of operators: how a target computes one operator, and for which arguments."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, Field


class Violation(NamedTuple):
    """A constraint that a call does not keep.

    Attributes:
        name: argument or property, such as "dilation" or "rank".
        value: what the call has.
        allowed: what the target takes.
    """

    name: str
    value: Any
    allowed: str

    def __str__(self) -> str:
        return f"{self.name}={self.value!r} has no integer kernel (it takes {self.allowed})"


class OperatorRule(BaseModel):
    """How the target computes one operator.

    Besides its arguments a call has these properties: `rank` of the first operand, `kernel` sizes,
    `in_channels` and `out_channels` of a weight.

    Attributes:
        output: "required": the integer kernel writes integers, so the output always has a grid;
            "optional": it can write floats, so the output has one only where a consumer needs it.
        kernel: "float" when the runtime dequantizes and computes in floating point all the same.
        second: "symmetric" when the second operand of a product wants a symmetric signed grid.
        elementwise: its floating-point kernel costs little: it is computed in integers only where
            all operands lie on a grid anyway and an integer operator reads the result.
        for_consumers: stays floating point where an operand is made in floating point and no
            integer operator reads the result: a grid would only cost accuracy.
        weight_grid: its weight lies on one grid for the tensor, where only kernels of products have
            one otherwise.
        per_channel: False where weights must have one grid for all channels.
        per_matrix: True where a weight that is several matrices may have one for each channel of
            each.
        shares_channels: True where a weight takes one grid per channel all the same, if another
            operator reads the same parameter so: it is stored once then.
        only: argument or property -> values for which the rule holds.
        limits: argument or property -> smallest and largest number for which it holds; for several
            numbers each of them.
        fixed: range of the output where the kernel has a fixed one of its own.
        constant: arguments that must be known before the network runs.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: Literal["required", "optional"] = "required"
    kernel: Literal["integer", "float"] = "integer"
    second: Literal["symmetric"] | None = None
    elementwise: bool = False
    for_consumers: bool = False
    weight_grid: bool = False
    per_channel: bool = True
    per_matrix: bool = False
    shares_channels: bool = False
    only: dict[str, list[Any]] = Field(default_factory=dict)
    limits: dict[str, tuple[float, float]] = Field(default_factory=dict)
    fixed: tuple[float, float] | None = None
    constant: tuple[str, ...] = ()

    def violation(self, arguments: Mapping[str, Any]) -> Violation | None:
        """The first constraint that these arguments do not keep, or None."""
        if not (self.only or self.limits or self.constant):
            return None
        return next(self._violations(arguments, _properties(arguments)), None)

    def _violations(
        self, arguments: Mapping[str, Any], known: Mapping[str, Any]
    ) -> Iterator[Violation]:
        for name, allowed in self.only.items():
            value = known.get(name)
            plain = list(value) if isinstance(value, tuple) else value
            if plain not in allowed:
                yield Violation(name, value, " or ".join(map(repr, allowed)))
        for name, (low, high) in self.limits.items():
            value = known.get(name)
            if any(not low <= n <= high for n in _numbers(value)):
                yield Violation(name, value, f"{low:g} to {high:g}")
        for name in self.constant:
            if hasattr(arguments.get(name), "op"):
                yield Violation(name, "computed at run time", "constants")


def _numbers(value: Any) -> list[float]:
    values = value if isinstance(value, tuple | list) else (value,)
    return [v for v in values if isinstance(v, int | float) and not isinstance(v, bool)]


def _properties(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name, with properties of the operands beside them."""
    known = dict(arguments)
    first = _shape(_first_operand(arguments))
    if first is not None:
        known.setdefault("rank", len(first))
    weight = _shape(arguments.get("weight"))
    if weight is not None and len(weight) > 1:
        known.setdefault("kernel", tuple(weight[2:]))
        known.setdefault("out_channels", weight[0])
        known.setdefault("in_channels", weight[1] * int(known.get("groups", 1)))
    return known


def _first_operand(arguments: Mapping[str, Any]) -> Any:
    if "input" in arguments:
        return arguments["input"]
    lists = (v for v in arguments.values() if isinstance(v, tuple | list))
    nodes = (v for found in (arguments.values(), *lists) for v in found if hasattr(v, "op"))
    return next(nodes, None)


def _shape(value: Any) -> tuple[int, ...] | None:
    """Shape of a tensor, or of the tensor that a node was recorded with."""
    described = getattr(value, "meta", {}).get("spec") if hasattr(value, "op") else value
    shape = getattr(described, "shape", None)
    return None if shape is None else tuple(shape)
