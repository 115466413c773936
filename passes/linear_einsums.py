"""Einstein sums with a parameter, as linear layers."""

from __future__ import annotations

import itertools
import math
import string
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import Tensor, fx, nn

from fxquant.graph.meta import TensorSpec
from fxquant.graph.pass_infra import Fact, Pass
from fxquant.nn import dense
from fxquant.nn import functional as fn
from fxquant.nn.dense import layer_of
from fxquant.nn.opaque import Opaque
from fxquant.placement.dataflow import is_float_spec
from fxquant.placement.product_weights import erase_unread, obstacle, written_tensors
from fxquant.placement.regions import find_regions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fxquant.graph.rewriter import Rewriter

_DOTS = "..."


@dataclass(frozen=True)
class LinearEinsums(Pass):
    """Take what an `einsum` sums over a parameter and one other operand out, as a linear layer.

    Before: `einsum("bi,eio,be->bo", x, w, gates)`.
    After:  `einsum("beo,be->bo", unflatten(linear(x), -1, (e, o)), gates)`, whose module holds the
        very `w`. Of two operands, axes that are moved remain in place of the `einsum`.

    Other functions that sum products, such as `tensordot` and `multi_dot`, are an `einsum` first.

    Why: runtimes compute an `einsum` in floating point, and its parameter has bits, channels and
    techniques of a weight only as one of a layer. Sums are rounded in another order, so it is done
    for the simulation only, like taking attention apart.
    """

    needs = frozenset({Fact.MODULES_ONLY, Fact.UNIQUE_MODULES})

    def run(self, rw: Rewriter) -> None:
        """Look at every sum; one with several parameters is looked at again."""
        regions, changing = find_regions(rw.gm), written_tensors(rw)
        for node in rw.nodes:
            if regions is None or regions.holds(node):
                _as_einsum(rw, node)
            remains = True
            while remains and (sum_ := _read(rw, node)) is not None:
                reason = obstacle(node, sum_.x, sum_.weight, regions, changing)
                if reason:
                    rw.skip(node, reason)
                remains = not reason and _take_out(rw, node, sum_)


@dataclass(frozen=True)
class _Sum:
    """An `einsum` with a parameter; labels are single letters.

    Attributes:
        labels: those of all operands.
        out: those of the result.
        which: positions of the other operand and of the parameter.
        x: the other operand.
        weight: the parameter.
        sizes: of all labels.
    """

    labels: tuple[str, ...]
    out: str
    which: tuple[int, int]
    x: fx.Node
    weight: Tensor
    sizes: dict[str, int]

    @property
    def rest(self) -> tuple[str, ...]:
        """Labels of all operands but the two."""
        return tuple(text for i, text in enumerate(self.labels) if i not in self.which)

    @property
    def kept(self) -> frozenset[str]:
        """Labels that something else than the two operands has."""
        return frozenset("".join(self.rest) + self.out)

    @property
    def summed(self) -> str:
        """Labels of both operands that only they have, in the order of the parameter."""
        x, w = (self.labels[i] for i in self.which)
        return "".join(label for label in w if label in x and label not in self.kept)

    @property
    def batch(self) -> str:
        """Labels of both operands that the result keeps."""
        x, w = (self.labels[i] for i in self.which)
        return "".join(label for label in w if label in x and label in self.kept)

    @property
    def free(self) -> str:
        """Labels of the other operand alone."""
        x, w = (self.labels[i] for i in self.which)
        return "".join(label for label in x if label not in w)

    @property
    def outputs(self) -> str:
        """Labels of the parameter alone."""
        x, w = (self.labels[i] for i in self.which)
        return "".join(label for label in w if label not in x)

    @property
    def places(self) -> str:
        """Labels of the linear layer's result but its outputs; the last are rows of a product."""
        if not self.batch:
            return self.free
        return self.free[:-1] + self.batch + self.free[-1:]

    @property
    def is_product(self) -> bool:
        """Whether the two multiply: something is summed, nothing over one of them alone."""
        alone = set(self.free + self.outputs) - self.kept
        return bool(self.summed and self.free and not alone)


def _read(rw: Rewriter, node: fx.Node) -> _Sum | None:
    """How an `einsum` sums over a parameter and one other operand, or None."""
    row = rw.op(node)
    if row is None or row.name != "einsum" or rw.module(node, fn.Einsum) is None:
        return None
    given = rw.arguments(node)
    operands = tuple(given["operands"])
    parsed = _labels(given["equation"], operands)
    if parsed is None:
        return None
    labels, out, sizes = parsed
    parameters = [i for i, x in enumerate(operands) if rw.constant(x) is not None]
    others = [i for i in range(len(operands)) if i not in parameters]
    found: list[_Sum] = []
    for w, x in itertools.product(parameters, others):
        weight = rw.constant(operands[w])
        if weight is not None and is_float_spec(operands[x].meta.get("spec")):
            found.append(_Sum(labels, out, (x, w), operands[x], weight, sizes))
    found = [sum_ for sum_ in found if sum_.is_product]
    # the smallest result first, as one would by hand
    return min(found, key=lambda s: _count(s.places + s.outputs, sizes), default=None)


