"""Calls take turns, and the fastest round of each counts."""

from __future__ import annotations

import itertools

from fxquant.onnx.ort.timing import fastest


class Clock:
    """Time that passes only in calls."""

    def __init__(self) -> None:
        self.now = 0.0
        self.log: list[str] = []

    def call(self, name: str, *seconds: float) -> None:
        """Take the next of some times, again and again."""
        self.log.append(name)
        self.now += seconds[(self.log.count(name) - 1) % len(seconds)]


def test_the_minimum_over_rounds_that_take_turns() -> None:
    clock = Clock()
    calls = {
        "a": lambda: clock.call("a", 0.5, 0.4, 0.3, 0.6),
        "b": lambda: clock.call("b", 0.2, 0.1),
    }
    found = fastest(calls, rounds=4, clock=lambda: clock.now)
    assert {name: round(s, 9) for name, s in found.items()} == {"a": 0.3, "b": 0.1}
    turns = clock.log[4:]  # behind two calls of each, to warm up and to count repeats
    assert turns == [*itertools.chain.from_iterable(["a", "b"] for _ in range(4))]


def test_short_calls_are_repeated_within_a_round() -> None:
    clock = Clock()
    found = fastest({"a": lambda: clock.call("a", 1e-4)}, rounds=2, clock=lambda: clock.now)
    assert round(found["a"], 9) == 1e-4
    assert len(clock.log) == 2 + 2 * 20  # two milliseconds a round


def test_no_round_is_begun_when_the_time_is_up() -> None:
    clock = Clock()
    fastest({"a": lambda: clock.call("a", 1.0)}, rounds=9, seconds=-1.0, clock=lambda: clock.now)
    assert len(clock.log) == 3
