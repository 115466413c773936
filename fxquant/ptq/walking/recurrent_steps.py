"""What the weights of a recurrent module are multiplied with, step after step.

A direction of a layer multiplies its input `x_t` and its last output `h_{t-1}`. PyTorch runs whole
sequences at once; what it puts out at a step is what the next one is given, so one run tells all.
Sequences are `[N, T, ...]` here, in the order in which the direction goes through them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxquant.nn.containers import Walk as QuantizerWalk
from fxquant.quantization.tensor import plain

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fxquant.ptq.walking.ahead import Operands

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Direction:
    """One direction of one layer of a recurrent module, or a cell.

    Attributes:
        suffix: what the names of its parameters end with.
        layer: number of the layer.
        reverse: whether it begins at the end.
    """

    suffix: str = ""
    layer: int = 0
    reverse: bool = False

    def name(self, kind: str) -> str:
        """Name of a parameter, such as "weight_ih"."""
        return f"{kind}{self.suffix}"


def directions_of(module: nn.Module) -> list[Direction]:
    """Directions in the order in which they are computed."""
    if not isinstance(module, nn.RNNBase):
        return [Direction()]
    found = []
    for layer in range(module.num_layers):
        found.append(Direction(f"_l{layer}", layer))
        if module.bidirectional:
            found.append(Direction(f"_l{layer}_reverse", layer, reverse=True))
    return found


def has_gates_apart(module: nn.Module) -> bool:
    """Whether input and state meet in more than a sum, as in the new state of a GRU."""
    return isinstance(module, nn.GRU | nn.GRUCell)


@dataclass(frozen=True)
class Reads:
    """What a direction is given.

    Attributes:
        x: inputs, `[N, T, I]`.
        h: last outputs, `[N, T, P]`.
        cell: the first cell state, `[N, H]`; None: zeros, or there is none.
        inside: which steps a sequence has, `[N, T]`; None: all.
    """

    x: Tensor
    h: Tensor
    cell: Tensor | None
    inside: Tensor | None


def reads_of(
    module: nn.Module, operands: Operands, values: Mapping[str, Tensor], direction: Direction,
    *, quantized: bool,
) -> Reads:  # fmt: skip
    """What a direction of a layer is given.

    Args:
        module: the recurrent module, or a cell.
        operands: what the module is called with.
        values: its parameters.
        direction: the direction.
        quantized: whether quantizers of the module's inputs are used.
    """
    given = _Given.of(module, operands, quantized=quantized)
    if not isinstance(module, nn.RNNBase):
        hidden, cell = given.first_states(0)
        size: Any = module.hidden_size
        h = given.x.new_zeros(len(given.x), size) if hidden is None else hidden
        return Reads(given.x, h[:, None], cell, None)
    x = given.x
    for below in range(direction.layer):
        outputs = []
        for each in directions_of(module):
            if each.layer == below:
                turned, states = given.turned(x, each), given.of_direction(module, each)
                outputs.append(given.turned(_run(module, turned, states, values, each), each))
        x = torch.cat(outputs, -1)
    x, states = given.turned(x, direction), given.of_direction(module, direction)
    y = _run(module, x, states, values, direction)
    first = y.new_zeros(y[:, :1].shape) if states[0] is None else states[0][:, None].to(y.dtype)
    return Reads(x, torch.cat([first, y[:, :-1]], 1), states[1], given.inside)


def sums(part: str, x: Tensor, values: Mapping[str, Tensor], direction: Direction) -> Tensor:
    """What a weight ("ih" or "hh") makes of its inputs, with its bias: `[N, T, O]`."""
    found = x @ values[direction.name(f"weight_{part}")].mT
    bias = values.get(direction.name(f"bias_{part}"))
    return found if bias is None else found + bias


def unprojected(reads: Reads, values: Mapping[str, Tensor], direction: Direction) -> Tensor:
    """What an LSTM projects: `[N, T, H]`."""
    gates = sums("ih", reads.x, values, direction) + sums("hh", reads.h, values, direction)
    i, f, g, o = gates.chunk(4, -1)
    kept, new, out = f.sigmoid(), i.sigmoid() * g.tanh(), o.sigmoid()
    cell = torch.zeros_like(new[:, 0]) if reads.cell is None else reads.cell
    steps = []
    for step in range(new.shape[1]):
        cell = kept[:, step] * cell + new[:, step]
        steps.append(out[:, step] * cell.tanh())
    return torch.stack(steps, 1)


@dataclass(frozen=True)
class _Given:
    """What a module is called with: `[N, T, I]`, states `[K, N, ...]`, lengths `[N]`."""

    x: Tensor
    states: tuple[Tensor | None, Tensor | None]
    lengths: Tensor | None

    @classmethod
    def of(cls, module: Any, operands: Operands, *, quantized: bool) -> _Given:
        args, kwargs = operands
        if quantized and any(q is not None for q in module.input_quantizers._modules.values()):
            walk = QuantizerWalk(module.input_quantizers)
            args, kwargs = walk.over(args), {k: walk.over(v) for k, v in kwargs.items()}
        named = dict(zip(("input", "hx", "lengths"), args, strict=False)) | kwargs
        x, hx, lengths = plain(named["input"]), named.get("hx"), named.get("lengths")
        hx = hx if isinstance(hx, tuple | list) else [hx]
        states = tuple(plain(state) for state in hx if state is not None)
        in_steps = isinstance(module, nn.RNNBase)
        if x.dim() == (2 if in_steps else 1):  # no axis of samples
            x, states = x[None], tuple(s.unsqueeze(1 if in_steps else 0) for s in states)
        elif in_steps and not module.batch_first:
            x = x.transpose(0, 1)
        if not in_steps:
            x, states = x[:, None], tuple(s[None] for s in states)
        hidden, cell = (*states, None, None)[:2]
        return cls(x, (hidden, cell), lengths)

    def first_states(self, index: int) -> tuple[Tensor | None, Tensor | None]:
        """Of a direction by its number, `[N, ...]` each."""
        hidden, cell = (None if s is None else s[index] for s in self.states)
        return hidden, cell

    def of_direction(
        self, module: nn.RNNBase, direction: Direction
    ) -> tuple[Tensor | None, Tensor | None]:
        return self.first_states(directions_of(module).index(direction))

    @property
    def inside(self) -> Tensor | None:
        if self.lengths is None:
            return None
        steps = torch.arange(self.x.shape[1], device=self.x.device)
        return steps < self.lengths.to(self.x.device)[:, None]

    def turned(self, x: Tensor, direction: Direction) -> Tensor:
        """Sequences in the order of a direction, or back: what is behind their ends stays there."""
        if not direction.reverse:
            return x
        if self.lengths is None:
            return x.flip(1)
        steps = torch.arange(x.shape[1], device=x.device)
        lengths = self.lengths.to(x.device)[:, None]
        index = torch.where(steps < lengths, lengths - 1 - steps, steps)
        return x.gather(1, index[:, :, None].expand_as(x))


def _run(
    module: nn.RNNBase, x: Tensor, states: tuple[Tensor | None, Tensor | None],
    values: Mapping[str, Tensor], direction: Direction,
) -> Tensor:  # fmt: skip
    """What a direction puts out, `[N, T, P]`, beyond the ends of sequences too."""
    kinds = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if module.bias else [])]
    projects = bool(module.proj_size)
    flat = [values[direction.name(kind)] for kind in kinds + ["weight_hr"] * projects]
    sizes = module.proj_size or module.hidden_size, module.hidden_size
    hidden, cell = (
        x.new_zeros(1, len(x), size) if state is None else state[None].to(x.dtype)
        for size, state in zip(sizes, states, strict=True)
    )
    rest = (flat, bool(module.bias), 1, 0.0, False, False, True)
    if isinstance(module, nn.LSTM):
        return torch.lstm(x, (hidden, cell), *rest)[0]
    kind = torch.gru if isinstance(module, nn.GRU) else _simple(module)
    return kind(x, hidden, *rest)[0]


def _simple(module: nn.RNNBase) -> Any:
    return torch.rnn_relu if module.nonlinearity == "relu" else torch.rnn_tanh
