"""What the numbers of a calibration audit say.

Every limit has its reason beside it: what a healthy network shows stays below.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fxquant.errors import place
from fxquant.inspection.audit.accumulator_bounds import INT32
from fxquant.inspection.audit.audit_report import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from fxquant.inspection.audit.accumulator_bounds import AccumulatorBound
    from fxquant.inspection.audit.audit_run import AuditRun, Clipping, FirstNorm
    from fxquant.inspection.audit.audit_statistics import Input, Samples, Values

ERROR, WARNING = "error", "warning"

# of n samples the next one exceeds a tensor's largest value with probability 1 / (n + 1)
_FEWEST = 32
# of the samples: a few come twice in any collection
_SAME = 0.02
# divergence of two normal distributions, below 0.08 in every channel of networks that were trained
# on such data: 0.25 is a mean 0.7 deviations off or a deviation 1.5 times too large, 4 is a mean
# 2.8 deviations off or a deviation 3 times too large
_DIVERGENCE, _SEVERE = 0.25, 4.0
# of the channels of a layer, where training statistics say that a share of values passes
_DEAD, _PASSING = 0.1, 0.05
# where nothing is known: half of the channels of a new layer are dead on similar samples
_DEAD_UNKNOWN = 0.75
# clipping that minimizes the squared error of a normal distribution (Banner et al. 2019,
# arXiv:1810.05723, section 2) cuts off 8.7 % of values at 2 bits, 3.2 % at 3, 1.1 % at 4 and less
# than 0.3 % at 5; twice that and more is no choice
_CLIPPED = {2: 0.2, 3: 0.08, 4: 0.03}
_CLIPPED_ELSE = 0.01
_BAND = 1 / 8  # of the grid: three bits are lost


def findings_of(run: AuditRun, bounds: Sequence[AccumulatorBound]) -> Iterator[Finding]:
    """Everything that the numbers say."""
    for given in run.inputs.values():
        yield from _of_input(given, run.samples)
    yield from _of_samples(run.samples)
    if run.broken is not None:
        node, batch = run.broken
        message = f"NaN or infinity comes out of finite inputs, first in batch {batch}"
        fix = "look at what it computes: a division, a logarithm, a square root, an overflow"
        yield Finding("not finite values", ERROR, _place(node), message, fix)
    for first in run.firsts.values():
        yield from _of_norm(first, run.inputs[first.source])
    for clipping in run.clippings.values():
        yield from _of_channels(clipping, run)
    yield from _of_values(run)
    for bound in bounds:
        yield from _of_bound(bound)


def _place(node: object) -> str:
    return place(node) or ""  # type: ignore[arg-type]


def _of_input(given: Input, samples: Samples) -> Iterator[Finding]:
    for kind, count in (("NaN", given.nan), ("infinity", given.infinite)):
        if count:
            message = f"{count} of {samples.count} samples hold {kind}"
            fix = "leave these samples out, or clean them"
            yield Finding("not finite data", ERROR, _place(given.node), message, fix)
    if given.channels is None:
        return
    same = given.channels.constant()
    if 0 < int(same.sum()) < len(same):
        listed = _listed(same)
        message = f"channel {listed} of {len(same)} has the same value in all samples"
        fix = "check how images are read: a channel is missing"
        yield Finding("constant channel", WARNING, _place(given.node), message, fix)


def _of_samples(samples: Samples) -> Iterator[Finding]:
    where = "the data"
    if samples.distinct < _FEWEST:
        share = 1 / (samples.distinct + 1)
        message = (
            f"{samples.distinct} different sample(s): the next one exceeds a tensor's largest "
            f"value with a probability of {share:.0%}"
        )
        fix = f"calibrate with {_FEWEST} samples at least, better some hundreds"
        yield Finding("too few samples", WARNING, where, message, fix)
    if samples.duplicates > _SAME * samples.count:
        alone = samples.distinct == 1
        message = f"{samples.duplicates} of {samples.count} samples came before"
        fix = "shuffle the data, or leave out what comes twice: it adds nothing to a range"
        yield Finding("duplicate samples", ERROR if alone else WARNING, where, message, fix)
    if samples.constant > _SAME * samples.count:
        every = samples.constant == samples.count
        message = f"{samples.constant} of {samples.count} samples hold one value only"
        fix = "check how samples are read: these are empty"
        yield Finding("constant samples", ERROR if every else WARNING, where, message, fix)


def _of_norm(first: FirstNorm, given: Input) -> Iterator[Finding]:
    """The Kullback-Leibler divergence of two normal distributions, the median over the channels.

    With mean `m` and variance `v` of the data after normalization with the statistics of training,
    it is `(v + m^2 - 1 - ln v) / 2` (Kullback and Leibler 1951; Bishop 2006, exercise 1.30).
    """
    mean, variance = first.channels.moments()
    known = first.norm.deviation > 1e-3 * first.norm.deviation.max()
    if not len(mean) or not bool(known.any()):
        return
    m, v = mean[known], variance[known].clamp(min=1e-9)
    divergence = float(((v + m.square() - 1 - v.log()) / 2).median())
    if divergence <= _DIVERGENCE:
        return
    spread, off = float(v.sqrt().median()), float(m.abs().median())
    message = (
        f"behind {_place(first.node)} the data have {_ratio(spread)} times the standard deviation "
        f"of training and a mean {off:.2g} deviations away (medians over {len(m)} channels); the "
        f"input lies between {given.low:.4g} and {given.high:.4g}"
    )
    fix = "normalize the input as in training: scale, mean and standard deviation of each channel"
    severity = ERROR if divergence >= _SEVERE else WARNING
    yield Finding("input normalization", severity, _place(first.source), message, fix)


def _of_channels(clipping: Clipping, run: AuditRun) -> Iterator[Finding]:
    dead = clipping.channels.constant()
    if not bool(dead.any()):
        return
    norm, never = clipping.norm, dead & run.unreachable(clipping)
    if bool(never.any()):
        dead, known = never, "for any input in its range"
    elif norm is not None and norm.measured:
        # values pass a ReLU with probability Phi(mean / deviation)
        passing = torch.special.ndtr(norm.mean / norm.deviation.clamp(min=1e-12)) > _PASSING
        dead, known = dead & passing.to(dead.device), "though training had values there"
        if float(dead.double().mean()) < _DEAD:
            return
    else:
        known = "on these data"
        if norm is not None or float(dead.double().mean()) < _DEAD_UNKNOWN:
            return
    message = f"{int(dead.sum())} of {len(dead)} channels are never active {known}: {_listed(dead)}"
    fix = "calibrate with data of all kinds, normalized as in training; check its bias"
    yield Finding("inactive channels", WARNING, _place(clipping.node), message, fix)


def _of_values(run: AuditRun) -> Iterator[Finding]:
    grids: dict[int, list[Values]] = {}
    for found in run.values.values():
        if found.elements:
            key = id(found) if found.quantizer is None else id(found.quantizer)
            grids.setdefault(key, []).append(found)
    for together in grids.values():
        yield from _clipped(together)
        yield from _narrow(together)


def _clipped(together: list[Values]) -> Iterator[Finding]:
    for found in together:
        if found.quantizer is None or not found.clipped:
            continue
        share = found.clipped / found.elements
        limit = _CLIPPED.get(int(getattr(found.quantizer, "bitwidth", 8)), _CLIPPED_ELSE)
        if share <= limit:
            continue
        low, high = float(found.quantizer.get_min()), float(found.quantizer.get_max())
        message = (
            f"{share:.1%} of values are clipped: they lie between {found.low:.4g} and "
            f"{found.high:.4g}, the grid between {low:.4g} and {high:.4g}"
        )
        fix = "calibrate with data like these, or with quant_scheme='min_max'"
        yield Finding("clipped values", WARNING, _place(found.node), message, fix)


def _narrow(together: list[Values]) -> Iterator[Finding]:
    """A grid holds zero: what lies far from it leaves most of its steps unused."""
    low, high = min(f.low for f in together), max(f.high for f in together)
    first = together[0]
    if low <= 0 <= high or low == high:
        return
    width, steps = max(high, 0.0) - min(low, 0.0), 255
    quantizer = first.quantizer
    if quantizer is not None:
        steps = int(getattr(quantizer, "qmax", 255)) - int(getattr(quantizer, "qmin", 0))
        ends = quantizer.get_min(), quantizer.get_max()
        if all(e is not None and e.numel() == 1 for e in ends):
            width = float(ends[1]) - float(ends[0])
    share = (high - low) / width if width > 0 else 1.0
    if share >= _BAND:
        return
    message = (
        f"values lie between {low:.4g} and {high:.4g}, but a grid holds zero: "
        f"{max(1, math.ceil(share * steps))} of {steps} steps are used"
    )
    fix = "subtract the offset before the tensor is quantized, or give it 16 bits or floating point"
    yield Finding("narrow band", WARNING, _place(first.node), message, fix)


def _of_bound(bound: AccumulatorBound) -> Iterator[Finding]:
    if bound.bias > INT32:
        message = f"the bias is {bound.bias:.3g} steps of its grid, an int32 holds {INT32:.3g}"
        fix = "compute the encodings again: the range of the weight is widened for the bias then"
        yield Finding("int32 bias", ERROR, bound.where, message, fix)
    elif bound.calibrated > INT32:
        message = (
            f"a sum of {bound.products} products reaches {bound.calibrated:.3g} over the "
            f"calibrated ranges ({bound.worst_case:.3g} in the worst case), an int32 holds "
            f"{INT32:.3g}"
        )
        fix = "give its input or weight fewer bits, or leave it in floating point"
        yield Finding("int32 accumulator", ERROR, bound.where, message, fix)


def _ratio(value: float) -> str:
    return f"{value:.3g}" if value >= 1 else f"1/{1 / value:.3g}"


def _listed(chosen: Tensor, most: int = 5) -> str:
    found = chosen.nonzero().flatten().tolist()
    return ", ".join(map(str, found[:most])) + (", ..." if len(found) > most else "")
