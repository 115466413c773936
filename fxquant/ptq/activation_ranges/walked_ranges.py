"""Ranges of activations of few bits, chosen along a walk by their squared error.

Calibration sees activations behind weights that are rounded to nearest. Along the walk of a
reconstruction a value is what the finished layers before it make, and the float model's value
stands beside it: the range is chosen that brings the one nearest to the other. With few bits the
widest range is far from the best one, and what is clipped the layers behind it make up for.

The range is found on some of the values, and taken only if the error falls clearly on samples held
out as well: what the data did not show, a narrower range clips.
"""

from __future__ import annotations

import zlib
from collections import Counter
from typing import TYPE_CHECKING

import torch
from torch import Tensor, fx, nn

from fxquant import ops
from fxquant.graph.pytree import tensors
from fxquant.nn import QuantizationMixin
from fxquant.nn.modes import quantization_off
from fxquant.ptq.activation_ranges.range_report import RangeReport
from fxquant.ptq.activation_ranges.range_trials import obstacle
from fxquant.quantization.affine import AffineQuantizer
from fxquant.quantization.affine.pof2 import PowerOfTwoQuantizeDequantize
from fxquant.quantization.affine.resizing import is_as_calibrated
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from fxquant.ptq.activation_ranges.range_trials import Ends
    from fxquant.ptq.walking.walk import Environment, Walk

# bits of a grid up to which its range is chosen: with more, the widest range is about the best
_COARSE = 6
# shares of the range that was seen, of both ends; and then of each end of the best of these
_SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)
_ENDS = (0.7, 0.85, 1.0, 1.15, 1.3)
# the squared error must fall below this share of what it was; gains of a few percent are what
# clipping the rarest values brings, and unseen data have others
_WORTHWHILE = 0.9
# values of a tensor that are looked at, over all samples
_VALUES = 2**16


class WalkedRanges:
    """The grids of a graph whose ranges are chosen, and what was chosen.

    Left as they are: frozen ranges, ranges that are not those of the last calibration but were set
    by somebody, grids that several values share, and powers of two, whose positions depend on each
    other.

    Args:
        gm: the graph.
        held_out: one of so many samples is held out.
        seed: of the choice of values.

    Attributes:
        grids: quantizers of the results of nodes.
        reports: what was chosen, in the order of the walk.
    """

    def __init__(self, gm: fx.GraphModule, *, held_out: int, seed: int) -> None:
        self.grids: dict[fx.Node, AffineQuantizer] = {}
        self.reports: list[RangeReport] = []
        self._held_out, self._seed = held_out, seed
        self._names = {id(m): name for name, m in gm.named_modules()}
        modules = {
            node: module
            for node in gm.graph.nodes
            if node.op == "call_module"
            and isinstance(module := gm.get_submodule(str(node.target)), QuantizationMixin)
        }
        uses = Counter(id(q) for module in modules.values() for q in _activations(module))
        for node, module in modules.items():
            found = [q for _, q in module.output_quantizers.active()]
            if len(found) != 1 or uses[id(found[0])] > 1 or ops.is_inplace(node):
                continue
            if isinstance(found[0], AffineQuantizer) and _free(found[0]):
                self.grids[node] = found[0]

    def names(self) -> list[str]:
        """Paths of the quantizers."""
        return [self._names[id(quantizer)] for quantizer in self.grids.values()]

    def choose(self, node: fx.Node, walk: Walk, source: Environment, wanted: Environment) -> None:
        """Choose the range of a node's result, which `source` has yet to compute.

        Args:
            node: the node; one without such a grid is passed over.
            walk: values of its operands.
            source: the environment whose values are rounded.
            wanted: the environment whose values they should be; it has computed the node.
        """
        quantizer = self.grids.get(node)
        if quantizer is None:
            return
        values = _Values(node, quantizer, walk, self._held_out, self._seed)
        values.collect(source, wanted)
        before, after, errors = values.best()
        name = self._names[id(quantizer)]
        self.reports.append(
            RangeReport(
                name, quantizer.where or name, "squared error" if after != before else "as it was",
                before, after, *errors,
            )
        )  # fmt: skip