def _labels(
    equation: Any, operands: Sequence[Any]
) -> tuple[tuple[str, ...], str, dict[str, int]] | None:
    """Labels of the operands and the result, `...` as letters, and sizes; None of odd ones."""
    shapes = _shapes(operands)
    if not isinstance(equation, str) or shapes is None:
        return None
    left, arrow, out = equation.replace(" ", "").partition("->")
    texts = left.split(",")
    if len(texts) != len(shapes) or (not arrow and "." in left):
        return None
    if not arrow:  # what stands once, in the order of the alphabet
        out = "".join(sorted(c for c in left if c != "," and left.count(c) == 1))
    pairs = list(zip(texts, shapes, strict=True))
    # axes that `...` stands for, which are counted from the right
    hidden = [len(shape) - len(text) + len(_DOTS) if _DOTS in text else 0 for text, shape in pairs]
    letters = [c for c in string.ascii_letters if c not in equation][: max(hidden)]
    labels = tuple(
        text.replace(_DOTS, "".join(letters[len(letters) - count :]))
        for text, count in zip(texts, hidden, strict=True)
    )
    sizes: dict[str, int] = {}
    for text, shape in zip(labels, shapes, strict=True):
        if len(set(text)) != len(text) or len(text) != len(shape):
            return None  # a diagonal
        for label, size in zip(text, shape, strict=True):
            if sizes.setdefault(label, size) != size:
                return None  # one of them is repeated
    return labels, out.replace(_DOTS, "".join(letters)), sizes


def _shapes(operands: Sequence[Any]) -> list[tuple[int, ...]] | None:
    """Recorded shapes of tensors; None if one is not known."""
    found: list[tuple[int, ...]] = []
    for operand in operands:
        spec = operand.meta.get("spec") if isinstance(operand, fx.Node) else None
        if not isinstance(spec, TensorSpec):
            return None
        found.append(spec.shape)
    return found


def _as_einsum(rw: Rewriter, node: fx.Node) -> None:
    """Let a node that sums products of a parameter by another function call an `einsum`."""
    module = rw.module(node, Opaque)
    form = None if module is None else _FUNCTIONS.get(module.name)
    if form is None:
        return
    operands = _flat(node.args)
    shapes = _shapes(operands)
    if shapes is None or not any(rw.constant(x) is not None for x in operands):
        return
    others = {k: v for k, v in node.kwargs.items() if k in ("dims", "dim")}
    found = form(shapes, *_settings(node.args), **others) if others == node.kwargs else None
    if found is not None:
        rw.set_module(str(node.target), fn.Einsum().train(rw.gm.training))
        rw.call_anew(node, found, *operands, kwargs={})


def _flat(args: Sequence[Any]) -> list[fx.Node]:
    """Tensors among arguments, also those in a list of them."""
    found: list[fx.Node] = []
    for argument in args:
        if isinstance(argument, fx.Node):
            found.append(argument)
        elif isinstance(argument, list | tuple):
            found += [x for x in argument if isinstance(x, fx.Node)]
    return found


def _settings(args: Sequence[Any]) -> list[Any]:
    """The arguments that hold no tensor."""
    return [a for a in args if not _flat([a])]


Shapes: TypeAlias = "Sequence[tuple[int, ...]]"


def _chain(shapes: Shapes) -> str | None:
    """A product of matrices, of which the first and the last may be vectors."""
    if any(len(s) != 2 for s in shapes[1:-1]) or len(shapes) > len(_LETTERS) - 1:
        return None
    first = 2 - len(shapes[0])
    texts = [_LETTERS[i : i + 2] for i in range(len(shapes))]
    texts[0], texts[-1] = texts[0][first:], texts[-1][: len(shapes[-1])]
    out = ("" if first else texts[0][0]) + ("" if len(shapes[-1]) < 2 else texts[-1][1])
    return f"{','.join(texts)}->{out}"


