"""Let recurrent layers read padded sequences and their lengths instead of packed ones."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import fx, nn
from torch.nn.utils.rnn import PackedSequence

from fxquant.graph.meta import TensorSpec, spec
from fxquant.graph.pass_infra import Fact, Pass
from fxquant.nn.recurrent import padded

if TYPE_CHECKING:
    from fxquant.graph.rewriter import Rewriter

# what `pad_packed_sequence` is made of
_GLUE = (operator.getitem, "size", "cpu", "to", "index_select", torch._VF._pad_packed_sequence)
_PACK, _PAD = torch._VF._pack_padded_sequence, torch._VF._pad_packed_sequence


@dataclass(frozen=True)
class PadPackedSequences(Pass):
    """What was packed only for recurrent layers, and padded again behind them, is never packed.

    Before::

        %pack  = _pack_padded_sequence(%x_sorted, %lengths_sorted, True)
        %gru   = gru[gru](%packed_sequence)
        %state = getitem(%gru, 1)

    After::

        %gru   = gru[gru](%x, lengths=%lengths)
        %state = getitem(%gru, 1)

    Packing, sorting and their inverses go, also between layers that hand on packed results. What is
    padded to the longest sequence, not to the length of the input, is cut to it. Why: no runtime
    has the packed layout, in which steps of several sequences lie one behind the other; recurrent
    operators take lengths.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_MODULES})

    def run(self, rw: Rewriter) -> None:
        """Find the layers, rewrite them, then erase what nobody needs any more."""
        spent: set[fx.Node] = set()
        for layer in _layers(rw):
            layer.rewrite(rw)
            spent |= {layer.packed, *layer.glue}
        for node in reversed(rw.nodes):
            if node in spent and not node.users and node.op.startswith("call"):
                spent.update(node.all_input_nodes)
                rw.erase(node)


@dataclass(frozen=True)
class _Padded:
    """What was packed, in the order of the batch, and whether packing sorted it.

    Attributes:
        data: the padded sequences.
        source: the same, or what went into the first of several layers: it has the same length.
        lengths: of the sequences.
        batch_first: whether the batch is the first axis.
        sorted: whether packing sorted the sequences.
    """

    data: fx.Node
    source: fx.Node
    lengths: fx.Node
    batch_first: bool
    sorted: bool

    @property
    def axis(self) -> int:
        """Along which the steps lie."""
        return 1 if self.batch_first else 0

    def fills(self, total: Any) -> bool:
        """Whether a length is that of the padded input, whatever the longest sequence is."""
        if isinstance(total, fx.Node):
            return total.target == "size" and total.args == (self.source, self.axis)
        found = spec(self.source)
        return isinstance(found, TensorSpec) and found.shape[self.axis] == total


@dataclass(frozen=True)
class _Consumers:
    """What reads a packed result.

    Attributes:
        whole: paddings to the length of the input, in the order of the batch.
        cut: paddings to the longest sequence.
        lengths: lengths that padding returns.
        packed: packed sequences for further layers.
    """

    whole: list[fx.Node]
    cut: list[fx.Node]
    lengths: list[fx.Node]
    packed: list[fx.Node]

    def all(self) -> set[fx.Node]:
        """All of them."""
        return {*self.whole, *self.cut, *self.lengths, *self.packed}


