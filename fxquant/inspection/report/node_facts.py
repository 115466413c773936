"""What the report knows of every operator without data: structure, grids, reasons, weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import fx

from fxquant import ops
from fxquant.graph.meta import module_path, source
from fxquant.graph.pass_infra import state_of
from fxquant.graph.rewriter import label
from fxquant.graph.selectors import producers_among
from fxquant.inspection.folding import FoldNode
from fxquant.inspection.operator_kernels import kernels_of
from fxquant.placement.dataflow import resolve_grids
from fxquant.quantization.encodings import AffineEncoding, FloatEncoding

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from fxquant.inspection.operator_kernels import Kernel
    from fxquant.quantization import QuantizerBase
    from fxquant.targets import Target

STUBS = ("quantize", "dequantize")


@dataclass
class Texts:
    """Texts that many operators share, each written once."""

    found: dict[str, int] = field(default_factory=dict)

    def number(self, text: str) -> int:
        """The number of a text."""
        return self.found.setdefault(text, len(self.found))

    def list(self) -> list[str]:
        """All texts, by their numbers."""
        return list(self.found)


def shown_nodes(gm: fx.GraphModule) -> list[fx.Node]:
    """The nodes of a graph that a picture shows: inputs, operators, stubs and the output."""
    return [n for n in gm.graph.nodes if _is_shown(n, gm)]


def _is_shown(node: fx.Node, gm: fx.GraphModule) -> bool:
    if node.op in ("placeholder", "output", "call_module"):
        return True
    return ops.row_of(node, gm) is not None


def inputs_of(nodes: Sequence[fx.Node]) -> dict[fx.Node, list[fx.Node]]:
    """For every node those of the others whose results it reads, seen through the rest."""
    shown = set(nodes)
    return {n: producers_among(n, shown) for n in nodes}


def fold_nodes(nodes: Sequence[fx.Node], gm: fx.GraphModule) -> list[FoldNode]:
    """What folding needs to know of nodes."""
    reads = inputs_of(nodes)
    return [
        FoldNode(
            n.name, path_of(n), operator_of(n, gm), shape_of(n), tuple(m.name for m in reads[n]),
            inserted=operator_of(n, gm) in STUBS,
        )
        for n in nodes
    ]  # fmt: skip


def path_of(node: fx.Node) -> str:
    """Dotted path of a node: that of the module it calls, or its name in the module around it."""
    if node.op == "call_module":
        return str(node.target)
    around = module_path(node)
    return f"{around}.{node.name}" if around else node.name


def operator_of(node: fx.Node, gm: fx.GraphModule) -> str:
    """Name of an operator's row; the class of a module that has none."""
    row = ops.row_of(node, gm)
    if row is not None:
        return row.name
    if node.op == "call_module":
        name = type(gm.get_submodule(str(node.target))).__name__.removeprefix("Quantized")
        return dict(zip(("QuantStub", "DeQuantStub"), STUBS, strict=True)).get(name, name)
    return {"placeholder": "input", "output": "output"}.get(node.op, label(node))


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Recorded shape of a result; of several, of the first."""
    spec: Any = node.meta.get("spec")
    while isinstance(spec, (tuple, list)) and spec and not hasattr(spec, "dtype"):
        spec = spec[0]
    return tuple(int(n) for n in getattr(spec, "shape", ()))


def facts(
    gm: fx.GraphModule, target: Target, nodes: Sequence[fx.Node], files: Texts, texts: Texts
) -> list[dict[str, Any]]:
    """What the page shows of nodes, without what only data tell; see `page_data`.

    Args:
        gm: the simulated graph.
        target: what it is quantized for.
        nodes: those that are shown.
        files: names of source files, to be added to.
        texts: reasons and lines of source, to be added to.
    """
    grids, why = resolve_grids(gm), state_of(gm).why
    kernels = kernels_of(gm, target, grids)
    place = {n: i for i, n in enumerate(nodes)}
    reads = inputs_of(nodes)
    owners = _owners(nodes, gm)
    found = []
    for node in nodes:
        grid = next((q for q in grids[node] if q is not None), None)
        reasons = why.get(label(node), ())
        entry: dict[str, Any] = {
            "n": node.name, "p": path_of(node), "o": operator_of(node, gm), "s": shape_of(node),
            "in": [place[m] for m in reads[node]], "why": [texts.number(r) for r in reasons],
        }  # fmt: skip
        if node in kernels:
            entry |= _kernel(kernels[node], texts)
        line = source(node)
        if line is not None:
            entry["src"] = [files.number(line.file), line.line, texts.number(line.text)]
        if grid is not None:
            entry["g"] = grid_facts(grid)
            owner = owners.get(id(grid))
            if owner is not None and owner is not node:
                entry["g"]["own"] = place[owner]
        found.append(entry)
    return found


def _kernel(kernel: Kernel, texts: Texts) -> dict[str, Any]:
    """What an operator is computed with, and why it is in floating point."""
    made: dict[str, Any] = {"k": kernel.kind}
    if kernel.name != kernel.kind:
        made["kn"] = kernel.name
    if kernel.reason:
        made["kw"] = texts.number(kernel.reason)
    return made


def _owners(nodes: Iterable[fx.Node], gm: fx.GraphModule) -> dict[int, fx.Node]:
    """Quantizer -> the first node in whose module it stands."""
    found: dict[int, fx.Node] = {}
    for node in nodes:
        if node.op != "call_module":
            continue
        for quantizer in getattr(gm.get_submodule(str(node.target)), "output_quantizers", ()):
            if quantizer is not None:
                found.setdefault(id(quantizer), node)
    return found


def grid_facts(quantizer: QuantizerBase) -> dict[str, Any]:
    """A grid: its type, step, zero point and range; of many steps, the smallest and the largest."""
    encoding = quantizer.get_encodings()
    if isinstance(encoding, AffineEncoding):
        scale = encoding.scale.detach()
        made: dict[str, Any] = {
            "t": f"{'int' if encoding.signed else 'uint'}{encoding.bitwidth}",
            "b": encoding.bitwidth, "s": _number(scale.min()),
            "z": int(encoding.zero_point.reshape(-1)[0]),
            "lo": _number(encoding.min.min()), "hi": _number(encoding.max.max()),
        }  # fmt: skip
        if scale.numel() > 1:
            made |= {"ch": scale.numel(), "s2": _number(scale.max()), "gr": encoding.granularity}
        if encoding.symmetry:
            made["sy"] = 1
        return made
    if isinstance(encoding, FloatEncoding):
        return {"t": str(encoding.dtype).removeprefix("torch."), "b": encoding.dtype.itemsize * 8}
    bits = getattr(quantizer, "bitwidth", 8)
    signed = getattr(quantizer, "signed", False)
    return {"t": f"{'int' if signed else 'uint'}{bits}", "b": bits, "un": 1}


def _number(value: Any) -> float:
    """Six digits are more than a page shows."""
    return float(f"{float(value):.6g}")


def precision(entry: Mapping[str, Any]) -> tuple[str, int]:
    """What an operator's numbers are: a text such as "A8 W4", and the fewest bits; 0 for float."""
    grid, weights = entry.get("g"), entry.get("w", ())
    parts = [f"A{grid['b']}"] if grid else []
    weight = next((w for w in weights if w["n"] == "weight"), weights[0] if weights else None)
    parts += [f"W{weight['b']}"] if weight else []
    bits = [int(part[1:]) for part in parts]
    return " ".join(parts) or "float", min(bits, default=0)
