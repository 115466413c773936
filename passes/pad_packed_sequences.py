"""Let recurrent layers read padded sequences and their lengths instead of packed ones."""

from __future__ import annotations

import operator
from dataclasses import dataclass
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

    Packing, sorting and their inverses go. Why: no runtime has the packed layout, in
    which steps of several sequences lie one behind the other; recurrent operators take lengths.
    """

    needs: ClassVar[frozenset[Fact]] = frozenset({Fact.UNIQUE_MODULES})

    def run(self, rw: Rewriter) -> None:
        """Walk the layers, then erase what nobody needs any more."""
        spent: set[fx.Node] = set()
        for node in rw.nodes:
            if rw.module(node, nn.RNNBase) is not None:
                spent |= _rewrite(rw, node)
        for node in reversed(rw.nodes):
            if node in spent and not node.users and node.op.startswith("call"):
                spent.update(node.all_input_nodes)
                rw.erase(node)


@dataclass(frozen=True)
class _Padded:
    """What was packed, in the order of the batch, and whether packing sorted it."""

    data: fx.Node
    lengths: fx.Node
    batch_first: bool
    sorted: bool

    def fills(self, total: Any) -> bool:
        """Whether a length is that of the padded input, whatever the longest sequence is."""
        axis = 1 if self.batch_first else 0
        if isinstance(total, fx.Node):
            return total.target == "size" and total.args == (self.data, axis)
        found = spec(self.data)
        return isinstance(found, TensorSpec) and found.shape[axis] == total


def _rewrite(rw: Rewriter, node: fx.Node) -> set[fx.Node]:
    """Let a layer read what was packed; returns what nobody may need any more."""
    layer = rw.module(node, nn.RNNBase)
    packed = node.args[0] if node.args else node.kwargs.get("input")
    if layer is None or not isinstance(packed, fx.Node) or packed.target is not PackedSequence:
        return set()
    given = _unpacked(packed)
    made = padded(layer)
    if given is None or made is None or given.batch_first != layer.batch_first:
        rw.skip(node, "how its input was packed is not known")
        return set()
    steps = _part(node, 0)
    consumers = _consumers(steps, given)
    glue = _glue(steps, consumers)
    if consumers is None or glue is None:
        rw.skip(node, "its packed result is not padded to the length of its input")
        return set()
    hx = node.args[1] if len(node.args) > 1 else node.kwargs.get("hx")
    rw.set_module(str(node.target), made)
    rw.call_anew(node, given.data, kwargs={"hx": hx, "lengths": given.lengths})
    if steps is not None:
        steps.meta["spec"] = spec(given.data)
        for result in consumers:
            rw.replace(result, steps)
    return {packed, *glue}


def _glue(steps: fx.Node | None, consumers: list[fx.Node] | None) -> set[fx.Node] | None:
    """What takes a packed result apart and pads it; None if more than the consumers comes of it."""
    found: set[fx.Node] = set()
    waiting = list(steps.users) if steps is not None else []
    while waiting:
        node = waiting.pop()
        if node in found or node in (consumers or ()):
            continue
        if node.target not in _GLUE:
            return None
        found.add(node)
        waiting += node.users
    return found


def _unpacked(packed: fx.Node) -> _Padded | None:
    """What `pack_padded_sequence` was given."""
    data, sizes, order, _ = (*packed.args, *[None] * 4)[:4]
    pack = _whole(data, 0)
    if pack is None or pack is not _whole(sizes, 1) or pack.target is not _PACK:
        return None
    inputs, lengths, first = cast("tuple[Any, Any, Any]", pack.args)
    if order is None:
        return _Padded(inputs, lengths, bool(first), sorted=False)
    sort = _whole(lengths, 0)
    moved = isinstance(inputs, fx.Node) and inputs.target == "index_select"
    if not moved or inputs.args[2] is not order or sort is None or sort.target is not torch.sort:
        return None
    data, lengths = cast("tuple[Any, Any]", (inputs.args[0], sort.args[0]))
    return _Padded(data, lengths, bool(first), sorted=True)


def _consumers(steps: fx.Node | None, given: _Padded) -> list[fx.Node] | None:
    """Paddings of a packed result, in the order of the batch; None if something else reads it."""
    found: list[fx.Node] = []
    for part in steps.users if steps is not None else ():
        if part.target is not operator.getitem:
            return None
        if part.args[1] != 0:
            continue  # sizes and orders, which padding reads as well
        for pad in part.users:
            if pad.target is not _PAD or pad.args[3] != 0 or not given.fills(pad.args[4]):
                return None
            data = _part(pad, 0)
            moved = list(data.users) if data is not None else []
            if given.sorted and any(m.target != "index_select" for m in moved):
                return None
            found += moved if given.sorted else [data] if data is not None else []
    return found


def _part(node: fx.Node, index: int) -> fx.Node | None:
    parts = (u for u in node.users if u.target is operator.getitem and u.args[1] == index)
    return next(parts, None)


def _whole(node: Any, index: int) -> fx.Node | None:
    """The node of whose result this is the part `index`."""
    is_part = isinstance(node, fx.Node) and node.target is operator.getitem
    return node.args[0] if is_part and node.args[1] == index else None