@dataclass(frozen=True)
class _Layer:
    """A recurrent layer over a packed sequence.

    Attributes:
        node: its call.
        packed: what it is called with.
        given: what was packed.
        steps: its packed result; None where nobody reads it.
        consumers: what reads that.
        glue: what takes the result apart and pads it.
    """

    node: fx.Node
    packed: fx.Node
    given: _Padded
    steps: fx.Node | None
    consumers: _Consumers
    glue: set[fx.Node]

    def rewrite(self, rw: Rewriter) -> None:
        """Let the layer read padded sequences, and its consumers what it makes of them."""
        layer = cast("nn.RNNBase", rw.module(self.node, nn.RNNBase))
        hx = self.node.args[1] if len(self.node.args) > 1 else self.node.kwargs.get("hx")
        rw.set_module(str(self.node.target), cast("nn.RNNBase", padded(layer)))
        kwargs = {"hx": hx, "lengths": self.given.lengths}
        rw.call_anew(self.node, self.given.data, kwargs=kwargs)
        if self.steps is None:
            return
        found = spec(self.given.source)
        if isinstance(found, TensorSpec):
            width = (layer.proj_size or layer.hidden_size) * (2 if layer.bidirectional else 1)
            made = TensorSpec((*found.shape[:2], width), found.dtype)
            self.steps.meta["spec"] = made
            self.node.meta["spec"] = (made, *spec(self.node)[1:])
        for result in self.consumers.whole:
            rw.replace(result, self.steps)
        for result in self.consumers.cut:
            rw.replace(result, self._cut(rw, result))
        for result in self.consumers.lengths:
            rw.replace(result, self.given.lengths)

    def _cut(self, rw: Rewriter, result: fx.Node) -> fx.Node:
        """The steps up to the end of the longest sequence."""
        axis, like = self.given.axis, result
        found = spec(result)
        length, whole = found.shape[axis], torch.int64

        def made(node: fx.Node, shape: tuple[int, ...], dtype: torch.dtype = whole) -> fx.Node:
            node.meta["spec"] = TensorSpec(shape, dtype)
            return node

        size = rw.call_method("size", self.steps, axis, like=like)
        size.meta["spec"] = total = spec(self.given.source).shape[axis]
        places = made(rw.call_function(torch.arange, size, like=like), (total,))
        longest = made(rw.call_function(torch.amax, self.given.lengths, like=like), ())
        inside = rw.call_function(torch.lt, places, longest, like=like)
        rows = rw.call_function(torch.nonzero, made(inside, (total,), torch.bool), like=like)
        kept = rw.call_function(torch.flatten, made(rows, (length, 1)), like=like)
        return made(
            rw.call_function(
                torch.index_select, self.steps, axis, made(kept, (length,)), like=like
            ),
            found.shape, found.dtype,
        )  # fmt: skip


def _layers(rw: Rewriter) -> list[_Layer]:
    """Layers that can read padded sequences, in order: of those in a row all or none."""
    found: dict[fx.Node, _Layer] = {}
    results: dict[fx.Node, _Layer] = {}
    for node in rw.nodes:
        layer = _layer(rw, node, results)
        if layer is not None:
            found[node] = layer
            if layer.steps is not None:
                results[layer.steps] = layer
    while True:
        broken = [layer for layer in found.values() if _is_broken(layer, found, results)]
        for layer in broken:
            rw.skip(layer.node, "a layer that hands it packed steps, or takes its own, needs them")
            del found[layer.node]
        if not broken:
            return list(found.values())


def _is_broken(layer: _Layer, found: dict[fx.Node, _Layer], results: dict[fx.Node, _Layer]) -> bool:
    """Whether a layer before or behind it goes on with packed steps."""
    above = results.get(layer.given.data)
    behind = {user for packed in layer.consumers.packed for user in packed.users}
    return (above is not None and above.node not in found) or not behind <= found.keys()


def _layer(rw: Rewriter, node: fx.Node, results: dict[fx.Node, _Layer]) -> _Layer | None:
    """The layer that a node calls with packed sequences; None for other nodes, or with a reason."""
    layer = rw.module(node, nn.RNNBase)
    packed = node.args[0] if node.args else node.kwargs.get("input")
    if layer is None or not isinstance(packed, fx.Node) or packed.target is not PackedSequence:
        return None
    given = _handed_on(packed, results) or _unpacked(packed)
    if given is None or padded(layer) is None or given.batch_first != layer.batch_first:
        rw.skip(node, "how its input was packed is not known")
        return None
    steps = _part(node, 0)
    consumers = _consumers(steps, given)
    glue = _glue(steps, consumers)
    if consumers is None or glue is None:
        rw.skip(node, "its packed result is read otherwise than padded or by a further layer")
        return None
    return _Layer(node, packed, given, steps, consumers, glue)


