"""What passes leave in the log: what they left alone and why, what took the place of a module."""

from __future__ import annotations

from typing import NamedTuple


class Skip(NamedTuple):
    """A place that a pass left alone, and why."""

    by: str
    node: str
    where: str
    reason: str

    def __str__(self) -> str:
        return f"{self.by}: left {self.where} as it is: {self.reason}"


class Gone(NamedTuple):
    """What became of a module that no node calls any more.

    Attributes:
        how: what was done, as it stands before the name of `by`.
        by: path or name of what computes it now; empty for nothing.
    """

    how: str
    by: str
