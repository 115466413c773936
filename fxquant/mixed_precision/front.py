"""From options with a cost and a loss to a path of choices, and to the Pareto front; pure.

The path goes from the most accurate choice to the cheapest. Each step gives one group a cheaper
option, and the steps come by what they lose for what they save, on the lower convex hull of each
group's options: the greedy solution of the multiple-choice knapsack problem, and the best one for
the cost that it ends at.
Source: Sinha and Zoltners, The multiple-choice knapsack problem, Operations Research 27 (1979).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

Offer = tuple[float, float]
"""(cost, loss) of one option."""

T = TypeVar("T")


def steepest_path(options: Sequence[Sequence[Offer]]) -> list[tuple[int, ...]]:
    """Choices from the most accurate to the cheapest: one option of every group.

    Args:
        options: for every group its options.

    Returns:
        Indices of options; neighbours differ in one group.

    Example:
        >>> steepest_path([[(8, 0.0), (4, 1.0)], [(8, 0.0), (4, 0.1)]])
        [(0, 0), (0, 1), (1, 1)]
    """
    steps: list[tuple[float, int, int, int]] = []
    start = []
    for group, offers in enumerate(options):
        hull = _hull(offers)
        start.append(hull[0])
        for rank, (before, after) in enumerate(itertools.pairwise(hull)):
            steps.append((_slope(offers[before], offers[after]), group, rank, after))
    path = [tuple(start)]
    for _, group, _, option in sorted(steps):
        path.append((*path[-1][:group], option, *path[-1][group + 1 :]))
    return path


def _hull(offers: Sequence[Offer]) -> list[int]:
    """The lower convex hull, from the smallest loss to the smallest cost."""
    here = min(range(len(offers)), key=lambda i: (offers[i][1], offers[i][0], i))
    found = [here]
    while True:
        cheaper = [i for i, offer in enumerate(offers) if offer[0] < offers[here][0]]
        if not cheaper:
            return found
        # of several with the same slope the farthest: what lies between is no corner
        here = min(cheaper, key=lambda i: (_slope(offers[here], offers[i]), offers[i][0], i))
        found.append(here)


def _slope(before: Offer, after: Offer) -> float:
    return (after[1] - before[1]) / (before[0] - after[0])


def pareto(
    points: Sequence[T], cost: Callable[[T], float], accuracy: Callable[[T], Any]
) -> list[T]:
    """Points that no other one dominates, by rising cost.

    A point is dominated by one that costs no more and is as accurate, and better in one of the two;
    of equal ones the first stays. Accuracies may be tuples, of which later numbers decide between
    equal ones.

    Example:
        >>> pareto([(1, 5), (2, 5), (3, 9)], lambda p: p[0], lambda p: p[1])
        [(1, 5), (3, 9)]
    """
    found: list[T] = []
    best_first = sorted(points, key=accuracy, reverse=True)
    for point in sorted(best_first, key=cost):
        if not found or accuracy(point) > accuracy(found[-1]):
            found.append(point)
    return found
