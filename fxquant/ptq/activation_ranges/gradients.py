"""What an error of a value costs at the outputs of the model, by gradients.

An error `e` of a value changes the outputs by about `J e`, with the Jacobian `J` of the outputs by
the value. The energy of that is the mean of `(v^T J e)^2` over random signs `v`, and
`v^T J` comes from one backward pass for all values at once: errors that nothing looks at, such as
those of padding, cost nothing, and what all consumers make of an error counts.

Every output weighs alike here, whatever its size, several probes are averaged, and a value is one
tensor of a node's result. `OutputGradients` has one probe a batch, of whole results, and weighs the
outputs' elements alike.

Source: the estimator is that of Hutchinson 1990, "A Stochastic Estimator of the Trace of the
Influence Matrix for Laplacian Smoothing Splines", for the trace of `J e e^T J^T`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.graph.pytree import fresh_inputs, map_leaves, tensors
from fxquant.ptq.walking.output_gradients import without_gradients
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from fxquant.ptq.activation_ranges.range_trials import ChosenGrid

Slots = dict[fx.Node, list[tuple[int, "ChosenGrid"]]]


def add_costs(
    gm: fx.GraphModule, slots: Slots, values: Sequence[Any], samples: int,
    *, held: bool, probes: int, seed: int,
) -> str:  # fmt: skip
    """Add to the costs of all grids what they are on one batch.

    Args:
        gm: the graph, without quantizers of activations.
        slots: node -> places among its outputs and the grids that these lie on.
        values: of the placeholders.
        samples: of the batch.
        held: whether it is one to judge by.
        probes: backward passes.
        seed: of the signs.

    Returns:
        Why there are no gradients, and nothing was added; an empty text if there are.
    """
    with without_gradients(gm), torch.enable_grad():
        recorder = _Recorder(gm, slots)
        found = tensors(recorder.run(*fresh_inputs(list(values))))
        outputs = [plain(t) for t in found if t.requires_grad]
        if not outputs or not recorder.seen:
            return "the outputs have no gradients"
        try:
            gradients = _gradients(outputs, [x for x, _ in recorder.seen], probes, seed)
        except RuntimeError as error:  # of an operator without a derivative
            return str(error).splitlines()[0]
    changes: dict[ChosenGrid, Tensor] = {}
    with torch.no_grad():
        for (x, grid), rows in zip(recorder.seen, gradients, strict=True):
            changes[grid] = _changes(grid, x.detach(), rows, samples) + changes.get(grid, 0.0)
        for grid, change in changes.items():
            grid.costs[int(held)] += change.square().mean(1).sum(1).cpu()
    return ""


def _changes(grid: ChosenGrid, x: Tensor, rows: Tensor, samples: int) -> Tensor:
    """What errors of a value change, by try, probe and sample: float64 `[T, K, N]`."""
    # values that lie in windows or heads still belong to one sample after the other
    parts = samples if x.dim() and x.shape[0] % samples == 0 else 1
    weights = rows.reshape(len(rows), parts, -1)
    found = []
    for _ in grid.trials():
        error = grid.quantizer.transform(x).float() - x.float()
        found.append(torch.einsum("kns,ns->kn", weights, error.reshape(parts, -1)))
    changes = torch.stack(found).double()
    # signs of samples are independent: the square of a sum is the sum of the squares, on average
    return changes if parts == samples else nn.functional.pad(changes, (0, samples - parts))


def _gradients(
    outputs: Sequence[Tensor], values: Sequence[Tensor], probes: int, seed: int
) -> list[Tensor]:
    """Gradients of random sums of the outputs, for every value `[probes, ...]`."""
    generator = torch.Generator().manual_seed(seed)
    rows: list[list[Tensor]] = [[] for _ in values]
    # outputs of other sizes count alike
    scales = [
        float(y.detach().double().square().sum()) ** -0.5 if y.any() else 0.0 for y in outputs
    ]
    for probe in range(probes):
        total: Any = 0.0
        for y, scale in zip(outputs, scales, strict=True):
            signs = torch.randint(0, 2, y.shape, generator=generator) * 2 - 1
            total = total + (y.float() * signs.to(y.device)).sum() * scale
        found: Sequence[Tensor | None] = torch.autograd.grad(
            total, list(values), retain_graph=probe + 1 < probes, allow_unused=True
        )
        for row, x, gradient in zip(rows, values, found, strict=True):
            row.append(torch.zeros_like(x) if gradient is None else plain(gradient).float())
    return [torch.stack(row).float() for row in rows]


class _Recorder(fx.Interpreter):
    """Runs a graph and keeps the values that lie on grids, so that gradients reach them.

    Attributes:
        seen: values and their grids.
    """

    def __init__(self, gm: fx.GraphModule, slots: Slots) -> None:
        super().__init__(gm)
        self.slots = slots
        self.seen: list[tuple[Tensor, ChosenGrid]] = []
        self._writes = any(ops.is_inplace(n) for n in gm.graph.nodes)

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node."""
        value = super().run_node(n)
        return self._recorded(value, dict(self.slots[n])) if n in self.slots else value

    def _recorded(self, value: Any, grids: Mapping[int, ChosenGrid]) -> Any:
        places = iter(range(len(tensors(value))))

        def change(leaf: Any) -> Any:
            grid = grids.get(next(places)) if isinstance(leaf, Tensor) else None
            if grid is None or not leaf.is_floating_point():
                return leaf
            x = leaf if leaf.requires_grad else leaf.detach().requires_grad_()
            self.seen.append((plain(x), grid))
            # what is written to is not the value any more, and no leaf may be written to
            return x.clone() if self._writes else x

        return map_leaves(value, change)