class _Values:
    """Some values of a tensor, and what they should be."""

    def __init__(
        self, node: fx.Node, quantizer: AffineQuantizer, walk: Walk, held_out: int, seed: int
    ) -> None:
        self.node, self.quantizer, self.walk = node, quantizer, walk
        self.held_out, self.seeds = held_out, (seed, zlib.crc32(node.name.encode()))
        self.before = quantizer.min.detach().clone(), quantizer.max.detach().clone()
        self.low, self.high = (torch.zeros_like(end) for end in self.before)
        self.given: list[Tensor] = []
        self.wanted: list[Tensor] = []
        self.held: list[Tensor] = []

    def collect(self, source: Environment, wanted: Environment) -> None:
        """See all values, and keep some."""
        walk, parts = self.walk, self.walk.parts
        before = parts.samples_before
        for batch, samples in enumerate(walk.samples):
            operands = walk.operands(self.node, source, batch)
            with quantization_off(nn.ModuleList([self.quantizer])):
                found = tensors(walk.computed(self.node, source, batch, operands))
            exact = tensors(walk.value(self.node, wanted, batch))
            # rows that values choose may be others
            if found and found[0].numel() and found[0].shape == exact[0].shape:
                self._add(plain(found[0]), plain(exact[0]), batch, samples, before)
            before += samples
        ends = {"low": self.low, "high": self.high}
        every = list(parts.from_each(f"extremes of {self.node.name}", ends))
        self.low = torch.stack([p["low"].to(self.low.device) for p in every]).amin(0)
        self.high = torch.stack([p["high"].to(self.high.device) for p in every]).amax(0)

    def _add(self, x: Tensor, y: Tensor, batch: int, samples: int, before: int) -> None:
        seed, own = self.seeds
        number = (seed * 1_000_003 + own + self.walk.parts.batches_before + batch) % 2**63
        count = min(x.numel(), -(-_VALUES * samples // max(self.walk.parts.samples, 1)))
        generator = torch.Generator().manual_seed(number)
        chosen = torch.randint(x.numel(), (count,), generator=generator).to(x.device)
        sample = before + torch.div(chosen * samples, x.numel(), rounding_mode="floor")
        self.low, self.high = torch.minimum(self.low, x.amin()), torch.maximum(self.high, x.amax())
        self.given.append(x.reshape(-1)[chosen].float())
        self.wanted.append(y.reshape(-1)[chosen].float())
        self.held.append(sample % self.held_out == self.held_out - 1)

    def best(self) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
        """Set the best range; ends as they were and as they are, and errors on samples held out."""
        known = bool(torch.isfinite(self.high - self.low)) and bool(self.high > self.low)
        tried = [self.before, *(self._ends(s, s) for s in _SHARES if known)]
        errors = self._errors(tried)
        low, high = tried[int(errors[:, 0].argmin())]
        near = [(low * a, high * b) for a in _ENDS for b in _ENDS] if known else []
        tried += [(self.low.maximum(a), self.high.minimum(b)) for a, b in near]
        errors = torch.cat([errors, self._errors(tried[len(errors) :])])
        best = int(errors[:, 0].argmin())
        if not float(errors[best, 1]) < _WORTHWHILE * float(errors[0, 1]):
            best = 0
        self._set(tried[best])
        after = float(self.quantizer.min), float(self.quantizer.max)
        return (float(self.before[0]), float(self.before[1])), after, (
            float(errors[0, 1]), float(errors[best, 1])
        )  # fmt: skip

    def _ends(self, low: float, high: float) -> Ends:
        return self.low * low, self.high * high

    def _set(self, ends: Ends) -> None:
        """Set the range; frozen ends stay."""
        held, (low, high) = self.quantizer._held, ends
        self.quantizer.set_range(
            self.before[0] if "min" in held else low, self.before[1] if "max" in held else high
        )

    def _errors(self, tried: Sequence[Ends]) -> Tensor:
        """Sums of squared errors of ranges, on samples to choose by and on others: `[N, 2]`.

        Where nothing, or everything, is held out, all values serve as both.
        """
        own = torch.zeros(len(tried), 2, dtype=torch.float64)
        if self.given:
            x, y, held = (torch.cat(values) for values in (self.given, self.wanted, self.held))
            weights = torch.stack([~held, held], 1).double()
            for i, ends in enumerate(tried):
                self._set(ends)
                error = (plain(self.quantizer(x)) - y).double().square()
                own[i] = (error @ weights).cpu()
        name = f"errors of {self.node.name}"
        every = [p["errors"] for p in self.walk.parts.from_each(name, {"errors": own})]
        found = torch.stack(every).sum(0)
        alone = bool((found.sum(0) == 0).any())
        return found.sum(1, keepdim=True).expand(-1, 2) if alone else found


def _activations(module: QuantizationMixin) -> Iterable[nn.Module]:
    for place in (module.input_quantizers, module.output_quantizers):
        yield from (quantizer for _, quantizer in place.active())


def _free(quantizer: AffineQuantizer) -> bool:
    fits = quantizer.bitwidth <= _COARSE and not isinstance(quantizer, PowerOfTwoQuantizeDequantize)
    return fits and not obstacle(quantizer) and is_as_calibrated(quantizer)
