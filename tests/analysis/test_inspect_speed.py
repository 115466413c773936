"""A thousand operators are placed and inspected within a second of processor time."""

from __future__ import annotations

from benchmarks.inspect_speed import measure


def test_a_thousand_operators() -> None:
    found = measure()
    assert max(found.values()) <= 1.0, found
