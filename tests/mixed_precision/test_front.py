"""The path and the front, against all choices there are."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fxquant.mixed_precision.front import pareto, steepest_path

offers = st.tuples(st.integers(1, 30), st.integers(0, 30))
groups = st.lists(st.lists(offers, min_size=1, max_size=4), min_size=1, max_size=5)
points = st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), max_size=30)


def total(options: list[list[tuple[int, int]]], choice: tuple[int, ...], part: int) -> int:
    return sum(o[i][part] for o, i in zip(options, choice, strict=True))


@settings(deadline=None, max_examples=200, derandomize=True)
@given(groups)
def test_every_choice_on_the_path_loses_least_for_its_cost(
    options: list[list[tuple[int, int]]],
) -> None:
    path = steepest_path(options)
    every = list(itertools.product(*(range(len(o)) for o in options)))
    for choice in path:
        cost, loss = total(options, choice, 0), total(options, choice, 1)
        assert all(total(options, c, 1) >= loss for c in every if total(options, c, 0) <= cost)
    ends = [total(options, path[0], 1), total(options, path[-1], 0)]
    assert ends == [
        min(total(options, c, 1) for c in every),
        min(total(options, c, 0) for c in every),
    ]


@settings(deadline=None, max_examples=200, derandomize=True)
@given(groups)
def test_each_step_makes_one_group_cheaper(options: list[list[tuple[int, int]]]) -> None:
    for before, after in itertools.pairwise(steepest_path(options)):
        moved = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
        assert len(moved) == 1
        assert total(options, after, 0) < total(options, before, 0)
        assert total(options, after, 1) >= total(options, before, 1)


@settings(deadline=None, max_examples=300, derandomize=True)
@given(points)
def test_no_point_of_the_front_is_dominated_and_none_is_missing(
    found: list[tuple[int, int]],
) -> None:
    front = pareto(found, lambda p: p[0], lambda p: p[1])

    def dominates(a: tuple[int, int], b: tuple[int, int]) -> bool:
        return a[0] <= b[0] and a[1] >= b[1] and a != b

    assert front == sorted(front)
    assert not any(dominates(a, b) for a in found for b in front)
    assert {p for p in found if not any(dominates(a, p) for a in found)} == set(front)


@pytest.mark.parametrize(
    ("options", "path"),
    [
        ([[(8, 0.0)]], [(0,)]),
        ([[(8, 1.0), (8, 0.0)]], [(1,)]),
        ([[(8, 0.0), (8, 0.0), (4, 0.0)]], [(2,)]),
        # the middle option lies above the line between the others
        ([[(9, 0.0), (6, 9.0), (3, 10.0)]], [(0,), (2,)]),
    ],
)
def test_ties_and_corners(
    options: list[list[tuple[float, float]]], path: list[tuple[int, ...]]
) -> None:
    assert steepest_path(options) == path


def test_later_numbers_decide_between_equal_accuracies() -> None:
    found = [(1, (5.0, 20.0)), (2, (5.0, 30.0)), (3, (5.0, 10.0)), (4, (6.0, 1.0))]
    front = pareto(found, lambda p: p[0], lambda p: p[1])
    assert [cost for cost, _ in front] == [1, 2, 4]
