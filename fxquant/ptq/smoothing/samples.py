"""What is looked at of the layers' inputs: ranges of channels, and some positions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx

from fxquant.errors import CalibrationError
from fxquant.ptq.sampling import hash_of
from fxquant.ptq.walking.output_gradients import OutputGradients
from fxquant.ptq.walking.walk import Walk

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from fxquant.ptq.smoothing.reads import Group, Read

# of the mean weight of a batch's positions: what weighs less, such as padding, is not looked at
_WEIGHTLESS = 1e-3


@dataclass
class Rows:
    """Positions of a layer.

    Attributes:
        columns: what outputs are computed from, `[G, P, D]` by batch.
        weights: how much squared errors of the outputs count, `[G, P, O]` by batch.
        units: which sample each position is of, or which position of the only sample it is; int64
            `[P]` by batch.
    """

    columns: list[Tensor] = field(default_factory=list)
    weights: list[Tensor] = field(default_factory=list)
    units: list[Tensor] = field(default_factory=list)

    def joined(self) -> tuple[Tensor, Tensor, Tensor]:
        """All of them."""
        return torch.cat(self.columns, 1), torch.cat(self.weights, 1), torch.cat(self.units)

    @property
    def count(self) -> int:
        """Number of positions."""
        return sum(c.shape[1] for c in self.columns)


@dataclass
class Channels:
    """Ranges of the channels that a group of layers reads, `[F]` each.

    Attributes:
        low: smallest value.
        high: largest value.
        seen: largest magnitude at positions that the model's output depends on.
    """

    low: Tensor
    high: Tensor
    seen: Tensor

    @property
    def largest(self) -> Tensor:
        """Largest magnitude."""
        return torch.maximum(-self.low, self.high)

    @classmethod
    def merged(cls, parts: Sequence[Channels]) -> Channels:
        """Those of several parts of the data."""
        return cls(
            torch.stack([c.low for c in parts]).amin(0),
            torch.stack([c.high for c in parts]).amax(0),
            torch.stack([c.seen for c in parts]).amax(0),
        )


class Samples:
    """Collects from a float graph; what is held does not grow with the data.

    Args:
        gm: the graph.
        groups: the layers.
        columns: positions of a layer that are looked at, over all samples.
        held_out: in so many parts the samples are judged, each by what the others tell.
        seed: of the choice of positions, and of the signs of gradients.

    Attributes:
        channels: ranges by group, of every part that has any.
        rows: positions of every layer by its index, of every part.
        weighed: whether errors are weighed by what the model's output does with them.
        count: number of samples.
    """

    def __init__(
        self, gm: fx.GraphModule, groups: Sequence[Group], *, columns: int, held_out: int, seed: int
    ) -> None:
        self.gm, self.groups = gm, groups
        self.columns, self.held_out, self.seed = columns, held_out, seed
        self.channels: list[dict[int, Channels]] = [{} for _ in groups]
        self.rows: dict[int, list[Rows]] = {
            r.index: [Rows() for _ in range(held_out)] for g in groups for r in g.reads
        }
        self.weighed, self.count, self._total = False, 0, 1

    def collect(self, data: Any, samples: int, max_memory: int | None) -> None:
        """Run the data through the graph, batch by batch."""
        walk = Walk(self.gm, data, (), samples=samples, max_memory=max_memory)
        reads = [r for g in self.groups for r in g.reads]
        weighed = [r.layer.node for r in reads]
        kept = {*weighed, *(r.operand for r in reads)}
        run = OutputGradients(self.gm, kept, weighed, self.seed)
        holders = [n for n in self.gm.graph.nodes if n.op == "placeholder"]
        self._total = sum(walk.samples)
        with walk.store:
            for batch, count in enumerate(walk.samples):
                inputs = [walk.store.get(("", h, batch)) for h in holders]
                gradients = run.of(inputs, batch)
                self.weighed = self.weighed or bool(gradients)
                for number, group in enumerate(self.groups):
                    for read in group.reads:
                        found = gradients.get(read.layer.node)
                        self._add(number, read, run.values, found, (batch, count))
                for holder in holders:
                    walk.store.drop(("", holder, batch))
                self.count += count

    def _add(
        self, number: int, read: Read, values: dict[fx.Node, Tensor], gradient: Tensor | None,
        batch: tuple[int, int],
    ) -> None:  # fmt: skip
        x, y = values[read.operand].detach(), values[read.layer.node].detach()
        if not bool(x.isfinite().all()):
            what = f"the input of {read.layer.path} holds NaN or infinity"
            raise CalibrationError("FXQ476", what, at=read.layer.node, fix="clean the data")
        product, count = read.product, batch[1]
        positions = product.positions(y)
        every = torch.arange(positions, device=x.device)
        weights = torch.ones_like(y) if gradient is None else gradient.square()
        by_position = product.outputs(weights, every).sum((0, 2))
        alive = every[by_position > _WEIGHTLESS * by_position.mean()]
        self._range(number, read, x, alive, count)
        most = -(-self.columns * count // self._total)
        seed = (self.seed * 1_000_003 + hash_of(read.layer.path)) * 1_000_003 + batch[0]
        generator = torch.Generator().manual_seed(seed % 2**63)
        order = torch.randperm(len(alive), generator=generator)[:most].sort().values
        chosen = alive[order.to(alive.device)]
        units = self._units(chosen, positions, count)
        parts = self._parts(chosen, positions, count)
        for part, home in enumerate(self.rows[read.index]):
            own = chosen[parts == part]
            home.units.append(units[parts == part].cpu())
            home.columns.append(product.inputs(x, y, own).float().cpu())
            home.weights.append(product.outputs(weights, own).float().cpu())

    def _parts(self, chosen: Tensor, positions: int, count: int) -> Tensor:
        """To which part of the data some positions of a batch belong."""
        units = self._units(chosen, positions, count)
        return units % (self.held_out if self._total == 1 else min(self.held_out, self._total))

    def _units(self, chosen: Tensor, positions: int, count: int) -> Tensor:
        """Of which sample some positions of a batch are; of a single sample they are units."""
        if self._total == 1:
            return chosen
        return self.count + torch.div(chosen * count, max(positions, 1), rounding_mode="floor")

    def _range(self, number: int, read: Read, x: Tensor, alive: Tensor, count: int) -> None:
        """Take the channels' ranges of one batch in."""
        axis = -1 - read.product.dims
        flat = x.movedim(axis, -1).reshape(-1, x.shape[axis]).float()
        every = torch.arange(len(flat), device=flat.device)
        important = alive if not read.product.dims and len(alive) else every
        parts, theirs = (self._parts(r, len(flat), count) for r in (every, important))
        known, zeros = self.channels[number], torch.zeros(self.groups[number].count)
        for part in range(self.held_out):
            rows, seen = flat[parts == part], flat[important[theirs == part]]
            if not len(rows):
                continue
            seen = seen if len(seen) else rows
            low, high, largest = (
                zeros.scatter_reduce(0, read.factors, v.cpu(), how)
                for v, how in (
                    (rows.amin(0).clamp(max=0), "amin"), (rows.amax(0).clamp(min=0), "amax"),
                    (seen.abs().amax(0), "amax"),
                )
            )  # fmt: skip
            found = Channels(low, high, largest)
            known[part] = Channels.merged([known[part], found]) if part in known else found
