"""How far a simulation is from its float model on an example, and what in it holds no information.

The proof says that a runtime computes what was simulated. Whether that is worth anything is told
here: the distance from the float model, values that fall off their grid, grids that the example
hardly uses, weights that were changed after the ranges had been measured.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxquant.errors import ExportError
from fxquant.fingerprint import CALIBRATED, changed_since
from fxquant.graph.node_walk import output_of
from fxquant.graph.pytree import fresh_inputs, leaves, tensors
from fxquant.nn import QuantizationMixin
from fxquant.nn.modes import evaluating, has_quantizers
from fxquant.onnx.parity.float_comparison import Agreement, compare_with_float
from fxquant.onnx.runs.observed import bound_example
from fxquant.onnx.runs.visible_writes import preserved
from fxquant.ptq.walking.originals import changed_parameters
from fxquant.ptq.walking.walk import FloatEnvironment
from fxquant.quantization import AffineEncoding, QuantizerBase
from fxquant.quantization.affine import BiasQuantizeDequantize
from fxquant.tracing.signature import input_name

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle

Example = tuple[tuple[Any, ...], Mapping[str, Any]]
_Arrays = dict[str, np.ndarray[Any, Any]]

_CLIPPED = 0.05  # share of a tensor off its grid from which that is worth a warning
_FEW_STEPS = 3  # of a grid: what an example spans without saying anything
_FEW_ELEMENTS = 16  # fewer than these span few steps by nature
_NOISY = 12.0  # dB below which a quarter of the amplitude is noise
_USUAL = 17.0  # dB that even transformers keep with 8 bits
_DISAGREE = 0.95  # share of equal labels
_LISTED = 4
_SLACK = 0.501  # steps beyond an end that rounding to it takes in


@dataclass(frozen=True)
class Fidelity:
    """What was found.

    Attributes:
        samples: rows of the example.
        outputs: one row a floating-point output, against the float model.
        warnings: what a person should know before shipping.
        notes: what may be improved.
        compared: which outputs of which models, on what data.
    """

    samples: int
    outputs: tuple[Agreement, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...] = ()
    compared: str = ""


@dataclass
class _Use:
    """How an example uses a grid."""

    elements: int = 0
    clipped: int = 0
    steps: float = 0.0
    constant: bool = True


@dataclass
class _Uses:
    """Watches quantizers of activations while a model runs."""

    found: dict[QuantizerBase, _Use] = field(default_factory=dict)

    def watch(self, model: nn.Module) -> list[RemovableHandle]:
        """Hook every quantizer of an activation."""
        inner = {id(q) for m in model.modules() if isinstance(m, QuantizationMixin)
                 for _, q in m.param_quantizers.active()}  # fmt: skip
        quantizers = (m for m in model.modules() if isinstance(m, QuantizerBase))
        return [q.register_forward_hook(self._note) for q in quantizers if id(q) not in inner]

    def _note(self, quantizer: Any, args: tuple[Any, ...], _result: Any) -> None:
        encoding = quantizer.get_encodings() if quantizer.is_initialized() else None
        x = args[0]
        if not isinstance(encoding, AffineEncoding) or not x.numel() or encoding.scale.numel() != 1:
            return
        use = self.found.setdefault(quantizer, _Use())
        off, low, high, spread = _against(x.detach().as_subclass(Tensor), encoding)
        use.elements += x.numel()
        use.clipped += off
        use.steps = max(use.steps, high - low)
        use.constant = use.constant and spread == 0.0


def _against(x: Tensor, encoding: AffineEncoding) -> tuple[int, float, float, float]:
    """Elements off the grid, the steps that the others span, and the spread of the values."""
    scale, zero = (t.detach().float().reshape(()) for t in (encoding.scale, encoding.zero_point))
    low, high = (float(end - zero) for end in (encoding.qmin, encoding.qmax))
    steps = x.float() / scale
    steps = steps[torch.isfinite(steps)]
    off = int(((steps < low - _SLACK) | (steps > high + _SLACK)).sum())
    ends = steps.clamp(low, high).round()
    if not steps.numel():
        return off, 0.0, 0.0, 0.0
    return off, float(ends.min()), float(ends.max()), float(steps.max() - steps.min())


def fidelity(gm: fx.GraphModule, example: Example) -> Fidelity:
    """Compare a simulation with the same model without quantizers.

    Args:
        gm: the calibrated model of a simulation; it is left as it is.
        example: positional and keyword inputs.

    Raises:
        ExportError: FXQ589 the example holds no sample, FXQ598 a parameter, a buffer or an input
            holds NaN, FXQ597 an output of the float model or of the simulation does.
    """
    values = bound_example(gm, example)
    _check_inputs(values)
    _check_state(gm)
    uses = _Uses()
    with preserved(gm), evaluating(gm, kept=True), torch.no_grad():
        handles = uses.watch(gm)
        try:
            ours = _outputs(gm(*fresh_inputs(values)))
        finally:
            for handle in handles:
                handle.remove()
        real = _with_quantized(gm, values)
        outputs = _compared(real, ours)
        costly = _costly(gm, values, real) if any(map(_is_noisy, outputs)) else ""
    samples = next((len(t) for t in tensors(values) if t.dim()), 1)
    warnings = (*_noisy(outputs, costly), *_unused(uses), *_stale(gm), *_cut(gm))
    compared = _what_was_compared(gm, values, outputs)
    return Fidelity(samples, outputs, warnings, tuple(_improvable(outputs)), compared)


def _with_quantized(gm: fx.GraphModule, values: list[Any], path: str | None = None) -> _Arrays:
    """Outputs of the float model, with one module as it is simulated if there is to be one."""
    modules = (p for p, m in gm.named_modules() if isinstance(m, QuantizationMixin))
    environment = FloatEnvironment(gm, "float", {p for p in modules if p != path})
    return _outputs(output_of(environment, fresh_inputs(values)))


def _what_was_compared(
    gm: fx.GraphModule, values: list[Any], outputs: tuple[Agreement, ...]
) -> str:
    """Which float model, on which data, in which outputs."""
    if not outputs:
        return "nothing: the model returns no floating-point tensor"
    holders = [n for n in gm.graph.nodes if n.op == "placeholder"]
    shapes = [
        f"{input_name(holder)} {list(tensor.shape)}"
        for holder, value in zip(holders, values, strict=True)
        for tensor in tensors(value)
    ]
    more = f" and {len(shapes) - _LISTED} more" if len(shapes) > _LISTED else ""
    names = [row.name for row in outputs]
    left = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    changed = len(changed_parameters(gm))
    before = f", with {changed} parameter(s) as they were before techniques changed them"
    return (
        f"SQNR of {', '.join(names[:_LISTED])}{left}: the simulation against the float model"
        f"{before if changed else ''}, on the example of the export: "
        f"{', '.join(shapes[:_LISTED])}{more}"
    )


def _compared(real: _Arrays, ours: _Arrays) -> tuple[Agreement, ...]:
    # rows that values choose may be others: they have no like
    same = {n for n, x in real.items() if n in ours and ours[n].shape == x.shape}
    rows = compare_with_float({n: real[n] for n in real if n in same}, {n: ours[n] for n in same})
    return tuple(row for row in rows if row.sqnr_db is not None)


def _costly(gm: fx.GraphModule, values: list[Any], real: _Arrays) -> str:
    """The modules whose quantizers alone cost the outputs most; one run for each module.

    Measured at the outputs, as a tensor's own signal says little: where one channel is large, its
    energy hides what the grid does to the others.
    """
    found: dict[str, float] = {}
    for path, module in gm.named_modules():
        if has_quantizers(module):
            rows = _compared(real, _with_quantized(gm, values, path))
            found[path] = min((r.sqnr_db for r in rows if r.sqnr_db is not None), default=math.inf)
    worst = sorted(found, key=found.__getitem__)[:_LISTED]
    return ", ".join(f"{path} {found[path]:.1f} dB" for path in worst if found[path] < math.inf)


def _outputs(result: Any) -> _Arrays:
    found = [value for _, value in leaves(result) if isinstance(value, Tensor)]
    names = ["output"] if len(found) == 1 else [f"output {i}" for i in range(len(found))]
    plain = (t.detach().as_subclass(Tensor).cpu() for t in found)
    return {
        n: (t.float() if t.dtype.is_floating_point else t).numpy()
        for n, t in zip(names, plain, strict=True)
        if not t.is_complex()
    }


def _check_inputs(values: list[Any]) -> None:
    given = tensors(values)
    if given and not any(t.numel() for t in given):
        what = "the example holds no sample: every input is empty, and a proof over nothing is none"
        raise ExportError("FXQ589", what, fix="pass a batch like the calibration data")
    for i, value in enumerate(given):
        if value.dtype.is_floating_point and bool(torch.isnan(value).any()):
            what = f"input {i} of the example holds NaN"
            raise ExportError("FXQ598", what, fix="pass data as the model gets it")


def _check_state(gm: nn.Module) -> None:
    for name, value in (*gm.named_parameters(), *gm.named_buffers()):
        if value.dtype.is_floating_point and bool(torch.isnan(value).any()):
            count = int(torch.isnan(value).sum())
            what = f"{name!r} holds NaN at {count} of {value.numel()} elements"
            raise ExportError("FXQ598", what, at=name, fix="train or load the model again")


# --- warnings ------------------------------------------------------------------------------------


def _is_noisy(row: Agreement) -> bool:
    return row.sqnr_db is not None and row.sqnr_db < _NOISY


def _noisy(outputs: tuple[Agreement, ...], costly: str) -> list[str]:
    bad = [row for row in outputs if _is_noisy(row)]
    alone = f". Quantized alone, these cost most: {costly}" if costly else ""
    found = [
        f"{r.name} of the simulation keeps {r.sqnr_db:.1f} dB of the float model's: "
        f"more is lost than quantization should cost{alone}. `fxquant profile` shows more"
        for r in bad
    ]
    other = [r for r in outputs if r not in bad and r.labels is not None and r.labels < _DISAGREE]
    return found + [f"{r.name} gives {r.labels:.1%} of the float model's labels" for r in other]


def _improvable(outputs: tuple[Agreement, ...]) -> list[str]:
    """What is usable and yet less than can be had."""
    return [
        f"{row.name} of the simulation keeps {row.sqnr_db:.1f} dB of the float model's, fewer than "
        f"the {_USUAL:.0f} dB that 8 bits mostly keep: `fxquant profile` shows where the rest is "
        "lost; ranges chosen by their cost and reconstruction get some of it back"
        for row in outputs
        if row.sqnr_db is not None and _NOISY <= row.sqnr_db < _USUAL
    ]


def _unused(uses: _Uses) -> list[str]:
    found = []
    clipped = {q: u.clipped / u.elements for q, u in uses.found.items() if u.elements}
    worst = sorted((q for q in clipped if clipped[q] > _CLIPPED), key=lambda q: -clipped[q])
    if worst:
        names = ", ".join(f"{q.where or 'a tensor'} {clipped[q]:.0%}" for q in worst[:_LISTED])
        found.append(
            f"{len(worst)} activation(s) are clipped: the example leaves their range ({names}). "
            "Calibrate on data like it"
        )
    empty = [
        q for q, u in uses.found.items()
        if u.steps <= _FEW_STEPS and u.elements > _FEW_ELEMENTS and not u.constant
    ]  # fmt: skip
    if empty:
        names = ", ".join(q.where or "a tensor" for q in empty[:_LISTED])
        found.append(
            f"{len(empty)} activation(s) fall on {_FEW_STEPS + 1} integers or fewer, nearly "
            f"constant on their grid ({names}): they hold next to no information. Was calibration "
            "run on such data? A band far from zero needs more bits, or its mean taken away"
        )
    return found


def _stale(gm: fx.GraphModule) -> list[str]:
    names = changed_since(gm, gm.meta.get(CALIBRATED))
    if not names:
        return []
    shown = ", ".join(names[:_LISTED])
    return [
        f"{len(names)} weight(s) were changed after calibration ({shown}): activation ranges may "
        "be stale. Run compute_encodings again"
    ]


def _cut(gm: fx.GraphModule) -> list[str]:
    """Weights that leave their own ranges."""
    found = []
    for path, module in gm.named_modules():
        if not isinstance(module, QuantizationMixin):
            continue
        for name, quantizer in module.param_quantizers.active():
            value = getattr(module, name, None)
            share = _share_cut(value, quantizer) if isinstance(value, Tensor) else 0.0
            if share > _CLIPPED:
                found.append(f"{path}.{name} {share:.0%}")
    if not found:
        return []
    shown = ", ".join(found[:_LISTED])
    return [f"{len(found)} weight(s) are clipped: they leave their ranges ({shown})"]


def _share_cut(value: Tensor, quantizer: QuantizerBase) -> float:
    encoding = quantizer.get_encodings() if quantizer.is_initialized() else None
    if isinstance(quantizer, BiasQuantizeDequantize) and encoding is not None:
        encoding = quantizer.encoding_for(value)
    if not isinstance(encoding, AffineEncoding) or encoding.block_size is not None:
        return 0.0
    scale, zero = encoding.scale.detach(), encoding.zero_point.detach()
    steps = value.detach() / scale + zero
    off = (steps < encoding.qmin - _SLACK) | (steps > encoding.qmax + _SLACK)
    return float(off.float().mean()) if value.numel() else 0.0
