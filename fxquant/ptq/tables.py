"""Tables whose rows are looked up, such as embeddings: the best steps for them.

A row is the output, not a part of a sum. Its error is that of its own elements, whatever the data
are: integers are the nearest ones, and only the step is to be found.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch

from fxquant.ptq.reconstruction_report import LayerReport
from fxquant.ptq.solving.scales import search
from fxquant.ptq.solving.solver import Solution

if TYPE_CHECKING:
    from torch import Tensor

    from fxquant.ptq.layers.layer import Layer
    from fxquant.ptq.solving.grids import WeightGrid


def fit_steps(layer: Layer) -> LayerReport:
    """Give a table the steps whose nearest integers are nearest to its rows, and freeze them.

    Args:
        layer: the table as a layer.

    Returns:
        What was done; its errors are sums over the elements of a row, of the mean row.

    Source: the range search of arXiv:2106.08295, section 3.1.
    """
    begin = time.process_time()
    weight, (grid, places) = layer.float_weight().float(), layer.grid()
    start = grid.to(torch.float32)
    uncorrelated = weight.new_ones(1, weight.shape[-1]).diag_embed()
    found = search(weight, uncorrelated, start, correlated=False)
    before, after = (_error(weight, g) for g in (start, found))
    if after < before:

        def nearest(on: WeightGrid) -> Solution:
            return Solution(on.nearest(weight.double()), on)

        layer.write(nearest(found.to(torch.float64)), places, lambda _: layer.bias(), nearest)
    return LayerReport(
        layer.path, "weight" if after < before else "nothing", before, min(after, before),
        before, min(after, before), 0.0, 0.0, time.process_time() - begin,
    )  # fmt: skip


def _error(weight: Tensor, grid: WeightGrid) -> float:
    left = grid.weight(grid.nearest(weight)).sub_(weight)
    return float(left.square_().sum() / max(left.shape[1], 1))
