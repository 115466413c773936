"""What is asked of the solver for one layer, and what its solutions mean for the layer."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from fxquant.ptq.solving.solver import Solution, factor_type, inverse_of, solve

if TYPE_CHECKING:
    from torch import Tensor

    from fxquant.ptq.layers.layer import Layer
    from fxquant.ptq.sampling import LayerData
    from fxquant.ptq.solving.grids import WeightGrid
    from fxquant.ptq.solving.solver import SolverOptions

# damping by inputs per sample, as a multiple of that for many samples
_FEW = 10
# rows that the mean channel counts as where a channel's share of the fit is found
_MORE_ROWS = 32
# rows of one sample that say as much as so many of different ones: neighbours are much alike
_ALIKE = 4
# inputs for which one independent row is enough to choose the steps of their weights
_STEPS = 6
# a squared change of outputs that is as good as none
_NOTHING = 1e-30


class LayerProblem:
    """One layer's problem; its matrices hold live columns only.

    Args:
        layer: the layer.
        data: what it is given and should put out.
        solver: how integers and scale are found.
        float_target: aim at the wanted outputs; False: at the float weight.
        correct_bias: the bias takes in the mean error.

    Attributes:
        target: what the weight should be, `[G, O, D]`.
        moments: damped second moments of the inputs, `[G, D, D]`.
        inverse: their inverse.
        grid: the grid of all columns as it is.
        places: as `Layer.grid` returns them.
    """

    def __init__(
        self,
        layer: Layer,
        data: LayerData,
        solver: SolverOptions,
        *,
        float_target: bool = True,
        correct_bias: bool = True,
    ) -> None:
        if not _shows_what_clips(data):
            solver = replace(solver, search_scale=False, refits=0)
        self.layer, self.data, self.solver = layer, data, solver
        # one sample does not tell what is its own from what all have in common
        self.moved = layer.has_bias and correct_bias and data.samples != 1
        self.old_bias = layer.bias()
        self.weight = layer.weight()[:, :, data.live]
        self.grid, self.places = layer.grid()
        # nothing but integers is fitted to the data where the float weight is the target
        share = _damping(data, solver.damping) if float_target else solver.damping
        exact = factor_type(len(data.live))
        damped = data.seen.damped(share, centred=self.moved, dtype=exact)
        self.moments = damped.float()
        self.inverse = inverse_of(damped)
        del damped
        target = layer.float_weight()[:, :, data.live]
        if float_target:
            fitted = data.seen.target(target, self.inverse, centred=self.moved)
            target = target + self._shrinkage(target, fitted) * (fitted - target)
        self.target = target.float()
        # products are matrices as large as those that are solved with
        self.data = data.with_means_alone()

    def _shrinkage(self, weight: Tensor, fitted: Tensor) -> Tensor:
        """How far to go from the float weight to the fitted one in every channel, `[G, O, 1]`.

        The share of the way that has the smallest error on the data held out, between 0 and 1:
        what the fit owes to chance would make other data worse. Few rows say little of one channel,
        so the layer's mean channel counts as some more; and of what all channels gain together its
        standard error is taken away.
        """
        x, wanted = self.data.held
        outputs = [
            torch.baddbmm(self.data.by_rows(self.bias(w)).to(x.dtype), x, w.to(x.dtype).mT)
            for w in (weight, fitted)
        ]
        step = outputs[1] - outputs[0]
        gains = (step * (wanted - outputs[0])).double()
        gained = gains.mean(1)
        curvature = step.double().square().mean(1)
        more = _MORE_ROWS / x.shape[1]
        gained, curvature = (t + more * t.mean() for t in (gained, curvature))
        share = torch.where(curvature > 0, gained / curvature.clamp(min=_NOTHING), 1.0)
        return share.clamp(0, 1)[:, :, None] * _confirmed(gains.sum((0, 2)))

    def before(self) -> Solution:
        """The weight as it is, on its grid."""
        grid = self._part(self.grid)
        return Solution(grid.nearest(self.weight.float()), grid)

    def solve(self, grid: WeightGrid, solver: SolverOptions | None = None) -> Solution:
        """The live columns of the best weight on a grid of all columns."""
        given, part = solver or self.solver, self._part(grid)
        return solve(self.target, self.moments, part, given, inverse=self.inverse)

    def _part(self, grid: WeightGrid) -> WeightGrid:
        return grid.part(self.data.live).to(torch.float32)

    def whole(self, found: Solution) -> Solution:
        """A solution of the live columns with all others nearest to what they were."""
        grid = self.grid.with_scale(found.scale.double())
        return self.layer.solution(grid, self.data.live, found.integers)

    def again(self, grid: WeightGrid) -> Solution:
        """The best weight on a grid of all columns."""
        return self.whole(self.solve(grid))

    def bias(self, weight: Tensor) -> Tensor:
        """The bias for the live columns of a weight, `[G, O, D] -> [G, O]`."""
        return self.data.seen.bias(weight) if self.moved else self.old_bias

    def whole_bias(self, weight: Tensor) -> Tensor:
        """The bias for a weight, `[G, O, D] -> [G, O]`."""
        return self.bias(weight[:, :, self.data.live])

    def loss(self, found: Solution) -> float:
        """Loss of a solution on the samples that were solved on."""
        return float(found.loss(self.target, self.moments).sum())


def _confirmed(gains: Tensor) -> Tensor:
    """The share of a mean gain that is left when its standard error is taken away: `[N] -> []`."""
    mean = gains.mean()
    if len(gains) < 2:
        return torch.ones_like(mean)
    error = gains.std() / len(gains) ** 0.5
    return torch.where(mean > error, 1 - error / mean, 0.0)


def _damping(data: LayerData, share: float) -> float:
    """Damping of a layer's moments: the more, the fewer samples there are for each input.

    What few samples say of many inputs does not hold on others; weights that were fitted to it are
    worse there, on networks with more inputs than images by half a decibel at the output.
    """
    return share * (1 + _FEW * len(data.live) / data.seen.count)


def _shows_what_clips(data: LayerData) -> bool:
    """Whether there are enough samples for the inputs of a layer to choose the steps of its weight.

    A smaller step clips the largest weights. They are those of inputs that matter, on average; few
    samples hold few of them, and the steps that are best there cost other data several decibels.
    """
    rows = data.seen.count
    if data.samples is not None:
        # one sample does not show how samples differ
        rows = min(rows, _ALIKE * (data.samples - 1))
    return _STEPS * rows >= len(data.live)
