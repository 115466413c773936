"""`Entry`: the grid of one tensor, as all versions of the file can say it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fxquant.errors import CheckpointError

Array = NDArray[Any]

FLOATS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float8e4m3fn": torch.float8_e4m3fn,
    "float8e5m2": torch.float8_e5m2,
    "float8e4m3fnuz": torch.float8_e4m3fnuz,
    "float8e5m2fnuz": torch.float8_e5m2fnuz,
}


@dataclass(frozen=True, eq=False)
class Entry:
    """What one tensor's integers, or narrow floats, mean.

    Attributes:
        name: tensor or, in files keyed by module, `module.input.0`, `module.output.0`, `module.p`.
        bits: bits of one value.
        scale: float32 in the shape the file has it, or None for a float without one.
        steps: integers between the smallest one and the one that stands for 0.0, like `scale`.
        signed: whether there are negative integers; None where the file does not say.
        symmetric: whether zero lies in the middle by construction; None where it does not say.
        limits: smallest and largest integer, where they are not those of the bits.
        float_type: a key of `FLOATS`, or "" for integers.
        axis: channel or block axis; None per tensor, or where the file does not say.
        block: elements per block, or None.
        factors: small integers of the blocks (LPBQ), in the shape the file has them.
        wide_bits: bits of the integers once `factors` are multiplied in.
    """

    name: str
    bits: int
    scale: Array | None = None
    steps: Array | None = None
    signed: bool | None = None
    symmetric: bool | None = None
    limits: tuple[int, int] | None = None
    float_type: str = ""
    axis: int | None = None
    block: int | None = None
    factors: Array | None = None
    wide_bits: int | None = None

    def renamed(self, name: str) -> Entry:
        """The same grid under another name."""
        return replace(self, name=name)

    @property
    def kind(self) -> str:
        """`PER_TENSOR`, `PER_CHANNEL`, `PER_BLOCK` or `LPBQ`."""
        if self.factors is not None:
            return "LPBQ"
        if self.block is not None:
            return "PER_BLOCK"
        many = self.axis is not None or (self.scale is not None and self.scale.size > 1)
        return "PER_CHANNEL" if many else "PER_TENSOR"

    @property
    def block_scale(self) -> Array | None:
        """The scale of every block with the small integers multiplied in; float32, flat."""
        if self.scale is None or self.factors is None:
            return self.scale
        factors, group = self.factors.astype(np.float32), self.scale
        if group.ndim != factors.ndim:  # a flat list: groups are cut along the last axis
            factors, group = factors.reshape(-1), group.reshape(-1)
        for axis, (count, groups) in enumerate(zip(factors.shape, group.shape, strict=True)):
            if not groups or count % groups:
                raise malformed(self.name, f"{count} blocks do not fit {groups} groups")
            group = group.repeat(count // groups, axis)
        return factors * group

    @property
    def ends(self) -> tuple[Array, Array]:
        """Smallest and largest real value of every range, float32."""
        scale, steps = self.block_scale, self.steps
        if scale is None or steps is None:
            raise malformed(self.name, "it has no scale")
        first = 0.0 - steps.reshape(-1).astype(np.float32)
        count = (self.limits[1] - self.limits[0]) if self.limits else 2**self.bits - 1
        flat = scale.reshape(-1)
        return first * flat, (first + np.float32(count)) * flat


def malformed(name: str, what: str) -> CheckpointError:
    """The error of an entry that cannot be understood."""
    fix = "write the file again, or take another copy"
    return CheckpointError("FXQ632", f"the encoding of {name!r} is malformed: {what}", fix=fix)


def same(a: Array | None, b: Array | None) -> bool:
    """True if both are missing or hold the same numbers in the same order."""
    if a is None or b is None:
        return a is b
    return a.size == b.size and bool(np.array_equal(a.reshape(-1), b.reshape(-1)))