def _tensordot(shapes: Shapes, dims: Any = 2) -> str | None:
    """Sums over some axes of two operands; of the first ones of the second if it is a number."""
    first, second = shapes
    if isinstance(dims, int):
        dims = (range(len(first) - dims, len(first)), range(dims))
    if not isinstance(dims, list | tuple) or not all(isinstance(d, Sequence) for d in dims):
        return None
    ours, theirs = ([i % len(s) for i in d] for d, s in zip(dims, shapes, strict=True))
    a, b = _LETTERS[: len(first)], list(_LETTERS[len(first) : len(first) + len(second)])
    for i, j in zip(ours, theirs, strict=True):
        b[j] = a[i]
    kept = [c for i, c in enumerate(a) if i not in ours]
    kept += [c for j, c in enumerate(b) if j not in theirs]
    return f"{a},{''.join(b)}->{''.join(kept)}"


def _inner(shapes: Shapes) -> str | None:
    """Sums over the last axes of both."""
    return _tensordot(shapes, ([-1], [-1])) if all(shapes) else None


def _vecdot(shapes: Shapes, dim: int = -1) -> str | None:
    """The same, with a vector."""
    vectors = min(len(s) for s in shapes) == 1
    return _inner(shapes) if vectors and dim == -1 else None


_LETTERS = string.ascii_letters
_FUNCTIONS: dict[str, Callable[..., str | None]] = {
    "inner": _inner,
    "tensordot": _tensordot,
    "mv": _chain,
    "chain_matmul": _chain,
    "linalg_multi_dot": _chain,
    "linalg_vecdot": _vecdot,
}


def _take_out(rw: Rewriter, node: fx.Node, sum_: _Sum) -> bool:
    """Put the linear layer of a sum in; whether an `einsum` over others remains."""
    x, w = sum_.which
    result = sum_.places + sum_.outputs
    given = list(rw.arguments(node)["operands"])
    made = _linear(rw, node, sum_)
    stored = given[w]
    if len(given) == 2:
        given.clear()
        if result != sum_.out:
            order = tuple(result.index(label) for label in sum_.out)
            made = _call(rw, node, fn.Permute(), made, *order, name="permute", like=sum_.out,
                         sizes=sum_.sizes)  # fmt: skip
        rw.replace(node, made, "was written as a linear layer; its values come from")
    else:
        texts = [sum_.labels[i] for i in range(len(given)) if i != w]
        texts[x - (w < x)] = result
        given[x] = made
        del given[w]
        rw.call_anew(node, f"{','.join(texts)}->{sum_.out}", *given, kwargs={})
    erase_unread(rw, stored)
    return len(given) > 1


def _linear(rw: Rewriter, node: fx.Node, sum_: _Sum) -> fx.Node:
    """The linear layer of a sum with its moves: `places + outputs` are the labels of its result."""
    text, sizes = sum_.labels[sum_.which[1]], sum_.sizes
    label, made = sum_.labels[sum_.which[0]], sum_.x

    def call(module: nn.Module, name: str, like: str, *args: Any) -> fx.Node:
        return _call(rw, node, module, made, *args, name=name, like=like, sizes=sizes)

    wanted = sum_.places + sum_.summed
    if wanted != label:
        made = call(fn.Permute(), "permute", wanted, *(label.index(c) for c in wanted))
    joined = dict(sizes) | {"in": _count(sum_.summed, sizes), "out": _count(sum_.outputs, sizes)}
    if len(sum_.summed) > 1:
        made = call(nn.Flatten(-len(sum_.summed)), "flatten", "")
        made.meta["spec"] = _spec(node, [*sum_.places, "in"], joined)
    layer = layer_of(
        sum_.weight,
        outputs=[text.index(c) for c in sum_.outputs],
        batch=[text.index(c) for c in sum_.batch],
    )
    made = call(layer, dense.ROW, "")
    made.meta["spec"] = _spec(node, [*sum_.places, "out"], joined)
    rw.explain(made, f"{node.name} sums over a stored weight, so it is a linear layer")
    if not sum_.outputs:
        made = call(fn.Squeeze(), "squeeze", sum_.places, -1)
    elif len(sum_.outputs) > 1:
        split = nn.Unflatten(-1, tuple(sizes[c] for c in sum_.outputs))
        made = call(split, "unflatten", sum_.places + sum_.outputs)
    return made


def _call(
    rw: Rewriter, node: fx.Node, module: nn.Module, *args: Any, name: str, like: str,
    sizes: dict[str, int],
) -> fx.Node:  # fmt: skip
    return rw.new_module(module, *args, like=node, name=name, spec=_spec(node, like, sizes))


def _spec(node: fx.Node, labels: Iterable[str], sizes: dict[str, int]) -> TensorSpec:
    return TensorSpec(tuple(sizes[label] for label in labels), node.meta["spec"].dtype)


def _count(labels: str, sizes: dict[str, int]) -> int:
    return math.prod(sizes[label] for label in labels)
