"""The first page: how good, how large, how fast; what is not integer; the worst; what to do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fxquant.inspection.operator_kernels import FLOAT, INTEGER
from fxquant.nn import QuantizationMixin
from fxquant.quantization import QuantizerBase

if TYPE_CHECKING:
    from torch import fx

Entry = dict[str, Any]


def sizes(gm: fx.GraphModule) -> dict[str, float]:
    """Bytes of the parameters, in floating point and as they are stored: bits of their grids.

    Steps and zero points are counted with the weights that they belong to.
    """
    whole = stored = 0.0
    seen: set[int] = set()
    for module in gm.modules():
        if isinstance(module, QuantizerBase):
            seen |= {id(p) for p in module.parameters()}
    for module in gm.modules():
        grids: Mapping[str, QuantizerBase] = {}
        if isinstance(module, QuantizationMixin):
            grids = dict(module.param_quantizers.active())
        for name, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            size = parameter.numel() * parameter.element_size()
            whole += size
            stored += _stored(grids[name], parameter.numel()) if name in grids else size
    return {"float": whole, "stored": stored}


def _stored(quantizer: QuantizerBase, count: int) -> float:
    bits: int = getattr(quantizer, "bitwidth", 8)
    scale = quantizer.get_scale()
    steps = scale.numel() if scale is not None else 1
    return count * bits / 8 + steps * 4.0


def counts(entries: Iterable[Entry]) -> dict[str, int]:
    """Operators by what they compute with; inputs, stubs and the output are none."""
    found = {INTEGER: 0, FLOAT: 0}
    for entry in entries:
        if entry.get("k") in found:
            found[entry["k"]] += 1
    return found


def float_reasons(entries: Sequence[Entry], texts: Sequence[str]) -> list[Entry]:
    """What is computed in floating point, by operator and reason; the most frequent first."""
    names = {e["n"] for e in entries} | {e["p"] for e in entries}
    groups: dict[tuple[str, str], list[int]] = {}
    for i, entry in enumerate(entries):
        if entry.get("k") == FLOAT:
            reason = texts[entry["kw"]] if "kw" in entry else "the runtime says no reason"
            groups.setdefault((entry["o"], _of_any(reason, names)), []).append(i)
    order = sorted(groups.items(), key=lambda found: -len(found[1]))
    return [{"o": o, "why": reason, "nodes": places} for (o, reason), places in order]


def _of_any(reason: str, names: set[str]) -> str:
    """A reason without the names of nodes: it may hold for many."""
    words = [
        "another node" if w.rstrip(",;:.") in names and not _is_word(w) else w
        for w in reason.split(" ")
    ]  # fmt: skip
    return " ".join(words)


def _is_word(text: str) -> bool:
    """Whether what is a node's name may be meant as a word: an operator, such as "add"."""
    return text.isalpha()


def worst(entries: Sequence[Entry], count: int = 10) -> list[int]:
    """Places of the nodes whose own errors do most harm: by share of the noise, then by decibels.

    Without measured errors: those that clip most, if data were seen; none otherwise.
    """
    measured = [(i, e["e"]) for i, e in enumerate(entries) if e.get("e", (None,))[0] is not None]
    measured.sort(key=lambda found: (-(found[1][2] or 0.0), found[1][0]))
    if measured:
        return [i for i, _ in measured[:count]]
    clipped = [
        (sum(e["h"]["cl"]), i) for i, e in enumerate(entries)
        if e.get("h", {}).get("cl") and "own" not in e["g"]  # what moves values has its producer's
    ]  # fmt: skip
    return [i for share, i in sorted(clipped, reverse=True)[:count] if share > 0]