def _glue(steps: fx.Node | None, consumers: _Consumers | None) -> set[fx.Node] | None:
    """What takes a packed result apart and pads it; None if more than the consumers comes of it."""
    found: set[fx.Node] = set()
    known = consumers.all() if consumers is not None else set()
    waiting = list(steps.users) if steps is not None else []
    while waiting:
        node = waiting.pop()
        if node in found or node in known:
            continue
        if node.target not in _GLUE:
            return None
        found.add(node)
        waiting += node.users
    return found


def _handed_on(packed: fx.Node, results: dict[fx.Node, _Layer]) -> _Padded | None:
    """What a layer before made of what it was given; None if it comes from elsewhere."""
    steps = _whole(packed.args[0], 0)
    if steps not in results:
        return None
    parts = enumerate(packed.args)
    if not all(part is None or _whole(part, i) is steps for i, part in parts):
        return None
    return replace(results[steps].given, data=steps)


def _unpacked(packed: fx.Node) -> _Padded | None:
    """What `pack_padded_sequence` was given."""
    data, sizes, order, _ = (*packed.args, *[None] * 4)[:4]
    pack = _whole(data, 0)
    if pack is None or pack is not _whole(sizes, 1) or pack.target is not _PACK:
        return None
    inputs, lengths, first = cast("tuple[Any, Any, Any]", pack.args)
    if order is None:
        return _Padded(inputs, inputs, lengths, bool(first), sorted=False)
    sort = _whole(lengths, 0)
    moved = isinstance(inputs, fx.Node) and inputs.target == "index_select"
    if not moved or inputs.args[2] is not order or sort is None or sort.target is not torch.sort:
        return None
    data, lengths = cast("tuple[Any, Any]", (inputs.args[0], sort.args[0]))
    return _Padded(data, data, lengths, bool(first), sorted=True)


def _consumers(steps: fx.Node | None, given: _Padded) -> _Consumers | None:
    """What reads a packed result; None if something else than padding and layers does."""
    found = _Consumers([], [], [], [])
    for part in steps.users if steps is not None else ():
        if part.target is not operator.getitem:
            return None
        if part.args[1] != 0:
            continue  # sizes and orders, which padding reads as well
        for consumer in part.users:
            if consumer.target is PackedSequence:
                found.packed.append(consumer)
            elif consumer.target is not _PAD or not _add_padding(consumer, given, found):
                return None
    return found


def _add_padding(pad: fx.Node, given: _Padded, found: _Consumers) -> bool:
    """Note what reads a padded result; whether it is padded in a way that is known."""
    if pad.args[3] != 0:
        return False
    total = pad.args[4]
    longest = (
        isinstance(total, fx.Node) and total.target == "size" and total.args == (pad.args[1], 0)
    )
    if longest and not isinstance(given.lengths, fx.Node):
        return False
    if not longest and not given.fills(total):
        return False
    data, lengths = _part(pad, 0), _part(pad, 1)
    moved, counted = ([*part.users] if part is not None else [] for part in (data, lengths))
    if given.sorted:
        if any(m.target != "index_select" for m in moved):
            return False
        if any(m.target is not operator.getitem or len(m.args) != 2 for m in counted):
            return False
    else:
        moved, counted = ([part] if part is not None else [] for part in (data, lengths))
    (found.cut if longest else found.whole).extend(moved)
    found.lengths.extend(counted)
    return True


def _part(node: fx.Node, index: int) -> fx.Node | None:
    parts = (u for u in node.users if u.target is operator.getitem and u.args[1] == index)
    return next(parts, None)


def _whole(node: Any, index: int) -> fx.Node | None:
    """The node of whose result this is the part `index`."""
    is_part = isinstance(node, fx.Node) and node.target is operator.getitem
    return node.args[0] if is_part and node.args[1] == index else None
