"""The pure solver: integers inside the grid, never worse than the start, exact where it can be."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxquant.errors import ConfigError
from fxquant.ptq.solving import rounding
from fxquant.ptq.solving.gradient_rounding import AdaroundOptions
from fxquant.ptq.solving.grids import WeightGrid, quadratic
from fxquant.ptq.solving.rounding import descend, gptq
from fxquant.ptq.solving.scales import refit, search
from fxquant.ptq.solving.solver import METHODS, Method, SolverOptions, damp, inverse_of, solve

QUICK = AdaroundOptions(iterations=60)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor, WeightGrid]:
    """A target, correlated moments and a grid, all small."""
    groups, outs, ins = (draw(st.integers(1, n)) for n in (3, 4, 6))
    rng = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    target = torch.randn(groups, outs, ins, generator=rng, dtype=torch.float64)
    samples = draw(st.integers(1, 12))  # fewer than inputs: the moments are singular
    x = torch.randn(groups, samples, ins, generator=rng, dtype=torch.float64)
    x = x + draw(st.sampled_from([0.0, 2.0])) * x[:, :, :1]
    if draw(st.booleans()):
        x[:, :, -1] = 0.0  # an input that is always zero
    moments = damp(x.mT @ x / samples, 0.01)
    bits = draw(st.integers(2, 8))
    grid = WeightGrid.uniform(
        target, bits, per_row=draw(st.booleans()), block=draw(st.sampled_from([None, 2]))
    )
    if draw(st.booleans()):  # an asymmetric grid: its integers lie anywhere about zero
        zero = torch.randint(0, 2**bits, grid.low.shape, generator=rng).double()
        grid = replace(grid, low=-zero, high=2**bits - 1 - zero)
        grid = grid.with_scale(grid.covering(target))
    return target, moments, grid


def loss(k: Tensor, target: Tensor, moments: Tensor, grid: WeightGrid) -> Tensor:
    return quadratic(grid.weight(k) - target, moments)


@settings(max_examples=60, deadline=None)
@given(problems(), st.sampled_from(METHODS), st.booleans(), st.booleans())
def test_integers_lie_inside_the_grid(
    problem: tuple[Tensor, Tensor, WeightGrid], method: Method, frozen: bool, shifts: bool
) -> None:
    target, moments, grid = problem
    grid = replace(grid, frozen=frozen, power_of_two=shifts and not frozen)
    found = solve(target, moments, grid, SolverOptions(method, adaround=QUICK))
    assert torch.equal(found.integers, found.integers.round())
    assert bool((found.integers >= grid.spread(grid.low)).all())
    assert bool((found.integers <= grid.spread(grid.high)).all())
    assert bool((found.scale > 0).all())
    if frozen:
        assert torch.equal(found.scale, grid.scale)
    elif shifts and method != "nearest":
        changed = found.scale[found.scale != grid.scale]
        assert bool((torch.frexp(changed).mantissa == 0.5).all())


@settings(max_examples=60, deadline=None)
@given(problems(), st.integers(0, 99))
def test_descent_is_never_worse_than_its_start(
    problem: tuple[Tensor, Tensor, WeightGrid], seed: int
) -> None:
    target, moments, grid = problem
    rng = torch.Generator().manual_seed(seed)
    noise = torch.randint(-3, 4, target.shape, generator=rng)
    start = grid.nearest(target + noise * grid.spread(grid.scale))
    found, slope = descend(start, target, moments, grid)
    torch.testing.assert_close(slope, torch.bmm(grid.weight(found) - target, moments))
    before, after = (loss(k, target, moments, grid) for k in (start, found))
    assert bool((after <= before * (1 + 1e-9) + 1e-12).all())
    # no single integer can be moved with profit, but for what counts as rounding: the gains that
    # are compared are half the change of the loss
    steps = grid.spread(grid.scale)[:, :, 0]
    nothing = 2 * rounding._NOTHING * moments[:, 0, 0, None] * steps**2
    for change, column in itertools.product((-1, 1), range(target.shape[2])):
        other = found.clone()
        other[:, :, column] += change
        inside = other[:, :, column] == other[:, :, column].clamp(
            grid.spread(grid.low)[:, :, min(column, grid.spread(grid.low).shape[2] - 1)],
            grid.spread(grid.high)[:, :, min(column, grid.spread(grid.high).shape[2] - 1)],
        )
        worse = loss(other, target, moments, grid) >= after * (1 - 1e-5) - 1e-9 - nothing
        assert bool((worse | ~inside).all())


@settings(max_examples=40, deadline=None)
@given(problems())
def test_refitted_scales_are_never_worse(problem: tuple[Tensor, Tensor, WeightGrid]) -> None:
    target, moments, grid = problem
    k = grid.nearest(target)
    slope, pulled = (torch.bmm(t, moments) for t in (grid.weight(k) - target, target))
    found, slope = refit(k, slope, pulled, moments, grid)
    torch.testing.assert_close(slope, torch.bmm(found.weight(k) - target, moments))
    before, after = (loss(k, target, moments, g).sum() for g in (grid, found))
    assert after <= before * (1 + 1e-9) + 1e-12
    searched = search(target, moments, grid)
    if grid.scale.shape[1] == 1:
        nearest = loss(searched.nearest(target), target, moments, searched).sum()
        assert nearest <= before * (1 + 1e-9) + 1e-12
        whole = solve(target, moments, searched, SolverOptions(search_scale=False))
        after = loss(whole.integers, target, moments, whole.grid).sum()
        assert after <= nearest * (1 + 1e-9) + 1e-12


@settings(max_examples=40, deadline=None)
@given(problems(), st.sampled_from(METHODS))
def test_what_lies_on_the_grid_is_found_exactly(
    problem: tuple[Tensor, Tensor, WeightGrid], method: Method
) -> None:
    target, moments, grid = problem
    target = grid.weight(grid.nearest(target))
    frozen = replace(grid, frozen=True)
    found = solve(target, moments, frozen, SolverOptions(method, adaround=QUICK))
    assert torch.allclose(found.weight, target, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_tiny_cases_come_near_the_best_there_is(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    target = torch.randn(1, 6, 4, generator=rng, dtype=torch.float64)
    x = torch.randn(1, 20, 4, generator=rng, dtype=torch.float64)
    moments = x.mT @ x / 20
    grid = replace(WeightGrid.uniform(target, 2), frozen=True)
    every = torch.tensor(list(itertools.product((-2.0, -1.0, 0.0, 1.0), repeat=4)))
    every = every.double()[None, :, None].expand(1, -1, 6, -1)
    costs = torch.stack([loss(k, target, moments, grid) for k in every.unbind(1)])
    best = costs.amin(0)
    found = solve(target, moments, grid)
    own = loss(found.integers, target, moments, grid)
    nearest = loss(grid.nearest(target), target, moments, grid)
    assert bool((own >= best - 1e-12).all())
    assert bool(torch.isclose(own, best).sum() >= 4)  # a local optimum of single moves, mostly
    assert bool((own <= nearest + 1e-12).all())


def test_uncorrelated_inputs_are_rounded_to_nearest() -> None:
    target, moments = torch.randn(1, 5, 7), torch.diag(torch.rand(7) + 0.1)[None]
    grid = replace(WeightGrid.uniform(target, 4), frozen=True)
    assert torch.equal(solve(target, moments, grid).integers, grid.nearest(target))
    assert torch.equal(gptq(target, inverse_of(moments), grid), grid.nearest(target))


def test_methods_improve_on_each_other() -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(1, 400, 48, generator=rng) @ torch.randn(48, 48, generator=rng) / 7
    moments, target = damp(x.mT @ x / 400, 0.01), torch.randn(1, 32, 48, generator=rng)
    grid = WeightGrid.uniform(target, 4)
    losses = {
        m: float(
            solve(target, moments, grid, SolverOptions(m, adaround=AdaroundOptions(400)))
            .loss(target, moments)
            .sum()
        )
        for m in METHODS
    }
    assert losses["scale_search"] < 0.9 * losses["nearest"]
    assert losses["gptq"] < 0.7 * losses["scale_search"]
    assert losses["adaround"] < 0.9 * losses["scale_search"]
    assert losses["descend"] < 0.95 * losses["gptq"]
    assert losses["descend"] < losses["adaround"]


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ConfigError, match="did you mean 'gptq'"):
        SolverOptions("gtpq")  # type: ignore[arg-type]
