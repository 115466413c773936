"""What is looked at of a layer's inputs and outputs: some positions, of samples to solve on and of
samples held out."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.errors import CalibrationError
from fxquant.ptq.layers.tied_layers import TiedLayer
from fxquant.ptq.moments import PIECE, Moments, TiedMoments, merge
from fxquant.ptq.walking.ahead import Ahead
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fxquant.ptq.layers.columns import Product
    from fxquant.ptq.layers.layer import Layer
    from fxquant.ptq.walking.parts_of_data import WholeData
    from fxquant.ptq.walking.walk import Environment, Walk

# numbers of inputs that are gathered at once, at least
GATHERED = 2**20
# positions of a layer, at least and by input of an output
_LEAST, _EACH = 2048, 64


@dataclass(frozen=True)
class LayerData:
    """What a layer is given and should put out.

    Attributes:
        live: columns that some input reaches, int64; the others only ever see padding.
        seen: moments of the samples to solve on, of the live columns.
        held: inputs `[G, N, D]` and wanted outputs `[G, N, O]` of the samples to judge by.
        rows: those of the samples to solve on, where they were asked for.
        samples: number of samples to solve on; None: every row is one.
    """

    live: Tensor
    seen: Moments | TiedMoments
    held: tuple[Tensor, Tensor]
    rows: tuple[Tensor, Tensor] | None = None
    samples: int | None = None

    def by_rows(self, bias: Tensor, *, held: bool = True) -> Tensor:
        """The bias of every row of `held` or `rows`: `[G, O] -> [G, 1, O]`."""
        return bias[:, None]

    def without_bias(self, bias: Tensor) -> LayerData:
        """The same with what is wanted without the bias."""
        x, y = self.held
        held = x, y - self.by_rows(bias).to(y.dtype)
        rows = self.rows
        if rows is not None:
            rows = rows[0], rows[1] - self.by_rows(bias, held=False).to(y.dtype)
        return replace(self, seen=self.seen.without_bias(bias), held=held, rows=rows)

    def with_means_alone(self) -> LayerData:
        """The same without the products of what was seen: all that biases and errors need."""
        return replace(self, seen=self.seen.means_alone())

    def error(self, weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """Mean squared error and mean error of every channel on the samples held out.

        Args:
            weight: the live columns of a weight, `[G, O, D]`.
            bias: its bias, `[G, O]`.

        Returns:
            Two tensors `[G, O]`.
        """
        x, y = self.held
        left = y - torch.bmm(x, weight.to(x.dtype).mT)
        left = left.double() - self.by_rows(bias)
        return left.square().mean(1), left.mean(1)


@dataclass(frozen=True)
class TiedData(LayerData):
    """What layers with one weight are given; biases are `[B, G, O]`, see `TiedLayer`.

    Attributes:
        biases: the number of the bias of every row of `held` and of `rows`, int64 `[N]` each.
    """

    biases: tuple[Tensor, Tensor] = field(kw_only=True)

    def by_rows(self, bias: Tensor, *, held: bool = True) -> Tensor:
        """The bias of every row of `held` or `rows`: `[B, G, O] -> [G, N, O]`."""
        return bias[self.biases[0 if held else 1]].transpose(0, 1)


@dataclass(frozen=True)
class Sampling:
    """Which positions and samples.

    Attributes:
        columns: positions over all samples.
        held_out: one of so many samples is held out.
        seed: of the choice.
    """

    columns: int
    held_out: int
    seed: int

    def positions(self, layer: Layer) -> int:
        """Positions of a layer: some for every number that is fitted to them."""
        inputs = layer.shape[2]
        return min(self.columns, max(_LEAST, _EACH * inputs))


def layer_data(
    layer: Layer,
    walk: Walk,
    source: Environment,
    wanted: Environment,
    sampling: Sampling,
    *,
    rows: bool = False,
) -> LayerData:
    """Collect inputs from one environment and wanted outputs from another.

    Args:
        layer: the layer; its operands are at hand.
        walk: their values.
        source: the environment that the inputs are of.
        wanted: the environment that the outputs are of.
        sampling: which positions and samples.
        rows: keep the rows to solve on, not their moments alone.

    Raises:
        CalibrationError: FXQ446 they hold NaN or infinity, FXQ447 there are none, FXQ428 inputs and
            outputs never have the same rows.
    """

    parts, live = walk.parts, _live_columns(layer, walk, source, wanted)
    groups = layer.by_bias
    most = min(PIECE, sampling.positions(layer) + len(walk) * len(layer.uses))
    collected = [_Collector(layer, live, rows, most) for _ in groups]
    number = {use.path: i for i, group in enumerate(groups) for use in group}
    uses = {use.node: use for use in layer.uses}
    ahead = Ahead(walk, list(uses), source, wanted)
    total, before = parts.samples, parts.samples_before
    for batch, samples in enumerate(walk.samples):
        for given in ahead.visits(batch):
            use = uses[given.node]
            example = use.example(given)
            x, y = example.x, example.y
            if not use.product.same_rows(x, y):
                continue  # values choose the rows, and rounded ones chose others
            positions = use.product.positions(y)
            among = walk.counting.get((given.node, batch), example.among)
            count = positions if among is None else len(among)
            most = -(-sampling.positions(use) * samples // (total * len(uses)))
            seeds = sampling.seed, hash_of(use.path), parts.batches_before + batch
            chosen = _chosen(count, most, seeds, x.device)
            chosen = chosen if among is None else among[chosen]
            # samples are held out, not positions: neighbours in an image are much alike
            sample = before + torch.div(chosen * samples, max(positions, 1), rounding_mode="floor")
            if total < sampling.held_out:
                sample = torch.arange(len(chosen), device=x.device)
            held = sample % sampling.held_out == sampling.held_out - 1
            collected[number[use.path]].add(use.product, x, y, chosen[~held], chosen[held])
        before += samples
    found = [collector.finish(parts) for collector in collected]
    data = _tied(layer, found) if isinstance(layer, TiedLayer) else found[0]
    # fewer samples than are held out of are all looked at, in part
    return replace(data, samples=total - total // sampling.held_out)


def _live_columns(layer: Layer, walk: Walk, source: Environment, wanted: Environment) -> Tensor:
    """Columns that some input reaches; of layers with one weight, all: their inputs are not here.

    Batches may differ in size, and a larger image reaches more of a kernel.
    """
    if isinstance(layer, TiedLayer) or not layer.product.dims:
        return torch.arange(layer.shape[2], device=layer.parameters[0].device)
    reached = []
    for batch in range(len(walk)):
        x = layer.input(*walk.operands(layer.node, source, batch))
        reached.append(layer.product.reached(x, plain(walk.value(layer.node, wanted, batch))))
    own = {"reached": torch.stack(reached).any(0)}
    every = [part["reached"] for part in walk.parts.from_each(f"columns of {layer.path}", own)]
    return torch.nonzero(torch.stack(every).any(0))[:, 0]


def _tied(layer: TiedLayer, found: Sequence[LayerData]) -> TiedData:
    """What layers with the same bias each are given, as what all of them are."""
    biased = tuple(same[0].has_bias for same in layer.by_bias)
    parts = tuple(part.seen for part in found if isinstance(part.seen, Moments))
    kept = [part.rows for part in found if part.rows is not None]
    held = [part.held for part in found]
    biases = _numbered(held), _numbered(kept)
    return TiedData(
        found[0].live, TiedMoments(parts, biased), _joined(held), _joined(kept) if kept else None,
        biases=biases,
    )  # fmt: skip


def _numbered(rows: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """For every row the number of the part that it is of."""
    counts = torch.tensor([x.shape[1] for x, _ in rows], dtype=torch.int64)
    return torch.repeat_interleave(torch.arange(len(counts)), counts)


@dataclass
class _Collector:
    """Gathers rows of one layer, a piece at a time.

    Attributes:
        layer: the layer.
        live: columns that are gathered.
        keep: keep the rows to solve on.
        most: rows that come together before their products are formed.
    """

    layer: Layer
    live: Tensor
    keep: bool
    most: int
    moments: Moments | None = None
    kept: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    held: list[tuple[Tensor, Tensor]] = field(default_factory=list)
    # the rows of the piece that is being gathered, how many of it are there, and how many rows
    # came since products were formed of all there were
    piece: tuple[Tensor, Tensor] | None = None
    filled: int = 0
    fresh: int = 0

    def add(self, product: Product, x: Tensor, y: Tensor, seen: Tensor, held: Tensor) -> None:
        """Gather rows; products are formed when there are enough."""
        left = len(seen)
        # what is gathered at once is no smaller than the input, which may be copied for each part
        size = -(-max(x.numel(), GATHERED) // (product.groups * max(len(self.live), 1)))
        for chosen in torch.cat([seen, held]).split(size):
            columns = product.inputs(x, y, chosen)
            if len(self.live) < columns.shape[-1]:
                columns = columns[:, :, self.live]
            rows, wanted = columns.float(), product.outputs(y, chosen).float()
            count = min(left, len(chosen))
            self._see(rows[:, :count], wanted[:, :count], copy=True)
            # copies, as a part keeps the whole in memory
            self.held.append((rows[:, count:].clone(), wanted[:, count:].clone()))
            left -= count
        if self.fresh >= PIECE:
            self._flush()

    def _see(self, x: Tensor, y: Tensor, *, copy: bool) -> None:
        """Take rows to solve on in."""
        if self.keep and x.shape[1]:
            self.kept.append((x.clone(), y.clone()) if copy else (x, y))
        self.fresh += x.shape[1]
        while x.shape[1]:
            if self.piece is None:
                self.piece = tuple(t.new_empty(len(t), self.most, t.shape[2]) for t in (x, y))  # type: ignore[assignment]
            count = min(self.most - self.filled, x.shape[1])
            for home, rows in zip(self.piece or (), (x, y), strict=True):
                home[:, self.filled : self.filled + count] = rows[:, :count]
            self.filled += count
            if self.filled == self.most:
                self._flush_piece()
            x, y = x[:, count:], y[:, count:]

    def _flush_piece(self) -> None:
        if self.piece is not None:
            x, y = (t[:, : self.filled] for t in self.piece)
            self.moments = Moments.with_piece(self.moments, x, y)
            self.filled = 0

    def _flush(self) -> None:
        self._flush_piece()
        self.fresh = 0

    def finish(self, parts: WholeData) -> LayerData:
        """What all parts collected; with nothing held out it is judged by all."""
        node, path = self.layer.node, self.layer.path
        if self.moments is None and not (self.filled or self.held):
            what = f"values choose the rows of {path}, and rounded ones others in every batch"
            fix = "use smaller batches, or a region without it"
            raise CalibrationError("FXQ428", what, at=node, fix=fix)
        self._without_holding_out(parts)
        self._flush()
        self.piece = None
        own = dict(zip(("held_x", "held_y"), _joined(self.held), strict=True))
        if self.moments is not None:
            own |= self.moments.tensors()
        if self.kept:
            own |= dict(zip(("rows_x", "rows_y"), _joined(self.kept), strict=True))
        self.moments = None
        self.held.clear()
        self.kept.clear()
        for part in parts.from_each(f"moments of {path}", own):
            found = {name: tensor.to(self.live.device) for name, tensor in part.items()}
            self.held.append((found.pop("held_x"), found.pop("held_y")))
            if "rows_x" in found:
                self.kept.append((found.pop("rows_x"), found.pop("rows_y")))
            if found:
                self.moments = merge(self.moments, Moments.from_tensors(found))
        if self.moments is None:
            what = f"{path} has no output to look at"
            raise CalibrationError("FXQ447", what, at=node, fix="give data that reaches the layer")
        # no product of two columns is larger than the larger of their squares
        squares = self.moments.yy, torch.diagonal(self.moments.xx, dim1=1, dim2=2)
        if not all(bool(t.isfinite().all()) for t in squares):
            what = f"input or output of {path} holds NaN or infinity"
            raise CalibrationError("FXQ446", what, at=node, fix="clean the data")
        rows = _joined(self.kept) if self.kept else None
        return LayerData(self.live, self.moments, _joined(self.held), rows)

    def _without_holding_out(self, parts: WholeData) -> None:
        """Where all parts together hold out nothing, or everything, rows serve as both."""
        own = [self.filled, sum(x.shape[1] for x, _ in self.held)]
        own[0] += 0 if self.moments is None else self.moments.count
        every = [p["rows"] for p in parts.from_each("rows", {"rows": torch.tensor(own)})]
        seen, held = torch.stack(every).sum(0).tolist()
        if not held and self.filled and self.piece is not None:
            x, y = (t[:, : self.filled].clone() for t in self.piece)
            self.held = [(x, y)]
        if not seen:
            for x, y in self.held:
                self._see(x, y, copy=False)


def _joined(rows: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """All rows as one, which are taken out of the list: they are in memory once."""
    if len(rows) == 1:
        return rows.pop()
    end = sum(x.shape[1] for x, _ in rows)
    whole = [t.new_empty(len(t), end, t.shape[2]) for t in rows[0]]
    while rows:
        parts = rows.pop()
        begin = end - parts[0].shape[1]
        for home, part in zip(whole, parts, strict=True):
            home[:, begin:end] = part
        end = begin
    return whole[0], whole[1]


def hash_of(text: str) -> int:
    """A number made of a text, the same in every process."""
    found = 0
    for byte in text.encode():
        found = (found * 257 + byte) % (2**31 - 1)
    return found


def _chosen(count: int, most: int, seeds: tuple[int, ...], device: torch.device) -> Tensor:
    """Up to `most` of `count` positions in order, the same for the same seeds."""
    if count <= most:
        return torch.arange(count, device=device)
    seed = 0
    for part in seeds:
        seed = (seed * 1_000_003 + part) % 2**63
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=generator)[:most].sort().values.to(device)
